"""Each loss term against loops over dates, horizons and stocks, in float64, gradient included."""

import dataclasses
import math

import pytest
import torch

from atft_model.config import GuardConfig, LossConfig, RunConfig, TrainingConfig
from atft_model.losses.ranking import rank_loss
from atft_model.losses.total import TrainingLoss
from atft_model.losses.variance import variance_penalty
from tests.references.agreement import assert_agree

RUNS, LENGTH, STOCKS, HORIZONS = 2, 3, 15, 2
DAYS = (1, 9)
"""The two horizons; with a power of 0.5 they weigh 1 and 1/3."""
MIN_STOCKS = 8
CONFIG = RunConfig(
    loss=LossConfig(
        quantile_weight=0.7, rank_weight=1.3, variance_penalty_weight=0.05, horizon_power=0.5
    ),
    training=TrainingConfig(min_stocks=MIN_STOCKS),
)
LEVELS = CONFIG.model.quantiles
MEDIAN = LEVELS.index(0.5)
FLOOR = CONFIG.guard.std_floor


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantiles and targets; many targets are NaN, one date has too few and one has none."""
    generator = torch.Generator().manual_seed(seed)
    shape = (RUNS, LENGTH, STOCKS, HORIZONS)
    quantiles = torch.randn(*shape, len(LEVELS), generator=generator).sort(dim=-1).values
    target = torch.randn(shape, generator=generator)
    target[torch.rand(shape, generator=generator) < 0.25] = torch.nan
    target[0, 0, MIN_STOCKS - 1 :, 0] = torch.nan
    target[1, 1] = torch.nan
    return quantiles.requires_grad_(), target


def masked(
    target: torch.Tensor, filler: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As the device panel hands targets over: unknown ones replaced, twice, and which are known."""
    filled = target.nan_to_num(filler)
    return filled, filled, torch.isfinite(target)


def cross_sections(target: torch.Tensor):
    """(run, date, horizon, known stocks) of every date and horizon."""
    for run in range(RUNS):
        for date in range(LENGTH):
            for horizon in range(HORIZONS):
                column = target[run, date, :, horizon].tolist()
                known = [stock for stock, value in enumerate(column) if not math.isnan(value)]
                yield run, date, horizon, known


def mean(values: list[torch.Tensor]) -> torch.Tensor:
    return sum(values, torch.zeros((), dtype=torch.float64)) / len(values)


