"""A mixture before training: its survey, and clusters in the place of labels."""
