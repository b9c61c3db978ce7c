"""AdamW with 32-bit moments for surogate."""
