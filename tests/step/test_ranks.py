"""Two processes on one pool: the same picks and history as one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tests.support.models import ragged_batch, tiny_model
from tests.support.pools import LENGTHS, SIZES, SOURCES
from tests.support.processes import run_to_end, torchrun

from colm import CoresetSelector, SelectionConfig
from colm.step.ranks import gather_rows, leave_ranks, rank_and_world, sum_over_ranks


def steps(rows_of_rank: list[int], features: Any) -> dict[str, Any]:
    """Select twice on this rank's rows and return picks by dataset index, with the state."""
    torch.manual_seed(0)
    selector = CoresetSelector(tiny_model("llama"), SelectionConfig(features=features), SIZES)
    picks = []
    for seed in (0, 1):
        whole = ragged_batch(LENGTHS, seed=seed)
        mine = {key: value[rows_of_rank] for key, value in whole.items()}
        half = len(rows_of_rank) // 2
        batches = [
            {key: value[:half] for key, value in mine.items()},
            {key: value[half:] for key, value in mine.items()},
        ]
        selector.select(batches, [SOURCES[i] for i in rows_of_rank], dataset_index=rows_of_rank)
        kept = selector.commit().kept
        picks.append(sorted(i for rows in kept.values() for i in rows))
    return {"picks": picks, **selector.state_dict()}


def work(rank: int, folder: str, features: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29561", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/{features}-store", rank=rank, world_size=2)
    parts = gather_rows(torch.full((rank * 2, 3), rank))
    assert [tuple(part.shape) for part in parts] == [(0, 3), (2, 3)]
    assert sum_over_ranks(torch.tensor([1.0, rank])).tolist() == [2.0, 1.0]
    # The first rank's rows hold no row of the source "large".
    rows = [0, 1, 2, 3, 4, 5, 6, 11, 12] if rank == 0 else [7, 8, 9, 10, 13, 14, 15]
    torch.save(steps(rows, features), Path(folder) / f"{features}-{rank}.pt")
    leave_ranks()


@pytest.mark.slow
@pytest.mark.parametrize("features", ["exact", "spsa", "last_hidden", "none"])
def test_two_ranks_pick_as_one(tmp_path: Path, features: Any) -> None:
    mp.spawn(work, (str(tmp_path), features), nprocs=2)
    one = steps(list(range(16)), features)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{features}-{rank}.pt")
        assert found["picks"] == one["picks"]
        if one["m"] is not None:
            torch.testing.assert_close(found["m"], one["m"], rtol=1e-3, atol=1e-6 * float(one["m"].abs().max()))


def test_one_process_gets_its_own_rows_back() -> None:
    rows = torch.randn(3, 2)
    assert gather_rows(rows)[0] is rows
    assert sum_over_ranks(rows) is rows
    assert rank_and_world() == (0, 1)


def count_collectives(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    selector = CoresetSelector(tiny_model("llama"), SelectionConfig(features="none", balance=0.5), SIZES)
    whole = ragged_batch(LENGTHS)
    batch = {key: value[rank * 8 : rank * 8 + 8] for key, value in whole.items()}
    made = []
    for name in ("all_gather", "all_reduce"):
        original = getattr(dist, name)
        setattr(dist, name, lambda *args, call=original, name=name: (made.append(name), call(*args)))
    coreset = selector.select(
        batch, SOURCES[rank * 8 : rank * 8 + 8], dataset_index=list(range(rank * 8, rank * 8 + 8))
    )
    assert made == ["all_gather"] * 2  # how many rows a rank has, and what all need to know of them
    assert sum(p < 8 for p in coreset.indices.tolist()) == len(coreset.indices) // 2  # so no row has to move
    selector.take(batch, coreset)
    assert len(made) == 2
    leave_ranks()


@pytest.mark.slow
def test_what_ranks_know_of_the_pool_is_gathered_once(tmp_path: Path) -> None:
    mp.spawn(count_collectives, (str(tmp_path),), nprocs=2)


TAKES_TURNS = """
import os, sys, time
from colm.step.ranks import first_on_machine, leave_ranks
first = os.environ["LOCAL_RANK"] == "0"
try:
    with first_on_machine("work"):
        began = time.time()
        time.sleep(first)
        open(f"{sys.argv[1]}/{os.environ['RANK']}", "w").write(f"{began} {time.time()}")
        assert not (first and sys.argv[2] == "fails")
except AssertionError:
    pass
import torch.distributed as dist
dist.init_process_group("gloo")  # at the same address
dist.barrier()
leave_ranks()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "how"), [("torchrun", "works"), ("environment", "works"), ("environment", "fails")]
)
def test_the_first_process_of_a_machine_works_before_the_others(tmp_path: Path, launcher: str, how: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(TAKES_TURNS)
    if launcher == "torchrun":
        run_to_end([*torchrun(2), str(script), str(tmp_path), how], seconds=60)
    else:
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        shared = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        command = [sys.executable, str(script), str(tmp_path), how]
        started = [subprocess.Popen(command, env={**shared, "RANK": r, "LOCAL_RANK": r}) for r in "01"]
        assert [process.wait(60) for process in started] == [0, 0]
    (_, ended), (began, _) = (map(float, (tmp_path / rank).read_text().split()) for rank in "01")
    assert began >= ended
