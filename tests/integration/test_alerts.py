"""The sensor tells every address once, through webhooks that really listen."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from daemon import daemon
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.test_utils import create_run_for_test
from webhook import SECRET, Webhook, listening

from atft_model.errors import InputError
from atft_pipeline import alerts
from atft_pipeline.__main__ import main, materialize
from atft_pipeline.alerts import digest
from atft_pipeline.checks.outcome import Outcome, spec, verdicts
from atft_pipeline.delivery import DeliveryError, deliver, hide, labelled, secrets_of

ROOT = Path(__file__).parents[2]
PRICES = "ATFT check failed: prices:quarantined_share_within_limit"


@pytest.fixture
def webhook(monkeypatch) -> Iterator[Webhook]:
    with listening() as server:
        monkeypatch.setenv("ATFT_ALERTS", server.url)
        yield server


@pytest.fixture
def other() -> Iterator[Webhook]:
    with listening() as server:
        yield server


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def evaluates(
    instance: dg.DagsterInstance, *verdicts: tuple[str, bool], severity: str = "ERROR"
) -> str:
    """A run that records one verdict per check of the asset ``table``, and its id."""
    names = list(dict.fromkeys(name for name, _ in verdicts))

    @dg.asset(check_specs=[dg.AssetCheckSpec(name, asset="table") for name in names])
    def table():
        yield dg.Output(None)
        for name, passed in verdicts:
            yield dg.AssetCheckResult(
                check_name=name, passed=passed, severity=dg.AssetCheckSeverity[severity],
                metadata={"figure": "7 rows", "threshold": "at most 0"},
            )  # fmt: skip

    return dg.materialize([table], instance=instance).run_id


def fails(instance: dg.DagsterInstance, reason: str = "the vendor is closed") -> str:
    """A run whose only step raises."""

    @dg.asset
    def broken_table():
        raise dg.Failure(reason, allow_retries=False)

    return dg.materialize([broken_table], instance=instance, raise_on_error=False).run_id


def tick(instance: dg.DagsterInstance, cursor: str | None) -> tuple[str, str | None]:
    """One evaluation of the sensor: its words and the cursor it leaves."""
    context = dg.build_sensor_context(instance=instance, cursor=cursor)
    reason = alerts.alerts(context)
    assert isinstance(reason, dg.SkipReason)
    return str(reason.skip_message), context.cursor


def test_a_failed_check_of_the_real_graph_arrives_once(webhook, instance, tables_copy, config):
    settings = config(tables_copy, prices={"max_quarantined_share": 0.0})
    assert not materialize("prices", settings, instance).success
    said, cursor = tick(instance, None)
    (run,) = instance.get_runs()
    assert said == "json 1: 2 sent"
    assert webhook.titles == [PRICES, f"ATFT run failed: materialization {run.run_id[:8]}"]
    check, failed = (alert["message"] for alert in webhook.accepted)
    assert check.startswith("ERROR prices:quarantined_share_within_limit\nfound ")
    assert "rows (0.20%), expected at most 0%" in check
    assert f"http://127.0.0.1:3000/runs/{run.run_id}" in check
    assert "/assets/prices?view=checks&checkDetail=quarantined_share_within_limit" in check
    assert failed.startswith("prices: ")
    assert tick(instance, cursor)[0] == "json 1: 0 sent"
    assert len(webhook.accepted) == 2


def test_each_partition_of_a_check_is_told_by_its_own_name(webhook, instance):
    """A period that holds is no recovery of another one."""

    def judged(period: str, passed: bool) -> None:
        @dg.asset(check_specs=[spec("table", "one", "It holds.")], output_required=False)
        def table():
            yield from verdicts("table", [Outcome("one", passed, "7 rows", "at most 0", "WARN")],
                                None, {}, partition=period)  # fmt: skip

        dg.materialize([table], instance=instance)

    judged("2018", False)
    judged("2019", True)
    _, cursor = tick(instance, None)
    judged("2018", True)
    tick(instance, cursor)
    assert webhook.titles == ["ATFT check failed: table:one [2018]",
                              "ATFT check holds again: table:one [2018]"]  # fmt: skip


def test_a_failed_run_says_which_step_and_why(webhook, instance):
    run_id = fails(instance)
    tick(instance, None)
    (alert,) = webhook.accepted
    assert alert["title"] == f"ATFT run failed: materialization {run_id[:8]}"
    assert alert["message"].startswith("broken_table: the vendor is closed\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [(ValueError("disk full\nat once"), "broken_table: ValueError: disk full"),
     (ValueError("x" * 900), f"broken_table: ValueError: {'x' * 488}")],
)  # fmt: skip
def test_of_a_step_that_raised_the_first_line_is_told_and_no_more_than_500_characters(
    webhook, instance, error, said
):
    @dg.asset
    def broken_table():
        raise error

    job = dg.Definitions([broken_table], jobs=[dg.define_asset_job("nightly")]).resolve_job_def(
        "nightly"
    )
    run_id = job.execute_in_process(instance=instance, raise_on_error=False).run_id
    tick(instance, None)
    (alert,) = webhook.accepted
    assert alert["title"] == f"ATFT run failed: nightly {run_id[:8]}"
    assert alert["message"].splitlines()[0] == said


def test_a_run_that_failed_without_a_step_says_what_dagster_says(webhook, instance):
    """As when its process was killed: the daemon's monitoring writes the failure."""
    run = create_run_for_test(instance, job_name="nightly")
    instance.report_run_failed(run, message="the run's process ended with -9")
    tick(instance, None)
    (alert,) = webhook.accepted
    assert alert["message"].startswith("the run's process ended with -9\n")


