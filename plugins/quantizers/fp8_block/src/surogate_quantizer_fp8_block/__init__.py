"""Frozen weights in 8-bit floating point with a scale for each square tile for surogate (QLoRA)."""
