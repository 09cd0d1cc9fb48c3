"""One run: its settings, its folder, its data, its training."""
