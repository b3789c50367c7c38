"""The feature contract: each input's name, formula, sources, lookback and normalizer, stated once.

Adding a feature is one entry here, its expression in ``transforms``, and one test. The order is the
column order of the feature table and the panel: core, extra, masks. ``needs`` names the source
columns beyond what every daily bar has, so that a source without them leaves the feature out.

Normalizers: ``cross_section`` where a stock's place among the date's stocks carries the meaning.
``time_series`` where it would erase it: market-wide series; ``rel_strength_5d``, which differs from
``returns_5d`` by the same number for all stocks of a date; ``log_returns_1d``, kept so that one
return shows how large the day was; ``sec_vol_20_z``, already a score against its own past;
``stmt_days_since_statement``, as news ages by the day, whatever other companies do.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import polars as pl

from atft_pipeline.transforms import flows as flow
from atft_pipeline.transforms import fundamentals as stmt
from atft_pipeline.transforms import indicators, liquidity, returns
from atft_pipeline.transforms import market as mkt
from atft_pipeline.transforms import sector as sec
from atft_pipeline.transforms.features import Feature, Group, Normalizer, Step
from atft_pipeline.transforms.windows import BAR, window_max, window_mean, window_min

CLOSES = ("prices.close",)
RANGE = ("prices.high", "prices.low", "prices.close")
VOLUME = ("prices.volume",)
SHARES = (
    "prices.turnover",
    "prices.raw_close",
    "listings.shares_outstanding or statements.shares_outstanding",
)
SECTOR = ("prices.close", "listings.sector")
FOREIGN = ("investor_flows.foreign_buy", "investor_flows.foreign_sell")
INDIVIDUAL = ("investor_flows.individual_buy", "investor_flows.individual_sell")
TRADED = ("investor_flows.total_buy", "investor_flows.total_sell")
DISCLOSED = ("statements.disclosed_on",)

CLOSE = pl.col("close")
HIGH = pl.col("high")
LOW = pl.col("low")
RETURN = pl.col("return_1d")
LEVEL = pl.col("level")
MEMBERS = pl.col("members")
MARKET_RETURN = pl.col("market_return_1d")
MEANS = {bars: Step(f"mean_{bars}", window_mean(CLOSE, bars)) for bars in (5, 20, 60)}
STD_20 = Step("std_20", indicators.band_std(CLOSE))
GAP = indicators.average_gap(MEANS[5].column, MEANS[20].column)
LEVEL_GAP = indicators.average_gap(window_mean(LEVEL, 5), window_mean(LEVEL, 20))
LEVEL_BANDS = (indicators.band_mean(LEVEL), indicators.band_std(LEVEL))
LOWEST_14 = Step("lowest_14", window_min(LOW, 14))
HIGHEST_14 = Step("highest_14", window_max(HIGH, 14))
BETA = Step("beta", mkt.beta(RETURN, MARKET_RETURN))


def _recursive(name: str, average: pl.Expr) -> Step:
    """An average that reads all bars of the stock before."""
    return Step(name, average, recursive=True)


MACD = _recursive("macd", indicators.macd(CLOSE))
MACD_SIGNAL = _recursive("macd_signal", indicators.macd_signal(MACD.column))


def build_registry(*parts: Iterable[Feature]) -> tuple[Feature, ...]:
    """The parts in order, as one registry.

    Raises:
        ValueError: Two features share a name.
    """
    features = tuple(feature for part in parts for feature in part)
    seen: set[str] = set()
    for feature in features:
        if feature.name in seen:
            raise ValueError(
                f"feature registry: '{feature.name}' is declared twice; rename or remove one"
            )
        seen.add(feature.name)
    return features


def _price(
    name: str,
    formula: str,
    lookback: int,
    expression: pl.Expr,
    normalizer: Normalizer = "cross_section",
    needs: tuple[str, ...] = CLOSES,
    group: Group = "price",
    reads: tuple[Step, ...] = (),
) -> Feature:
    """A feature of the stock's own bars."""
    return Feature(name, formula, group, "stock", needs, lookback, normalizer, expression, reads)


