"""Parts of one step: the pool and its metadata, ranks, state, records."""
