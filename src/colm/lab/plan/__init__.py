"""Predict what a run needs: memory by part, and time relative to training on the whole pool."""
