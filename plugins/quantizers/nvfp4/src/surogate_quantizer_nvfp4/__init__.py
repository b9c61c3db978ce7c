"""Frozen weights in NVFP4 for surogate (QLoRA)."""