def _market(
    name: str,
    formula: str,
    lookback: int,
    expression: pl.Expr,
    normalizer: Normalizer = "time_series",
) -> Feature:
    """A feature of the market series M (level) and m (its one-day return)."""
    needs = CLOSES
    return Feature(name, formula, "market", "market", needs, lookback, normalizer, expression)


def _relative(
    name: str,
    formula: str,
    lookback: int,
    expression: pl.Expr,
    normalizer: Normalizer = "cross_section",
    needs: tuple[str, ...] = CLOSES,
    reads: tuple[Step, ...] = (),
) -> Feature:
    """A feature of the stock's bars and the market's or sector's of the same dates."""
    return Feature(
        name, formula, "relative", "stock", needs, lookback, normalizer, expression, reads
    )


def _sector(
    name: str,
    formula: str,
    lookback: int,
    expression: pl.Expr,
    normalizer: Normalizer = "cross_section",
) -> Feature:
    """A feature of the sector series S (level); null where the sector is too small that day."""
    text = f"{formula}; null where the sector has fewer than {sec.MIN_SECTOR_STOCKS} stocks"
    gated = sec.where_enough_members(expression, MEMBERS)
    return Feature(name, text, "sector", "sector", SECTOR, lookback, normalizer, gated)


def _simple_return(bars: int) -> Feature:
    return _price(
        f"returns_{bars}d",
        f"close[t] / close[t-{bars}] - 1",
        bars + 1,
        returns.simple_return(CLOSE, bars),
    )


def _volatility(bars: int) -> Feature:
    return _price(
        f"volatility_{bars}d",
        f"sample standard deviation of returns_1d over {bars} bars, per day",
        bars + 1,
        returns.volatility(RETURN, bars),
    )


def _exponential_average(span: int) -> Feature:
    average = _recursive(f"average_{span}", indicators.exponential_average(CLOSE, span))
    return _price(
        f"ema_{span}",
        f"ema(close, {span})[t] / close[t] - 1; recursive from the first bar, first value on bar "
        f"{span}",
        span,
        returns.ratio(average.column, CLOSE) - 1.0,
        reads=(average,),
    )


def _price_to_average(bars: int) -> Feature:
    return _price(
        f"price_to_sma{bars}",
        f"close[t] / mean(close over {bars} bars) - 1",
        bars,
        indicators.price_to_average(CLOSE, MEANS[bars].column),
        reads=(MEANS[bars],),
    )


def _volume_ratio(bars: int) -> Feature:
    return _price(
        f"volume_ratio_{bars}",
        f"volume[t] / mean(volume over {bars} bars), split-adjusted",
        bars,
        liquidity.volume_ratio(pl.col("volume"), bars),
        needs=VOLUME,
        group="liquidity",
    )


def _market_return(days: int) -> Feature:
    return _market(
        f"mkt_ret_{days}d", f"M[t] / M[t-{days}] - 1", days + 1, returns.simple_return(LEVEL, days)
    )


def _relative_strength_index(bars: int) -> Feature:
    change = _recursive(f"change_{bars}", indicators.average_change(CLOSE, bars))
    move = _recursive(f"move_{bars}", indicators.average_move(CLOSE, bars))
    return _price(
        f"rsi_{bars}",
        f"Wilder's RSI over {bars} bars: 100 g / (g + l), gains g and losses l of close smoothed "
        f"by 1/{bars}, recursive from the first change, first value on bar {bars + 1}",
        bars + 1,
        indicators.relative_strength_index(change.column, move.column),
        reads=(change, move),
    )


def _flow(
    name: str,
    formula: str,
    needs: tuple[str, ...],
    weeks: int,
    normalizer: Normalizer = "time_series",
    score: str | None = None,
) -> Feature:
    """A feature of the newest week that is public, of the stock's market section."""
    expression = pl.col(score or name.removeprefix("flow_"))
    lookback = 5 * weeks + 5 + flow.STALE_DAYS  # published some days later, then held
    return Feature(name, formula, "flow", "section", needs, lookback, normalizer, expression)


def _statement(
    name: str,
    formula: str,
    items: tuple[str, ...],
    expression: pl.Expr,
    years: int = 1,
) -> Feature:
    """A feature of the newest disclosure, held until the next one, or until it is stale."""
    needs = tuple(f"statements.{item}" for item in items)
    lookback = stmt.STALE_DAYS + mkt.YEAR_BARS * years
    return Feature(
        name, formula, "statement", "statement", needs, lookback, "cross_section", expression
    )


