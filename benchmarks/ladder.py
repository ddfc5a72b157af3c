"""The attribution ladder: what each mechanism adds to a plain transformer on a text, on paired seeds.

    python benchmarks/ladder.py FILE [--budget 30] [--seeds 5] [--workers 2] [overrides of conf/train.yaml ...]

Every rung has the same steps, batches and learning rate. Two things are searched, on one seed of their own and by validation
loss alone: the strength of the distance bias of an otherwise plain model, and the search space (phase 1) of the whole synaptic
model. Then all rungs run on fresh seeds and are scored on the test split; last, plain rungs get as many steps as fit into the
training time of the tuned synaptic model. Finished runs are kept in outputs/ladder/runs.json: the same command goes on.
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
FRESH = 7000  # first seed of the rungs; no search of this project comes near it
BARRIER = "synapse.attention.barrier_strength"
WEAKEST, STRONGEST = (
    0.5,
    30.0,
)  # the upper part of the declared range; below it there is nearly no bias
KEPT = ("val_loss", "test_loss", "test_perplexity", "train_seconds", "steps", "merges", "splits")
PLAIN, ALIBI, DISTANCE, DEFAULTS, TUNED = (
    "plain, RoPE",
    "plain, ALiBi",
    "RoPE + tuned distance",
    "synaptic, defaults",
    "synaptic, tuned",
)
WHOLE = "+ experts (all of it)"
WIDE = "fast weights, wide dense"  # the weights of all experts in one feed-forward: what the experts have to beat
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
    """One run: what it is called, and its overrides."""

    label: str
    overrides: tuple[str, ...]


def composed(overrides: Sequence[str]) -> Any:
    """The configuration of a run; raises UserError for overrides that do not fit."""
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        try:
            return compose("train", overrides=list(overrides))
        except HydraException as error:
            raise user_error(
                got=str(error), expected="overrides of conf/train.yaml", do="correct them"
            ) from error


def one_run(overrides: tuple[str, ...]) -> dict[str, Any]:
    """A run in this process: its metrics, or why it failed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            metrics = run(composed(overrides), Path(folder), overrides=[]).metrics
        except DivergedError as error:
            return {"failed": str(error)}
    return {name: metrics[name] for name in KEPT if name in metrics}


class Runs:
    """Runs made once: kept by the fingerprint of their configuration."""

    def __init__(self, path: Path, pool: Executor, common: Sequence[str]) -> None:
        self._path, self._pool, self._common, self._code = (
            path,
            pool,
            tuple(common),
            get_code_version(),
        )
        self._known: dict[str, dict[str, Any]] = (
            json.loads(path.read_text()) if path.exists() else {}
        )

    def measure(self, jobs: Sequence[Job], what: str) -> list[dict[str, Any]]:
        """The results of jobs in their order, run where they are not known yet. Raises UserError for a bad configuration."""
        whole = [(*self._common, *job.overrides) for job in jobs]
        keys = [compute_fingerprint(read_settings(composed(overrides))) for overrides in whole]
        waiting = {
            self._pool.submit(one_run, whole[i]): i
            for i, key in enumerate(keys)
            if key not in self._known
        }
        try:
            for number, future in enumerate(as_completed(waiting), 1):
                job, key, result = jobs[waiting[future]], keys[waiting[future]], future.result()
                self._known[key] = result | {
                    "label": job.label,
                    "overrides": list(job.overrides),
                    "code_version": self._code,
                }
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._path, self._known)
                print(f"{what} {number}/{len(waiting)}  {job.label}: {_line(result)}", flush=True)
        finally:
            for future in waiting:
                future.cancel()
        return [self._known[key] for key in keys]


def _line(result: dict[str, Any]) -> str:
    if "failed" in result:
        return f"failed: {result['failed']}"
    name = "test_loss" if "test_loss" in result else "val_loss"
    return f"{name} {result[name]:.4f}  {result['train_seconds']:.1f} s"


def rung(barrier: float, *taken_out: str) -> tuple[str, ...]:
    """The synaptic model with a distance bias of a strength, without the mechanisms that choices of conf/ablation take out."""
    return (
        "model=synaptic",
        f"ablation=[{','.join(taken_out or ('none',))}]",
        f"{BARRIER}={barrier:.6g}",
    )


