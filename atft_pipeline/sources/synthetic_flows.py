"""The built-in market's weekly investor flows: who bought and sold, per market section.

Nothing is planted in them: a section's flow is the same for all of its stocks and ranks none. What
they have is what vendors' tables have: a publication lag of six days, weeks published late, and
weeks published again with other figures.
"""

import datetime as dt
from collections.abc import Sequence

import numpy as np
import polars as pl

HISTORY_WEEKS = 60  # before the first date, so that a year of weeks is known from the start
PUBLICATION_LAG = 6  # days from a week's Friday to the Thursday on which it is published
LATE_SHARE = 0.03  # of the weeks; published a week late, as is the last week of each year
CORRECTED_SHARE = 0.03  # of the weeks; published again a week later
FOREIGN_SHARE, INDIVIDUAL_SHARE = 0.6, 0.25  # of the value traded
WEEKLY_VALUE = 1e13  # currency, bought in the largest section in a usual week


def draw_flows(
    rng: np.random.Generator, sections: Sequence[str], first: dt.date, last: dt.date
) -> pl.DataFrame:
    """``raw_investor_flows`` published up to ``last``, by (published_on, first_date, section).

    Args:
        rng: The market's stream for flows.
        sections: Names, the largest first.
        first: The market's first trading date.
        last: Its last one.
    """
    monday = first - dt.timedelta(days=first.weekday(), weeks=HISTORY_WEEKS)
    weeks = (last - monday).days // 7 + 1
    mondays = [monday + dt.timedelta(weeks=week) for week in range(weeks)]
    late = rng.random(weeks) < LATE_SHARE
    late |= np.array([(day + dt.timedelta(days=4)).month != (day + dt.timedelta(days=11)).month
                      and (day + dt.timedelta(days=4)).month == 12 for day in mondays])  # fmt: skip
    published = np.array(mondays, dtype="datetime64[D]") + 4 + PUBLICATION_LAG + 7 * late
    parts = []
    for number, section in enumerate(sections):
        figures = _weekly_figures(rng, weeks, WEEKLY_VALUE * 0.2**number)
        week = pl.DataFrame(
            {
                "published_on": published,
                "first_date": mondays,
                "last_date": [day + dt.timedelta(days=4) for day in mondays],
                "section": [section] * weeks,
                **figures,
            }
        )
        again = week.filter(pl.Series(rng.random(weeks) < CORRECTED_SHARE)).with_columns(
            pl.col("published_on") + pl.duration(days=7),
            (pl.col("foreign_buy") * 1.01).round(),
        )
        parts += [week, again]
    table = pl.concat(parts).filter(pl.col("published_on") <= last)
    return table.sort("published_on", "first_date", "section", maintain_order=True)


def _weekly_figures(rng: np.random.Generator, weeks: int, value: float) -> dict[str, np.ndarray]:
    """Value bought and sold by type, currency; buying and selling come to the same in total."""
    level, lean = np.zeros(weeks), np.zeros(weeks)
    news = rng.standard_normal((2, weeks))
    for week in range(1, weeks):
        level[week] = 0.9 * level[week - 1] + 0.1 * news[0, week]
        lean[week] = 0.6 * lean[week - 1] + 0.02 * news[1, week]  # foreigners' net share
    total = value * np.exp(level)
    foreign_net = FOREIGN_SHARE * total * lean
    individual_net = -0.6 * foreign_net + 0.004 * total * rng.standard_normal(weeks)
    figures = {"total_buy": total, "total_sell": total}
    for name, share, net in (
        ("foreign", FOREIGN_SHARE, foreign_net),
        ("individual", INDIVIDUAL_SHARE, individual_net),
    ):
        figures |= {
            f"{name}_buy": share * total + net / 2.0,
            f"{name}_sell": share * total - net / 2.0,
        }
    order = ("foreign", "individual", "total")
    return {
        f"{name}_{side}": np.round(figures[f"{name}_{side}"])
        for name in order
        for side in ("buy", "sell")
    }
