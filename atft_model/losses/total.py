"""The training loss: the weighted sum of its terms."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atft_model.config import RunConfig
from atft_model.losses.quantile import quantile_loss
from atft_model.losses.ranking import rank_loss
from atft_model.losses.variance import variance_penalty


@dataclass(frozen=True)
class LossTerms:
    """Each term before its weight, and their weighted sum."""

    total: Float[Tensor, ""]
    quantile: Float[Tensor, ""]
    rank: Float[Tensor, ""]
    variance: Float[Tensor, ""]

    def named(self) -> dict[str, Tensor]:
        """Detached terms by name, for the health record."""
        return {
            name: getattr(self, name).detach() for name in ("total", "quantile", "rank", "variance")
        }


class TrainingLoss:
    """Quantile, rank and variance terms over the valid entries of a batch."""

    def __init__(self, config: RunConfig, device: torch.device, horizons: tuple[int, ...]) -> None:
        self.weights = config.loss
        self.std_floor = config.guard.std_floor
        self.min_stocks = config.training.min_stocks
        self.levels = torch.tensor(config.model.quantiles, device=device)
        days = torch.tensor(horizons, dtype=torch.float32, device=device)
        self.horizon_weights = days**-config.loss.horizon_power
        self.median = config.model.quantiles.index(0.5)

    def __call__(
        self,
        quantiles: Float[Tensor, "runs length stocks horizons quantiles"],
        target: Float[Tensor, "runs length stocks horizons"],
        valid: Bool[Tensor, "runs length stocks horizons"],
    ) -> LossTerms:
        """Loss of one batch, computed in float32 whatever the model's precision."""
        quantiles = quantiles.float().flatten(0, 1)
        target, valid = target.flatten(0, 1), valid.flatten(0, 1)
        score = quantiles[..., self.median]
        quantile = quantile_loss(quantiles, target, valid, self.levels)
        rank = rank_loss(score, target, valid, self.min_stocks, self.horizon_weights)
        variance = variance_penalty(score, valid, self.std_floor, self.min_stocks)
        total = (
            self.weights.quantile_weight * quantile
            + self.weights.rank_weight * rank
            + self.weights.variance_penalty_weight * variance
        )
        return LossTerms(total, quantile, rank, variance)
