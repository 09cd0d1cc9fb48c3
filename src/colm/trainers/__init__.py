"""colm in other people's training loops."""
