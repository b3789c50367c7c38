"""The three servers of deploy/README.md on Postgres: two runs at once, and a daemon that is killed.

They get the files of deploy/ and the commands of its text. Skipped where Debian's Postgres or the
extra ``deploy`` is missing.
"""

import importlib.util
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from daemon import ROOT, background, daemon
from postgres import PASSWORD, postgres, programs
from webhook import SECRET, Webhook, listening
from webserver import answer, free_port, launch, run_of, wait_until

UP_TO_PRICES = ("raw_prices", "raw_listings", "prices")
UP_TO_FEATURES = (*UP_TO_PRICES, "raw_indices", "raw_statements", "raw_investor_flows",
                  "trading_universe", "features")  # fmt: skip
PATIENCE = 240
TICKS = 70
"""Seconds in which a daemon starts and its sensor ticks more than once."""
RECORDED = 5
"""Seconds in which a tick that has delivered records how far it came."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(programs() is None, reason="no Postgres (Debian: apt-get install "
                       "postgresql)"),
    pytest.mark.skipif(importlib.util.find_spec("dagster_postgres") is None,
                       reason="no dagster-postgres (pip install -e '.[deploy]' -c "
                       "constraints.txt)"),
]  # fmt: skip


@dataclass(frozen=True)
class Deployment:
    """Code server and webserver at work; a daemon is each test's own business."""

    url: str
    environment: dict[str, str]
    workspace: Path
    folder: Path
    webhook: Webhook

    def daemon(self) -> Any:
        """A daemon while the context lasts."""
        return daemon(self.environment, self.folder / "daemon.log", "-w", str(self.workspace))

    def launch(self, data_set: str, assets: tuple[str, ...] = UP_TO_PRICES, **ops: Any) -> str:
        """Asks for a run on a market of its own data set."""
        resources = {"market": {"config": {"stocks": 120, "dates": 420}},
                     "storage": {"config": {"dataset": data_set}}}  # fmt: skip
        config = {"resources": resources, "ops": {k: {"config": v} for k, v in ops.items()}}
        return launch(self.url, assets, config)

    def status(self, run_id: str) -> str:
        return run_of(self.url, run_id)["status"]

    def comes_to(self, status: str, *run_ids: str) -> bool:
        """Whether all do; waits no longer than until all have ended."""
        ends = ({status}, {"SUCCESS"}, {"FAILURE"}, {"SUCCESS", "FAILURE"})
        wait_until(lambda: {self.status(run) for run in run_ids} in ends, PATIENCE)
        return {self.status(run) for run in run_ids} == {status}

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


@pytest.fixture(scope="module")
def deployment(tmp_path_factory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    (folder / "home").mkdir()
    shutil.copy(ROOT / "deploy" / "dagster.yaml", folder / "home")
    code, port = free_port(), free_port()
    workspace = folder / "workspace.yaml"
    text = (ROOT / "deploy" / "workspace.yaml").read_text()
    local = text.replace("host: code", "host: 127.0.0.1").replace("port: 4000", f"port: {code}")
    assert local.count("127.0.0.1") == local.count(str(code)) == 1
    workspace.write_text(local)
    with ExitStack() as servers:
        webhook = servers.enter_context(listening())
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "DAGSTER_HOME": str(folder / "home"),
            "ATFT_DATA_DIR": str(folder / "data"), "ATFT_ALERTS": webhook.url,
            "DAGSTER_POSTGRES_URL": servers.enter_context(postgres()),
        }  # fmt: skip
        server = ("code-server", "start", "-h", "127.0.0.1", "-p", str(code))
        for name, arguments in (
            ("code", ("-m", "dagster", *server, "-m", "atft_pipeline.definitions")),
            ("webserver", ("-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port),
                           "-w", str(workspace))),
        ):  # fmt: skip
            log = folder / f"{name}.log"
            servers.enter_context(background(list(arguments), environment, log))
        url = f"http://127.0.0.1:{port}"
        found = Deployment(url, environment, workspace, folder, webhook)
        definitions = "{repositoriesOrError {... on RepositoryConnection {nodes {name}}}}"
        up = wait_until(lambda: "__repository__" in str(answer(f"{url}/graphql", definitions)), 180)
        assert up, found.logs()
        yield found


def test_two_runs_at_once_overlap_and_both_end_well(deployment):
    with deployment.daemon():
        runs = [deployment.launch(name) for name in ("one", "two")]
        assert deployment.comes_to("SUCCESS", *runs), deployment.logs()
    first, second = (run_of(deployment.url, run) for run in runs)
    assert max(first["startTime"], second["startTime"]) < min(first["endTime"], second["endTime"])
    for name in ("one", "two"):
        assert (deployment.folder / "data" / name / "prices.parquet").exists()


def test_a_killed_daemon_stops_no_run_and_its_successor_takes_up_what_waits(deployment):
    """And of the check that failed meanwhile each address hears once, as of the run."""
    webhook = deployment.webhook
    with deployment.daemon() as process:
        running = deployment.launch("three", UP_TO_FEATURES)
        assert deployment.comes_to("STARTED", running), deployment.logs()
        os.killpg(process.pid, signal.SIGKILL)
    waiting = deployment.launch("three_b", prices={"max_quarantined_share": 0.0})
    assert deployment.comes_to("SUCCESS", running), deployment.logs()
    assert deployment.status(waiting) == "QUEUED"
    assert webhook.accepted == []
    with deployment.daemon():
        assert deployment.comes_to("FAILURE", waiting), deployment.logs()
        assert wait_until(lambda: len(webhook.titles) == 2, TICKS), deployment.logs()
        time.sleep(RECORDED)
    with deployment.daemon():
        time.sleep(TICKS)
    assert sorted(webhook.titles) == [
        "ATFT check failed: prices:quarantined_share_within_limit",
        f"ATFT run failed: materialization {waiting[:8]}",
    ]


def process_of(deployment: Deployment, run_id: str) -> int:
    """Number of the process that executes the run, as its event log has it; 0 before there is."""
    events = f"""{{runOrError(runId: "{run_id}")
        {{... on Run {{eventConnection {{events {{... on MessageEvent {{message}}}}}}}}}}}}"""
    found = re.search(r"process \(pid: (\d+)\)", str(answer(f"{deployment.url}/graphql", events)))
    return int(found[1]) if found else 0


def test_a_run_whose_process_is_killed_fails_and_is_told(deployment):
    told = len(deployment.webhook.titles)
    with deployment.daemon():
        killed = deployment.launch("four", UP_TO_FEATURES)
        assert wait_until(lambda: process_of(deployment, killed), PATIENCE), deployment.logs()
        os.kill(process_of(deployment, killed), signal.SIGKILL)
        assert deployment.comes_to("FAILURE", killed), deployment.logs()
        assert wait_until(lambda: len(deployment.webhook.titles) > told, TICKS), deployment.logs()
    assert deployment.webhook.titles[told:] == [f"ATFT run failed: materialization {killed[:8]}"]


def test_no_log_of_a_server_holds_a_secret(deployment):
    """Runs last, over all that the others made the servers print."""
    printed = deployment.logs()
    assert "Launched 2 runs" in printed
    assert PASSWORD not in printed
    assert SECRET not in printed
