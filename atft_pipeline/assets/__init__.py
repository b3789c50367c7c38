"""Thin assets: read, call one pure function, write, attach metadata."""