def slow_quantile(quantiles: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    losses = []
    for run, date, horizon, known in cross_sections(target):
        for stock in known:
            for place, level in enumerate(LEVELS):
                predicted = quantiles[run, date, stock, horizon, place]
                over = float(target[run, date, stock, horizon]) - predicted
                losses.append(over * level if over > 0 else over * (level - 1))
    return mean(losses)


def slow_ranks(values: list[float]) -> list[int]:
    """How many are smaller; equal ones in order."""
    return [
        sum(other < value or (other == value and j < i) for j, other in enumerate(values))
        for i, value in enumerate(values)
    ]


def slow_rank(quantiles: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    losses, weights = [], []
    for run, date, horizon, known in cross_sections(target):
        if len(known) < MIN_STOCKS:
            continue
        score = [quantiles[run, date, stock, horizon, MEDIAN] for stock in known]
        ranks = slow_ranks([float(target[run, date, stock, horizon]) for stock in known])
        centre, middle = mean(score), sum(ranks) / len(ranks)
        pairs = list(zip(score, ranks, strict=True))
        covariance = mean([(s - centre) * (r - middle) for s, r in pairs])
        spread = mean([(s - centre) ** 2 for s in score]).sqrt()
        rank_spread = (sum((r - middle) ** 2 for r in ranks) / len(ranks)) ** 0.5
        weight = (1.0, 1.0 / 3.0)[horizon]
        weights.append(weight)
        losses.append(weight * (1 - covariance / (spread * rank_spread)))
    return sum(losses, torch.zeros((), dtype=torch.float64)) / sum(weights)


def slow_variance(quantiles: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    losses = []
    for run, date, horizon, known in cross_sections(target):
        if len(known) < MIN_STOCKS:
            continue
        score = [quantiles[run, date, stock, horizon, MEDIAN] for stock in known]
        centre = mean(score)
        losses.append(-torch.log(mean([(s - centre) ** 2 for s in score]) + FLOOR**2))
    return mean(losses)


def slow_total(quantiles: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (
        0.7 * slow_quantile(quantiles, target)
        + 1.3 * slow_rank(quantiles, target)
        + 0.05 * slow_variance(quantiles, target)
    )


SLOW = {
    "quantile": slow_quantile,
    "rank": slow_rank,
    "variance": slow_variance,
    "total": slow_total,
}


@pytest.mark.parametrize("term", SLOW)
@pytest.mark.parametrize("seed", range(3))
def test_a_term_equals_its_loop_forward_and_gradient(term, seed):
    quantiles, target = batch(seed)
    ours = getattr(
        TrainingLoss(CONFIG, torch.device("cpu"), DAYS)(quantiles, *masked(target)), term
    )
    assert_agree(ours, SLOW[term](quantiles.double(), target), {"quantiles": quantiles})


def test_the_scores_rank_one_return_and_the_quantiles_are_of_another():
    """As where returns are relative to the sector in the rank term alone."""
    quantiles, target = batch()
    relative = torch.where(torch.isnan(target), torch.nan, batch(1)[1].nan_to_num(0.3))
    filled, _, valid = masked(target)
    found = TrainingLoss(CONFIG, torch.device("cpu"), DAYS)(
        quantiles, filled, relative.nan_to_num(0.0), valid
    )
    assert_agree(found.rank, slow_rank(quantiles.double(), relative), {"quantiles": quantiles})
    assert_agree(
        found.quantile, slow_quantile(quantiles.double(), target), {"quantiles": quantiles}
    )
    assert abs(float((found.rank - slow_rank(quantiles, target)).detach())) > 1e-3


@pytest.mark.parametrize("filler", [0.0, 1e6, -3.0])
def test_what_stands_in_an_unknown_target_changes_nothing(filler):
    loss = TrainingLoss(CONFIG, torch.device("cpu"), DAYS)
    quantiles, target = batch()
    found = []
    for one in (0.0, filler):
        total = loss(quantiles, *masked(target, one)).total
        found.append((total.detach(), *torch.autograd.grad(total, quantiles)))
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)
    assert (found[0][1][torch.isnan(target)] == 0).all()


def test_scores_of_stocks_without_a_target_change_nothing():
    loss = TrainingLoss(CONFIG, torch.device("cpu"), DAYS)
    quantiles, target = batch()
    changed = torch.where(torch.isnan(target)[..., None], 50.0, quantiles.detach())
    expected, found = loss(quantiles, *masked(target)), loss(changed, *masked(target))
    for term in SLOW:
        torch.testing.assert_close(getattr(found, term), getattr(expected, term))


def test_a_batch_without_any_target_has_no_loss_and_no_gradient():
    quantiles, target = batch()
    terms = TrainingLoss(CONFIG, torch.device("cpu"), DAYS)(
        quantiles, *masked(torch.full_like(target, torch.nan))
    )
    (gradient,) = torch.autograd.grad(terms.total, quantiles)
    assert terms.total.item() == 0
    assert (gradient == 0).all()


def test_every_term_is_a_mean():
    """The same dates twice weigh the same: the loss does not grow with the batch."""
    loss = TrainingLoss(CONFIG, torch.device("cpu"), DAYS)
    quantiles, target = batch()
    once = loss(quantiles, *masked(target))
    twice = loss(torch.cat([quantiles, quantiles]), *masked(torch.cat([target, target])))
    for term in SLOW:
        torch.testing.assert_close(getattr(twice, term), getattr(once, term))


def test_a_perfect_and_a_reversed_order_bound_the_rank_loss():
    rank = torch.arange(STOCKS, dtype=torch.float32)[None, :, None]
    valid = torch.ones_like(rank, dtype=torch.bool)
    assert float(rank_loss(rank, rank.exp(), valid, 2)) == pytest.approx(0.0, abs=1e-6)
    assert float(rank_loss(-rank, rank.exp(), valid, 2)) == pytest.approx(2.0, abs=1e-6)
    flat = torch.zeros_like(rank, requires_grad=True)
    loss = rank_loss(flat, rank, valid, 2)
    assert loss.item() == pytest.approx(1.0)
    (gradient,) = torch.autograd.grad(loss, flat)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 1.0


def spread_gradient(std: float, penalty) -> float:
    """Derivative of the penalty by the log of the scores' standard deviation."""
    shape = torch.linspace(-1, 1, STOCKS)[None, :, None]
    score = (std * shape / shape.std(correction=0)).requires_grad_()
    (gradient,) = torch.autograd.grad(penalty(score), score)
    return (gradient * score).sum().item()


@pytest.mark.parametrize("std", [1.0, 1e-2, 1e-4, 1e-5, 3e-6, FLOOR])
def test_the_variance_penalty_pushes_apart_down_to_the_floor(std):
    valid = torch.ones(1, STOCKS, 1, dtype=torch.bool)
    pull = spread_gradient(std, lambda score: variance_penalty(score, valid, FLOOR, 2))
    assert pull == pytest.approx(-2 * std**2 / (std**2 + FLOOR**2), rel=1e-4)
    assert pull <= -1 + 1e-4


def test_a_hard_clamp_would_be_dead_above_the_floor():
    """The historical form, against which the test above means something."""

    def clamped(score: torch.Tensor) -> torch.Tensor:
        return -score.var(dim=1, correction=0).clamp(min=1e-8).log().mean()

    assert spread_gradient(1e-3, clamped) == pytest.approx(-2, rel=1e-4)
    assert spread_gradient(5e-5, clamped) == 0


def test_the_floor_is_the_guards():
    config = dataclasses.replace(CONFIG, guard=GuardConfig(std_floor=0.1))
    quantiles, target = batch()
    flat = torch.ones_like(quantiles)
    terms = TrainingLoss(config, torch.device("cpu"), DAYS)(flat, *masked(target))
    assert float(terms.variance) == pytest.approx(-math.log(0.1**2), rel=1e-5)
