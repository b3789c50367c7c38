"""What luck looks like: rank IC and Sharpe of many random scores, and of the model's own scores
dealt to stocks at random. A result inside the band is no result. NumPy only.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from atft_model.baselines import shuffled_within_date
from atft_model.metrics.inference import student_t_chance
from atft_model.metrics.rank_ic import average_ranks, rank_ic


@dataclass(frozen=True)
class Band:
    """The middle 95 % of what random scores reached, and their mean."""

    low: float
    mean: float
    high: float
    draws: int


@dataclass(frozen=True)
class ShuffledControl:
    """Mean rank IC of the shuffled scores over all draws, and how far from 0 that is.

    Each deal is independent and has an expected rank IC of exactly 0 on every date. The error of
    the mean comes from the deals' own spread, so ``t`` follows Student's t with one degree of
    freedom fewer than there are deals, unless the evaluation itself finds what is not there.
    """

    mean: float
    t: float
    draws: int

    @property
    def chance(self) -> float:
        """Probability of a ``t`` as far from 0 by luck alone; NaN where there is none."""
        return student_t_chance(self.t, self.draws - 1) if self.draws > 1 else float("nan")


def band_of(values: np.ndarray) -> Band:
    """The band of the draws' figures; NaN where none is defined."""
    known = values[np.isfinite(values)]
    if not known.size:
        return Band(float("nan"), float("nan"), float("nan"), 0)
    low, high = np.quantile(known, [0.025, 0.975])
    return Band(float(low), float(known.mean()), float(high), int(known.size))


def random_rank_ics(
    forward_return: Float[np.ndarray, "dates stocks"],
    valid: Bool[np.ndarray, "dates stocks"],
    draws: int,
    min_stocks: int,
    seed: int = 1337,
) -> Float[np.ndarray, " draws"]:
    """Mean rank IC over the dates of each of ``draws`` scores that are noise.

    The noise is uniform, so it stands for its own ranks: no sorting. Its correlation with the ranks
    of the returns has mean 0 and variance 1/(stocks - 1), as the rank IC of any random score.
    """
    usable = valid & np.isfinite(forward_return)
    ranks = average_ranks(np.where(usable, forward_return, np.nan))
    count = usable.sum(axis=1)
    centred = np.where(usable, ranks - (count[:, None] + 1) / 2, 0.0)
    size = np.sqrt(np.einsum("ds,ds->d", centred, centred))
    defined = (count >= max(min_stocks, 2)) & (size > 0)
    if not defined.any():
        return np.full(draws, np.nan)
    unit = (centred[defined] / size[defined, None]).astype(np.float32)
    mask, n = usable[defined].astype(np.float32), count[defined]
    rng = np.random.default_rng(seed)
    result = np.empty(draws)
    for draw in range(draws):
        noise = (rng.random(unit.shape, dtype=np.float32) - np.float32(0.5)) * mask
        spread = np.einsum("ds,ds->d", noise, noise) - noise.sum(axis=1) ** 2 / n
        result[draw] = float((np.einsum("ds,ds->d", noise, unit) / np.sqrt(spread)).mean())
    return result


def shuffled_control(
    score: Float[np.ndarray, "dates stocks"],
    forward_return: Float[np.ndarray, "dates stocks"],
    valid: Bool[np.ndarray, "dates stocks"],
    draws: int,
    min_stocks: int,
) -> ShuffledControl:
    """The score dealt at random within each date, judged by the same ``rank_ic`` as the model."""
    means = []
    for draw in range(draws):
        dealt = shuffled_within_date(score, seed=draw)
        by_date = rank_ic(dealt, forward_return, valid, min_stocks)
        known = by_date[np.isfinite(by_date)]
        if known.size:
            means.append(known.mean())
    if len(means) < 2 or np.ptp(means) == 0:
        return ShuffledControl(float(np.mean(means)) if means else float("nan"), float("nan"),
                               len(means))  # fmt: skip
    mean, error = float(np.mean(means)), float(np.std(means, ddof=1) / np.sqrt(len(means)))
    return ShuffledControl(mean, mean / error, len(means))
