"""Every rank of a run with faults records the same bits, decides alike, and outlives a kill."""

import dataclasses
import signal

import pytest
import torch
from ranks import COLLAPSED, Job, exit_codes, recorded, start_ranks, train_planted

from atft_model.config import RunConfig, resolve
from atft_model.data.toy_panel import HORIZONS
from atft_model.training.distributed import ALONE

STEPS = 12
TIMED = {"windows_per_second", "seconds", "memory_mb", "resident_mb"}
CURVES = {"loss", "score_std", "epoch"}
DECISIONS = {"skipped", "guard"}


def config(**training) -> RunConfig:
    """Two runs of two dates a step, one for each rank. Brake and guard have work; the second epoch
    learns nothing, so that the run stops early."""
    return resolve(
        "quick",
        [("test", {
            "model": {"hidden_size": 16, "heads": 2, "lookback": 5, "dropout": 0.2},
            "optimizer": {"clip_norm": 5.0, "brake_norm": 100.0,
                          "schedule": "plateau", "learning_rate_stages": (1e-3,), "stage_epochs": 1,
                          "learning_rate": 1e-30},
            "guard": {"patience": 2},
            "training": {"max_epochs": 4, "batch_windows": 100, "run_length": 2, "device": "cpu",
                         "max_steps_per_epoch": STEPS, "max_skipped_share": 1.0,
                         "early_stopping_patience": 1, "keep": "best",
                         "checkpoint_seconds": 0.0, **training},
        })],
    )  # fmt: skip


def untimed(rows: list[tuple]) -> dict[tuple, float]:
    return {row[:-1]: row[-1] for row in rows if row[4] not in TIMED}


def same_bits(mine: dict[tuple, float], others: dict[tuple, float]) -> list[tuple]:
    """Where two records differ; NaN is equal to NaN."""
    keys = mine.keys() | others.keys()
    return sorted(key for key in keys if repr(mine.get(key)) != repr(others.get(key)))


@pytest.fixture(scope="module")
def two_ranks(stored_panel, tmp_path_factory) -> tuple[Job, list[dict[tuple, float]]]:
    """A run of two ranks, and what each recorded."""
    job = Job(config(), *stored_panel, tmp_path_factory.mktemp("two") / "run-1")
    assert exit_codes(start_ranks(job)) == [0, 0]
    return job, [untimed(recorded(job.folder, rank)) for rank in (0, 1)]


def test_both_ranks_record_the_same_bits(two_ranks):
    leading, following = two_ranks[1]
    assert same_bits(leading, following) == []


def test_the_faults_were_there_for_both_to_answer(two_ranks):
    _, following = two_ranks[1]
    causes = {key[4] for key in following if key[2] == "skipped"}
    assert causes == {"not finite", "brake"}
    events = {key[4] for key in following if key[3] == f"horizon_{HORIZONS[COLLAPSED]}"}
    assert {"dropped", "reset", "recovered"} <= events
    shares = [value for key, value in following.items() if key[4] == "clip_ratio"]
    assert 0 < sum(shares) < len(shares)
    epochs = [key[0] for key in following if key[2] == "epoch" and key[4] == "val_rank_ic"]
    assert max(epochs) == 2  # an early stop


def test_one_process_decides_the_same_on_the_same_loss_curve(two_ranks, tmp_path):
    """In two parts a step, which drop what two processes drop."""
    job, (leading, _) = two_ranks
    in_parts = dataclasses.replace(job, config=config(accumulation_steps=2),
                                   folder=tmp_path / "run-1")  # fmt: skip
    alone = untimed(train_planted(in_parts, ALONE))

    def decisions(rows: dict[tuple, float]) -> set[tuple]:
        return {key for key in rows if key[2] in DECISIONS}

    assert decisions(alone) == decisions(leading)
    for key in alone:
        if key[2] in CURVES:
            assert leading[key] == pytest.approx(alone[key], rel=1e-4, abs=1e-4, nan_ok=True), key


def test_a_rank_that_is_killed_ends_the_run_which_goes_on_to_the_same_bits(
    two_ranks, stored_panel, tmp_path
):
    job = Job(config(), *stored_panel, tmp_path / "run-1", killed=(1, STEPS - 4))
    leading, killed = exit_codes(start_ranks(job))
    assert killed == -signal.SIGKILL
    assert leading == 1  # it ended by itself, for want of the other
    assert not (job.folder / "run.json").exists()
    again = Job(config(), *stored_panel, job.folder, resume=True)
    assert exit_codes(start_ranks(again)) == [0, 0]
    whole, other = (torch.load(folder / "last.pt", weights_only=True)
                    for folder in (two_ranks[0].folder, job.folder))  # fmt: skip
    assert all(torch.equal(other[name], whole[name]) for name in whole)
