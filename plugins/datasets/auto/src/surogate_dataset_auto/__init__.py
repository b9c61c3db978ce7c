"""Data set format `auto`."""
