"""Batches: the images or features that a training step is fed."""
