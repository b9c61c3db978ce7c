"""Data set format `text` and the command `tokenizer`."""