def test_what_failed_while_no_daemon_ran_arrives_once(webhook, instance):
    _, cursor = tick(instance, None)
    evaluates(instance, ("one", False), ("two", False), ("three", True))
    _, cursor = tick(instance, cursor)
    tick(instance, cursor)
    assert webhook.titles == ["ATFT check failed: table:one", "ATFT check failed: table:two"]


def test_failures_of_the_day_before_the_first_tick_are_told_and_older_ones_are_history(
    webhook, instance, monkeypatch
):
    evaluates(instance, ("one", False))
    monkeypatch.setattr(alerts, "LOOKBACK", timedelta(0))
    _, cursor = tick(instance, None)
    assert webhook.accepted == []
    evaluates(instance, ("two", False))
    tick(instance, cursor)
    assert webhook.titles == ["ATFT check failed: table:two"]


def test_many_failures_are_one_message_that_counts_repeats(webhook, instance):
    evaluates(instance, *((f"check_{n}", False) for n in range(6)))
    evaluates(instance, ("check_0", False))
    fails(instance)
    _, cursor = tick(instance, None)
    (alert,) = webhook.accepted
    assert alert["title"] == "ATFT 7 x check failed, 1 x run failed"
    lines = alert["message"].splitlines()
    assert lines[0] == "2 x check failed: table:check_0: ERROR, found 7 rows, expected at most 0"
    assert len(lines) == 6 + 1 + 1
    assert tick(instance, cursor)[0] == "json 1: 0 sent"


@pytest.mark.parametrize(("failures", "messages"), [(5, 5), (6, 1)])
def test_more_than_five_at_once_are_one_message(webhook, instance, failures, messages):
    evaluates(instance, *((f"check_{n}", False) for n in range(failures)))
    tick(instance, None)
    assert len(webhook.accepted) == messages


def test_a_digest_shows_the_newest_figure_of_a_fact():
    alert = digest([alerts.Alert("check failed: a", "9 rows", ""),
                    alerts.Alert("check failed: a", "4 rows", "")])  # fmt: skip
    assert alert.title == "2 x check failed"
    assert alert.body.splitlines()[0] == "2 x check failed: a: 4 rows"


def test_a_digest_has_an_end(webhook, instance, monkeypatch):
    monkeypatch.setattr(alerts, "DIGEST_LINES", 3)
    evaluates(instance, *((f"check_{n}", False) for n in range(10)))
    tick(instance, None)
    assert "and 7 more, see http://127.0.0.1:3000" in webhook.accepted[0]["message"]


def test_a_check_that_holds_again_is_said_once(webhook, instance):
    evaluates(instance, ("one", False))
    _, cursor = tick(instance, None)
    evaluates(instance, ("one", True))
    _, cursor = tick(instance, cursor)
    evaluates(instance, ("one", True))
    tick(instance, cursor)
    assert webhook.titles == [
        "ATFT check failed: table:one",
        "ATFT check holds again: table:one",
    ]


