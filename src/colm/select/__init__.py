"""Which rows to keep: pure functions on counts and feature tensors."""
