"""The command lines that the README promises, each as a person types it in a shell.

A project folder of its own holds ``activate.sh`` and, as ``.venv``, the environment of these tests;
so the defaults of ``activate.sh`` (data, Dagster's home) lead there and nowhere else.
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
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DATA_SET = "synthetic"

pytestmark = pytest.mark.skipif(
    not (Path(sys.prefix) / "bin" / "activate").exists(),
    reason="these tests run from no virtual environment",
)


@pytest.fixture
def project(tmp_path) -> Path:
    """What ``activate.sh`` finds beside itself."""
    folder = tmp_path / "project"
    (folder / "dagster_home").mkdir(parents=True)
    shutil.copy(ROOT / "activate.sh", folder)
    shutil.copy(ROOT / "dagster_home" / "dagster.yaml", folder / "dagster_home")
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def environment(project: Path) -> dict[str, str]:
    kept = ("PATH", "LANG", "OMP_NUM_THREADS", "POLARS_MAX_THREADS")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "HOME": str(project.parent),
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
    }


def shell(project: Path, command: str) -> subprocess.CompletedProcess[str]:
    """The command after ``source activate.sh``; what it prints, errors among it."""
    return subprocess.run(
        ["bash", "-c", f"source {project}/activate.sh && {command}"],
        cwd=ROOT, env=environment(project), timeout=240, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def as_json(config: dict) -> str:
    return f"'{json.dumps(config)}'"


def without_places(config: dict) -> dict:
    """The run config without its data dir: that is ``activate.sh``'s to say."""
    resources = {name: value for name, value in config["resources"].items() if name != "storage"}
    return {**config, "resources": resources}


def test_assets_materialize_into_the_project_and_a_missing_upstream_is_named(project, config):
    small = as_json(without_places(config(project)))
    done = shell(
        project,
        f"dagster asset materialize --select raw_listings --config-json {small} "
        "&& dagster asset materialize --select trained_model",
    )
    assert (project / "data" / DATA_SET / "raw_listings.parquet").exists()
    assert done.returncode != 0
    assert (
        "has not been materialized; build it with everything upstream: "
        "dagster asset materialize --select '*trained_model'" in done.stdout
    )


def test_our_own_command_prints_verdicts_and_no_noise(project, config):
    (project / "run.yaml").write_text(yaml.safe_dump(without_places(config(project))))
    done = shell(
        project, f"python -m atft_pipeline run --select raw_listings --config {project}/run.yaml"
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"holds.*raw_listings:contract_holds +60 rows", done.stdout)
    assert "Warning" not in done.stdout
    assert "[pipes]" not in done.stdout


def test_a_bad_config_ends_with_code_2_and_one_line(project):
    (project / "run.yaml").write_text("ops: {trained_model: {config: {trainig: {}}}}")
    done = shell(project, f"python -m atft_pipeline run --config {project}/run.yaml")
    assert done.returncode == 2
    assert done.stdout == (
        "atft_pipeline: run config: ops.trained_model.config: unknown key 'trainig'; "
        "did you mean 'training'?\n"
    )


@pytest.fixture
def before_training(project, tables) -> Path:
    """The project with everything that ``trained_model`` needs."""
    shutil.copytree(tables, project / "data")
    return project


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    ["dagster asset materialize --select trained_model", "dg launch --assets trained_model"],
)
def test_a_model_is_trained(before_training, small_model, command):
    settings = as_json({"ops": {"trained_model": {"config": small_model}}})
    done = shell(before_training, f"{command} --config-json {settings}")
    assert done.returncode == 0, done.stdout
    models = before_training / "data" / DATA_SET / "models"
    run_id = json.loads((models / "current.json").read_text())["hash"]
    assert (models / run_id / "best.pt").exists()
    assert "Epoch 4/4" in done.stdout
    # Dagster's own commands announce their own beta features; nothing else warns.
    assert "Attempted to inject context" not in done.stdout
    assert "DeprecationWarning" not in done.stdout
    assert "PreviewWarning" not in done.stdout


@pytest.mark.slow
def test_everything_up_to_the_evaluation_from_one_command(project, config, small_model):
    settings = as_json(without_places(config(project, trained_model=small_model)))
    done = shell(
        project, f"dagster asset materialize --select '*evaluation' --config-json {settings}"
    )
    assert done.returncode == 0, done.stdout
    root = project / "data" / DATA_SET
    assert (root / "evaluation.parquet").exists()
    assert len(list((root / "reports").glob("*.html"))) == 1


@pytest.mark.slow
def test_a_run_file_and_config_json_train_the_same_weights(before_training, small_model):
    lines = ["preset = 'quick'"]
    for section, values in small_model.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(v)}" for key, v in values.items())]
    (before_training / "run.toml").write_text("\n".join(lines))
    hashes = set()
    for settings in (small_model, {"run_file": str(before_training / "run.toml")}):
        given = as_json({"ops": {"trained_model": {"config": settings}}})
        done = shell(
            before_training,
            f"dagster asset materialize --select trained_model --config-json {given}",
        )
        assert done.returncode == 0, done.stdout
        models = before_training / "data" / DATA_SET / "models"
        run_id = json.loads((models / "current.json").read_text())["hash"]
        hashes.add(json.loads((models / run_id / "run.json").read_text())["checkpoint_hash"])
    assert len(hashes) == 1


@contextmanager
def server(project: Path, command: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """A server on a free port, in a process group of its own, which must end with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (project / "server.log").open("w")
    process = subprocess.Popen(
        ["bash", "-c", f"source {project}/activate.sh && {command} -h 127.0.0.1 -p {port}"],
        cwd=ROOT, env=environment(project), start_new_session=True, stdout=log, stderr=log,
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        if group_lives(process):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def group_lives(process: subprocess.Popen) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(holds, seconds: float, process: subprocess.Popen | None = None) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and (process is None or process.poll() is None):
        if holds():
            return True
        time.sleep(0.3)
    return bool(holds())


def answer(url: str, query: str | None = None) -> dict | None:
    """The JSON of a page or of a GraphQL query; None while nobody answers."""
    body = json.dumps({"query": query}).encode() if query else None
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.status == 200
            return json.load(response)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


@pytest.mark.slow
@pytest.mark.parametrize("command", ["dagster dev", "dg dev"])
def test_the_ui_serves_the_project_and_leaves_no_orphan(project, command):
    with server(project, command) as (url, process):
        up = wait_until(lambda: answer(f"{url}/server_info"), 120, process)
        printed = (project / "server.log").read_text()
        assert up, printed
        found = answer(f"{url}/graphql", "{assetNodes {assetKey {path}}}")
        assert found is not None
        names = {node["assetKey"]["path"][-1] for node in found["data"]["assetNodes"]}
        assert {"raw_prices", "trained_model", "evaluation"} <= names
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches the whole group.
        assert wait_until(lambda: not group_lives(process), 60)
