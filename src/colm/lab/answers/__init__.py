"""The final answer of a completion: found, read as what it is, compared. No model and no tensor here."""

from __future__ import annotations

from colm.lab.answers.extract import extract_answer
from colm.lab.answers.match import answers_match

__all__ = ["answers_match", "extract_answer"]
