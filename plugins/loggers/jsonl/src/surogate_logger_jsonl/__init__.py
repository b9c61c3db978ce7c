"""The run's records in a JSON Lines file."""

__version__ = "0.1.0.dev0+src"
