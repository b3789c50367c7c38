"""What scores learn to rank reaches the rank term of training and validation, and no other."""

import numpy as np
import pytest
import torch
from small_trainer import small_trainer

from atft_model.losses.total import TrainingLoss
from atft_model.training.observer import LOSSES
from atft_model.training.validation import predict_quantiles


@pytest.fixture
def trainer(stored_panel, tmp_path):
    return small_trainer(stored_panel, tmp_path, {"loss": {"rank_relative_to": "sector"}})


def step_terms(trainer) -> dict[str, float]:
    trainer.model.train()
    starts = np.flatnonzero(trainer.train_dates)[:1]
    smallest = trainer.config.training.min_stocks
    figures = trainer.backward(starts, 2, trainer.data.count(starts, 2, smallest), 0)
    return dict(zip(LOSSES, figures.tolist(), strict=False))


def validation_loss(trainer) -> float:
    loss = TrainingLoss(trainer.config, torch.device("cpu"), trainer.data.panel.horizons)
    return predict_quantiles(
        trainer.model, trainer.data, trainer.validation_dates, trainer.config, 2, loss
    )[1]


def test_a_run_ranks_by_what_its_setting_says(trainer, stored_panel, tmp_path):
    assert not torch.equal(trainer.data.rank_target, trainer.data.target)
    by_date = small_trainer(stored_panel, tmp_path / "2", {"loss": {"rank_relative_to": "date"}})
    assert by_date.data.rank_target is by_date.data.target


def test_other_returns_to_rank_change_the_rank_term_alone(trainer):
    before, validated = step_terms(trainer), validation_loss(trainer)
    trainer.data.rank_target = -trainer.data.rank_target
    after = step_terms(trainer)
    assert abs(after["rank"] - before["rank"]) > 1e-3
    assert after["quantile"] == before["quantile"]
    assert after["variance"] == before["variance"]
    assert abs(validation_loss(trainer) - validated) > 1e-3
