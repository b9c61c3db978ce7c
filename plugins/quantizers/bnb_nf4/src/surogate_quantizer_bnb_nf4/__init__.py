"""Frozen weights in bitsandbytes' NF4 format for surogate (QLoRA)."""
