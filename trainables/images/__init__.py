"""Images: their sources, their splits, and how they are kept and shown."""
