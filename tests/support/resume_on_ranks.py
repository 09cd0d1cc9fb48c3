"""Started by torchrun in test_passes.py: interrupts runs on two ranks, and saves how they differ from whole runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.interrupted import FACTORS, STREAMS, differences, interrupt, possible
from tests.support.pairs import all_pairs

from colm.step.ranks import leave_ranks, rank_and_world

FEW = {
    "data": ["random", "balanced", "dispatched", "dealt", *STREAMS],  # the others differ only within a process
    "mixing": ["plain", "cap and weights"],
    "epoch": [1, 3],
    "killed": ["first", "end"],
    "workers": ["none"],
}
CASES = all_pairs({**FACTORS, **FEW}, possible)[0]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, world = rank_and_world()
    found = []
    for number, case in enumerate(CASES):
        torch.manual_seed(rank)
        found.append(differences(*interrupt(folder / str(number), case, world=world)))
        if rank == 0:
            print(*case.values(), found[-1], file=sys.stderr, flush=True)
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    leave_ranks()


if __name__ == "__main__":
    from accelerate import PartialState

    PartialState(cpu=True)
    main(Path(sys.argv[1]))
