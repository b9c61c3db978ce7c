"""What the records of a run say about it, and what is done about it when the configuration asks for that."""

__version__ = "0.1.0.dev0+src"
