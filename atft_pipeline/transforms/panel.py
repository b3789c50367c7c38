"""Tables to the dense panel that the model trains on, and the default split of its dates."""

import numpy as np
import polars as pl
from jaxtyping import Float

from atft_model.data.panel import Panel
from atft_model.data.splits import Split, SplitConfig, split_dates
from atft_model.errors import InputError
from atft_pipeline.transforms.features import Feature
from atft_pipeline.transforms.targets import HORIZONS

UNKNOWN = "unknown"

ROWS_AT_A_TIME = 4096
"""Of the feature table: 1.3 MB of 82 features, which a core's cache holds."""


def trading_calendar(prices: pl.DataFrame) -> list:
    """The market's trading dates, rising."""
    return prices["date"].unique().sort().to_list()


def default_split(calendar: list, universe: pl.DataFrame, config: SplitConfig) -> Split:
    """The split of the dates from the first one with a trading universe.

    Raises:
        InputError: no stock is ever tradable, or too few dates.
    """
    if universe.is_empty():
        raise InputError(
            "trading_universe: no stock is tradable on any date; lower its floors "
            "(min_history_days, min_raw_close, min_turnover_20d) or give more data"
        )
    first = calendar.index(universe["date"].min())
    usable = split_dates(len(calendar) - first, HORIZONS, config)
    shifted = {name: (a + first, b + first) for name, (a, b) in usable.parts().items()}
    return Split(**shifted)


def build_panel(
    prices: pl.DataFrame, universe: pl.DataFrame, targets: pl.DataFrame,
    features: pl.DataFrame, normalized: pl.DataFrame, contract: tuple[Feature, ...],
    listings: pl.DataFrame, split: Split, source: str, inputs: dict[str, str] | None = None,
    values: np.ndarray | None = None,
) -> Panel:  # fmt: skip
    """Dense arrays over the calendar × all codes with prices.

    Args:
        features: Raw units; read for the time-series features.
        normalized: Read for the cross-section features and the flags.
        contract: The features to keep, in order.
        inputs: Content hash of each table, for the manifest.
        values: The feature array, where it is there already (``panel_extension``).
    """
    calendar = trading_calendar(prices)
    codes = panel_codes(prices)
    place = _Places(calendar, codes)
    close = place.grid(prices, "close")
    if values is None:
        values = feature_array(feature_rows(features, normalized, contract), calendar, codes)
    goals = np.stack([place.grid(targets, f"target_{h}d") for h in HORIZONS], axis=-1)
    sector, sectors = _groups(listings, "sector", codes)
    market, markets = _groups(listings, "market", codes)
    return Panel(
        features=values,
        observed=np.isfinite(close),
        tradable=np.isfinite(place.grid(universe, "raw_close")),
        targets=goals.astype(np.float32),
        daily_return=_since_last_bar(close).astype(np.float32),
        sector=sector,
        market=market,
        dates=tuple(calendar),
        codes=tuple(codes),
        feature_names=tuple(feature.name for feature in contract),
        normalizers=tuple(feature.normalizer for feature in contract),
        horizons=HORIZONS,
        sectors=sectors,
        markets=markets,
        split=split,
        source=source,
        inputs=inputs or {},
    )


def panel_codes(prices: pl.DataFrame) -> list[str]:
    """The stocks of the panel, in order."""
    return prices["code"].unique().sort().to_list()


def feature_array(
    rows: pl.DataFrame, calendar: list, codes: list[str]
) -> Float[np.ndarray, "dates stocks features"]:
    """Rows of features as a dense float32 array; NaN where there is no row or a null.

    Args:
        rows: From :func:`feature_rows`, on dates of ``calendar``.
        calendar: Dates of the array.
        codes: Stocks of the array.
    """
    names = rows.columns[2:]
    values = np.full((len(calendar), len(codes), len(names)), np.nan, dtype=np.float32)
    if calendar:
        _Places(calendar, codes).scatter(rows, [rows[name] for name in names], values)
    return values


def feature_rows(
    features: pl.DataFrame, normalized: pl.DataFrame, contract: tuple[Feature, ...]
) -> pl.DataFrame:
    """``date, code`` and what the panel holds of each feature, in the contract's order.

    Raises:
        InputError: They differ: one of them was built from other prices.
    """
    keys = features.select("date", "code")
    if not keys.equals(normalized.select("date", "code")):
        raise InputError(
            f"normalized_features: {normalized.height:,} rows that are not those of features "
            f"({features.height:,}); materialize normalized_features and all that follows"
        )
    columns = [
        (features if feature.normalizer == "time_series" else normalized)[feature.name]
        for feature in contract
    ]
    return keys.hstack(columns)


class _Places:
    """Where each (date, code) lies in a grid."""

    def __init__(self, calendar: list, codes: list[str]) -> None:
        days = pl.Series(calendar, dtype=pl.Date).to_physical().to_numpy()
        self.first_day = int(days[0])
        self.row = np.zeros(int(days[-1]) - self.first_day + 1, dtype=np.int64)
        self.row[days - self.first_day] = np.arange(len(days))
        self.codes = pl.Enum(codes)
        self.shape = (len(calendar), len(codes))
        self._last: tuple[pl.DataFrame, np.ndarray] | None = None

    def grid(self, table: pl.DataFrame, column: str) -> np.ndarray:
        """One column as float64 [dates, stocks]; NaN where the table has no row or a null."""
        result = np.full(self.shape, np.nan)
        result.reshape(-1)[self._cells(table)] = table[column].cast(pl.Float64).to_numpy()
        return result

    def scatter(self, keys: pl.DataFrame, columns: list[pl.Series], into: np.ndarray) -> None:
        """Columns of the rows ``keys`` into an array [dates, stocks, columns]; null is NaN.

        Some rows at a time, all columns of them: a cell's columns lie side by side, and one column
        after the other would go through the whole array for each.
        """
        cells = self._cells(keys)
        values = [column.to_numpy() for column in columns]
        target = into.reshape(-1, len(columns))
        for start in range(0, len(cells), ROWS_AT_A_TIME):
            rows = slice(start, start + ROWS_AT_A_TIME)
            target[cells[rows]] = np.stack([column[rows] for column in values], axis=1)

    def _cells(self, table: pl.DataFrame) -> np.ndarray:
        """Each row's place in the flattened grid; int64 [rows]"""
        if self._last is None or self._last[0] is not table:
            row = self.row[table["date"].to_physical().to_numpy() - self.first_day]
            column = table["code"].cast(self.codes).to_physical().to_numpy()
            cells = row * self.shape[1] + column
            self._last = (table, cells)
        return self._last[1]


def _since_last_bar(close: np.ndarray) -> np.ndarray:
    """Return from the stock's previous bar, however long ago, to this one; NaN without a bar."""
    known = np.isfinite(close)
    row = np.where(known, np.arange(len(close))[:, None], -1)
    last = np.maximum.accumulate(row, axis=0)
    before = np.vstack([np.full((1, close.shape[1]), -1), last[:-1]])
    previous = np.take_along_axis(close, np.maximum(before, 0), axis=0)
    return np.where(known & (before >= 0), close / previous - 1.0, np.nan)


def _groups(
    listings: pl.DataFrame, column: str, codes: list[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Each code's position among the sorted names; 0 is unknown. int16 [stocks]"""
    names = listings[column].drop_nulls().unique().sort().to_list()
    position = {name: index + 1 for index, name in enumerate(names)}
    of_code = dict(listings.select("code", column).iter_rows())
    ids = [position.get(of_code.get(code), 0) for code in codes]
    return np.array(ids, dtype=np.int16), (UNKNOWN, *names)
