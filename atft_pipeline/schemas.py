"""Each table's columns, types and keys, and the bounds that normalized features must meet.

Tables are validated eagerly (``schema.validate(frame, lazy=True)``): on a LazyFrame pandera looks
at the column types only. ``lazy=True`` collects every failure instead of stopping at the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandera.polars as pa
import polars as pl
from pandera.errors import SchemaErrors

from atft_model.config import setting

KEY = ["date", "code"]

ALL_FEATURES = "__all__"
"""Row of the statistics table that holds every value of the continuous features together."""


def _columns(
    *,
    required: Mapping[str, type[pl.DataType]],
    nullable: Mapping[str, type[pl.DataType]] | None = None,
) -> dict[str, pa.Column]:
    columns = {name: pa.Column(dtype) for name, dtype in required.items()}
    for name, dtype in (nullable or {}).items():
        columns[name] = pa.Column(dtype, nullable=True)
    return columns


def _table(
    name: str, columns: dict[str, pa.Column], key: list[str] | None = None
) -> pa.DataFrameSchema:
    return pa.DataFrameSchema(columns, name=name, strict=True, unique=key)


_RAW_BAR = {
    "date": pl.Date,
    "code": pl.String,
    "open": pl.Float64,
    "high": pl.Float64,
    "low": pl.Float64,
    "close": pl.Float64,
    "volume": pl.Float64,
    "turnover": pl.Float64,
    "adjustment_factor": pl.Float64,
}
"""As delivered: values may be missing and keys may repeat; ``prices`` is where rules hold."""

LIMIT_FLAGS = ("limit_up", "limit_down")
"""Whether the day's price reached its exchange's daily limit; null or no column: not known."""


def _limit_flags() -> dict[str, pa.Column]:
    return {name: pa.Column(pl.Boolean, nullable=True, required=False) for name in LIMIT_FLAGS}


RAW_PRICES = _table("raw_prices", _columns(required={}, nullable=_RAW_BAR) | _limit_flags())

QUARANTINE = _table(
    "quarantine",
    _columns(required={"reason": pl.String}, nullable=_RAW_BAR) | _limit_flags(),
)

RAW_LISTINGS = _table(
    "raw_listings",
    _columns(
        required={"code": pl.String},
        nullable={
            "name": pl.String,
            "sector": pl.String,
            "market": pl.String,
            "listed_on": pl.Date,
            "delisted_on": pl.Date,
            "shares_outstanding": pl.Float64,
        },
    ),
    ["code"],
)


def _once_per_date(data: pa.PolarsData) -> pl.LazyFrame:
    return data.lazyframe.select(~pl.struct("date", data.key).is_duplicated())


# Its key is a check of a column: where a table has a column called index, pandera stumbles over
# its own of that name when it lists the rows of a repeated key.
RAW_INDICES = _table(
    "raw_indices",
    {
        "date": pa.Column(pl.Date),
        "index": pa.Column(pl.String, pa.Check(_once_per_date, error="unique within its date")),
        "close": pa.Column(pl.Float64),
    },
)

_FINITE = pa.Check.in_range(
    float("-inf"), float("inf"), include_min=False, include_max=False, error="finite"
)

_HORIZONS = {
    f"target_{days}d": pa.Column(pl.Float64, _FINITE, nullable=True) for days in (1, 5, 10, 20)
}
RAW_STATEMENTS = _table(
    "raw_statements",
    _columns(
        required={"code": pl.String, "disclosed_on": pl.Date},
        nullable={
            "disclosed_at": pl.Time,
            "fiscal_year_end": pl.Date,
            "period": pl.String,
            "document": pl.String,
            "sales": pl.Float64,
            "operating_profit": pl.Float64,
            "net_profit": pl.Float64,
            "total_assets": pl.Float64,
            "equity": pl.Float64,
            "forecast_sales": pl.Float64,
            "forecast_operating_profit": pl.Float64,
            "forecast_net_profit": pl.Float64,
            "shares_outstanding": pl.Float64,
        },
    ),
)
"""Disclosures as made, corrections and forecast revisions included; one row each, no unique key.

