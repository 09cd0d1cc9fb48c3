"""What one step needs: the pool, what is known of it, ranks, state, records."""
