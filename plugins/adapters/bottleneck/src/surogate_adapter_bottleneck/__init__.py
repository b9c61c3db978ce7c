"""Bottleneck adapters for surogate."""