def _net_z(kind: str, needs: tuple[str, ...]) -> Feature:
    return _flow(
        f"flow_{kind}_net_z", f"z52 of the week's {kind} net buying (bought less sold)", needs, 52
    )


def _net_ratio(kind: str, needs: tuple[str, ...]) -> Feature:
    return _flow(
        f"flow_{kind}_net_ratio", f"{kind} (bought - sold) / (bought + sold), newest week", needs, 1
    )


def _year_on_year(name: str, item: str, label: str) -> Feature:
    return _statement(
        name,
        f"({label} - {label} of the same quarter a fiscal year before) / |the latter|, cumulative "
        "in the fiscal year",
        (item,),
        stmt.year_on_year(item),
        years=2,
    )


def _margin(name: str, profit: str, label: str) -> Feature:
    return _statement(
        name, f"{label} / sales, cumulative in the fiscal year", (profit, "sales"),
        stmt.margin(profit),
    )  # fmt: skip


def _progress(name: str, profit: str, label: str) -> Feature:
    return _statement(
        name,
        f"cumulative {label} / newest forecast of it for the whole fiscal year; null where that is "
        "not positive",
        (profit, f"forecast_{profit}"),
        stmt.progress(profit),
    )


def _revision(name: str, profit: str, label: str) -> Feature:
    return _statement(
        name,
        f"(newest forecast of {label} - the previous one for the same fiscal year) / |the latter|; "
        "null from a fiscal year's first forecast to its second",
        (f"forecast_{profit}",),
        stmt.revision(profit),
    )


def _return_on(name: str, capital: str, label: str) -> Feature:
    return _statement(
        name,
        f"net profit of the last four quarters / {label}; null where that is not positive",
        ("net_profit", capital),
        stmt.return_on(capital),
        years=2,
    )


TRAILING_YEAR = (
    f"the trailing year ({mkt.YEAR_BARS} days, today included, at least {mkt.MIN_YEAR_BARS} known)"
)

