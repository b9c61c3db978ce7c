"""`surogate plan`, and the memory that a run takes."""

__version__ = "0.1.0.dev0+src"
