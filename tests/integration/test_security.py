"""Names cannot leave the data dir, files cannot run code, servers listen to this machine alone."""

import ast
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from atft_model.errors import InputError
from atft_model.training.checkpoint import load_state, load_weights
from atft_pipeline.resources import Market, data_folder, is_plain_name
from atft_pipeline.storage import Storage
from atft_pipeline.tensorboard import command

ROOT = Path(__file__).parents[2]
ESCAPES = ("..", ".", "../elsewhere", "a/b", "/etc", "a/../..", "a\0b", "a/")
SOURCES = sorted((*ROOT.glob("atft_model/**/*.py"), *ROOT.glob("atft_pipeline/**/*.py")))


@pytest.mark.parametrize("name", ESCAPES)
def test_a_data_set_s_name_cannot_leave_the_data_dir(name, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="expected a plain folder name"):
        data_folder(str(tmp_path), name, "synthetic")
    with pytest.raises(InputError, match="expected a plain folder name"):
        _ = Storage(market=Market(), data_dir=str(tmp_path), dataset=name).root
    if "\0" not in name:  # no variable can hold it
        monkeypatch.setenv("ATFT_DATASET", name)
        with pytest.raises(InputError, match="ATFT_DATASET"):
            data_folder(str(tmp_path), None, "synthetic")


def test_a_plain_name_is_a_folder_of_the_data_dir(tmp_path):
    assert data_folder(str(tmp_path), "tokyo", "synthetic") == tmp_path / "tokyo"
    assert is_plain_name("20261121-101500-abc123")


@pytest.mark.parametrize("name", ["..", "../models/run-1", "/etc"])
def test_the_run_to_resume_cannot_lead_out_of_the_models(name, tmp_path, run):
    """Above all ``..``: it is a folder, and its own last part."""
    for asset in ("panel", "stock_graph", "models/run-1"):
        (tmp_path / "synthetic" / asset).mkdir(parents=True)
        (tmp_path / "synthetic" / asset / "current.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    result = run("trained_model", tmp_path, trained_model={"resume": name})
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    said = failure.step_failure_data.user_failure_data.description
    assert said.startswith(f"resume is {name!r}; expected the name of a folder in ")
    assert sorted(tmp_path.rglob("*")) == before


class Planted:
    """Unpickled, it makes a file: a stand-in for any command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("load", [load_weights, load_state])
def test_a_checkpoint_with_code_in_it_is_not_executed(load, tmp_path):
    import torch

    path, mark = tmp_path / "best.pt", tmp_path / "executed"
    torch.save({"w": Planted(mark)}, path)
    with pytest.raises(pickle.UnpicklingError):
        load(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the planted code is harmless: this test would prove nothing"


def test_an_array_with_code_in_it_is_not_executed(tmp_path):
    path, mark = tmp_path / "features.npy", tmp_path / "executed"
    np.save(path, np.array([Planted(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        np.load(path)
    assert not mark.exists()


def calls(path: Path) -> list[tuple[str, set[str], int]]:
    """(dotted name, ``keyword=value`` of its constants, line) of every call in a file."""
    return [
        (ast.unparse(node.func),
         {f"{word.arg}={ast.unparse(word.value)}" for word in node.keywords}, node.lineno)
        for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    ]  # fmt: skip


UNSAFE = {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "os.system", "joblib.load"}


def unsafe(path: Path) -> list[str]:
    """Calls of a file that could execute what a file or a setting holds."""
    return [
        f"{path.name}:{line} {name}"
        for name, keywords, line in calls(path)
        if name in UNSAFE or "shell=True" in keywords or "allow_pickle=True" in keywords
        or (name == "torch.load" and "weights_only=True" not in keywords)
    ]  # fmt: skip


def test_no_source_file_loads_in_a_way_that_executes_code():
    assert len(SOURCES) > 100
    assert [found for path in SOURCES for found in unsafe(path)] == []


@pytest.mark.parametrize(
    "line",
    ["torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)",
     "pickle.loads(b)", "eval(text)", "subprocess.run(c, shell=True)", "yaml.load(text)"],
)  # fmt: skip
def test_each_unsafe_call_would_be_found(line, tmp_path):
    (tmp_path / "bad.py").write_text(f"x = {line}\n")
    assert len(unsafe(tmp_path / "bad.py")) == 1


def open_servers(makefile: str) -> list[str]:
    """Command lines that start a server without binding it to this machine."""
    return [
        line.strip() for line in makefile.splitlines()
        if re.search(r"bin/(dagster dev|dg dev|tensorboard|dagster-webserver)|BIN\)/(dagster dev|"
                     r"dg dev|tensorboard --|dagster-webserver)", line)
        and not re.search(r"(-h|--host) 127\.0\.0\.1", line)
    ]  # fmt: skip


def test_servers_that_make_starts_listen_to_this_machine_alone():
    text = (ROOT / "Makefile").read_text()
    assert "127.0.0.1" in text
    assert open_servers(text) == []
    assert len(open_servers(text.replace("127.0.0.1", "0.0.0.0"))) == 1
    assert "--host 127.0.0.1" in " ".join(command(Path("events"), 6006))
