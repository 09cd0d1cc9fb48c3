"""Evaluate a model's answers: generation, judging, and shares with confidence intervals."""