def test_warnings_can_be_left_out(webhook, instance, monkeypatch):
    monkeypatch.setenv("ATFT_ALERT_LEVEL", "error")
    evaluates(instance, ("mild", False), severity="WARN")
    _, cursor = tick(instance, None)
    assert webhook.accepted == []
    evaluates(instance, ("mild", True), severity="WARN")
    evaluates(instance, ("grave", False))
    _, cursor = tick(instance, cursor)
    assert webhook.titles == ["ATFT check failed: table:grave"]
    monkeypatch.setenv("ATFT_ALERT_LEVEL", "WARN")
    evaluates(instance, ("mild", False), severity="WARN")
    tick(instance, cursor)
    assert webhook.titles[1:] == ["ATFT check failed: table:mild"]


def test_an_unknown_level_is_said(webhook, instance, monkeypatch):
    monkeypatch.setenv("ATFT_ALERT_LEVEL", "LOUD")
    with pytest.raises(
        InputError, match=r"ATFT_ALERT_LEVEL is 'LOUD'; expected one of WARN, ERROR"
    ):
        tick(instance, None)


def test_an_address_that_is_down_delays_nobody_and_hears_it_later_once(
    webhook, other, instance, monkeypatch
):
    monkeypatch.setenv("ATFT_ALERTS", f"{webhook.url} {other.url}")
    evaluates(instance, ("one", False), ("two", False))
    webhook.status = 500
    said, cursor = tick(instance, None)
    assert said.startswith("json 1: 0 sent; json 2: 2 sent; json 1: not delivered: ")
    assert "500" in said
    assert SECRET not in said
    assert len(other.accepted) == 2
    # Nothing new: the tick fails, so that the fault is red, and Dagster keeps the last cursor.
    with pytest.raises(DeliveryError, match=r"json 1: not delivered.*trying again"):
        tick(instance, cursor)
    webhook.status = 200
    said, cursor = tick(instance, cursor)
    assert said == "json 1: 2 sent; json 2: 0 sent"
    assert webhook.titles == other.titles


def test_what_was_taken_before_a_fault_is_not_sent_again(webhook, instance):
    evaluates(instance, ("one", False), ("two", False))
    taken = []

    def send(alert: alerts.Alert) -> None:
        if taken:
            raise DeliveryError("json 1: not delivered")
        taken.append(alert.title)

    events, _ = alerts.read_events(instance.event_log_storage, 0)
    progress, sent, refusal = alerts.tell(alerts.Progress(0), events, "WARN", send)
    assert (sent, refusal) == (1, "json 1: not delivered")
    taken.clear()
    events, _ = alerts.read_events(instance.event_log_storage, progress.after)
    alerts.tell(progress, events, "WARN", send)
    assert taken == ["check failed: table:two"]


def test_more_events_than_a_tick_reads_all_arrive_in_order(webhook, instance, monkeypatch):
    monkeypatch.setattr(alerts, "BATCH", 2)
    for n in range(5):
        evaluates(instance, (f"check_{n}", False))
    fails(instance)
    cursor = None
    for _ in range(5):
        _, cursor = tick(instance, cursor)
    assert [title.rpartition(":")[2] for title in webhook.titles[:5]] == [
        f"check_{n}" for n in range(5)
    ]
    assert len(webhook.titles) == 6
    assert webhook.titles[5].startswith("ATFT run failed")


def test_a_new_address_s_beginning_lies_behind_any_number_of_old_events(instance, monkeypatch):
    monkeypatch.setattr(alerts, "BATCH", 2)
    for n in range(5):
        evaluates(instance, (f"old_{n}", False))
    since = time.time()
    evaluates(instance, ("new", False))
    progress = alerts.beginning(instance.event_log_storage, since)
    events, _ = alerts.read_events(instance.event_log_storage, progress.after)
    found = [alert.title for alert, _ in alerts.steps(events, progress, "WARN", "") if alert]
    assert found == ["check failed: table:new"]


