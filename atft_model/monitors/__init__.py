"""Readings of a running model: they read and may raise, never write."""
