"""Market data sources: each returns the raw tables of ``base.MarketSource``; none knows Dagster."""
