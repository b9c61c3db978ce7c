"""A run on the terminal: lines, a progress line, and the loss curve as text and as a picture."""

__version__ = "0.1.0.dev0+src"
