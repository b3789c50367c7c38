"""The command lines that the README promises, each as a person types it in a shell.

A project folder of its own holds ``activate.sh`` and, as ``.venv``, the environment of these tests;
so the defaults of ``activate.sh`` (data, Dagster's home) lead there and nowhere else.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from webserver import answer, free_port, launch, run_of, wait_until

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
    port = free_port()
    log = (project / "server.log").open("w")
    process = subprocess.Popen(
        ["bash", "-c", f"source {project}/activate.sh && {command} -h 127.0.0.1 -p {port}"],
        cwd=ROOT, env=environment(project), start_new_session=True, stdout=log, stderr=log,
        # A shell starts what it sends to the background with Ctrl-C ignored, and children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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


def slots_in_use(url: str) -> int:
    """Of the pool ``gpu``."""
    found = answer(f"{url}/graphql", """{instance {concurrencyLimit(concurrencyKey: "gpu")
        {activeSlotCount}}}""")  # fmt: skip
    assert found is not None
    return found["data"]["instance"]["concurrencyLimit"]["activeSlotCount"]


def epochs_shown(url: str) -> bool:
    """Whether the asset's page has an epoch's figures."""
    found = answer(
        f"{url}/graphql",
        """{assetNodeOrError(assetKey: {path: ["trained_model"]})
        {... on AssetNode {assetObservations(limit: 1) {metadataEntries {label}}}}}""",
    )
    shown = found["data"]["assetNodeOrError"]["assetObservations"] if found else []
    figures = {"train_loss", "val_rank_ic", "grad_norm/gat", "windows_per_second"}
    return any(
        figures <= {entry["label"] for entry in observed["metadataEntries"]} for observed in shown
    )


def trainers(models: Path) -> list[int]:
    """Processes that train into these folders."""
    return [
        int(words.parent.name)
        for words in Path("/proc").glob("[0-9]*/cmdline")
        if str(models).encode() in read_if_there(words) and b"\0train\0" in read_if_there(words)
    ]


def read_if_there(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def steps_taken(models: Path) -> int:
    """Steps of the only run, as its checkpoint has them; 0 before there is one."""
    from atft_model.training.checkpoint import load_state

    states = list(models.glob("*/state.pt"))
    assert len(states) <= 1
    return json.loads(load_state(states[0])["host"])["progress"]["step"] if states else 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the trainer under /proc")
@pytest.mark.parametrize("nproc", [1, 2])
def test_terminating_in_the_ui_stops_the_trainer_and_frees_its_pool(
    before_training, small_model, nproc
):
    """A second run then gets the pool's only slot, and goes on from the first one's checkpoint."""
    models = before_training / "data" / DATA_SET / "models"
    endless = {
        **small_model, "nproc": nproc,
        "training": {**small_model["training"], "max_epochs": 100_000,
                     "early_stopping_patience": 0, "checkpoint_seconds": 0.0},
    }  # fmt: skip
    with server(before_training, "dagster dev") as (url, process):
        assert wait_until(lambda: answer(f"{url}/server_info"), 180, process)
        resume: dict = {}
        reached = 0
        for _ in range(2):
            settings = {"ops": {"trained_model": {"config": {**endless, **resume}}}}
            run_id = launch(url, ["trained_model"], settings)
            further = reached + 5
            assert wait_until(lambda at=further: steps_taken(models) >= at, 240, process), (
                run_of(url, run_id), (before_training / "server.log").read_text()[-3000:],
            )  # fmt: skip
            assert wait_until(lambda: epochs_shown(url), 60, process)
            assert slots_in_use(url) == 1
            assert len(trainers(models)) == (1 if nproc == 1 else nproc + 1)
            stopped = answer(f"{url}/graphql", f"""mutation {{terminateRun(runId: "{run_id}",
                terminatePolicy: SAFE_TERMINATE) {{__typename}}}}""")  # fmt: skip
            assert stopped is not None
            assert stopped["data"]["terminateRun"]["__typename"] == "TerminateRunSuccess"
            asked = time.monotonic()
            assert wait_until(lambda: not trainers(models), 60, process)
            assert time.monotonic() - asked < 20
            assert wait_until(
                lambda run=run_id: run_of(url, run)["status"] == "CANCELED", 60, process
            )
            assert wait_until(lambda: slots_in_use(url) == 0, 60, process)
            reached = steps_taken(models)
            (folder,) = models.glob("*/state.pt")
            resume = {"resume": folder.parent.name}
        assert not (folder.parent / "run.json").exists()
        os.killpg(process.pid, signal.SIGINT)
        assert wait_until(lambda: not group_lives(process), 60)
