"""Search spaces: the recipes that may be tried."""
