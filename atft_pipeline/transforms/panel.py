"""Tables to the dense panel that the model trains on, and the default split of its dates."""

import numpy as np
import polars as pl

from atft_model.data.panel import Panel
from atft_model.data.splits import Split, SplitConfig, split_dates
from atft_model.errors import InputError
from atft_pipeline.transforms.features import Feature
from atft_pipeline.transforms.targets import HORIZONS

UNKNOWN = "unknown"


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
) -> Panel:  # fmt: skip
    """Dense arrays over the calendar × all codes with prices.

    Args:
        features: Raw units; read for the time-series features.
        normalized: Read for the cross-section features and the flags.
        contract: The features to keep, in order.
        inputs: Content hash of each table, for the manifest.
    """
    calendar = trading_calendar(prices)
    codes = prices["code"].unique().sort().to_list()
    shape = (len(calendar), len(codes))
    place = _Places(calendar, codes)
    close = place.grid(prices, "close")
    values = np.full((*shape, len(contract)), np.nan, dtype=np.float32)
    for position, feature in enumerate(contract):
        table = features if feature.normalizer == "time_series" else normalized
        values[..., position] = place.grid(table, feature.name)
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


class _Places:
    """Where each (date, code) lies in a grid."""

    def __init__(self, calendar: list, codes: list[str]) -> None:
        self.dates = pl.DataFrame({"date": calendar, "row": np.arange(len(calendar))})
        self.codes = pl.DataFrame({"code": codes, "column": np.arange(len(codes))})
        self.shape = (len(calendar), len(codes))
        self._last: tuple[pl.DataFrame, np.ndarray, np.ndarray] | None = None

    def grid(self, table: pl.DataFrame, column: str) -> np.ndarray:
        """One column as float64 [dates, stocks]; NaN where the table has no row or a null."""
        if self._last is None or self._last[0] is not table:
            where = (
                table.select("date", "code")
                .join(self.dates, on="date", how="left", maintain_order="left")
                .join(self.codes, on="code", how="left", maintain_order="left")
            )
            self._last = (table, where["row"].to_numpy(), where["column"].to_numpy())
        _, rows, columns = self._last
        result = np.full(self.shape, np.nan)
        result[rows, columns] = table[column].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        return result


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
