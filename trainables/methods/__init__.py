"""The ways to transfer: one file a method."""
