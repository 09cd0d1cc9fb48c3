"""Find, parse and compare the final answers of completions. No model or tensor is used here."""

from __future__ import annotations

from colm.lab.answers.extract import extract_answer
from colm.lab.answers.match import answers_match

__all__ = ["answers_match", "extract_answer"]
