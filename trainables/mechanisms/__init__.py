"""Mechanisms that methods share: masks, deltas, anchors, sparsity, second-order statistics."""
