"""The Dagster project around ``atft_model``: raw market data to a checked, trained model."""
