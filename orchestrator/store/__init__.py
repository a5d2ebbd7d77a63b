"""Keeps what happened, durably: the journal, what is folded from it, and where it lies."""
