"""The linear part against standard scores date by date; what it may move, and what it may not."""

import numpy as np
import pytest
import torch
from scipy.stats import zscore
from small_trainer import small_trainer

from atft_model.group_lasso import linear_weights
from atft_model.model.linear_part import LinearPart

RUNS, LENGTH, STOCKS, FEATURES = 2, 3, 12, 5
HORIZONS, DAYS, MEDIAN = (1, 5, 20), 10.0, 1


def make() -> LinearPart:
    part = LinearPart(FEATURES, HORIZONS, DAYS)
    part.weights.copy_(1e-3 * torch.randn(FEATURES, 3, generator=torch.Generator().manual_seed(0)))
    return part


def day() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantiles, inputs, and which stocks count: some do not, and of one date none does."""
    generator = torch.Generator().manual_seed(1)
    shape = (RUNS, LENGTH, STOCKS)
    quantiles = torch.randn(*shape, 3, 3, generator=generator).sort(dim=-1).values
    x = torch.randn(*shape, FEATURES, generator=generator)
    scorable = torch.rand(shape, generator=generator) > 0.3
    scorable[1, 2] = False
    return quantiles, x, scorable


def test_it_adds_standard_scores_date_by_date():
    part, (quantiles, x, scorable) = make(), day()
    found = part(quantiles, x, scorable, MEDIAN)
    for run, date in np.ndindex(RUNS, LENGTH):
        use = scorable[run, date].numpy()
        if not use.any():
            continue
        linear = x[run, date].double().numpy()[use] @ part.weights.double().numpy()
        for place, horizon in enumerate(HORIZONS):
            network = quantiles[run, date, :, place].double().numpy()[use]
            move = horizon / DAYS * network[:, MEDIAN].std() * zscore(linear[:, place])
            mine = found[run, date, :, place].numpy()[use]
            np.testing.assert_allclose(mine, network + move[:, None], rtol=1e-4, atol=1e-5)
    assert torch.isfinite(found).all()
    assert (found.diff(dim=-1) >= -1e-6).all()


def test_stocks_that_cannot_be_scored_move_nobody():
    part, (quantiles, x, scorable) = make(), day()
    before = part(quantiles, x, scorable, MEDIAN)
    quantiles, x = quantiles.clone(), x.clone()
    quantiles[~scorable] = 1e6
    x[~scorable] = -1e6
    assert torch.equal(part(quantiles, x, scorable, MEDIAN)[scorable], before[scorable])


def test_a_network_that_gives_every_stock_the_same_still_does():
    """So the degeneracy guard and the spread of the kept weights go on reading the network."""
    part, (quantiles, x, scorable) = make(), day()
    dead = quantiles[:, :, :1].expand_as(quantiles)
    found = part(dead, x, scorable, MEDIAN)
    assert float((found - dead).abs().max()) < 1e-6
    assert float((part(quantiles, x, scorable, MEDIAN) - quantiles).abs().max()) > 0.1


def test_a_linear_score_that_does_not_vary_adds_nothing():
    part, (quantiles, x, scorable) = make(), day()
    same = x[:, :, :1].expand_as(x)
    assert float((part(quantiles, same, scorable, MEDIAN) - quantiles).abs().max()) < 0.1
    part.weights.zero_()
    assert torch.equal(part(quantiles, x, scorable, MEDIAN), quantiles)


@pytest.mark.parametrize(
    ("days", "relative_to"), [(None, "sector"), (40.0, "sector"), (40.0, "date")]
)
def test_a_run_fits_it_on_its_training_dates_and_trains_without_it(
    stored_panel, tmp_path, days, relative_to
):
    trainer = small_trainer(stored_panel, tmp_path, {"model": {"linear_days": days, "dropout": 0.0,
                            "input_skip_noise": 0.0}, "loss": {"rank_relative_to": relative_to}}
                            )  # fmt: skip
    model, data = trainer.model, trainer.data
    batch = data.batch(np.flatnonzero(trainer.validation_dates)[:1], 1)
    with torch.no_grad():
        in_training, scored = model.train()(batch), model.eval()(batch)
    if days is None:
        assert model.linear_part is None
        torch.testing.assert_close(in_training, scored)
        return
    torch.testing.assert_close(
        model.linear_part(in_training, batch.features[:, -1:], batch.scorable, model.median), scored
    )
    assert (in_training - scored).abs().max() > 1e-3
    assert not any(name.startswith("linear_part") for name, _ in model.named_parameters())
    penalty = {"date": 0.3, "sector": 0.15}[relative_to]
    expected = linear_weights(data.panel, penalty, relative_to)
    other = linear_weights(data.panel, penalty, "date" if relative_to == "sector" else "sector")
    found = model.linear_part.weights.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.abs(found - other).max() > 1e-4
