"""Alerts: failed asset checks and failed runs, to the addresses in ATFT_ALERTS."""

from collections.abc import Iterable

import dagster as dg
from dagster import DagsterEventType

from atft_pipeline.resources import alert_addresses

TITLE = "ATFT check failed"
BATCH = 500
"""Events read per tick."""


def send(title: str, body: str, addresses: Iterable[str]) -> None:
    """Delivers one message to every address.

    Raises:
        RuntimeError: an address refused it; the caller tries again later. Addresses are not named:
            they hold secrets.
    """
    import apprise

    notifier = apprise.Apprise()
    for address in addresses:
        if not notifier.add(address):
            raise RuntimeError("ATFT_ALERTS holds an address that apprise cannot read")
    if not notifier.notify(title=title, body=body):
        raise RuntimeError("an alert could not be delivered to every address of ATFT_ALERTS")


@dg.sensor(
    default_status=dg.DefaultSensorStatus.RUNNING, minimum_interval_seconds=30,
    description="Sends each failed asset check to ATFT_ALERTS, wherever the run was started.",
)  # fmt: skip
def failed_checks(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Reads check evaluations since the last handled one; its first tick starts at the newest.

    Raises:
        RuntimeError: nothing could be delivered; the cursor stays. A tick that fails loses its
            cursor, so one that delivered something ends well, and the next one meets the fault.
    """
    storage = context.instance.event_log_storage
    if context.cursor is None:
        context.update_cursor(str(storage.get_maximum_record_id() or 0))
        return dg.SkipReason("watching from now on")
    addresses = alert_addresses()
    records = storage.get_logs_for_all_runs_by_log_id(
        int(context.cursor), DagsterEventType.ASSET_CHECK_EVALUATION, limit=BATCH
    )
    sent = 0
    for log_id, entry in sorted(records.items()):
        evaluation = entry.get_dagster_event().asset_check_evaluation_data
        if not evaluation.passed and addresses:
            name = f"{evaluation.asset_key.to_user_string()}:{evaluation.check_name}"
            body = (
                f"{evaluation.severity.value} {name}\n{evaluation.description}\nrun {entry.run_id}"
            )
            try:
                send(f"{TITLE}: {name}", body, addresses)
            except RuntimeError as error:
                if not sent:
                    raise
                return dg.SkipReason(f"{sent} alerts sent, then: {error}; trying again")
            sent += 1
        context.update_cursor(str(log_id))
    return dg.SkipReason(f"{len(records)} check results, {sent} alerts sent")


SENSORS = [failed_checks]
