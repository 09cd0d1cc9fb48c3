"""What an example looks like to the selection: gradients of the last value projection."""
