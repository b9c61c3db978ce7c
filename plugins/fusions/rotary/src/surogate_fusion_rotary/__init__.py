"""Rotary positions for surogate, with a backward pass of their own."""
