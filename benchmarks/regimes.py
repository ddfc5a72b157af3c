"""Regimes: each mechanism in the task that its role names, against off and its counterpart.

    python benchmarks/regimes.py [regime=NAME] [--budget 20] [--equal-time] [--study NAME]
                                 [overrides ...]

Without `regime=` all regimes run. Every variant of a regime has the same steps, batches and seeds,
and is scored on the test rows of fresh seeds. With `--budget N` each variant is also tuned: its own
parameters and the learning rate, N evaluations each, by validation loss on a seed of its own. With
`--equal-time` a variant gets the steps that fit into the training time of the slowest one, by the
time of a step measured alternately in one process. A gain is the paired difference to the first
variant in per cent, with a 95 % t-interval; positive is better. The tables, JSON files, a figure
and all finished runs are in outputs/regimes: the same command continues an interrupted benchmark.
`--study` adds the tables and the figure to the report of a study.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import regime_tasks
import torch
from regime_list import RATE, REGIMES, Regime, Variant
from runs import (
    FIRST_FRESH_SEED,
    OPTION,
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
    split_options,
    start_pool,
)
from tuning import format_overrides, tune_values

from synaptune.analysis.compare import compute_improvement
from synaptune.analysis.regimes import read_regimes
from synaptune.config.search_space import read_dimensions
from synaptune.config.settings import read_settings
from synaptune.core.errors import UserError, suggest, user_error
from synaptune.data.batches import make_eval_batches
from synaptune.data.chains import compute_bayes_loss
from synaptune.data.corpus import load_corpus
from synaptune.report.figures.regimes import draw_regimes
from synaptune.report.figures.theme import make_figure, make_svg_file
from synaptune.search.space.space import Dimension, Space
from synaptune.study.additions import StudyAddress
from synaptune.study.artifacts import write_json, write_text
from synaptune.study.reader import REGIMES as REGIMES_NOTE
from synaptune.study.reader import find_study


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
    words, presets = split_options((*common, *variant.overrides))
    cfg = compose_config(words)
    ranges = {**RATE, **variant.ranges}
    options = {name: ranges.pop(name) for name in [*ranges] if name.startswith(OPTION)}
    cfg.search_space.parameters = [name for name, entry in ranges.items() if not entry]
    cfg.search_space.ranges = {name: dict(entry) for name, entry in ranges.items() if entry}
    dimensions = [
        Dimension(
            name,
            "log" if entry.get("log") else "lin",
            low=entry["low"],
            high=entry["high"],
            start=presets[name.removeprefix(OPTION)],
        )
        for name, entry in options.items()
    ]
    return Space((*read_dimensions(cfg), *dimensions))


def summarise_regime(regime: Regime, results: Results) -> dict[str, dict[str, Any]]:
    """Return the numbers of a regime by variant: values by seed, gain, steps and seconds."""
    metric = f"test_{regime.metric}"
    _check_columns(results, [metric, *(f"test_{name}" for name in regime.also)])
    reference = [entry[metric] for entry in next(iter(results.values()))]
    summary = {}
    for name, runs in results.items():
        values, gain = [entry[metric] for entry in runs], None
        if values != reference and min(reference) > 0:
            mean, low, high = compute_improvement(reference, values)
            gain = [-mean, -high, -low] if regime.higher_is_better else [mean, low, high]
        summary[name] = {
            "values": values,
            "also": {name: [entry[f"test_{name}"] for entry in runs] for name in regime.also},
            "gain": gain,
            "steps": int(runs[0]["steps"]),
            "seconds": statistics.median(entry["train_seconds"] for entry in runs),
        }
    return summary


def _check_columns(results: Results, names: Sequence[str]) -> None:
    for label, runs in results.items():
        for name in names:
            if any(name not in entry for entry in runs):  # stored by an earlier version
                raise user_error(
                    got=f"stored runs of `{label}` without {name}",
                    expected="every column of the table",
                    do="delete runs.json, or pass another --folder",
                )


def format_regime(regime: Regime, summary: dict[str, dict[str, Any]]) -> str:
    """Format the table of a regime."""
    names = [name.replace("_", " ") for name in (regime.metric, *regime.also)]
    lines = [["", names[0], "gain [%]", *names[1:], "steps", "seconds"]]
    for name, entry in summary.items():
        gain = entry["gain"]
        lines.append(
            [
                name,
                _format_spread(entry["values"]),
                "-" if gain is None else f"{gain[0]:+.1f} ({gain[1]:+.1f} to {gain[2]:+.1f})",
                *map(_format_spread, entry["also"].values()),
                str(entry["steps"]),
                f"{entry['seconds']:.0f}",
            ]
        )
    return format_table(lines)


def _format_spread(values: Sequence[float]) -> str:
    digits = 4 if abs(statistics.fmean(values)) < 10 else 2
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def measure_text(results: Results) -> dict[str, float]:
    """Return what a task measured of the text itself, by name; the mean over the seeds."""
    runs = next(iter(results.values()))
    names = [name for name in runs[0] if name.startswith("text_")]
    return {name[5:]: statistics.fmean(entry[name] for entry in runs) for name in names}


def check_task_options(name: str, overrides: Sequence[str]) -> None:
    """Raise UserError for an option that no variant of the regime has."""
    variants = REGIMES[name].variants.values()
    known = {option for v in variants for option in split_options(v.overrides)[1]}
    for option in split_options(overrides)[1]:
        if option not in known:
            raise user_error(
                got=f"{OPTION}{option} for regime={name}",
                expected=f"one of {', '.join(sorted(known))}" if known else "no such option",
                do=f"correct the name{suggest(option, known)}, or leave it out",
            )


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
    results = run_on_seeds(runs, rungs, fresh, name)
    summary, of_text = summarise_regime(regime, results), measure_text(results)
    bayes = measure_bayes(runs.common) if name == "chains" else None
    equal = "time" if options.equal_time else "steps"
    title = f"{name}, {options.seeds} paired seeds, equal {equal}"
    title += f"; Bayes optimum {bayes:.4f}" if bayes is not None else ""
    if of_text:
        shown = ", ".join(f"{n.replace('_', ' ')} {value:.2f}" for n, value in of_text.items())
        title += f"; the text itself: {shown}"
    text = f"{title}:\n\n{format_regime(regime, summary)}\n"
    if values:
        text += "".join(
            f"\n{label}: {', '.join(format_overrides(v))}" for label, v in values.items()
        )
    stem = f"{name}-equal-{equal}"
    write_json(
        folder / f"{stem}.json",
        {
            "metric": regime.metric,
            "variants": summary,
            "values": values,
            "bayes": bayes,
            "text": of_text,
            "overrides": [word.replace(f"{ROOT}/", "") for word in runs.common],
        },
    )
    write_text(folder / f"{stem}.md", text + "\n")
    print(f"\n{text}\n", flush=True)


def read_records(folder: Path) -> dict[str, Any]:
    """Read the JSON files of a folder's tables by the names of the files."""
    records = {
        path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*-equal-*.json"))
    }
    # An earlier version stored no metric.
    return {stem: record for stem, record in records.items() if "metric" in record}


def write_figure(folder: Path, records: Mapping[str, Any]) -> Path | None:
    """Draw the regimes of a folder as regimes.svg; None if no variant has a gain."""
    figure = make_figure(functools.partial(draw_regimes, read_regimes(records)), "regimes")
    if figure is None:
        return None
    write_text(folder / "regimes.svg", make_svg_file(figure))
    return folder / "regimes.svg"


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
    parser.add_argument("--study", help="study whose report shows the regimes")
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
        study = find_study(options.study) if options.study else None
        with start_pool(options.workers) as pool:
            for name in names or REGIMES:
                regime = REGIMES[name]
                check_task_options(name, overrides)
                if regime.task in (regime_tasks.drift, regime_tasks.continual):
                    regime_tasks.write_texts()
                common = (*QUIET, *regime.common, *overrides)
                runs = RunCache(options.folder / "runs.json", pool, common, regime.task)
                run_regime(name, runs, options)
        records = read_records(options.folder)
        if (figure := write_figure(options.folder, records)) is not None:
            print(f"figure: {figure}")
        if study is not None:
            StudyAddress(study.url, study.name).write_note(REGIMES_NOTE, records)
            print(f"report: synaptune report {options.study}")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
