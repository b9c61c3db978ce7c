"""LoRA for surogate, saved in PEFT's format."""
