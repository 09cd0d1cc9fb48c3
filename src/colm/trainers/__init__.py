"""colm in the training loops of Hugging Face's Trainer and TRL."""