NO_RELEASE, NO_MEMORY, NO_EXPERTS = "no_release", "no_memory", "no_experts"


def tuned_distance(runs: Runs, points: int) -> float:
    """The best strength on a geometric grid, by validation loss on the search seed."""
    span = math.log(STRONGEST / WEAKEST)
    strengths = [WEAKEST * math.exp(span * number / (points - 1)) for number in range(points)]
    jobs = [
        Job(
            f"barrier {value:.3g}",
            (*rung(value, NO_RELEASE, NO_MEMORY, NO_EXPERTS), f"seed={SEARCH_SEED}"),
        )
        for value in strengths
    ]
    losses = [result.get("val_loss", math.inf) for result in runs.measure(jobs, "distance search")]
    for value, loss in zip(strengths, losses, strict=True):
        print(f"  barrier_strength {value:.3g}: validation loss {loss:.4f}")
    return strengths[losses.index(min(losses))]


def tuned_values(runs: Runs, common: Sequence[str], budget: int) -> dict[str, Any]:
    """The best values of the search space that CMA-ES finds from the defaults, by validation loss on the search seed."""
    space = Space(tuple(read_dimensions(composed(common))))
    optimizer = make_optimizer(Engine("cma", SEARCH_SEED), space)
    tried: list[Observation] = []
    while len(tried) < budget:
        count = min(optimizer.generation_size, budget - len(tried))
        units = [unit for _ in range(count) if (unit := optimizer.ask()) is not None]
        points = [
            tuple(f"{name}={value}" for name, value in space.to_values(unit).items())
            for unit in units
        ]
        jobs = [
            Job(f"trial {number}", (*point, f"seed={SEARCH_SEED}"))
            for number, point in enumerate(points, len(tried))
        ]
        results = runs.measure(jobs, f"search from {len(tried)}/{budget}:")
        generation = [
            Observation(unit, result.get("val_loss"))
            for unit, result in zip(units, results, strict=True)
        ]
        tried += generation
        if len(generation) == optimizer.generation_size:
            optimizer.tell(generation)
    best = min(tried, key=lambda told: math.inf if told.loss is None else told.loss)
    if best.loss is None:
        raise user_error(
            got=f"{budget} failed trials",
            expected="a configuration that trains",
            do="see the reasons above",
        )
    print(
        f"search: best validation loss {best.loss:.4f} in trial {tried.index(best)} of {budget}, trial 0 is the defaults"
    )
    for (name, value), default in zip(
        space.to_values(best.unit).items(), space.to_values(space.get_start()).values(), strict=True
    ):
        print(f"  {name}={value}  (default {default})")
    return space.to_values(best.unit)


def on_seeds(
    runs: Runs, rungs: dict[str, tuple[str, ...]], seeds: Sequence[int], what: str
) -> dict[str, list[dict[str, Any]]]:
    """Results by rung, in the order of seeds; the rungs alternate, so that what else the machine does meets all alike."""
    jobs = [
        Job(f"{name}, seed {seed}", (*overrides, f"seed={seed}", "training.test=true"))
        for seed in seeds
        for name, overrides in rungs.items()
    ]
    results = runs.measure(jobs, what)
    if failed := [
        job.label for job, result in zip(jobs, results, strict=True) if "failed" in result
    ]:
        raise user_error(
            got=f"diverged runs: {', '.join(failed)}",
            expected="rungs that train",
            do="lower training.learning_rate",
        )
    return {name: results[number :: len(rungs)] for number, name in enumerate(rungs)}


def wide_multiple(common: Sequence[str]) -> int:
    """The feed-forward width of a dense model with the weights of all the default model's experts, in widths of the model."""
    model = composed(common).model
    return model.ff_multiple * model.experts // model.top_k


def time_ratio(of: Sequence[dict[str, Any]], to: Sequence[dict[str, Any]]) -> float:
    """Median over the seeds of the ratio of seconds a step."""
    return statistics.median(
        a["train_seconds"] * b["steps"] / (b["train_seconds"] * a["steps"])
        for a, b in zip(of, to, strict=True)
    )


