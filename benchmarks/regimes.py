"""Regimes: each mechanism in the task that its role names, against off and its counterpart.

    python benchmarks/regimes.py [regime=NAME] [--budget 20] [--equal-time] [overrides ...]

Without `regime=` all regimes run. Every variant of a regime has the same steps, batches and seeds,
and is scored on the test rows of fresh seeds. With `--budget N` each variant is also tuned: its own
parameters and the learning rate, N evaluations each, by validation loss on a seed of its own. With
`--equal-time` a variant gets the steps that fit into the training time of the slowest one, by the
time of a step measured alternately in one process. A gain is the paired difference to the first
variant in per cent, with a 95 % t-interval; positive is better. The tables, a JSON file and all
finished runs are in outputs/regimes: the same command continues an interrupted benchmark.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ladder import format_overrides, tune_values
from runs import (
    FIRST_FRESH_SEED,
    QUIET,
    ROOT,
    Results,
    RunCache,
    check_options,
    compose_config,
    format_table,
    give_equal_time,
    measure_steps,
    run_on_seeds,
    start_pool,
)

from synaptune.analysis.compare import compute_improvement
from synaptune.config.search_space import read_dimensions
from synaptune.config.settings import read_settings
from synaptune.core.errors import UserError, suggest, user_error
from synaptune.data.batches import make_eval_batches
from synaptune.data.chains import compute_bayes_loss
from synaptune.data.corpus import load_corpus
from synaptune.search.space.space import Space
from synaptune.study.artifacts import write_json, write_text

BARRIER = "synapse.attention.barrier_strength"
DISTANCE = f"{BARRIER}=24"
NO_MEMORY = "ablation=[no_release,no_memory,no_experts]"
MEMORY = (
    "synapse.postsynaptic.post_fast_decay=0.999",
    "synapse.postsynaptic.post_fast_lr=5e-3",
    "synapse.postsynaptic.rank_eligibility=16",
)
ALONE = ("model.release=off", "model.distance=off", *MEMORY)  # the memory without the rest
FEW = ("data.max_bytes=22_000", "training.steps=800", "training.learning_rate=4e-3")
NOISE = ("ablation=[no_memory,no_experts]", "synapse.stochastic.stochastic_train_frac=1.0")
LEARNED = "synapse.learn=[{}]".format(
    ",".join(
        (
            "calcium.alpha_ca",
            "vesicles.tau_rrp",
            "postsynaptic.post_fast_lr",
            "postsynaptic.post_fast_decay",
            "attention.lambda_loge",
            "attention.barrier_strength",
        )
    )
)
# Entries of search_space.ranges by name; an empty one stands for the declared range.
Ranges = Mapping[str, Mapping[str, Any]]
RATE: Ranges = {"training.learning_rate": dict(low=1e-3, high=3e-2, log=True)}
SLOPE: Ranges = {BARRIER: dict(low=4.0, high=128.0, log=True)}
WRITES: Ranges = {
    "synapse.postsynaptic.post_fast_decay": {},
    "synapse.postsynaptic.post_fast_lr": {},
    "synapse.postsynaptic.rank_eligibility": {},
}
DYNAMICS: Ranges = {
    "synapse.attention.lambda_loge": {},
    "synapse.calcium.alpha_ca": {},
    "synapse.vesicles.tau_rrp": {},
}
SHARE: Ranges = {"synapse.stochastic.stochastic_train_frac": {}}


@dataclass(frozen=True)
class Variant:
    """One side of a comparison.

    Attributes:
        overrides: of train.py.
        ranges: what tuning searches beside the learning rate.
    """

    overrides: tuple[str, ...]
    ranges: Ranges = field(default_factory=dict)


@dataclass(frozen=True)
class Regime:
    """A task and the variants that are compared in it.

    Attributes:
        common: overrides of every variant.
        metric: metric of the table, without its prefix.
        variants: by name; the first is the reference of the gains.
        higher_is_better: whether a larger metric is better.
    """

    common: tuple[str, ...]
    metric: str
    variants: dict[str, Variant]
    higher_is_better: bool = False


ROLES = {
    "window alone": Variant(("model=gpt",)),
    "full attention": Variant(("model=gpt", "model.window=0")),
    "gated DeltaNet": Variant(("model=deltanet", "model.window=0")),
    "memory, hebbian": Variant((*ALONE, "model.fast_weights=hebbian"), WRITES),
    "memory, delta": Variant(ALONE, WRITES),
}
REGIMES = {
    "locality": Regime(
        (),
        "perplexity",
        {
            "plain, RoPE": Variant(("ablation=plain",)),
            "plain, ALiBi": Variant(("ablation=plain", "position=alibi")),
            "barrier": Variant((NO_MEMORY, DISTANCE, "model.distance=barrier"), SLOPE),
            "learned slope": Variant((NO_MEMORY, DISTANCE, "model.distance=learned"), SLOPE),
            "clock": Variant((NO_MEMORY, DISTANCE), SLOPE),
            "barrier + dynamics": Variant(
                ("ablation=[no_memory,no_experts]", DISTANCE, "model.distance=barrier"),
                {**SLOPE, **DYNAMICS},
            ),
        },
    ),
    "chains": Regime(("experiment=chains",), "loss", ROLES),
    "recall": Regime(("experiment=distractors",), "recall_accuracy", ROLES, higher_is_better=True),
    "code": Regime(
        ("data=stdlib", DISTANCE),
        "perplexity",
        {
            "clock": Variant((NO_MEMORY,), SLOPE),
            "clock, wider feed-forward": Variant((NO_MEMORY, "model.ff_multiple=5"), SLOPE),
            "clock, memory": Variant(
                ("ablation=[no_release,no_experts]", *MEMORY), {**SLOPE, **WRITES}
            ),
            "window of 16": Variant((NO_MEMORY, "model.window=16"), SLOPE),
            "window of 16, memory": Variant(
                ("ablation=[no_release,no_experts]", "model.window=16", *MEMORY),
                {**SLOPE, **WRITES},
            ),
        },
    ),
    "few_data": Regime(
        FEW,
        "perplexity",
        {
            "no noise": Variant((NO_MEMORY,)),
            "attention dropout": Variant(
                (NO_MEMORY, "model.dropout=0.4"), {"model.dropout": dict(low=0.0, high=0.8)}
            ),
            "release per tick": Variant(NOISE, SHARE),
            "release per event": Variant(
                (*NOISE, "model.noise=event"), {**SHARE, "synapse.vesicles.init_rrp": {}}
            ),
        },
    ),
    "kinetics": Regime(
        ("synapse=local",),  # tuned=FILE replaces its values
        "perplexity",
        {
            "fixed": Variant(("ablation=no_experts",), {**SLOPE, **DYNAMICS, **WRITES}),
            "learned": Variant(("ablation=no_experts", LEARNED), {**SLOPE, **DYNAMICS, **WRITES}),
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


def make_variant_space(common: tuple[str, ...], variant: Variant) -> Space:
    """Return what tuning a variant searches."""
    cfg = compose_config((*common, *variant.overrides))
    ranges = {**RATE, **variant.ranges}
    cfg.search_space.parameters = [name for name, entry in ranges.items() if not entry]
    cfg.search_space.ranges = {name: dict(entry) for name, entry in ranges.items() if entry}
    return Space(tuple(read_dimensions(cfg)))


def summarise_regime(regime: Regime, results: Results) -> dict[str, dict[str, Any]]:
    """Return the numbers of a regime by variant: values by seed, gain, steps and seconds."""
    metric = f"test_{regime.metric}"
    reference = [entry[metric] for entry in next(iter(results.values()))]
    summary = {}
    for name, runs in results.items():
        values, gain = [entry[metric] for entry in runs], None
        if values != reference and min(reference) > 0:
            mean, low, high = compute_improvement(reference, values)
            gain = [-mean, -high, -low] if regime.higher_is_better else [mean, low, high]
        summary[name] = {
            "values": values,
            "gain": gain,
            "steps": int(runs[0]["steps"]),
            "seconds": statistics.median(entry["train_seconds"] for entry in runs),
        }
    return summary


def format_regime(regime: Regime, summary: dict[str, dict[str, Any]]) -> str:
    """Format the table of a regime."""
    lines = [["", regime.metric.replace("_", " "), "gain [%]", "steps", "seconds"]]
    for name, entry in summary.items():
        values, gain = entry["values"], entry["gain"]
        lines.append(
            [
                name,
                f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}",
                "-" if gain is None else f"{gain[0]:+.1f} ({gain[1]:+.1f} to {gain[2]:+.1f})",
                str(entry["steps"]),
                f"{entry['seconds']:.0f}",
            ]
        )
    return format_table(lines)


def run_regime(name: str, runs: RunCache, options: argparse.Namespace) -> None:
    """Run a regime; print and write its table."""
    regime = REGIMES[name]
    rungs = {label: variant.overrides for label, variant in regime.variants.items()}
    values = {}
    for label, variant in regime.variants.items() if options.budget else ():
        values[label] = tune_values(
            runs,
            make_variant_space(runs.common, variant),
            budget=options.budget,
            workers=options.workers,
            overrides=variant.overrides,
        )
        rungs[f"{label}, tuned"] = (*variant.overrides, *format_overrides(values[label]))
    folder = runs.path.parent
    if options.equal_time:
        costs = measure_steps(rungs, runs.common, options.rounds, folder / f"times-{name}.json")
        rungs = give_equal_time(rungs, costs, compose_config(runs.common).training.steps)
    fresh = range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + options.seeds)
    summary = summarise_regime(regime, run_on_seeds(runs, rungs, fresh, name))
    bayes = measure_bayes(runs.common) if name == "chains" else None
    equal = "time" if options.equal_time else "steps"
    title = f"{name}, {options.seeds} paired seeds, equal {equal}"
    title += f"; Bayes optimum {bayes:.4f}" if bayes is not None else ""
    text = f"{title}:\n\n{format_regime(regime, summary)}\n"
    if values:
        text += "".join(
            f"\n{label}: {', '.join(format_overrides(v))}" for label, v in values.items()
        )
    stem = f"{name}-equal-{equal}"
    write_json(
        folder / f"{stem}.json",
        {"variants": summary, "values": values, "bayes": bayes, "overrides": list(runs.common)},
    )
    write_text(folder / f"{stem}.md", text + "\n")
    print(f"\n{text}\n", flush=True)


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="fresh seeds (default 5, at least 2)")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument("--budget", type=int, default=0, help="evaluations of a tuning (default 0)")
    parser.add_argument("--equal-time", action="store_true", help="equal training time")
    parser.add_argument("--rounds", type=int, default=20, help="of the time measurement (20)")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "regimes")
    parser.add_argument("overrides", nargs="*", help="regime=NAME, and overrides of train.py")
    options = parser.parse_intermixed_args()
    names = [word[7:] for word in options.overrides if word.startswith("regime=")]
    overrides = [word for word in options.overrides if not word.startswith("regime=")]
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they start
    torch.set_num_threads(1)
    try:
        if unknown := [name for name in names if name not in REGIMES]:
            raise user_error(
                got=f"regime={unknown[0]}",
                expected=f"one of {', '.join(REGIMES)}",
                do=f"correct the name{suggest(unknown[0], REGIMES)}",
            )
        check_options(
            options.seeds >= 2 and options.workers >= 1 and options.budget >= 0,
            f"--seeds {options.seeds} --workers {options.workers} --budget {options.budget}",
            "at least 2 seeds, 1 worker and a budget of 0",
        )
        with start_pool(options.workers) as pool:
            for name in names or REGIMES:
                common = (*QUIET, *REGIMES[name].common, *overrides)
                run_regime(name, RunCache(options.folder / "runs.json", pool, common), options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
