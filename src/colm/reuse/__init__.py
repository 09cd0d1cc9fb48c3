"""Train the kept rows from the selection pass's forward, with gradient checkpointing."""
