"""Features that selection compares: per-example gradients of the last value projection, and baselines."""
