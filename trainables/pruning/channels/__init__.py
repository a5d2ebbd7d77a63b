"""Which channels belong together and must be cut together."""
