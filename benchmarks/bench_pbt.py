"""Population-based training against `auto` at equal compute, on the real objective.

    python benchmarks/bench_pbt.py [--seeds 3] [--runs 16] [--folder bench-pbt] [OVERRIDE ...]

Each strategy gets the training steps of `runs` whole runs: `auto` as so many trials, `pbt` as four
times as many slices. The best values of each are then trained from the first step on three fresh
seeds, beside the defaults. `search` is the loss that the strategy saw: for pbt that of the weights
of its best member, which were trained by a schedule of values.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from omegaconf import OmegaConf

from synaptune.config.compose import compose_config
from synaptune.config.run import run
from synaptune.search.trial import Trial, find_best
from synaptune.study.reader import find_study

ROOT = Path(__file__).parents[1]
SLICES = 4
STRATEGIES = {"auto": 1, "pbt": SLICES}  # trials of a whole run
FRESH = 3  # seeds of the validation
COMMON = ("logger=csv", "logger.progress=off")


def search(strategy: str, seed: int, runs: int, folder: Path, overrides: list[str]) -> Trial:
    """Search with a strategy; return its best trial."""
    study = folder / f"{strategy}-{seed}"
    command = [sys.executable, str(ROOT / "train.py"), "-m", f"hydra/sweeper={strategy}"]
    command += [f"hydra.sweeper.optim.budget={STRATEGIES[strategy] * runs}", f"seed={seed}"]
    command += [f"hydra.sweeper.optim.seed={seed}", f"search.slices={SLICES}"]
    command += [f"study.dir={study}", f"study.name={study.name}"]
    subprocess.run([*command, *COMMON, *overrides], check=True, stdout=subprocess.DEVNULL)
    best = find_best(find_study(str(study)).search_trials)
    assert best is not None
    return best


def validate(values: dict, folder: Path, overrides: list[str], first: int) -> float:
    """Return the mean validation loss of values on fresh seeds."""
    losses = []
    for seed in range(first, first + FRESH):
        cfg = compose_config([*COMMON, *overrides, f"seed={seed}"], study="bench").base
        for name, value in values.items():
            OmegaConf.update(cfg, name, value)
        losses.append(run(cfg, folder / str(seed), overrides=[]).metrics["val_loss"])
    return statistics.fmean(losses)


def main() -> None:
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="searches of each strategy")
    parser.add_argument("--runs", type=int, default=16, help="compute of a search in whole runs")
    parser.add_argument("--folder", type=Path, default=Path("bench-pbt"), help="of the studies")
    parser.add_argument("overrides", nargs="*", default=["scale=smoke", "training.steps=96"])
    options = parser.parse_args()
    folder, overrides = options.folder.absolute(), options.overrides
    print("| seed | strategy | search | fresh seeds | defaults, fresh seeds |\n|" + " --- |" * 5)
    for seed in range(options.seeds):
        first = 100 * (seed + 1)
        start = validate({}, folder / f"start-{seed}", overrides, first)
        for strategy in STRATEGIES:
            best = search(strategy, seed, options.runs, folder, overrides)
            fresh = validate(best.values, folder / f"best-{strategy}-{seed}", overrides, first)
            cells = f"{best.objective:.4f} | {fresh:.4f} | {start:.4f}"
            print(f"| {seed} | `{strategy}` | {cells} |", flush=True)


if __name__ == "__main__":
    main()
