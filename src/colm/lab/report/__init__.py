"""Pages about runs: what a run's folder tells, signs of known failures, and comparisons of methods.

Everything here reads files that `colm train` and `colm compare` wrote; nothing of it needs the model.
"""

from __future__ import annotations

from colm.lab.report.compare_page import write_comparison
from colm.lab.report.run_page import write_report
from colm.lab.report.runs import read_run

__all__ = ["read_run", "write_comparison", "write_report"]
