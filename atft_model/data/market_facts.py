"""What trading and its judgement need and the model never sees: opens, limits, traded value, and
the factors that everyone has. NumPy only, no torch.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from atft_model.baselines import low_volatility, momentum_12_1, reversal
from atft_model.data.panel import Panel
from atft_model.errors import InputError

SILENT_DAYS = 20
"""Trading days without a bar until the end of the panel after which a stock has left the market."""


@dataclass(frozen=True)
class MarketFacts:
    """Arrays on the panel's axes, [dates, stocks]; None where the source does not say.

    Attributes:
        open_return: From the stock's previous bar's open to this one's, split adjusted; NaN
            without a bar.
        can_buy, can_sell: Whether the day's price took buyers and sellers.
        traded_value: Mean of the last 20 bars in currency, as known at the close.
    """

    open_return: Float[np.ndarray, "dates stocks"] | None = None
    can_buy: Bool[np.ndarray, "dates stocks"] | None = None
    can_sell: Bool[np.ndarray, "dates stocks"] | None = None
    traded_value: Float[np.ndarray, "dates stocks"] | None = None


def left_market(observed: Bool[np.ndarray, "dates stocks"]) -> Bool[np.ndarray, "dates stocks"]:
    """True on the first day after the last bar of each stock that left.

    A stock without a bar on the last ``SILENT_DAYS`` dates has left; one that is silent for less
    may be halted. A stock without any bar never came.
    """
    result = np.zeros(observed.shape, dtype=bool)
    dates = len(observed)
    last = dates - 1 - np.argmax(observed[::-1], axis=0)
    left = observed.any(axis=0) & (last < dates - SILENT_DAYS)
    result[last[left] + 1, np.flatnonzero(left)] = True
    return result


def beta(panel: Panel, days: int = 60) -> Float[np.ndarray, "dates stocks"]:
    """Slope of the last ``days`` daily returns on the equal-weight mean of the tradable stocks.

    NaN with fewer than 70 % of the days known.
    """
    tradable = np.asarray(panel.tradable)
    daily = np.asarray(panel.daily_return, dtype=np.float64)
    known = np.isfinite(daily)
    counted = known & tradable
    count = np.maximum(counted.sum(axis=1), 1)
    market = (np.where(counted, daily, 0.0).sum(axis=1) / count)[:, None]
    own, of_market = np.where(known, daily, 0.0), np.where(known, market, 0.0)
    n = _trailing_sum(known.astype(np.float64), days)
    safe = np.maximum(n, 1.0)
    mean_own, mean_market = _trailing_sum(own, days) / safe, _trailing_sum(of_market, days) / safe
    covariance = _trailing_sum(own * of_market, days) / safe - mean_own * mean_market
    variance = _trailing_sum(of_market**2, days) / safe - mean_market**2
    enough = (n >= 0.7 * days) & (variance > 1e-18)
    return np.where(enough, covariance / np.where(enough, variance, 1.0), np.nan)


def known_factors(panel: Panel, facts: MarketFacts) -> dict[str, Float[np.ndarray, "dates stocks"]]:
    """What everyone has, by name: reversal, momentum, beta, and size where it is known.

    Size is the traded value: no source gives shares outstanding on every date.
    """
    factors = {
        "reversal": reversal(panel, 5),
        "momentum": momentum_12_1(panel),
        "beta": beta(panel),
    }
    if facts.traded_value is not None:
        factors["size"] = facts.traded_value
    return factors


def daily_volatility(panel: Panel) -> Float[np.ndarray, "dates stocks"]:
    """Standard deviation of the last 60 daily returns."""
    return -low_volatility(panel)


def require_panel_shape(panel: Panel, facts: MarketFacts) -> None:
    """Refuses facts that do not lie on the panel's axes."""
    for name, array in vars(facts).items():
        if array is not None and array.shape != panel.tradable.shape:
            raise InputError(
                f"market facts: {name} has shape {array.shape}, the panel has "
                f"{panel.tradable.shape} dates × stocks; build them from the panel's own prices"
            )


def _trailing_sum(values: np.ndarray, days: int) -> np.ndarray:
    total = np.cumsum(values, axis=0)
    result = total.copy()
    result[days:] -= total[:-days]
    result[: days - 1] = np.nan
    return result