``disclosed_at`` is exchange-local; null counts as after the close. ``period`` is 1Q, 2Q, 3Q or FY;
sales and profits are cumulative from the fiscal year's start to the period's end, forecasts are for
the full fiscal year that ends on ``fiscal_year_end``. A forecast revision has forecasts only.
"""

RAW_INVESTOR_FLOWS = _table(
    "raw_investor_flows",
    _columns(
        required={
            "published_on": pl.Date,
            "first_date": pl.Date,
            "last_date": pl.Date,
            "section": pl.String,
        },
        nullable={
            "foreign_buy": pl.Float64,
            "foreign_sell": pl.Float64,
            "individual_buy": pl.Float64,
            "individual_sell": pl.Float64,
            "total_buy": pl.Float64,
            "total_sell": pl.Float64,
        },
    ),
)
"""Value traded by investor type over ``first_date`` to ``last_date`` (a week), per market section.

Sections are named as ``raw_listings`` names markets, and do not overlap (no totals among them); a
source that has the whole market only calls it ``WHOLE_MARKET``. A period may be published again
with corrections.
"""

WHOLE_MARKET = "ALL"


PLANTED_RETURN = _table(
    "planted_return", _columns(required={"date": pl.Date, "code": pl.String}) | _HORIZONS, KEY
)


def _positive() -> pa.Column:
    return pa.Column(pl.Float64, [pa.Check.gt(0.0), _FINITE])


PRICES = _table(
    "prices",
    {
        "date": pa.Column(pl.Date),
        "code": pa.Column(pl.String),
        **{name: _positive() for name in ("open", "high", "low", "close")},
        "volume": pa.Column(pl.Float64, pa.Check.ge(0.0)),
        "turnover": pa.Column(pl.Float64, pa.Check.ge(0.0)),
        "raw_close": _positive(),
        **_limit_flags(),
    },
    KEY,
)

SUSPECT_MOVES = _table(
    "suspect_moves",
    _columns(
        required={
            "date": pl.Date,
            "code": pl.String,
            "kind": pl.String,
            "previous_date": pl.Date,
            "previous_close": pl.Float64,
            "close": pl.Float64,
            "move": pl.Float64,
        }
    ),
    KEY,
)
"""Bars of ``prices`` whose adjusted close moved further than trading explains, with the kind."""

TRADING_UNIVERSE = _table(
    "trading_universe",
    _columns(
        required={
            "date": pl.Date,
            "code": pl.String,
            "history_days": pl.Int32,
            "turnover_20d": pl.Float64,
            "raw_close": pl.Float64,
        }
    ),
    KEY,
)

TARGETS = _table(
    "targets", _columns(required={"date": pl.Date, "code": pl.String}) | _HORIZONS, KEY
)

SCORES = _table(
    "scores",
    _columns(
        required={
            "run_id": pl.String,
            "scorer": pl.String,
            "date": pl.Date,
            "code": pl.String,
            "horizon": pl.Int32,
            "score": pl.Float64,
        }
    ),
    ["run_id", "scorer", "date", "code", "horizon"],
)


CONTRACTS = {
    schema.name: schema
    for schema in (RAW_PRICES, RAW_LISTINGS, RAW_INDICES, RAW_STATEMENTS, RAW_INVESTOR_FLOWS,
                   QUARANTINE, PRICES, SUSPECT_MOVES, TRADING_UNIVERSE, TARGETS)
} | {"predictions": SCORES}  # fmt: skip
"""Of stored tables by name; those of the feature tables depend on the registry."""


def layout_fault(table: str, frame: pl.DataFrame) -> str | None:
    """Where a stored table's columns are not those of its contract: the first one, in words.

    Names and types alone, which cost nothing: values were judged when the table was made.
    """
    for name, column in CONTRACTS[table].columns.items() if table in CONTRACTS else ():
        if name not in frame.columns:
            if column.required:
                return f"no column {name}"
        elif frame.schema[name] != column.dtype.type:
            return f"column {name} is {frame.schema[name]}, expected {column.dtype.type}"
    return None


def features_schema(names: Sequence[str]) -> pa.DataFrameSchema:
    """The ``features`` table with exactly these columns: raw units, finite or null."""
    return _feature_table("features", names, _FINITE)


def normalized_schema(names: Sequence[str], clip: float) -> pa.DataFrameSchema:
    """The ``normalized_features`` table with exactly these columns, all within ``±clip``."""
    return _feature_table("normalized_features", names, pa.Check.in_range(-clip, clip))


def _feature_table(table: str, names: Sequence[str], check: pa.Check) -> pa.DataFrameSchema:
    values = {name: pa.Column(pl.Float32, check, nullable=True) for name in names}
    return _table(table, _columns(required={"date": pl.Date, "code": pl.String}) | values, KEY)


@dataclass(frozen=True)
class NormalizationBounds:
    """What the statistics of normalized features must meet on training dates."""

    mean_limit: float = setting(
        0.1, "Largest |mean| of each continuous feature and of all together. A correct score has "
        "mean 0; cutting at ±5 after winsorizing moves it by hundredths on the heaviest tails."
    )  # fmt: skip
    std_lower: float = setting(
        0.8,
        "Smallest std: a score cut too hard, or one that is mostly a single value, falls below.",
    )
    std_upper: float = setting(
        1.2, "Largest std: a correct score has 1 and cutting only lowers it; above, the statistics "
        "are not those of these rows (the historical failure had 268,938)."
    )  # fmt: skip
    zero_share_limit: float = setting(
        0.5, "Share of exact zeros of a continuous feature's known values that is too much: zeros "
        "come from filling or from scoring slices of one stock, not from data."
    )  # fmt: skip
    flag_share_limit: float = setting(
        0.005, "Smallest share of either value of a flag or mask: one that is set on fewer rows, "
        "or on all but as few, is constant for learning and should have been left out."
    )  # fmt: skip


@dataclass(frozen=True)
class Violation:
    """One figure out of bounds: which feature, which quantity, its value (None: no known value)."""

    feature: str
    quantity: str
    value: float | None
    bound: str

    def __str__(self) -> str:
        value = "unknown" if self.value is None else f"{self.value:g}"
        return f"{self.feature}: {self.quantity} is {value}, expected {self.bound}"


def statistics_schema(bounds: NormalizationBounds, *, flags: bool) -> pa.DataFrameSchema:
    """The statistics table's rows of continuous features, or those of flags and masks."""
    known = {name: pa.Column(pl.Float64) for name in ("mean", "std", "zero_share", "min", "max")}
    if flags:
        rare = bounds.flag_share_limit
        share = pa.Check.in_range(rare, 1.0 - rare, error=f"from {rare:g} to {1.0 - rare:g}")
        only = pa.Check.eq(0.0, error="0: flags and masks are 0 or 1")
        figures = {
            "mean": pa.Column(pl.Float64, share),
            "other_share": pa.Column(pl.Float64, only),
        }
    else:
        limit, low, high = bounds.mean_limit, bounds.std_lower, bounds.std_upper
        mean = pa.Check.in_range(-limit, limit, error=f"from {-limit:g} to {limit:g}")
        std = pa.Check.in_range(low, high, error=f"from {low:g} to {high:g}")
        zeros = pa.Check.lt(bounds.zero_share_limit, error=f"below {bounds.zero_share_limit:g}")
        figures = {
            "mean": pa.Column(pl.Float64, mean),
            "std": pa.Column(pl.Float64, std),
            "zero_share": pa.Column(pl.Float64, zeros),
            "other_share": pa.Column(pl.Float64, nullable=True),
        }
    names = _columns(
        required={
            "feature": pl.String,
            "normalizer": pl.String,
            "rows": pl.Int64,
            "null_share": pl.Float64,
        }
    )
    return _table("feature_statistics", names | known | figures, ["feature"])


