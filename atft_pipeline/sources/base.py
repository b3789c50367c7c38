"""What every market data source offers. A new source is one file beside this one, and a test."""

from typing import Protocol

import polars as pl


class MarketSource(Protocol):
    """Raw market tables as a vendor delivers them; columns and types are those of ``schemas``.

    A table that the source cannot give comes back with the right columns and no rows, and
    ``missing`` says why, so that the run can report it once and go on.
    """

    name: str

    def raw_prices(self) -> pl.DataFrame:
        """Unadjusted daily bars, one row per (date, code) as delivered, defects included."""
        ...

    def raw_listings(self) -> pl.DataFrame:
        """One row per code: names, sector, market, first and last trading date."""
        ...

    def raw_indices(self) -> pl.DataFrame:
        """Index closes by date; no rows where the source has no index."""
        ...

    def raw_statements(self) -> pl.DataFrame:
        """Company disclosures, one row each, corrections and forecast revisions included."""
        ...

    def raw_investor_flows(self) -> pl.DataFrame:
        """Weekly value traded by investor type and market section, as published."""
        ...

    def planted_return(self) -> pl.DataFrame | None:
        """Expected forward returns that a built-in market planted; None for real markets."""
        ...

    def missing(self) -> dict[str, str]:
        """What this source lacks (table or column) and the reason, in words for a person."""
        ...
