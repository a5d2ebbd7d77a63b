"""One training step, and what is measured of the model."""
