"""The training loss: the weighted sum of its terms."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atft_model.config import RunConfig
from atft_model.data.batches import BatchCounts
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
        return {field.name: getattr(self, field.name).detach() for field in fields(self)}


class TrainingLoss:
    """Quantile, rank and variance terms over the valid entries of a batch."""

    def __init__(self, config: RunConfig, device: torch.device, horizons: tuple[int, ...]) -> None:
        self.weights = config.loss
        self.std_floor = config.guard.std_floor
        self.min_stocks = config.training.min_stocks
        self.levels = torch.tensor(config.model.quantiles, device=device)
        self.on_host = [float(days) ** -config.loss.horizon_power for days in horizons]
        self.horizon_weights = torch.tensor(self.on_host, device=device)
        self.median = config.model.quantiles.index(0.5)

    def __call__(
        self,
        quantiles: Float[Tensor, "runs length stocks horizons quantiles"],
        target: Float[Tensor, "runs length stocks horizons"],
        rank_target: Float[Tensor, "runs length stocks horizons"],
        valid: Bool[Tensor, "runs length stocks horizons"],
        whole: BatchCounts | None = None,
    ) -> LossTerms:
        """Loss of one batch, computed in float32 whatever the model's precision.

        Args:
            target: What the quantiles are of.
            rank_target: What the scores are to rank: the same, or returns relative to the sector.
            whole: Counts of the step's whole batch, where this one is a part of it: the parts'
                terms then add up to those of the whole.
        """
        quantiles = quantiles.float().flatten(0, 1)
        target, rank_target = target.flatten(0, 1), rank_target.flatten(0, 1)
        valid = valid.flatten(0, 1)
        score = quantiles[..., self.median]
        entries = ranked = weighted = None
        if whole is not None:
            entries, ranked = whole.entries, sum(whole.ranked)
            weighted = sum(
                dates * weight for dates, weight in zip(whole.ranked, self.on_host, strict=True)
            )
        quantile = quantile_loss(quantiles, target, valid, self.levels, entries)
        rank = rank_loss(score, rank_target, valid, self.min_stocks, self.horizon_weights, weighted)
        variance = variance_penalty(score, valid, self.std_floor, self.min_stocks, ranked)
        total = (
            self.weights.quantile_weight * quantile
            + self.weights.rank_weight * rank
            + self.weights.variance_penalty_weight * variance
        )
        return LossTerms(total, quantile, rank, variance)
