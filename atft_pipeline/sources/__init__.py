"""Market data sources. Each returns the raw tables of ``base.MarketSource`` and knows no Dagster."""
