"""Split adjustment as of each date: what is stored once never changes after a later split."""

import polars as pl

from atft_pipeline.schemas import LIMIT_FLAGS

PRICE = ("open", "high", "low", "close")


def split_adjust(valid: pl.DataFrame, quarantine: pl.DataFrame | None = None) -> pl.DataFrame:
    """Makes prices of one stock comparable over time by accumulating factors forward.

    ``adjusted_t = raw_t / product of the factors up to and including t``: the level is that of the
    stock's first bar, and a bar uses factors up to its own date only. (A vendor's adjusted history
    has the level of the last bar, and is rewritten whole by each split.) Volume is multiplied by
    the product. Turnover stays in currency as traded: raw close times raw volume where the vendor
    gives none.

    Args:
        valid: Raw bars, unique (date, code), with positive finite ``adjustment_factor``.
        quarantine: The bars that were rejected. A split takes place whether or not the bar of its
            day can be used (a stock is often halted on it), so their factors count too, once per
            key; a factor that is unusable, or that repeated bars of one key disagree on, counts
            as 1, no split.

    Returns:
        ``prices``: one row per row of ``valid``, sorted by (code, date), with the limit flags
        where ``valid`` has them.
    """
    flags = [name for name in LIMIT_FLAGS if name in valid.columns]
    columns = ("date", "code", *PRICE, "volume", "turnover", "adjustment_factor", *flags)
    bars = valid.select(*columns, pl.lit(True).alias("valid"))
    if quarantine is not None:
        bars = pl.concat([bars, _lost_factors(valid, quarantine)], how="diagonal")
    bars = bars.sort("code", "date").with_columns(
        pl.col("adjustment_factor").cum_prod().over("code").alias("product")
    )
    traded = pl.coalesce(pl.col("turnover").fill_nan(None), pl.col("close") * pl.col("volume"))
    return bars.filter("valid").select(
        "date",
        "code",
        pl.col(PRICE) / pl.col("product"),
        (pl.col("volume") * pl.col("product")).alias("volume"),
        traded.alias("turnover"),
        pl.col("close").alias("raw_close"),
        *flags,
    )


def _lost_factors(valid: pl.DataFrame, quarantine: pl.DataFrame) -> pl.DataFrame:
    """The splits on days whose bar was rejected; one row per such key."""
    factor = pl.col("adjustment_factor")
    splits = quarantine.filter(factor.is_finite() & (factor > 0) & (factor != 1))
    agreed = splits.group_by("date", "code").agg(factor.first(), factor.n_unique().alias("said"))
    lost = agreed.filter(pl.col("said") == 1).join(valid, on=["date", "code"], how="anti")
    return lost.select("date", "code", "adjustment_factor", pl.lit(False).alias("valid"))
