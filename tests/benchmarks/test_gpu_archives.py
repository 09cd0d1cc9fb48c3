"""What travels to a GPU machine arrives as it was, in archives of limited size."""

from __future__ import annotations

import importlib.util
import random
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tests.support.files import contents

SPEC = importlib.util.spec_from_file_location(
    "gpu_archives", Path(__file__).parents[2] / "benchmarks" / "gpu" / "archives.py"
)
assert SPEC is not None
assert SPEC.loader is not None
archives: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(archives)


@pytest.mark.parametrize("seed", range(30))
def test_archives_that_come_one_by_one_in_any_order_make_the_folder_again(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    content, largest = tmp_path / "content", draw.choice([40_000, 65_536, 200_000])
    for number in range(draw.randint(1, 8)):
        path = content / f"folder-{number % 3}" / f"file-{number}{draw.choice(['', '', archives.PACKED])}"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = draw.choice([0, 1, 511, 512, 513, 100_000, draw.randint(0, 300_000)])
        path.write_bytes(draw.randbytes(size) if draw.random() < 0.7 else bytes(size))
    packed = archives.pack(content, tmp_path / "packed", largest)
    assert all(path.stat().st_size <= largest for path in packed)
    for number, archive in enumerate(draw.sample(packed, len(packed))):
        arrived = tmp_path / f"arrived-{number}"
        arrived.mkdir()
        shutil.copy(archive, arrived)
        missing = archives.unpack(arrived, tmp_path / "unpacked")
    assert missing == []
    assert contents(tmp_path / "unpacked") == contents(content)
    assert archives.unpack(tmp_path / "packed", tmp_path / "unpacked") == []


def test_what_has_not_arrived_is_named(tmp_path: Path) -> None:
    (tmp_path / "content").mkdir()
    (tmp_path / "content" / "weights").write_bytes(random.Random(0).randbytes(100_000))
    (tmp_path / "content" / "small").write_bytes(b"1")
    (tmp_path / "content" / "text").write_bytes(bytes(100_000))
    first, *_ = archives.pack(tmp_path / "content", tmp_path / "packed", 40_000)
    with tarfile.open(first) as archive:
        assert archive.getnames() == ["small", "text.packed", "weights.piece-0-of-4"]
    (tmp_path / "arrived").mkdir()
    shutil.copy(first, tmp_path / "arrived")
    assert archives.unpack(tmp_path / "arrived", tmp_path / "unpacked") == ["weights"]
