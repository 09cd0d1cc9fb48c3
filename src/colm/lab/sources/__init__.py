"""Survey a mixture before training, and replace source labels by clusters."""
