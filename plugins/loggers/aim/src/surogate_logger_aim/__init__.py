"""The run's records in an Aim repository."""

__version__ = "0.1.0.dev0+src"
