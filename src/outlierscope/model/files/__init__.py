"""Checkpoints as files: where they are, what is in them, reading weights from them."""
