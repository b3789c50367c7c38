"""Scores of a range of dates by the one forward path, and their quality during training."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from atft_model.config import RunConfig
from atft_model.data.batches import DevicePanel, WindowBatch, epoch_batches
from atft_model.data.market_facts import left_market
from atft_model.evaluation import HEADLINE_HORIZON
from atft_model.losses.total import TrainingLoss
from atft_model.metrics.inference import sharpe
from atft_model.metrics.portfolio import PortfolioConfig, TradingRules, portfolio_returns
from atft_model.metrics.rank_ic import ic, rank_ic
from atft_model.model.atft import ATFT
from atft_model.training.distributed import ALONE, Group
from atft_model.training.observer import neighbour_counts


@dataclass(frozen=True)
class Validation:
    """Quality on the validation dates; NaN where undefined."""

    loss: float
    rank_ic: dict[int, float]
    ic: dict[int, float]
    sharpe: float
    neighbours: float
    """Graph neighbours of a window, on average, as the model saw them."""

    @property
    def mean_rank_ic(self) -> float:
        """Rank IC averaged over horizons: what early stopping and the schedule watch."""
        return float(np.mean(list(self.rank_ic.values())))


def forward(model: nn.Module, batch: WindowBatch, precision: str) -> torch.Tensor:
    """The one forward path of training, validation and prediction.

    Args:
        model: An ``ATFT``, or the replica of one that averages gradients over processes.
    """
    device = batch.features.device.type
    half = torch.float16 if precision == "16-mixed" else torch.bfloat16
    with torch.autocast(device, half, enabled=precision != "32"):
        return model(batch).float()


@torch.no_grad()
def predict_quantiles(
    model: ATFT,
    data: DevicePanel,
    dates: np.ndarray,
    config: RunConfig,
    runs: int,
    loss: TrainingLoss | None = None,
    group: Group = ALONE,
) -> tuple[np.ndarray, float, float]:
    """Quantiles of every True date, with dropout off and the same graph and normalizer.

    Args:
        dates: bool [dates].
        group: Processes that share the batches; each comes back with all scores.

    Returns:
        float32 [dates, stocks, horizons, quantiles], NaN where a window cannot be scored or the
        date was not asked for; the mean loss over batches (NaN without ``loss``); and the mean
        number of graph neighbours of a window.
    """
    model.eval()
    n_dates, n_stocks = data.scorable.shape
    shape = (n_dates, n_stocks, len(data.panel.horizons), len(config.model.quantiles))
    # Zeros, so that the processes' scores add up; what nobody asked for becomes NaN in the end.
    quantiles = np.zeros(shape, dtype=np.float32)
    batches = list(epoch_batches(dates, config.training.run_length, runs))
    losses, neighbours = torch.zeros((), device=data.device), torch.zeros(2, device=data.device)
    for starts, length in batches[group.rank :: group.size]:
        batch = data.batch(starts, length)
        output = forward(model, batch, config.training.precision)
        neighbours += neighbour_counts(batch)
        if loss is not None:
            losses += loss(output, batch.target, batch.rank_target, batch.valid).total
        date = batch.positions[:, :, None].expand(batch.scorable.shape)[batch.scorable]
        stock = batch.stocks[:, None].expand(batch.scorable.shape)[batch.scorable]
        quantiles[date.cpu().numpy(), stock.cpu().numpy()] = output[batch.scorable].cpu().numpy()
    group.total(torch.from_numpy(quantiles))
    quantiles[~(dates[:, None] & data.scorable_on_host)] = np.nan
    total, seen, windows = group.total(torch.cat([losses[None], neighbours])).tolist()
    mean_loss = total / len(batches) if loss is not None and batches else float("nan")
    return quantiles, mean_loss, seen / max(windows, 1.0)


def validate(
    model: ATFT, data: DevicePanel, dates: np.ndarray, config: RunConfig, runs: int,
    loss: TrainingLoss, group: Group = ALONE,
) -> Validation:  # fmt: skip
    """Loss, rank IC and IC per horizon, and the net Sharpe of the headline portfolio."""
    quantiles, mean_loss, neighbours = predict_quantiles(
        model, data, dates, config, runs, loss, group
    )
    panel = data.panel
    score = quantiles[..., model.median].astype(np.float64)
    days = np.flatnonzero(dates)
    rank_ics, ics = {}, {}
    for index, horizon in enumerate(panel.horizons):
        target = np.asarray(panel.targets[days, :, index], dtype=np.float64)
        mine = score[days, :, index]
        valid = np.isfinite(mine) & np.isfinite(target)
        rank_ics[horizon] = nanmean(
            rank_ic(mine, target, valid, min_stocks=config.training.min_stocks)
        )
        ics[horizon] = nanmean(ic(mine, target, valid, min_stocks=config.training.min_stocks))
    return Validation(mean_loss, rank_ics, ics, _headline_sharpe(score, data, days), neighbours)


def nanmean(values: np.ndarray) -> float:
    """Mean of the defined values; NaN, without a warning, where there are none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def _headline_sharpe(score: np.ndarray, data: DevicePanel, days: np.ndarray) -> float:
    """Net annualised Sharpe of the decile long-short on the validation dates; NaN if too few."""
    panel = data.panel
    if HEADLINE_HORIZON not in panel.horizons:
        return float("nan")
    index = panel.horizons.index(HEADLINE_HORIZON)
    config = PortfolioConfig(horizon=HEADLINE_HORIZON)
    last = min(int(days[-1]) + HEADLINE_HORIZON + config.execution_lag + 1, len(panel.dates))
    rows = slice(int(days[0]), last)
    if rows.stop - rows.start < 2 * (HEADLINE_HORIZON + config.execution_lag):
        return float("nan")
    mine = score[rows, :, index]
    returns = portfolio_returns(
        mine,
        np.asarray(panel.daily_return[rows], dtype=np.float64),
        np.isfinite(mine),
        np.array(panel.dates[rows], dtype="datetime64[D]"),
        config,
        TradingRules(delisted=left_market(np.asarray(panel.observed))[rows]),
    )
    return sharpe(returns.net, returns.dates).value
