"""How old a table of daily data may be: the same for what comes in and what goes out."""

import datetime as dt

import dagster as dg

DAILY = dg.FreshnessPolicy.time_window(
    # A weekend and a holiday beside it pass in silence; Tokyo's longest usual closures (New Year,
    # Golden Week) last 5 days and warn at most.
    warn_window=dt.timedelta(days=5),
    fail_window=dt.timedelta(days=8),
)
"""One line per asset: ``freshness_policy=DAILY``."""