def rows(
    results: dict[str, list[dict[str, Any]]],
    plain: list[dict[str, Any]],
    distance: list[dict[str, Any]],
) -> Iterator[list[str]]:
    """The cells of a table, a row for each rung."""
    for name, found in results.items():
        losses, perplexities = (
            [entry[metric] for entry in found] for metric in ("test_loss", "test_perplexity")
        )
        gains = (_gain(other, found) for other in (plain, distance))
        loss = f"{statistics.fmean(losses):.4f} ± {statistics.stdev(losses):.4f}"
        yield [
            name,
            f"{found[0]['steps']:.0f}",
            loss,
            f"{statistics.fmean(perplexities):.3f}",
            *gains,
            f"{time_ratio(found, plain):.2f} x",
        ]


def _gain(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> str:
    if before is after:
        return "-"
    first, second = ([entry["test_perplexity"] for entry in side] for side in (before, after))
    gain = compute_improvement(first, second)
    return f"{gain.mean:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})"


def table(cells: Sequence[Sequence[str]]) -> str:
    """Markdown with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    ruled = [cells[0], ["-" * width for width in widths], *cells[1:]]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in ruled
    )


def climb(runs: Runs, common: Sequence[str], given: argparse.Namespace) -> None:
    """Search, run the rungs, print both tables."""
    seeds, barrier = range(FRESH, FRESH + given.seeds), tuned_distance(runs, given.barriers)
    values = tuned_values(runs, common, given.budget)
    rungs = {
        PLAIN: ("ablation=plain",),
        ALIBI: ("ablation=plain", "position=alibi"),
        DISTANCE: rung(barrier, NO_RELEASE, NO_MEMORY, NO_EXPERTS),
        "+ presynaptic dynamics": rung(barrier, NO_MEMORY, NO_EXPERTS),
        "+ fast weights": rung(barrier, NO_EXPERTS),
        WIDE: (*rung(barrier, NO_EXPERTS), f"model.ff_multiple={wide_multiple(common)}"),
        WHOLE: rung(barrier),
        DEFAULTS: ("model=synaptic",),
        TUNED: ("model=synaptic", *(f"{name}={value}" for name, value in values.items())),
    }
    equal = on_seeds(runs, rungs, seeds, "rungs")
    longer = {
        f"{name}, longer": (
            *rungs[name],
            f"training.steps={round(equal[name][0]['steps'] * time_ratio(equal[TUNED], equal[name]))}",
        )
        for name in (PLAIN, DISTANCE)
    }
    timed = on_seeds(runs, longer, seeds, "equal time")
    where = f"{given.seeds} paired seeds from {FRESH}, mean ± standard deviation, gains in test perplexity with 95 % t-intervals"
    print(f"\nEqual steps ({where}), barrier_strength {barrier:.3g}:\n")
    print(table([HEAD, *rows(equal, equal[PLAIN], equal[DISTANCE])]))
    plain, distance = (timed[f"{name}, longer"] for name in (PLAIN, DISTANCE))
    print(
        f"\nEqual training time, that of the tuned model ({time_ratio(equal[TUNED], equal[PLAIN]):.2f} x plain a step):\n"
    )
    print(
        table(
            [
                HEAD,
                *rows(
                    timed | {name: equal[name] for name in (DEFAULTS, WHOLE, TUNED)},
                    plain,
                    distance,
                ),
            ]
        )
    )


def main() -> int:
    """The command; returns its exit code."""
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
    given = parser.parse_intermixed_args()
    common = [
        "data=text",
        f"data.path={given.file.resolve()}",
        "training.evaluations=1",
        "training.checkpoint_every=0",
    ]
    common += ["logger=csv", "logger.progress=off", *given.overrides]
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # read by the workers when they start
    try:
        if (
            given.budget < 1
            or given.barriers < 2
            or given.seeds < 2
            or given.workers < 1
            or given.threads < 1
        ):
            raise user_error(
                got=str(vars(given)),
                expected="budget, workers, threads >= 1; barriers, seeds >= 2",
                do="correct the options",
            )
        with ProcessPoolExecutor(
            given.workers,
            multiprocessing.get_context("spawn"),
            torch.set_num_threads,
            (given.threads,),
        ) as pool:
            climb(Runs(ROOT / "outputs" / "ladder" / "runs.json", pool, common), common, given)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
