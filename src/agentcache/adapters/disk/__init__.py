"""Segment files and the SQLite catalogue of a home."""