CORE: tuple[Feature, ...] = (
    _simple_return(1),
    _simple_return(5),
    _price(
        "log_returns_1d", "ln(close[t] / close[t-1])", 2, returns.log_return(CLOSE), "time_series"
    ),
    _volatility(5),
    _volatility(20),
    _exponential_average(5),
    _exponential_average(20),
    _exponential_average(200),
    _price(
        "ma_gap_5_20",
        "mean(close over 5 bars) / mean(close over 20 bars) - 1",
        20,
        GAP,
        reads=(MEANS[5], MEANS[20]),
    ),
    _price_to_average(20),
    _price(
        "bb_position",
        "Bollinger %b: (close - (m - 2s)) / 4s, mean m and population std s of close over 20 bars",
        20,
        indicators.bollinger_position(CLOSE, MEANS[20].column, STD_20.column),
        reads=(MEANS[20], STD_20),
    ),
    _price(
        "bb_width",
        "Bollinger BandWidth: 4s / m, mean m and population std s of close over 20 bars",
        20,
        indicators.bollinger_width(MEANS[20].column, STD_20.column),
        reads=(MEANS[20], STD_20),
    ),
    _volume_ratio(5),
    _volume_ratio(20),
    _price(
        "turnover_rate",
        "(turnover / raw_close) / shares_outstanding of the newest statement, else of the listing",
        1,
        liquidity.turnover_rate(
            pl.col("turnover"), pl.col("raw_close"), pl.col("shares_outstanding")
        ),
        needs=SHARES,
        group="liquidity",
    ),
    _market_return(1),
    _market_return(5),
    _market(
        "mkt_gap_5_20",
        "mean(M over 5 days) / mean(M over 20 days) - 1",
        20,
        LEVEL_GAP,
    ),
    _market(
        "mkt_vol_20d",
        "sample standard deviation of m over 20 days, per day",
        21,
        returns.volatility(RETURN, 20),
    ),
    _market(
        "mkt_bull_200",
        "1 where M[t] > mean(M over 200 days), else 0",
        200,
        mkt.bull_market(LEVEL),
        "none",
    ),
    _market(
        "mkt_high_vol",
        "1 where mkt_vol_20d is above its mean plus one sample std, both over " + TRAILING_YEAR,
        mkt.YEAR_BARS + 20,
        mkt.high_volatility(RETURN),
        "none",
    ),
    _market(
        "mkt_ret_1d_z",
        "(m[t] - mean(m)) / sample std(m), both over " + TRAILING_YEAR,
        mkt.YEAR_BARS + 1,
        returns.trailing_z_score(RETURN, mkt.YEAR_BARS, mkt.MIN_YEAR_BARS),
    ),
    _market(
        "mkt_dd_from_peak",
        "M[t] / max(M) - 1, maximum over " + TRAILING_YEAR,
        mkt.YEAR_BARS,
        mkt.drawdown_from_peak(LEVEL),
    ),
    _relative(
        "beta_60d",
        "cov(r, m) / var(m) over 60 bars, r the stock's returns_1d",
        61,
        BETA.column,
        reads=(BETA,),
    ),
    _relative(
        "alpha_1d",
        "r[t] - beta_60d[t] m[t]",
        61,
        mkt.alpha(RETURN, MARKET_RETURN, BETA.column),
        reads=(BETA,),
    ),
    _relative(
        "alpha_5d",
        "returns_5d[t] - beta_60d[t] mkt_ret_5d[t]",
        61,
        mkt.alpha(returns.simple_return(CLOSE, 5), pl.col("market_return_5d"), BETA.column),
        reads=(BETA,),
    ),
    _relative(
        "rel_strength_5d",
        "returns_5d[t] - mkt_ret_5d[t]",
        6,
        returns.simple_return(CLOSE, 5) - pl.col("market_return_5d"),
        "time_series",
    ),
    _relative(
        "idio_vol_ratio",
        "sqrt(1 - corr(r, m)^2) over 60 bars: residual over total volatility",
        61,
        mkt.idiosyncratic_share(RETURN, MARKET_RETURN),
    ),
    _relative(
        "trend_align_mkt",
        "1 where ma_gap_5_20 and mkt_gap_5_20 have the same sign, else 0",
        20,
        mkt.trend_alignment(GAP, pl.col("market_gap_5_20")),
        "none",
        reads=(MEANS[5], MEANS[20]),
    ),
    _sector("sec_mom_20", "S[t] / S[t-20] - 1", 21, returns.simple_return(LEVEL, 20)),
    _sector("sec_ret_5d_eq", "S[t] / S[t-5] - 1", 6, returns.simple_return(LEVEL, 5)),
    _sector(
        "sec_vol_20_z",
        "sample std of the sector's returns over 20 days, less its mean, over its sample std, both "
        "over " + TRAILING_YEAR,
        mkt.YEAR_BARS + 20,
        returns.trailing_z_score(returns.volatility(RETURN, 20), mkt.YEAR_BARS, mkt.MIN_YEAR_BARS),
        "time_series",
    ),
    _sector(
        "sec_gap_5_20",
        "mean(S over 5 days) / mean(S over 20 days) - 1",
        20,
        LEVEL_GAP,
    ),
    _net_z("foreign", FOREIGN),
    _net_z("individual", INDIVIDUAL),
    _flow("flow_activity_z", "z52 of the value bought and sold in the week", TRADED, 52),
    _flow(
        "flow_smart_idx",
        "flow_foreign_net_z - flow_individual_net_z",
        (*FOREIGN, *INDIVIDUAL),
        52,
    ),
    _flow(
        "flow_smart_mom4",
        f"flow_smart_idx less its mean over {flow.MOMENTUM_WEEKS} weeks",
        (*FOREIGN, *INDIVIDUAL),
        51 + flow.MOMENTUM_WEEKS,
    ),
    _flow(
        "flow_shock_flag",
        f"1 where |flow_smart_idx| is at least {flow.SHOCK:g} times its sample std over "
        f"{flow.WEEKS} weeks (at least {flow.MIN_WEEKS} known), else 0",
        (*FOREIGN, *INDIVIDUAL),
        103,
        "none",
    ),
    Feature(
        "flow_impulse",
        "1 on the day from which a new week counts, else 0",
        "flow",
        "section",
        FOREIGN,
        5 + flow.STALE_DAYS,
        "none",
        (pl.col("days_since") == 0).cast(pl.Float64),
    ),
    Feature(
        "flow_days_since",
        "trading days since the newest week counts, 0 on that day",
        "flow",
        "section",
        FOREIGN,
        5 + flow.STALE_DAYS,
        "time_series",
        pl.col("days_since"),
    ),
    _year_on_year("stmt_yoy_sales", "sales", "sales"),
    _year_on_year("stmt_yoy_op", "operating_profit", "operating profit"),
    _margin("stmt_opm", "operating_profit", "operating profit"),
    _progress("stmt_progress_op", "operating_profit", "operating profit"),
    _revision("stmt_rev_fore_op", "operating_profit", "operating profit"),
    Feature(
        "stmt_imp_statement",
        "1 on the day from which a disclosure of the company counts, else 0",
        "statement",
        "stock",
        DISCLOSED,
        1,
        "none",
        (pl.col("statement_days") == 0).fill_null(False).cast(pl.Float64),
    ),
    Feature(
        "stmt_days_since_statement",
        "trading days since the company's newest disclosure counts, 0 on that day; null after "
        f"{stmt.STALE_DAYS}",
        "statement",
        "stock",
        DISCLOSED,
        stmt.STALE_DAYS,
        "time_series",
        pl.when(pl.col("statement_days") <= stmt.STALE_DAYS).then(pl.col("statement_days")),
    ),
)

