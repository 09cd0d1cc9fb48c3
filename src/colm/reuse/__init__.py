"""Training the kept rows from the selection pass's own forward, with gradient checkpointing."""
