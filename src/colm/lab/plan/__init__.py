"""What a run will need, before it runs: memory by part, and time relative to training the whole pool."""
