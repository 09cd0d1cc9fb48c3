"""The old name of `colm.trainers`; only what was documented under it is here."""
