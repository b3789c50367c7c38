"""Walks in a real browser: materialize, see it work, open a failed check; TensorBoard's curves.

Drives Debian's Chromium over its debugging port; where there is no Chromium it is skipped.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import yaml
from websockets.sync.client import ClientConnection, connect

from atft_model.config import resolve
from atft_model.run import train
from atft_model.training.reporter import Reporter

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
PATIENCE = 240.0
NEWEST_RUN = """[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))
    .find(href => /^.runs.[0-9a-f-]{36}$/.test(href))"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium (Debian: apt-get install chromium)"),
]


class Page:
    """One tab, driven by its debugging protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection, self.sent = connection, 0

    def call(self, method: str, **params: object) -> dict:
        """One command and its answer; events in between are dropped."""
        self.sent += 1
        self.connection.send(json.dumps({"id": self.sent, "method": method, "params": params}))
        while True:
            answer = json.loads(self.connection.recv(timeout=60))
            if answer.get("id") == self.sent:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, script: str) -> object:
        """The value of an expression in the page."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get(
            "value"
        )

    def text(self) -> str:
        """What a person can read."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def see(self, *words: str) -> str:
        """Waits until all words stand on the page."""
        end = time.monotonic() + PATIENCE
        while not all(word in self.text() for word in words):
            assert time.monotonic() < end, f"never saw {words} in:\n{self.text()}"
            time.sleep(0.5)
        return self.text()

    def click(self, label: str) -> None:
        """Clicks the innermost thing whose text begins with the label, once it is there."""
        script = f"""(() => {{
            const fits = e => e.innerText && e.innerText.trim().startsWith({json.dumps(label)});
            const shown = query => [...document.querySelectorAll(query)]
                .filter(e => fits(e) && !e.disabled && e.offsetParent !== null);
            const inner = shown('div, span').filter(e => ![...e.children].some(fits));
            const found = [...inner.slice(0, 1), ...shown('a, button, [role=tab]')];
            if (found.length) found[found.length - 1].click();
            return found.length > 0;
        }})()"""
        end = time.monotonic() + PATIENCE
        while not self.evaluate(script):
            assert time.monotonic() < end, f"nothing to click called {label!r} in:\n{self.text()}"
            time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def read(url: str) -> str:
    """What a page says; nothing where there is none."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.read().decode()
    except urllib.error.HTTPError:
        return ""


def ended(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def project(tmp_path, tables, config) -> dict[str, str]:
    """The environment of a project whose ``normalized_features`` failed for some features."""
    home, data = tmp_path / "home", tmp_path / "data"
    home.mkdir()
    settings = (ROOT / "dagster_home" / "dagster.yaml").read_text()
    # Else the first visit opens a dialog that invites to a newsletter.
    (home / "dagster.yaml").write_text(settings + "nux: {enabled: false}\n")
    shutil.copytree(tables, data)
    environment = {**os.environ, "DAGSTER_HOME": str(home), "ATFT_DATA_DIR": str(data),
                   "PYTHONPATH": str(ROOT)}  # fmt: skip
    strict = config(data, normalized_features={"std_upper": 1.0})
    (tmp_path / "strict.yaml").write_text(yaml.safe_dump(strict))
    command = ["-m", "atft_pipeline", "run", "--select", "normalized_features", "--config"]
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path / "strict.yaml")], cwd=ROOT, env=environment,
        check=False, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    return environment


@pytest.fixture
def ui(project, tmp_path) -> Iterator[str]:
    port = free_port()
    with (tmp_path / "ui.log").open("w") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "dagster"), "dev", "-h", "127.0.0.1",
             "-p", str(port)],
            cwd=ROOT, env=project, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            end = time.monotonic() + PATIENCE
            while not answers(f"http://127.0.0.1:{port}/server_info"):
                assert time.monotonic() < end, (tmp_path / "ui.log").read_text()
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            ended(process)


