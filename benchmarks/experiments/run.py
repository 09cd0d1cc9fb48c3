"""Run an experiment and write its page; finished runs are skipped.

    python benchmarks/experiments/run.py headline_reasoning
    python benchmarks/experiments/run.py headline_reasoning --page     # only the page, from the existing runs

Needs the output of `prepare.py` for the mixture. Each run is stored as a file in docs/results/runs, so an experiment
resumes after any interruption. Experiments share runs; several may run in parallel with different --seeds or --methods.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from keep import hash_model, keep_run, restore_runs
from page import write_page
from plan import EXPERIMENTS
from setting import describe_setting

from colm.lab.run.settings import load_settings
from colm.lab.study.child import start_with
from colm.lab.study.planning import Study
from colm.lab.study.results import write_comparison_json
from colm.lab.study.runs import answer_one, run_one
from colm.step.record import ANSWERS_NAME, SUMMARY_NAME

WEIGHTS_NAME = "model.safetensors"
HOW = "--limit 40 --max-new-tokens 128 --batch-size 64"
"""Options for evaluating the finished runs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these")
    parser.add_argument("--page", action="store_true", help="write the page from the existing runs, and run nothing")
    arguments = parser.parse_args()
    experiment = EXPERIMENTS[arguments.name]
    config = str(Path(__file__).parent / f"{experiment.mixture}.yaml")
    base = load_settings(config, [])
    model = hash_model(Path(base.model)) if Path(base.model).exists() else None
    if model is None and not arguments.page:
        parser.error(f"{base.model} does not exist. Run python benchmarks/experiments/prepare.py {experiment.mixture}")
    questions = sorted(map(str, Path(base.output_dir).parent.glob("questions*.jsonl"))) if experiment.asks else []
    restore_runs(experiment.mixture, Path(base.output_dir), model=model)
    for seed in [] if arguments.page else arguments.seeds or experiment.seeds:  # so that pairs are complete early
        for folder, settings in Study(config, []).plan(arguments.methods or experiment.methods, [seed]).items():
            new = not (folder / SUMMARY_NAME).exists()
            if new:
                print(folder.relative_to(base.output_dir), flush=True)
                run_one(folder, settings, start_with([sys.executable]))
            unasked = (folder / WEIGHTS_NAME).exists() and not (folder / ANSWERS_NAME).exists()
            if questions and unasked:
                answer_one(folder, questions, HOW, start_with([sys.executable]))
            if new or (questions and unasked):
                assert model is not None
                setting = describe_setting(str(seed)) if new else None
                keep_run(folder, experiment.mixture, model=model, setting=setting)
    write_comparison_json(Path(base.output_dir))
    write_page(arguments.name, experiment, Path(base.output_dir))


if __name__ == "__main__":
    main()
