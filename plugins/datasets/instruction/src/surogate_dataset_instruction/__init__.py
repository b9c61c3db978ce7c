"""Data set format `instruction`."""
