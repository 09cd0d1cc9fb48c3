"""Run methods and seeds on a mixture, one result file a run, so that it goes on after any interruption.

    python benchmarks/experiments/run.py reasoning --methods random control random-n colm --seeds 0 1 2 3 4

Needs what `prepare.py` makes. Runs that were kept in docs/results/runs are not run again. `page.py` makes the page.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from keep import hash_model, keep_run, restore_runs
from setting import describe_setting

from colm.cli.compare import plan_runs, run_one, write_comparison_json
from colm.cli.settings import load_settings
from colm.record import SUMMARY_NAME


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mixture", help="a configuration of this folder: reasoning, real, ...")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    config = str(Path(__file__).parent / f"{arguments.mixture}.yaml")
    base = load_settings(config, [])
    model = hash_model(Path(base.model))
    found = restore_runs(arguments.mixture, Path(base.output_dir), model=model)
    print(f"{found} runs were kept.", flush=True)
    for seed in arguments.seeds:  # all methods of a seed before the next, so that each pair is complete early
        for folder, settings in plan_runs(config, [], arguments.methods, [seed]).items():
            if (folder / SUMMARY_NAME).exists():
                continue
            print(folder.relative_to(base.output_dir), flush=True)
            run_one(folder, settings, "")
            keep_run(folder, arguments.mixture, model=model, setting=describe_setting(str(seed)))
            write_comparison_json(Path(base.output_dir))


if __name__ == "__main__":
    main()
