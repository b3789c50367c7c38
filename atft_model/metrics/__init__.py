"""Evaluation metrics on dated cross-sections."""
