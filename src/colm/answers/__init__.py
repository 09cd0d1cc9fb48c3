"""The final answer of a completion: found, read as what it is, compared. No model and no tensor here."""

from __future__ import annotations

from colm.answers.extract import extract_answer
from colm.answers.match import answers_match

__all__ = ["answers_match", "extract_answer"]
