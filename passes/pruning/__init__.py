"""Structured pruning: which axes of which tensors belong together, which of their indices go, and the cut."""
