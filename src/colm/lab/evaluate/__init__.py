"""How well a model answers: generation, judging, shares with their uncertainty."""
