"""The run's records in Weights & Biases, online or offline."""

__version__ = "0.1.0.dev0+src"
