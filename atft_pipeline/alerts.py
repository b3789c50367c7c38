"""Alerts: what failed, and what holds again, to the addresses in ATFT_ALERTS.

One sensor reads the instance's event log, so it sees every run, wherever it was started, and what
happened while no daemon ran. Each address has its own progress: one that is down is tried again
every tick and neither delays the others nor makes them hear anything twice.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from dagster import DagsterEventType

from atft_pipeline.checks.outcome import PARTITION
from atft_pipeline.delivery import Address, DeliveryError, deliver, hide, labelled
from atft_pipeline.resources import alert_level, alert_urls, secrets, ui_url

BATCH = 500
"""Events of each type read per tick."""
DIGEST_ABOVE = 5
"""More alerts than this in one tick become one message."""
DIGEST_LINES = 40
"""Services cut long messages off; what a digest leaves out is in the UI."""
REASON_LENGTH = 500
"""Characters of a failed run's reason: the rest is in the run's log."""
LOOKBACK = timedelta(days=1)
"""What an address that was never written to still hears of: failures of the last day, so that none
falls between the first run and the first tick; older ones are history."""

CHECK = DagsterEventType.ASSET_CHECK_EVALUATION
RUN = DagsterEventType.RUN_FAILURE
STALE = DagsterEventType.FRESHNESS_STATE_CHANGE

Events = Sequence[tuple[int, dg.EventLogEntry]]
"""(log id, event), oldest first."""


@dataclass(frozen=True)
class Alert:
    """One thing to tell.

    Attributes:
        title: What happened to what: ``check failed: prices:contract_holds``.
        found: The figure and what was expected, or the reason.
        body: The whole message.
    """

    title: str
    found: str
    body: str


@dataclass(frozen=True)
class Progress:
    """How far one address has been told.

    Attributes:
        after: Log id of the last event that it needs not hear of any more.
        failing: What it was told has failed and does not yet hold again.
    """

    after: int
    failing: frozenset[str] = frozenset()


def read_events(storage: Any, after: int) -> tuple[Events, int]:
    """The events after a log id, and the id up to which none is missing from them."""
    complete = storage.get_maximum_record_id() or 0
    found: dict[int, dg.EventLogEntry] = {}
    for event_type in (CHECK, RUN, STALE):
        part = storage.get_logs_for_all_runs_by_log_id(after, event_type, limit=BATCH)
        found |= part
        if len(part) == BATCH:
            complete = min(complete, max(part))
    return sorted((i, event) for i, event in found.items() if i <= complete), complete


def beginning(storage: Any, since: float) -> Progress:
    """The progress of an address that was never written to: before the first event ``since``."""
    after = 0
    while True:
        events, complete = read_events(storage, after)
        recent = [log_id for log_id, event in events if event.timestamp >= since]
        if recent or not events:
            return Progress(min(recent, default=complete + 1) - 1)
        after = complete


def steps(
    events: Events, progress: Progress, level: str, ui: str
) -> Iterator[tuple[Alert | None, Progress]]:
    """What each event is worth telling, and the progress once that is told."""
    worth = {CHECK: _of_check, RUN: _of_run, STALE: _of_freshness}
    failing = progress.failing
    for log_id, event in events:
        of_type = worth[event.get_dagster_event().event_type]
        alert, failing = of_type(event, failing, level, ui)
        yield alert, Progress(log_id, failing)


def _of_check(
    event: dg.EventLogEntry, failing: frozenset[str], level: str, ui: str
) -> tuple[Alert | None, frozenset[str]]:
    evaluation = event.get_dagster_event().asset_check_evaluation_data
    asset, check = evaluation.asset_key.to_user_string(), evaluation.check_name
    figures = {key: value.value for key, value in evaluation.metadata.items()}
    partition = evaluation.partition or figures.get(PARTITION)
    name = f"{asset}:{check} [{partition}]" if partition else f"{asset}:{check}"
    found = evaluation.description or ""
    if {"figure", "threshold"} <= figures.keys():
        found = f"found {figures['figure']}, expected {figures['threshold']}"
    severity = evaluation.severity.value
    page = f"{ui}/assets/{asset}?view=checks&checkDetail={check}"
    body = f"{name}\n{found}\nrun {ui}/runs/{event.run_id}\ncheck {page}"
    if evaluation.passed:
        holds = Alert(f"check holds again: {name}", found, body) if name in failing else None
        return holds, failing - {name}
    if severity == "WARN" and level == "ERROR":
        return None, failing
    alert = Alert(f"check failed: {name}", f"{severity}, {found}", f"{severity} {body}")
    return alert, failing | {name}


def _of_run(
    event: dg.EventLogEntry, failing: frozenset[str], level: str, ui: str
) -> tuple[Alert, frozenset[str]]:
    reason = _reason(event.get_dagster_event())
    job = event.job_name or "?"
    name = "materialization" if job.startswith("__") else job
    title = f"run failed: {name} {event.run_id[:8]}"
    return Alert(title, reason, f"{reason}\nrun {ui}/runs/{event.run_id}"), failing


def _reason(event: Any) -> str:
    """Why a run failed: what its first failed step said, or the run's own message."""
    data = event.event_specific_data
    step = data.first_step_failure_event if data else None
    if step is None:
        error = data.error if data else None
        return _first_line(error.message if error else event.message or "no reason recorded")
    said = step.event_specific_data.user_failure_data
    error = step.event_specific_data.error
    while error and error.cause:
        error = error.cause
    words = (said.description if said else None) or (error.message if error else "no reason given")
    return f"{step.step_key}: {_first_line(words)}"


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:REASON_LENGTH] if lines else "no reason given"


