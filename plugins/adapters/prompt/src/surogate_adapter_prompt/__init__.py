"""Prompt tuning and prefix tuning for surogate, saved in PEFT's format."""
