"""A resumed run is the same run, in every pass over the data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integrations.interrupted import FACTORS, differences, interrupt, possible
from tests.integrations.resume_on_ranks import CASES as ON_RANKS
from tests.pairs import all_pairs, pairs_of

FEW = {
    "data": ["random", "grouped", "stream", "own generator"],
    "mixing": ["plain", "weights", "cap"],
    "workers": ["none", "two that stay"],
}
CASES = all_pairs({**FACTORS, **FEW}, possible)[0]
ALL = all_pairs(FACTORS, possible)[0]


def name(case: dict[str, Any]) -> str:
    return "-".join(map(str, case.values()))


@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_resumed_run_is_the_run_that_was_never_killed(tmp_path: Path, case: dict[str, Any]) -> None:
    assert differences(*interrupt(tmp_path, case)) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=name)
def test_also_in_other_orders(tmp_path: Path, case: dict[str, Any]) -> None:
    assert differences(*interrupt(tmp_path, case)) == []


@pytest.mark.slow
def test_also_on_two_ranks(tmp_path: Path) -> None:
    script = Path(__file__).with_name("resume_on_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        found = json.loads((tmp_path / f"found-{rank}.json").read_text())
        assert {name(case): differing for case, differing in zip(ON_RANKS, found, strict=True) if differing} == {}


@pytest.mark.parametrize(("cases", "factors"), [(CASES, FACTORS | FEW), (ALL, FACTORS)], ids=["fast", "slow"])
def test_all_pairs_of_what_matters_are_tried(cases: list[dict[str, Any]], factors: dict[str, list[Any]]) -> None:
    tried = set().union(*map(pairs_of, cases))
    names = list(factors)
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            for one in factors[first]:
                for other in factors[second]:
                    impossible = first == "data" and second == "mixing" and not possible({"data": one, "mixing": other})
                    assert (((first, one), (second, other)) in tried) != impossible
