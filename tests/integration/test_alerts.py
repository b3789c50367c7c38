"""The sensor delivers each failed check once, to a webhook that really listens."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dagster as dg
import pytest

from atft_pipeline.__main__ import materialize
from atft_pipeline.alerts import failed_checks

SECRET = "s3cret-token"


class Webhook(ThreadingHTTPServer):
    """Keeps the JSON bodies that it accepted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.status = 200
        self.accepted: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        """The address in apprise's spelling."""
        return f"json://127.0.0.1:{self.server_address[1]}/{SECRET}"


class Receiver(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.status == 200:
            self.server.accepted.append(body)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing to the terminal."""


@pytest.fixture
def webhook(monkeypatch) -> Iterator[Webhook]:
    with Webhook() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        monkeypatch.setenv("ATFT_ALERTS", server.url)
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture
def broken(tables_copy, config):
    """Materializes prices so that one of their two checks fails."""

    def materialize_prices(instance: dg.DagsterInstance) -> None:
        settings = config(tables_copy, prices={"max_quarantined_share": 0.0})
        assert not materialize("prices", settings, instance).success

    return materialize_prices


def tick(instance: dg.DagsterInstance, cursor: str | None) -> tuple[str, str]:
    """One evaluation of the sensor: its words and the cursor it leaves."""
    context = dg.build_sensor_context(instance=instance, cursor=cursor)
    reason = failed_checks(context)
    assert isinstance(reason, dg.SkipReason)
    return str(reason.skip_message), str(context.cursor)


def test_a_failed_check_arrives_once(webhook, instance, broken):
    said, cursor = tick(instance, None)
    assert said == "watching from now on"
    broken(instance)
    said, cursor = tick(instance, cursor)
    assert said.endswith(" check results, 1 alerts sent")
    (alert,) = webhook.accepted
    assert alert["title"] == "ATFT check failed: prices:quarantined_share_within_limit"
    assert "ERROR prices:quarantined_share_within_limit" in alert["message"]
    assert "rows (0.20%) (expected: at most 0%)" in alert["message"]
    (run,) = instance.get_runs()
    assert run.run_id in alert["message"]
    assert tick(instance, cursor)[0] == "0 check results, 0 alerts sent"
    assert len(webhook.accepted) == 1


def test_failures_before_the_first_tick_are_history(webhook, instance, broken):
    broken(instance)
    _, cursor = tick(instance, None)
    tick(instance, cursor)
    assert webhook.accepted == []


def test_what_could_not_be_delivered_is_tried_again(webhook, instance, broken):
    _, cursor = tick(instance, None)
    broken(instance)
    webhook.status = 500
    context = dg.build_sensor_context(instance=instance, cursor=cursor)
    with pytest.raises(RuntimeError, match="could not be delivered") as caught:
        failed_checks(context)
    assert SECRET not in str(caught.value)
    # A tick that fails keeps the cursor from before it: Dagster starts the next one from there.
    webhook.status = 200
    tick(instance, cursor)
    assert len(webhook.accepted) == 1


def test_nobody_listening_is_a_failed_delivery(instance, broken, monkeypatch):
    monkeypatch.setenv("ATFT_ALERTS", f"json://127.0.0.1:9/{SECRET}")
    _, cursor = tick(instance, None)
    broken(instance)
    with pytest.raises(RuntimeError, match="could not be delivered"):
        tick(instance, cursor)


def test_an_address_that_is_none_is_an_error_without_its_secret(instance, broken, monkeypatch):
    monkeypatch.setenv("ATFT_ALERTS", f"nonsense-{SECRET}")
    _, cursor = tick(instance, None)
    broken(instance)
    with pytest.raises(RuntimeError, match="apprise cannot read") as caught:
        tick(instance, cursor)
    assert SECRET not in str(caught.value)


def test_without_addresses_results_are_passed_over(instance, broken, monkeypatch):
    monkeypatch.delenv("ATFT_ALERTS", raising=False)
    _, cursor = tick(instance, None)
    broken(instance)
    said, cursor = tick(instance, cursor)
    assert said.endswith(" check results, 0 alerts sent")
    assert not said.startswith("0 ")
    assert tick(instance, cursor)[0] == "0 check results, 0 alerts sent"


def test_a_skill_verdict_raises_the_alert_too(webhook, instance, whole_copy, config):
    _, cursor = tick(instance, None)
    assert materialize("evaluation", config(whole_copy), instance).success
    tick(instance, cursor)
    assert {alert["title"].rpartition(":")[2] for alert in webhook.accepted} == {
        "sharpe_above_threshold",
        "sharpe_significant",
        "rank_ic_positive",
        "rank_ic_above_baselines",
    }
