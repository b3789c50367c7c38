"""Verdicts: pure functions from recorded evidence and thresholds to passed or failed."""