@pytest.fixture
def page(tmp_path) -> Iterator[Page]:
    profile, port = tmp_path / "profile", free_port()
    process = subprocess.Popen(
        [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu",
         "--no-first-run", "--disable-dev-shm-usage", f"--remote-debugging-port={port}",
         f"--user-data-dir={profile}", "--window-size=1600,1000", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    try:
        end = time.monotonic() + PATIENCE
        while not answers(f"http://127.0.0.1:{port}/json/list"):
            assert time.monotonic() < end, "chromium does not answer"
            time.sleep(0.3)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as response:
            (tab,) = [tab for tab in json.load(response) if tab["type"] == "page"]
        with connect(tab["webSocketDebuggerUrl"], max_size=None) as connection:
            yield Page(connection)
    finally:
        ended(process)


def test_materialize_see_progress_and_find_the_feature_that_failed_in_two_clicks(project, ui, page):
    page.call("Page.navigate", url=f"{ui}/assets/raw_listings")
    page.see("raw_listings", "One row per stock", "Owners", "research")
    page.click("Materialize")
    page.see("Launched run")
    page.call("Page.navigate", url=f"{ui}/runs")
    page.see("raw_listings", "Success")

    page.call("Page.navigate", url=f"{ui}/assets/trained_model")
    page.see("trained_model", "on the panel's train dates")
    page.click("Materialize")
    page.click("Confirm")  # that upstream was materialized from the command line
    page.see("Launched run")
    page.call("Page.navigate", url=f"{ui}/runs")
    page.see("trained_model", "Started")
    page.call("Page.navigate", url=ui + str(page.evaluate(NEWEST_RUN)))
    # While it trains: the step at work and for how long, its events as they come, the way to stop.
    page.see("Started", "Executing (1)", "trained_model", "RUN_START", "Terminate")

    page.call("Page.navigate", url=f"{ui}/assets/normalized_features")
    page.see("normalized_features")
    clicks = ("Checks", "normalized_within_bounds")
    for label in clicks:
        page.click(label)
    said = page.see("normalized_within_bounds", "Failed", "figure", "threshold")
    assert len(clicks) == 2
    # What is at fault, not only that something is: features by name, with figure and bound.
    named = re.findall(r"([a-z][a-z0-9_]+): std is ([0-9.]+), expected from 0.8 to 1", said)
    rejected = Path(project["ATFT_DATA_DIR"]) / "synthetic" / "rejected"
    statistics = pl.read_parquet(rejected / "feature_statistics.parquet")
    stds = dict(statistics.select("feature", "std").iter_rows())
    assert named
    assert all(f"{stds[feature]:g}" == std for feature, std in named)


@pytest.fixture
def board(stored_panel, tmp_path) -> Iterator[tuple[str, Path]]:
    """TensorBoard as `make tensorboard` starts it, where nothing was trained yet; its data set."""
    pytest.importorskip("tensorboard")
    port = free_port()
    environment = {**os.environ, "ATFT_DATA_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(
        [str(ROOT), os.environ.get("PYTHONPATH", "")])}  # fmt: skip
    with (tmp_path / "board.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "atft_pipeline.tensorboard", "--serve", "--port", str(port)],
            cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            end = time.monotonic() + PATIENCE
            while not answers(f"http://127.0.0.1:{port}/"):
                assert time.monotonic() < end, (tmp_path / "board.log").read_text()
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}", tmp_path / "synthetic"
        finally:
            process.terminate()
            process.wait(30)
    assert not answers(f"http://127.0.0.1:{port}/")  # it took TensorBoard with it


def test_tensorboard_shows_the_curves_of_a_run_that_begins_after_it(board, page, stored_panel):
    url, data_set = board
    small = {"model": {"hidden_size": 16, "heads": 2, "lookback": 5},
             "training": {"max_epochs": 2, "max_steps_per_epoch": 20, "batch_windows": 1,
                          "run_length": 4, "device": "cpu"}}  # fmt: skip
    train(resolve("quick", [("test", small)]), *stored_panel, data_set / "models" / "run-1",
          Reporter())  # fmt: skip
    end = time.monotonic() + PATIENCE
    curve = f"{url}/data/plugin/scalars/scalars?run=run-1&tag=loss%2Ftrain%2Ftotal"
    while ", 40, " not in read(curve):
        assert time.monotonic() < end, "the last reading never came"
        time.sleep(1)
    page.call("Page.navigate", url=f"{url}/#timeseries")
    # Beside each curve stands its last point: here that of the last of 40 steps.
    said = page.see("run-1", "activation_gradient/normalized_features", "gradient", "Smoothed")
    assert "\n40\n" in said, said
