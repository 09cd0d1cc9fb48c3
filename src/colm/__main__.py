"""The `colm` command, also as `python -m colm`: it needs what the library does without."""

from __future__ import annotations

import importlib.util
import sys

LAB = (
    *("filelock", "fsspec", "jinja2", "matplotlib", "pandas", "peft"),
    *("rich", "scipy", "shtab", "sklearn", "threadpoolctl", "tqdm", "yaml"),
)
"""Modules that `colm.lab` imports and the library does not; the extra ``lab`` of pyproject.toml installs them."""


def main() -> int:
    """Run the command line and return its exit status; 2 where packages are missing."""
    missing = [name for name in LAB if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"colm: the command needs packages that are not installed ({', '.join(missing)}); install them with "
            "pip install 'colm[lab]'. The library works without them.",
            file=sys.stderr,
        )
        return 2
    from colm.lab.cli import main as run

    return run()


if __name__ == "__main__":
    raise SystemExit(main())