def validate_statistics(statistics: pl.DataFrame, bounds: NormalizationBounds) -> list[Violation]:
    """Every figure of the statistics table that is out of bounds; empty when all hold.

    Args:
        statistics: From ``transforms.normalize.feature_statistics``.
        bounds: For continuous features, and the share of ones of flags and masks.

    Raises:
        SchemaErrors: The table itself is not a statistics table (column missing or of other type).
    """
    is_flag = pl.col("normalizer") == "none"
    violations: list[Violation] = []
    for flags in (False, True):
        rows = statistics.filter(is_flag if flags else ~is_flag)
        try:
            statistics_schema(bounds, flags=flags).validate(rows, lazy=True)
        except SchemaErrors as errors:
            if errors.failure_cases["index"].null_count():
                raise
            violations += _violations(rows, errors.failure_cases)
    return violations


def _violations(rows: pl.DataFrame, failure_cases: pl.DataFrame) -> list[Violation]:
    """One per (feature, quantity): the failure case is the number, its row the feature."""
    found: dict[tuple[str, str], Violation] = {}
    for case in failure_cases.iter_rows(named=True):
        feature, quantity = rows["feature"][case["index"]], case["column"]
        bound = "a known value" if case["check"] == "not_nullable" else case["check"]
        value = rows[quantity][case["index"]]
        found.setdefault((feature, quantity), Violation(feature, quantity, value, bound))
    return list(found.values())
