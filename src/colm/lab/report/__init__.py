"""Report pages: the contents of run folders, signs of known failures, and comparisons of methods.

This code reads files that `colm train` and `colm compare` wrote; it never needs the model.
"""

from __future__ import annotations

from colm.lab.report.compare_page import write_comparison
from colm.lab.report.run_page import write_report
from colm.lab.report.runs import read_run

__all__ = ["read_run", "write_comparison", "write_report"]
