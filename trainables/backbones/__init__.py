"""The network: where it comes from, its layers, its head and its frozen trunk."""
