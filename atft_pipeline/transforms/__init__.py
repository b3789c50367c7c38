"""Pure functions from tables to tables. No Dagster, no files, no settings."""
