"""Gated feed-forward blocks for surogate, with a backward pass of their own."""