EXTRA: tuple[Feature, ...] = (
    _simple_return(10),
    _simple_return(20),
    _volatility(10),
    _volatility(60),
    _price_to_average(5),
    _price_to_average(60),
    _price(
        "close_to_high",
        "close[t] / high[t] - 1: 0 where the day closed on its high, else below",
        1,
        returns.ratio(CLOSE, HIGH) - 1.0,
        needs=RANGE,
    ),
    _price(
        "close_to_low",
        "close[t] / low[t] - 1: 0 where the day closed on its low, else above",
        1,
        returns.ratio(CLOSE, LOW) - 1.0,
        needs=RANGE,
    ),
    _price(
        "realized_volatility",
        "Parkinson: sqrt(mean(ln(high / low)^2 over 20 bars) / (4 ln 2)), per day",
        20,
        returns.parkinson_volatility(HIGH, LOW, 20),
        needs=RANGE,
    ),
    _market(
        "mkt_bb_bw",
        "Bollinger BandWidth of M over 20 days, as bb_width",
        20,
        indicators.bollinger_width(*LEVEL_BANDS),
    ),
    _market(
        "mkt_bb_pct_b",
        "Bollinger %b of M over 20 days, as bb_position",
        20,
        indicators.bollinger_position(LEVEL, *LEVEL_BANDS),
    ),
    _market_return(10),
    _market_return(20),
    _market(
        "mkt_ema20_slope_3",
        "ema(M, 20)[t] / ema(M, 20)[t-3] - 1; recursive from the first day",
        23,
        mkt.exponential_slope(LEVEL, 20, 3),
    ),
    _relative(
        "beta_stability_60d",
        "1 / (1 + sample std of beta_60d over 60 bars): 1 where it did not move",
        120,
        mkt.beta_stability(BETA.column),
        reads=(BETA,),
    ),
    _relative_strength_index(2),
    _relative_strength_index(14),
    _price(
        "macd_histogram",
        "(macd - ema(macd, 9)) / close, macd = ema(close, 12) - ema(close, 26); recursive from the "
        "first bar, first value on bar 34",
        34,
        indicators.macd_histogram(MACD.column, MACD_SIGNAL.column, CLOSE),
        reads=(MACD, MACD_SIGNAL),
    ),
    _price(
        "stoch_k",
        "100 (close - min low) / (max high - min low) over 14 bars",
        14,
        indicators.stochastic_k(CLOSE, LOWEST_14.column, HIGHEST_14.column),
        reads=(LOWEST_14, HIGHEST_14),
        needs=RANGE,
    ),
    _relative(
        "alpha_vs_sec_1d",
        "returns_1d[t] less the mean returns_1d of the sector's stocks, itself included; null "
        f"where the sector has fewer than {sec.MIN_SECTOR_STOCKS} stocks",
        2,
        sec.where_enough_members(RETURN - pl.col("sector_return_1d"), pl.col("sector_members")),
        needs=SECTOR,
    ),
    _net_ratio("foreign", FOREIGN),
    _net_ratio("individual", INDIVIDUAL),
    _flow(
        "flow_activity_ratio",
        f"value bought and sold in the week / its mean over {flow.WEEKS} weeks (at least "
        f"{flow.MIN_WEEKS} known)",
        TRADED,
        52,
    ),
    _flow(
        "flow_breadth_pos",
        "share of foreigners, individuals and all others that bought net in the newest week",
        (*FOREIGN, *INDIVIDUAL, *TRADED),
        1,
    ),
    _year_on_year("stmt_yoy_np", "net_profit", "net profit"),
    _margin("stmt_npm", "net_profit", "net profit"),
    _progress("stmt_progress_np", "net_profit", "net profit"),
    _revision("stmt_rev_fore_np", "net_profit", "net profit"),
    _return_on("stmt_roe", "equity", "equity"),
    _return_on("stmt_roa", "total_assets", "total assets"),
)