def freshness(before: str, after: str) -> dg.EventLogEntry:
    change = FreshnessStateChange(
        key=dg.AssetKey("raw_prices"), new_state=FreshnessState(after),
        previous_state=FreshnessState(before), state_change_timestamp=0.0,
    )  # fmt: skip
    event = DagsterEvent(
        event_type_value=DagsterEventType.FRESHNESS_STATE_CHANGE.value,
        event_specific_data=change, job_name="",
    )  # fmt: skip
    return dg.EventLogEntry(
        error_info=None, level="info", user_message="", run_id="", timestamp=time.time(),
        dagster_event=event,
    )  # fmt: skip


def test_a_table_that_goes_stale_is_told_and_again_when_it_is_fresh(webhook, instance):
    instance.store_event(freshness("PASS", "FAIL"))
    _, cursor = tick(instance, None)
    instance.store_event(freshness("FAIL", "PASS"))
    tick(instance, cursor)
    assert webhook.titles == ["ATFT stale: raw_prices", "ATFT fresh again: raw_prices"]


def test_only_what_was_told_stale_is_told_fresh_again_and_once(webhook, instance):
    instance.store_event(freshness("UNKNOWN", "PASS"))
    _, cursor = tick(instance, None)
    for change in (("PASS", "FAIL"), ("FAIL", "PASS"), ("WARN", "PASS")):
        instance.store_event(freshness(*change))
    tick(instance, cursor)
    assert webhook.titles == ["ATFT stale: raw_prices", "ATFT fresh again: raw_prices"]


@pytest.mark.parametrize(("level", "told"), [("WARN", ["ATFT stale: raw_prices"]), ("ERROR", [])])
def test_a_table_that_begins_to_age_is_a_warning(webhook, instance, monkeypatch, level, told):
    monkeypatch.setenv("ATFT_ALERT_LEVEL", level)
    instance.store_event(freshness("PASS", "WARN"))
    tick(instance, None)
    assert webhook.titles == told


def test_nobody_listening_is_a_failed_delivery_without_its_secret(
    instance, monkeypatch, caplog, capfd
):
    monkeypatch.setenv("ATFT_ALERTS", f"json://127.0.0.1:9/{SECRET}")
    caplog.set_level(logging.DEBUG)
    evaluates(instance, ("one", False))
    said, cursor = tick(instance, None)
    with pytest.raises(DeliveryError, match="json 1: not delivered") as caught:
        tick(instance, cursor)
    seen = [said, cursor, str(caught.value), *capfd.readouterr(), caplog.text]
    assert not any(SECRET in str(text) for text in seen)


def test_an_address_that_is_none_is_an_error_without_its_secret(
    instance, monkeypatch, caplog, capfd
):
    monkeypatch.setenv("ATFT_ALERTS", f"nonsense-{SECRET}")
    evaluates(instance, ("one", False))
    said, cursor = tick(instance, None)
    assert "address 1: ATFT_ALERTS holds an address that apprise cannot read" in said
    with pytest.raises(DeliveryError, match="apprise cannot read") as caught:
        tick(instance, cursor)
    seen = [said, cursor, str(caught.value), *capfd.readouterr(), caplog.text]
    assert not any(SECRET in str(text) for text in seen)


def test_the_vendors_key_in_a_failure_is_hidden(webhook, instance, monkeypatch):
    monkeypatch.setenv("JQUANTS_API_KEY", "key-of-the-vendor")
    fails(instance, "403 for https://api/?key=key-of-the-vendor")
    tick(instance, None)
    assert "403 for https://api/?key=***" in webhook.accepted[0]["message"]


def test_a_secret_in_a_title_is_hidden(webhook, instance, monkeypatch):
    monkeypatch.setenv("JQUANTS_API_KEY", "table_key")
    evaluates(instance, ("of_table_key", False))
    tick(instance, None)
    assert webhook.titles == ["ATFT check failed: table:of_***"]


def test_the_sensor_is_on_by_default():
    assert alerts.alerts.default_status == dg.DefaultSensorStatus.RUNNING


def test_every_piece_of_an_address_that_may_be_a_token_is_a_secret_and_no_short_word():
    url = "json://user:passw0rd@host.example:9000/abcd/x?key=abcde"
    pieces = ["user", "passw0rd", "host.example", "9000", "abcd", "abcde"]
    assert secrets_of(url) == [url, *pieces]


