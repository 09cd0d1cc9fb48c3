"""What a batch size, an order and a selection are worth on a run's own model and data, before it is paid for."""
