"""The feature contract as a page for people: ``docs/features.md``, written from the registry."""

from collections.abc import Sequence

from atft_pipeline.feature_registry import CORE, EXTRA, MASKS
from atft_pipeline.transforms.as_of import MARKET_CLOSE
from atft_pipeline.transforms.features import Feature
from atft_pipeline.transforms.flows import MIN_WEEKS, WEEKS

COMMAND = "python -m atft_pipeline features-table > docs/features.md"

HEAD = f"""# Features

Written by `{COMMAND}` (`make docs`);
a test fails where it is not current. The contract is `atft_pipeline/feature_registry.py`:
{{core}} core, {{extra}} extra and {{masks}} masks, {{all}} inputs on a source that has every
table. Where a source column is absent, the features that need it are left out by name.

- `[t]` is the day of the row; every value uses what was known at its close, never later.
- r: the stock's returns_1d. M, m: level and one-day return of the market (the index, or the
  equal-weighted return of all stocks). S: level of the stock's sector, equally weighted.
- A bar is a day on which the stock traded; prices and volume are split-adjusted as of each date.
- z52: (value - mean) / sample std of the last {WEEKS} published weeks, {MIN_WEEKS} or more of them
  known.
- A statement counts from its own day where it was disclosed before {MARKET_CLOSE:%H:%M} exchange
  time, else from the next trading day; flows from the trading day after their publication. Both
  are held until the next. Periods are matched by fiscal year and quarter.
- |x| is the size of x.
- Lookback: bars or trading days that a value reads, today included.
- Normalizer: `cross_section`, among the date's stocks; `time_series`, by statistics of the
  training dates; `none`, flags and masks that stay 0 or 1.
"""


def features_page() -> str:
    """The whole page in Markdown, one row per feature in registry order."""
    parts = {"Core": CORE, "Extra": EXTRA, "Masks": MASKS}
    counts = {title.lower(): len(features) for title, features in parts.items()}
    sections = [HEAD.format(**counts, all=sum(counts.values()))]
    sections += [f"## {title}\n\n{_table(features)}" for title, features in parts.items()]
    return "\n".join(sections)


def _table(features: Sequence[Feature]) -> str:
    rows = [("name", "formula", "source", "lookback", "normalizer"), ("---",) * 5]
    rows += [
        (
            f"`{feature.name}`",
            feature.formula.replace("|", "\\|"),
            _source(feature.needs),
            str(feature.lookback),
            feature.normalizer,
        )
        for feature in features
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _source(needs: Sequence[str]) -> str:
    """The columns by table: ``prices: turnover, raw_close; listings: sector``."""
    columns: dict[str, list[str]] = {}
    for need in needs:
        table, _, column = need.replace(" or statements.", " or statements: ").partition(".")
        columns.setdefault(table, []).append(column)
    return "; ".join(f"{table}: {', '.join(names)}" for table, names in columns.items())
