"""The attribution ladder: the gain of each mechanism over a plain transformer, on paired seeds.

    python benchmarks/ladder.py FILE [--budget 30] [--seeds 5] [--workers 2]
        [overrides of conf/train.yaml ...]

Every rung has the same steps, batches and learning rate. Two searches run first, on a seed of their
own and by validation loss alone: the strength of the distance of a plain model with a clock, and
the phase-1 search space of the full synaptic model. Then all rungs run on fresh seeds and are
scored on the test split. Last, the plain rungs get as many steps as fit into the training time of
the tuned synaptic model. Finished runs are stored in outputs/ladder/runs.json, so that the same
command continues an interrupted benchmark.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from synaptune.analysis.compare import compute_improvement
from synaptune.config.run import run
from synaptune.config.schema import register
from synaptune.config.search_space import read_dimensions
from synaptune.config.settings import compute_fingerprint, read_settings
from synaptune.core.errors import UserError, user_error
from synaptune.search.optimizers.registry import Engine, Observation, make_optimizer
from synaptune.search.space.space import Space
from synaptune.study.artifacts import write_json
from synaptune.study.provenance import get_code_version
from synaptune.training.errors import DivergedError

ROOT = Path(__file__).resolve().parent.parent
SEARCH_SEED = 0
FIRST_FRESH_SEED = 7000  # of the rungs; no search of this project uses seeds near it
BARRIER = "synapse.attention.barrier_strength"
# The upper part of the declared range; below it the bias has almost no effect.
WEAKEST, STRONGEST = 0.5, 128.0
STORED_METRICS = (
    "val_loss",
    "test_loss",
    "test_perplexity",
    "test_recall_accuracy",
    "train_seconds",
    "steps",
    "merges",
    "splits",
)
PLAIN, ALIBI, BARRIER_ONLY, LEARNED, DISTANCE, DEFAULTS, TUNED = (
    "plain, RoPE",
    "plain, ALiBi",
    "RoPE + tuned barrier",
    "RoPE + learned slope",
    "RoPE + tuned clock",
    "synaptic, defaults",
    "synaptic, tuned",
)
FULL = "+ experts (all of it)"
# All weights of the experts in one feed-forward network: the reference for the experts.
WIDE = "fast weights, wide dense"
HEAD = [
    "",
    "steps",
    "test loss [nats/token]",
    "test perplexity",
    f"gain over {PLAIN} [%]",
    f"gain over {DISTANCE} [%]",
    "seconds a step",
]


class Job(NamedTuple):
    """A run: its label, and its overrides."""

    label: str
    overrides: tuple[str, ...]


def compose_config(overrides: Sequence[str]) -> Any:
    """Compose the configuration of a run.

    Raises:
        UserError: an override is invalid.
    """
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        try:
            return compose("train", overrides=list(overrides))
        except HydraException as error:
            raise user_error(
                got=str(error), expected="overrides of conf/train.yaml", do="correct them"
            ) from error


def train_once(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Train in this process and return the metrics, or the reason of the failure."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            metrics = run(compose_config(overrides), Path(folder), overrides=[]).metrics
        except DivergedError as error:
            return {"failed": str(error)}
    return {name: metrics[name] for name in STORED_METRICS if name in metrics}


class RunCache:
    """Runs that are trained once, and stored by the fingerprint of their configuration."""

    def __init__(self, path: Path, pool: Executor, common: Sequence[str]) -> None:
        self._path, self._pool, self._common = path, pool, tuple(common)
        self._code_version = get_code_version()
        self._results: dict[str, dict[str, Any]] = (
            json.loads(path.read_text()) if path.exists() else {}
        )

    def load_or_train(self, jobs: Sequence[Job], title: str) -> list[dict[str, Any]]:
        """Return the results of jobs in their order, after training those without a stored result.

        Args:
            jobs: runs to train.
            title: printed before the progress of each run.

        Raises:
            UserError: a configuration is invalid.
        """
        all_overrides = [(*self._common, *job.overrides) for job in jobs]
        keys = [
            compute_fingerprint(read_settings(compose_config(overrides)))
            for overrides in all_overrides
        ]
        index_by_future = {
            self._pool.submit(train_once, all_overrides[index]): index
            for index, key in enumerate(keys)
            if key not in self._results
        }
        try:
            for number, future in enumerate(as_completed(index_by_future), 1):
                index = index_by_future[future]
                job, key, result = jobs[index], keys[index], future.result()
                self._results[key] = result | {
                    "label": job.label,
                    "overrides": list(job.overrides),
                    "code_version": self._code_version,
                }
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._path, self._results)
                print(
                    f"{title} {number}/{len(index_by_future)}  {job.label}: "
                    f"{_format_result(result)}",
                    flush=True,
                )
        finally:
            for future in index_by_future:
                future.cancel()
        return [self._results[key] for key in keys]


def _format_result(result: dict[str, Any]) -> str:
    if "failed" in result:
        return f"failed: {result['failed']}"
    name = "test_loss" if "test_loss" in result else "val_loss"
    return f"{name} {result[name]:.4f}  {result['train_seconds']:.1f} s"


def make_rung(barrier: float, *ablations: str) -> tuple[str, ...]:
    """Make the overrides of the synaptic model with a distance bias, without some mechanisms.

    Args:
        barrier: strength of the distance bias.
        ablations: choices of conf/ablation that switch mechanisms off.
    """
    return (
        "model=synaptic",
        f"ablation=[{','.join(ablations or ('none',))}]",
        f"{BARRIER}={barrier:.6g}",
    )


NO_RELEASE, NO_MEMORY, NO_EXPERTS = "no_release", "no_memory", "no_experts"


def tune_distance(runs: RunCache, points: int) -> float:
    """Find the best strength on a geometric grid, by validation loss on the search seed."""
    span = math.log(STRONGEST / WEAKEST)
    strengths = [WEAKEST * math.exp(span * number / (points - 1)) for number in range(points)]
    jobs = [
        Job(
            f"barrier {value:.3g}",
            (*make_rung(value, NO_RELEASE, NO_MEMORY, NO_EXPERTS), f"seed={SEARCH_SEED}"),
        )
        for value in strengths
    ]
    results = runs.load_or_train(jobs, "distance search")
    losses = [result.get("val_loss", math.inf) for result in results]
    for value, loss in zip(strengths, losses, strict=True):
        print(f"  barrier_strength {value:.3g}: validation loss {loss:.4f}")
    return strengths[losses.index(min(losses))]


def tune_values(runs: RunCache, common: Sequence[str], budget: int) -> dict[str, Any]:
    """Search the best values with CMA-ES from the defaults, by validation loss on the search seed.

    Raises:
        UserError: every trial failed.
    """
    space = Space(tuple(read_dimensions(compose_config(common))))
    optimizer = make_optimizer(Engine("cma", SEARCH_SEED), space)
    trials: list[Observation] = []
    while len(trials) < budget:
        count = min(optimizer.generation_size, budget - len(trials))
        units = [unit for _ in range(count) if (unit := optimizer.ask()) is not None]
        points = [
            tuple(f"{name}={value}" for name, value in space.to_values(unit).items())
            for unit in units
        ]
        jobs = [
            Job(f"trial {number}", (*point, f"seed={SEARCH_SEED}"))
            for number, point in enumerate(points, len(trials))
        ]
        results = runs.load_or_train(jobs, f"search from {len(trials)}/{budget}:")
        generation = [
            Observation(unit, result.get("val_loss"))
            for unit, result in zip(units, results, strict=True)
        ]
        trials += generation
        if len(generation) == optimizer.generation_size:
            optimizer.tell(generation)
    best = min(trials, key=lambda trial: math.inf if trial.loss is None else trial.loss)
    if best.loss is None:
        raise user_error(
            got=f"{budget} failed trials",
            expected="a configuration that trains",
            do="see the reasons above",
        )
    print(
        f"search: best validation loss {best.loss:.4f} in trial {trials.index(best)} of {budget}, "
        "trial 0 is the defaults"
    )
    for (name, value), default in zip(
        space.to_values(best.unit).items(), space.to_values(space.get_start()).values(), strict=True
    ):
        print(f"  {name}={value}  (default {default})")
    return space.to_values(best.unit)


def run_on_seeds(
    runs: RunCache, rungs: dict[str, tuple[str, ...]], seeds: Sequence[int], title: str
) -> dict[str, list[dict[str, Any]]]:
    """Run the rungs on all seeds and return the results by rung, in the order of the seeds.

    The rungs alternate, so that other load of the machine affects all of them.

    Raises:
        UserError: a run diverged.
    """
    jobs = [
        Job(f"{name}, seed {seed}", (*overrides, f"seed={seed}", "training.test=true"))
        for seed in seeds
        for name, overrides in rungs.items()
    ]
    results = runs.load_or_train(jobs, title)
    if failed := [
        job.label for job, result in zip(jobs, results, strict=True) if "failed" in result
    ]:
        raise user_error(
            got=f"diverged runs: {', '.join(failed)}",
            expected="rungs that train",
            do="lower training.learning_rate",
        )
    return {name: results[number :: len(rungs)] for number, name in enumerate(rungs)}


def compute_wide_multiple(common: Sequence[str]) -> int:
    """Return the feed-forward width of a dense model with the weights of all experts.

    The width is in multiples of the model's width.
    """
    model = compose_config(common).model
    return model.ff_multiple * model.experts // model.top_k


def compute_time_ratio(
    runs: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]]
) -> float:
    """Return the ratio of the time of a step, the median over the seeds."""
    return statistics.median(
        a["train_seconds"] * b["steps"] / (b["train_seconds"] * a["steps"])
        for a, b in zip(runs, reference, strict=True)
    )


def make_rows(
    results: dict[str, list[dict[str, Any]]],
    plain: list[dict[str, Any]],
    distance: list[dict[str, Any]],
) -> Iterator[list[str]]:
    """Make the rows of a table, one for each rung."""
    for name, runs in results.items():
        losses, perplexities = (
            [entry[metric] for entry in runs] for metric in ("test_loss", "test_perplexity")
        )
        gains = (_format_gain(other, runs) for other in (plain, distance))
        loss = f"{statistics.fmean(losses):.4f} ± {statistics.stdev(losses):.4f}"
        yield [
            name,
            f"{runs[0]['steps']:.0f}",
            loss,
            f"{statistics.fmean(perplexities):.3f}",
            *gains,
            f"{compute_time_ratio(runs, plain):.2f} x",
        ]


def _format_gain(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> str:
    if before is after:
        return "-"
    first, second = ([entry["test_perplexity"] for entry in side] for side in (before, after))
    gain = compute_improvement(first, second)
    return f"{gain.mean:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})"


def format_table(cells: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table whose columns have equal widths in all rows."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [cells[0], ["-" * width for width in widths], *cells[1:]]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def run_ladder(runs: RunCache, common: Sequence[str], options: argparse.Namespace) -> None:
    """Run both searches and all rungs, and print both tables."""
    seeds = range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + options.seeds)
    barrier = tune_distance(runs, options.barriers)
    values = tune_values(runs, common, options.budget)
    clock = make_rung(barrier, NO_RELEASE, NO_MEMORY, NO_EXPERTS)
    rungs = {
        PLAIN: ("ablation=plain",),
        ALIBI: ("ablation=plain", "position=alibi"),
        BARRIER_ONLY: (*clock, "model.distance=barrier"),
        LEARNED: (*clock, "model.distance=learned"),
        DISTANCE: clock,
        "+ fast weights": make_rung(barrier, NO_RELEASE, NO_EXPERTS),
        "+ presynaptic dynamics": make_rung(barrier, NO_EXPERTS),
        WIDE: (
            *make_rung(barrier, NO_EXPERTS),
            f"model.ff_multiple={compute_wide_multiple(common)}",
        ),
        FULL: make_rung(barrier),
        DEFAULTS: ("model=synaptic",),
        TUNED: ("model=synaptic", *(f"{name}={value}" for name, value in values.items())),
    }
    equal_steps = run_on_seeds(runs, rungs, seeds, "rungs")
    longer = {}
    for name in (PLAIN, DISTANCE):
        ratio = compute_time_ratio(equal_steps[TUNED], equal_steps[name])
        steps = round(equal_steps[name][0]["steps"] * ratio)
        longer[f"{name}, longer"] = (*rungs[name], f"training.steps={steps}")
    equal_time = run_on_seeds(runs, longer, seeds, "equal time")
    design = (
        f"{options.seeds} paired seeds from {FIRST_FRESH_SEED}, mean ± standard deviation, "
        "gains in test perplexity with 95 % t-intervals"
    )
    print(f"\nEqual steps ({design}), barrier_strength {barrier:.3g}:\n")
    print(format_table([HEAD, *make_rows(equal_steps, equal_steps[PLAIN], equal_steps[DISTANCE])]))
    plain, distance = (equal_time[f"{name}, longer"] for name in (PLAIN, DISTANCE))
    ratio = compute_time_ratio(equal_steps[TUNED], equal_steps[PLAIN])
    print(f"\nEqual training time, that of the tuned model ({ratio:.2f} x plain a step):\n")
    equal_time |= {name: equal_steps[name] for name in (DEFAULTS, FULL, TUNED)}
    print(format_table([HEAD, *make_rows(equal_time, plain, distance)]))


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a text file or a folder of text files")
    parser.add_argument(
        "--budget",
        type=int,
        default=30,
        help="evaluations of the search of the synaptic model (default 30)",
    )
    parser.add_argument(
        "--barriers",
        type=int,
        default=8,
        help="evaluations of the search of the distance bias (default 8)",
    )
    parser.add_argument(
        "--seeds", type=int, default=5, help="fresh seeds of every rung (default 5)"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="runs at a time, a process each (default 2)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of a run (default 1)")
    parser.add_argument("overrides", nargs="*", help="as for train.py, e.g. scale=smoke")
    options = parser.parse_intermixed_args()
    common = [
        "data=text",
        f"data.path={options.file.resolve()}",
        "training.evaluations=1",
        "training.checkpoint_every=0",
    ]
    common += ["logger=csv", "logger.progress=off", *options.overrides]
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read by the workers when they start
    try:
        if (
            options.budget < 1
            or options.barriers < 2
            or options.seeds < 2
            or options.workers < 1
            or options.threads < 1
        ):
            raise user_error(
                got=str(vars(options)),
                expected="budget, workers, threads >= 1; barriers, seeds >= 2",
                do="correct the options",
            )
        with ProcessPoolExecutor(
            options.workers,
            multiprocessing.get_context("spawn"),
            torch.set_num_threads,
            (options.threads,),
        ) as pool:
            cache = RunCache(ROOT / "outputs" / "ladder" / "runs.json", pool, common)
            run_ladder(cache, common, options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