MASKS: tuple[Feature, ...] = (
    Feature(
        "is_flow_valid",
        f"1 where a week of flows of the stock's section first counted at most {flow.STALE_DAYS} "
        "trading days ago, else 0",
        "mask",
        "stock",
        FOREIGN,
        5 + flow.STALE_DAYS,
        "none",
        (pl.col("flow_days") <= flow.STALE_DAYS).fill_null(False).cast(pl.Float64),
    ),
    Feature(
        "is_stmt_valid",
        f"1 where the company disclosed something at most {stmt.STALE_DAYS} trading days ago and "
        "has reported a period before, else 0",
        "mask",
        "stock",
        DISCLOSED,
        stmt.STALE_DAYS,
        "none",
        ((pl.col("statement_days") <= stmt.STALE_DAYS) & pl.col("statement_quarter").is_not_null())
        .fill_null(False)
        .cast(pl.Float64),
    ),
    _price(
        "is_valid_ma",
        "1 where the stock has 200 bars or more, so that every moving average is valid, else 0",
        200,
        (BAR >= 200).cast(pl.Float64),
        "none",
        group="mask",
    ),
    _price(
        "is_sec_cs_valid",
        f"1 where the stock's sector is known and has {sec.MIN_SECTOR_STOCKS} stocks or more that "
        "day, else 0",
        1,
        sec.has_enough_members(pl.col("sector_members")),
        "none",
        needs=SECTOR,
        group="mask",
    ),
)

REGISTRY: tuple[Feature, ...] = build_registry(CORE, EXTRA, MASKS)


def unmet_needs(
    tables: Mapping[str, pl.DataFrame], registry: Sequence[Feature] = REGISTRY
) -> set[str]:
    """The needed source columns that are absent or hold no value.

    Args:
        tables: Source tables by the name that ``needs`` uses: ``prices``, ``listings``,
            ``statements``, ``investor_flows``.
        registry: Whose needs to look up.
    """
    needs = {need for feature in registry for need in feature.needs}
    return {
        need
        for need in needs
        if not any(_is_met(tables, *column.split(".")) for column in need.split(" or "))
    }


def _is_met(tables: Mapping[str, pl.DataFrame], table: str, column: str) -> bool:
    frame = tables.get(table)
    if frame is None or column not in frame.columns:
        return False
    return frame[column].null_count() < frame.height


def available_features(
    missing: AbstractSet[str], registry: Sequence[Feature] = REGISTRY
) -> tuple[tuple[Feature, ...], dict[str, str]]:
    """The features that a source can feed, in order, and why each other is left out.

    Args:
        missing: Needs that the source does not meet, as ``table.column`` (see ``unmet_needs``).
        registry: What to choose from.
    """
    left_out = {
        feature.name: "the source has no " + ", ".join(sorted(missing & set(feature.needs)))
        for feature in registry
        if missing & set(feature.needs)
    }
    kept = tuple(feature for feature in registry if feature.name not in left_out)
    return kept, left_out
