"""Checkpoints in directories of the local file system."""

__version__ = "0.1.0.dev0+src"
