"""Linear regressions of every horizon's return that share their inputs. NumPy only, no torch."""

import numpy as np
from jaxtyping import Float

from atft_model.baselines import normal_equations
from atft_model.data.panel import Panel, fit_statistics
from atft_model.data.relative import (
    RelativeTo,
    relative_returns,
    sector_share,
    training_returns,
)

STEPS = 5000
"""At most; a fit on the built-in market takes a few hundred."""
TOLERANCE = 1e-8
"""Change of the weights in a step, as a share of their size, at which they count as found."""


PENALTIES: dict[RelativeTo, float] = {"date": 0.3, "sector": 0.15}
"""By what returns are relative to; chosen on drawn markets (docs/skill.md)."""


def linear_weights(
    panel: Panel, penalty: float | None = None, relative_to: RelativeTo = "date"
) -> Float[np.ndarray, "features horizons"]:
    """Coefficients of each normalized feature for each horizon, few of them other than 0.

    Fitted on tradable rows of the training dates; each horizon's weights are scaled so that all
    horizons weigh the same in the fit. Unknown features count as their mean, as they do for the
    model.

    Args:
        penalty: As a share of the one that leaves no input; None: that of ``PENALTIES`` for what
            most returns are relative to.
        relative_to: What the returns are relative to; the inputs are demeaned within the date.
    """
    if penalty is None:
        most = sector_share(panel, relative_to) > 0.5
        penalty = PENALTIES["sector" if most else "date"]
    sector = np.asarray(panel.sector)
    statistics = fit_statistics(panel, panel.split.train)
    grams, moments = [], []
    for index in range(len(panel.horizons)):
        returns = relative_returns(training_returns(panel, index), sector, relative_to)
        gram, moment, rows = normal_equations(panel, returns, statistics)
        size = np.linalg.norm(moment)
        grams.append(gram / max(rows, 1))
        moments.append(moment / size if size > 0 else moment)
    return group_lasso(np.stack(grams), np.stack(moments, axis=1), penalty)


def group_lasso(
    grams: Float[np.ndarray, "horizons features features"],
    moments: Float[np.ndarray, "features horizons"],
    penalty: float,
) -> Float[np.ndarray, "features horizons"]:
    """Minimizes, over W, the sum of wᵀ G w / 2 - mᵀ w over horizons plus a penalty on each input.

    The penalty is the length of an input's row of W (Yuan & Lin 2006, with all horizons of an input
    as a group): an input is in for every horizon or for none, so what little each horizon's labels
    say of it is said together. Proximal gradient steps with momentum (Beck & Teboulle 2009).

    Args:
        penalty: As a share of the smallest one at which every weight is 0.
    """
    most = float(np.linalg.norm(moments, axis=1).max(initial=0.0))
    weights = np.zeros_like(moments)
    steepest = float(np.linalg.eigvalsh(grams)[:, -1].max(initial=0.0))
    if most == 0.0 or steepest <= 0.0:
        return weights
    ahead, pace = weights, 1.0
    for _ in range(STEPS):
        slope = np.einsum("hij,jh->ih", grams, ahead) - moments
        found = shrink(ahead - slope / steepest, penalty * most / steepest)
        next_pace = (1 + np.sqrt(1 + 4 * pace**2)) / 2
        ahead = found + (pace - 1) / next_pace * (found - weights)
        change = np.linalg.norm(found - weights)
        weights, pace = found, next_pace
        if change <= TOLERANCE * np.linalg.norm(weights):
            break
    return weights


def shrink(
    weights: Float[np.ndarray, "features horizons"], by: float
) -> Float[np.ndarray, "features horizons"]:
    """Each row shortened by so much; a row that is no longer than that becomes 0."""
    length = np.linalg.norm(weights, axis=1, keepdims=True)
    return weights * np.maximum(1 - by / np.maximum(length, np.finfo(float).tiny), 0.0)
