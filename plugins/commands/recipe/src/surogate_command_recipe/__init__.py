"""`surogate recipe`."""

__version__ = "0.1.0.dev0+src"