def test_an_address_that_apprise_quotes_is_hidden_in_the_reason(webhook, monkeypatch):
    def quotes(self, **message: str) -> bool:
        logging.getLogger("apprise").warning("no answer from %s", webhook.url)
        return False

    monkeypatch.setattr("apprise.Apprise.notify", quotes)
    with pytest.raises(DeliveryError, match=r"not delivered: no answer from \*\*\*$"):
        deliver(labelled([webhook.url])[0], "title", "body")


def test_a_delivery_leaves_the_log_as_it_was(webhook):
    logger = logging.getLogger("apprise")
    before = list(logger.handlers), logger.propagate
    deliver(labelled([webhook.url])[0], "title", "body")
    assert (list(logger.handlers), logger.propagate) == before


def test_an_addresss_repr_and_label_hold_no_secret():
    first, second, third = labelled(["slack://aaaa/bbbb", "json://host/x", "slack://cccc"])
    assert [first.label, second.label, third.label] == ["slack 1", "json 1", "slack 2"]
    assert "aaaa" not in repr(first)
    assert hide("x abcd abc", ["abc", "abcd"]) == "x *** ***"


def test_without_addresses_the_sensor_says_so(instance, monkeypatch):
    monkeypatch.delenv("ATFT_ALERTS", raising=False)
    evaluates(instance, ("one", False))
    assert tick(instance, None) == ("nobody to tell: ATFT_ALERTS is not set", None)


def test_alert_test_sends_one_message_and_says_what_became_of_it(webhook, monkeypatch, capsys):
    assert main(["alert-test"]) == 0
    assert webhook.titles == ["ATFT test"]
    assert capsys.readouterr().out == "delivered json 1\n"
    webhook.status = 500
    assert main(["alert-test"]) == 1
    assert capsys.readouterr().out.startswith("FAILED json 1: not delivered: ")
    monkeypatch.delenv("ATFT_ALERTS")
    assert main(["alert-test"]) == 2
    assert "ATFT_ALERTS is not set" in capsys.readouterr().out


def test_a_skill_verdict_raises_the_alert_too(webhook, instance, whole_copy, config):
    assert materialize("evaluation", config(whole_copy), instance).success
    tick(instance, None)
    assert {title.rpartition(":")[2] for title in webhook.titles} == {
        "sharpe_above_threshold",
        "sharpe_significant",
        "rank_ic_positive",
        "rank_ic_above_baselines",
    }


@pytest.mark.slow
def test_a_real_daemon_tells_once_what_failed_while_it_was_down(webhook, tmp_path, tables, config):
    """Two runs from the command line fail a check each; then the daemon starts, twice."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(ROOT / "dagster_home" / "dagster.yaml", home)
    data = Path(shutil.copytree(tables, tmp_path / "data"))
    environment = {
        **os.environ, "DAGSTER_HOME": str(home), "PYTHONPATH": str(ROOT),
        "ATFT_DATA_DIR": str(data), "ATFT_ALERTS": webhook.url,
    }  # fmt: skip
    refused = [
        ("prices", {"max_quarantined_share": 0.0}),
        ("trading_universe", {"min_raw_close": 1e9}),
    ]
    for asset, settings in refused:
        done = subprocess.run(
            [sys.executable, "-m", "dagster", "asset", "materialize", "--select", asset,
             "-m", "atft_pipeline.definitions",
             "--config-json", json.dumps(config(data, **{asset: settings}))],
            cwd=ROOT, env=environment, timeout=240, check=False, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode != 0, done.stdout
    assert webhook.accepted == []
    log = tmp_path / "daemon.log"
    with daemon(environment, log) as process:
        end = time.monotonic() + 150
        while time.monotonic() < end and len(webhook.titles) < 4:
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
        time.sleep(5)  # the tick that delivered records how far it came
        first = list(webhook.titles)
    with daemon(environment, log):
        time.sleep(75)  # Start-up and more than one tick.
    assert PRICES in first
    assert "ATFT check failed: trading_universe:universe_is_wide" in first
    assert sum("run failed" in title for title in first) == 2
    assert len(first) == len(set(first))
    assert webhook.titles == first
    assert SECRET not in log.read_text()
