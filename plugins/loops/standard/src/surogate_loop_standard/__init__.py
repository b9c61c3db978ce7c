"""The training loop of surogate, a plugin like all others: ``training_loop = "standard"``."""
