"""Data set format `conversation`."""