def _of_freshness(
    event: dg.EventLogEntry, failing: frozenset[str], level: str, ui: str
) -> tuple[Alert | None, frozenset[str]]:
    change = event.get_dagster_event().asset_freshness_state_change_data
    asset = change.key.to_user_string()
    name, state = f"{asset} is fresh", change.new_state.value
    body = f"{asset}: freshness {state}, before {change.previous_state.value}\n{ui}/assets/{asset}"
    found = f"freshness {state}"
    if state == "FAIL" or (state == "WARN" and level == "WARN"):
        return Alert(f"stale: {asset}", found, body), failing | {name}
    if state == "PASS" and name in failing:
        return Alert(f"fresh again: {asset}", found, body), failing - {name}
    return None, failing


def digest(many: Sequence[Alert]) -> Alert:
    """Many alerts as one; the same fact several times is one line with its count."""
    count = Counter(alert.title for alert in many)
    last = {alert.title: alert for alert in many}
    lines = [
        f"{f'{count[title]} x ' if count[title] > 1 else ''}{title}: {alert.found}"
        for title, alert in last.items()
    ]
    kinds = Counter(alert.title.partition(":")[0] for alert in many)
    title = ", ".join(f"{number} x {kind}" for kind, number in kinds.items())
    if len(lines) > DIGEST_LINES:
        left = len(lines) - DIGEST_LINES
        lines = [*lines[:DIGEST_LINES], f"and {left} more, see {ui_url()}"]
    return Alert(title, "", "\n".join([*lines, ui_url()]))


def tell(
    progress: Progress, events: Events, level: str, send: Callable[[Alert], None]
) -> tuple[Progress, int, str | None]:
    """Tells one address what it has not heard.

    Returns:
        Its new progress, the number of messages taken, and why the last one was not, if so.
    """
    planned = list(steps(events, progress, level, ui_url()))
    worth = [alert for alert, _ in planned if alert]
    if len(worth) > DIGEST_ABOVE:
        planned = [(digest(worth), planned[-1][1])]
    sent = 0
    for alert, after_it in planned:
        if alert:
            try:
                send(alert)
            except DeliveryError as error:
                return progress, sent, str(error)
            sent += 1
        progress = after_it
    return progress, sent, None


def sender(address: Address) -> Callable[[Alert], None]:
    """Delivers to the address, with every secret of the environment hidden."""
    hidden = secrets()

    def send(alert: Alert) -> None:
        deliver(address, hide(f"ATFT {alert.title}", hidden), hide(alert.body, hidden))

    return send


@dg.sensor(
    default_status=dg.DefaultSensorStatus.RUNNING, minimum_interval_seconds=30,
    description="Sends each failed check, failed run and stale table to ATFT_ALERTS once, and says "
                "when it holds again, wherever the run was started.",
)  # fmt: skip
def alerts(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Tells every address what happened since it was last told.

    Raises:
        DeliveryError: a message was not taken and nothing else changed. A tick that fails loses
            its cursor, so one that moved on ends well, and the next one shows the fault in red.
    """
    addresses = labelled(alert_urls())
    if not addresses:
        return dg.SkipReason("nobody to tell: ATFT_ALERTS is not set")
    storage, level = context.instance.event_log_storage, alert_level()
    before = _progress(context.cursor)
    since = (datetime.now(UTC) - LOOKBACK).timestamp()
    after: dict[str, Progress] = {}
    words, refused = [], []
    for address in addresses:
        start = before.get(address.label) or beginning(storage, since)
        events, _ = read_events(storage, start.after)
        reached, sent, refusal = tell(start, events, level, sender(address))
        after[address.label] = reached
        words.append(f"{address.label}: {sent} sent")
        if refusal:
            refused.append(refusal)
    if refused and after == before:
        raise DeliveryError(f"{'; '.join(refused)}; trying again")
    context.update_cursor(_cursor(after))
    return dg.SkipReason("; ".join([*words, *refused]))


def _progress(cursor: str | None) -> dict[str, Progress]:
    """The progress of each address by its label, as the last tick left it."""
    stored = json.loads(cursor) if cursor else {}
    return {label: Progress(value["after"], frozenset(value["failing"]))
            for label, value in stored.items()}  # fmt: skip


def _cursor(progress: Mapping[str, Progress]) -> str:
    return json.dumps({label: {"after": value.after, "failing": sorted(value.failing)}
                       for label, value in progress.items()})  # fmt: skip


def alert_test() -> list[str]:
    """Sends one message to every address.

    Returns:
        One line per address: delivered, or why not.
    """
    lines = []
    for address in labelled(alert_urls()):
        alert = Alert("test", "", "A test message: alerts of failed checks and runs arrive here.")
        try:
            sender(address)(alert)
        except DeliveryError as error:
            lines.append(f"FAILED {error}")
        else:
            lines.append(f"delivered {address.label}")
    return lines


SENSORS = [alerts]
