"""Every trained run adds one line to the ledger, and nothing that was there changes."""

import json
import logging

import pytest

from atft_model.__main__ import main
from atft_model.run import append_trial, count_trials


@pytest.fixture(autouse=True)
def _own_log_handlers():
    """The command opens a log file per run; in one process they are closed by hand."""
    log = logging.getLogger("atft")
    before = list(log.handlers)
    yield
    for handler in set(log.handlers) - set(before):
        log.removeHandler(handler)
        handler.close()


@pytest.fixture
def train(stored_panel, tmp_path, capsys):
    """Runs the train command into a folder of a name; returns its exit code."""
    settings = {
        "model": {"hidden_size": 16, "heads": 2, "lookback": 5},
        "training": {"max_epochs": 1, "max_steps_per_epoch": 2, "device": "cpu"},
    }
    (tmp_path / "run.json").write_text(json.dumps(settings))

    def command(name: str, **changes: str) -> int:
        options = {
            "panel": str(stored_panel[0]),
            "graph": str(stored_panel[1]),
            "out": str(tmp_path / "models" / name),
            "preset": "quick",
            "run-file": str(tmp_path / "run.json"),
            "ledger": str(tmp_path / "ledger.jsonl"),
            **changes,
        }
        return main(["train", *(word for k, v in options.items() for word in (f"--{k}", v))])

    return command


def test_each_trained_run_adds_one_line_and_keeps_the_others(train, tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    assert count_trials(ledger) == 0
    written = b""
    for number, name in enumerate(("run-1", "run-2", "run-3"), start=1):
        assert train(name) == 0
        text = ledger.read_bytes()
        assert text.startswith(written)
        added = json.loads(text[len(written) :])
        record = json.loads((tmp_path / "models" / name / "run.json").read_text())
        assert added == {key: record[key] for key in added}
        assert added["run_id"] == name
        assert text.count(b"\n") == count_trials(ledger) == number
        written = text


def test_a_run_that_failed_or_was_refused_adds_none(train, tmp_path, capsys):
    ledger = tmp_path / "ledger.jsonl"
    assert train("run-1", panel=str(tmp_path / "none")) == 2
    assert not ledger.exists()
    assert train("run-1") == 0
    before = ledger.read_bytes()
    assert train("run-1") == 2
    assert "a run was trained here already" in capsys.readouterr().err
    assert ledger.read_bytes() == before


def test_the_ledger_outlives_the_run_folders(train, tmp_path):
    import shutil

    assert train("run-1") == 0
    shutil.rmtree(tmp_path / "models")
    assert train("run-2") == 0
    assert count_trials(tmp_path / "ledger.jsonl") == 2


def test_a_line_holds_what_deflates_a_sharpe_ratio(tmp_path):
    record = {
        "run_id": "r", "finished_at": "t", "checkpoint_hash": "c", "panel_hash": "p",
        "best_validation_rank_ic": 0.05, "weights": "not for the ledger",
    }  # fmt: skip
    assert append_trial(tmp_path / "new" / "ledger.jsonl", record) == 1
    line = json.loads((tmp_path / "new" / "ledger.jsonl").read_text())
    assert line == {key: value for key, value in record.items() if key != "weights"}


def test_a_run_killed_after_its_line_is_on_the_ledger_once(train, tmp_path, monkeypatch):
    """The line comes before run.json: no finished run lacks it, and resuming adds no second."""
    import atft_model.run as run

    write = run.write_text_atomically

    def killed(path, text):
        if path.name == "run.json":
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(run, "write_text_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        train("run-1")
    assert count_trials(tmp_path / "ledger.jsonl") == 1
    assert not (tmp_path / "models" / "run-1" / "run.json").exists()
    monkeypatch.undo()
    assert train("run-1") == 0
    assert (tmp_path / "models" / "run-1" / "run.json").exists()
    assert count_trials(tmp_path / "ledger.jsonl") == 1
