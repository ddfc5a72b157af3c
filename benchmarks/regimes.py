"""Regimes: each mechanism in the task that its role names, against off and its counterpart.

    python benchmarks/regimes.py [regime=NAME] [--seeds 5] [--workers 2] [overrides of train.py ...]

Without `regime=` all regimes run. Every variant of a regime has the same steps, batches and seeds,
and is scored on the test rows. A gain is the paired difference to the first variant in per cent,
with a 95 % t-interval; positive is better. Finished runs are stored in outputs/regimes/runs.json,
so that the same command continues an interrupted benchmark.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from runs import FIRST_FRESH_SEED, QUIET, ROOT, RunCache, compose_config, format_table, run_on_seeds

from synaptune.analysis.compare import compute_improvement
from synaptune.config.settings import read_settings
from synaptune.core.errors import UserError, suggest, user_error
from synaptune.data.batches import make_eval_batches
from synaptune.data.chains import compute_bayes_loss
from synaptune.data.corpus import load_corpus

BARRIER = "synapse.attention.barrier_strength=24"
NO_MEMORY = "ablation=[no_release,no_memory,no_experts]"
MEMORY = (
    "synapse.postsynaptic.post_fast_decay=0.999",
    "synapse.postsynaptic.post_fast_lr=5e-3",
    "synapse.postsynaptic.rank_eligibility=16",
)
ALONE = ("model.release=off", "model.distance=off", *MEMORY)  # the memory without the rest
ROLES = {
    "window alone": ("model=gpt",),
    "full attention": ("model=gpt", "model.window=0"),
    "memory, hebbian": (*ALONE, "model.fast_weights=hebbian"),
    "memory, delta": ALONE,
}
FEW = ("data.max_bytes=22_000", "training.steps=800", "training.learning_rate=4e-3", NO_MEMORY)
NOISE = ("ablation=[no_memory,no_experts]", "synapse.stochastic.stochastic_train_frac=1.0")


@dataclass(frozen=True)
class Regime:
    """A task and the variants that are compared in it.

    Attributes:
        common: overrides of every variant.
        metric: metric of the table, without its prefix.
        variants: overrides by name; the first is the reference of the gains.
        higher_is_better: whether a larger metric is better.
    """

    common: tuple[str, ...]
    metric: str
    variants: dict[str, tuple[str, ...]]
    higher_is_better: bool = False


REGIMES = {
    "locality": Regime(
        (),
        "perplexity",
        {
            "plain, RoPE": ("ablation=plain",),
            "plain, ALiBi": ("ablation=plain", "position=alibi"),
            "barrier": (NO_MEMORY, BARRIER, "model.distance=barrier"),
            "learned slope": (NO_MEMORY, BARRIER, "model.distance=learned"),
            "clock": (NO_MEMORY, BARRIER),
            "barrier + dynamics": (
                "ablation=[no_memory,no_experts]",
                BARRIER,
                "model.distance=barrier",
            ),
        },
    ),
    "chains": Regime(("experiment=chains",), "loss", ROLES),
    "recall": Regime(("experiment=distractors",), "recall_accuracy", ROLES, higher_is_better=True),
    "few_data": Regime(
        (),
        "perplexity",
        {
            "no noise": FEW,
            "attention dropout": (*FEW, "model.dropout=0.4"),
            "release per tick": (*FEW, *NOISE),
            "release per event": (*FEW, *NOISE, "model.noise=event"),
        },
    ),
}


def measure_bayes(common: tuple[str, ...]) -> float:
    """Return the loss of the Bayes optimum on the test rows of the chains [nats/token]."""
    settings = read_settings(compose_config(common))
    data, size, context = settings.data, settings.training.batch, settings.model.context
    limit = settings.training.eval_batches
    batches = make_eval_batches(
        load_corpus(data, context), data, "test", size=size, context=context, limit=limit
    )
    rows = [torch.cat([batch.tokens, batch.targets[:, -1:]], 1).numpy() for batch in batches]
    return float(np.mean([compute_bayes_loss(tokens, data) for tokens in rows]))


def format_regime(regime: Regime, results: dict[str, list[dict[str, Any]]]) -> str:
    """Format the table of a regime."""
    metric = f"test_{regime.metric}"
    lines = [["", regime.metric.replace("_", " "), "gain [%]", "seconds"]]
    reference = [entry[metric] for entry in next(iter(results.values()))]
    for name, runs in results.items():
        values = [entry[metric] for entry in runs]
        gain = "-"
        if values != reference and min(reference) > 0:
            mean, low, high = compute_improvement(reference, values)
            if regime.higher_is_better:
                mean, low, high = -mean, -high, -low
            gain = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
        seconds = statistics.median(entry["train_seconds"] for entry in runs)
        spread = f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"
        lines.append([name, spread, gain, f"{seconds:.0f}"])
    return format_table(lines)


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="fresh seeds (default 5, at least 2)")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument("overrides", nargs="*", help="regime=NAME, and overrides of train.py")
    options = parser.parse_intermixed_args()
    names = [word[7:] for word in options.overrides if word.startswith("regime=")]
    overrides = [word for word in options.overrides if not word.startswith("regime=")]
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they start
    try:
        if unknown := [name for name in names if name not in REGIMES]:
            raise user_error(
                got=f"regime={unknown[0]}",
                expected=f"one of {', '.join(REGIMES)}",
                do=f"correct the name{suggest(unknown[0], REGIMES)}",
            )
        if options.seeds < 2 or options.workers < 1:
            raise user_error(
                got=f"--seeds {options.seeds} --workers {options.workers}",
                expected="at least 2 seeds and 1 worker",
                do="correct the options",
            )
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.workers, context, torch.set_num_threads, (1,)) as pool:
            for name in names or REGIMES:
                _run_regime(name, overrides, pool, options.seeds)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _run_regime(name: str, overrides: list[str], pool: ProcessPoolExecutor, seeds: int) -> None:
    regime = REGIMES[name]
    common = [*QUIET, *regime.common, *overrides]
    cache = RunCache(ROOT / "outputs" / "regimes" / "runs.json", pool, common)
    fresh = range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + seeds)
    results = run_on_seeds(cache, regime.variants, fresh, name)
    bayes = f"; Bayes optimum {measure_bayes(tuple(common)):.4f}" if name == "chains" else ""
    print(f"\n{name}, {seeds} paired seeds{bayes}:\n\n{format_regime(regime, results)}\n")


if __name__ == "__main__":
    sys.exit(main())
