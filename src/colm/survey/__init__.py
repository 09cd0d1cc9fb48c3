"""A mixture before training: its sources, what a pool and its coreset will hold, where the method helps little."""
