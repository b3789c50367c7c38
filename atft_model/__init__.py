"""ATFT-GAT-FAN: a stock-ranking model in plain PyTorch. Runs without Dagster, Polars and DuckDB."""
