"""Dendritic networks and their controls under one parameter budget (`synaptune dendritic`).

Each architecture has a study of its own: a search on the validation split, further points around
its best if `protocol.refine` says so, then the best on fresh seeds with the test split, with and
without resampling. The seeds are the same for all architectures, so that differences are paired.
The same command continues an interrupted one. conf/protocol/dendritic.yaml explains the settings.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from synaptune.analysis.compare import compute_interval
from synaptune.config.compose import ComposedConfig, compose_config
from synaptune.core.errors import user_error
from synaptune.core.files import write_atomic
from synaptune.core.text import show_path
from synaptune.model.budget import PARAMETERS
from synaptune.model.network import ARCHITECTURES
from synaptune.protocols.config import SEED_OFFSETS, DendriticConfig, read_protocol_config
from synaptune.protocols.protocol import Protocol, print_message
from synaptune.protocols.session import open_protocol
from synaptune.protocols.stages import find_best_trial, run_points, run_search
from synaptune.report.table_model import Column, Table, make_table
from synaptune.search.space.space import Dimension, Space, make_space
from synaptune.search.trial import Trial
from synaptune.study.location import StudyConfig, resolve_location
from synaptune.study.reader import TEST

RESAMPLING = "network.steps_to_resample"
_REFINED_SHARE = 0.4  # width of a refined range, in the range of the search


@dataclass(frozen=True)
class ArchitectureResult:
    """The best network of an architecture, on fresh seeds.

    Attributes:
        architecture: its name.
        values: searched settings of the best.
        val_accuracy: validation accuracy of the best in the search [0..1].
        parameters: trainable parameters of the best.
        accuracies: test accuracy of each seed [0..1].
        without: likewise without resampling; empty where nothing is resampled.
        trained: trials of the search that were trained.
        skipped: candidates over the budget.
    """

    architecture: str
    values: Mapping[str, Any]
    val_accuracy: float
    parameters: int
    accuracies: tuple[float, ...]
    without: tuple[float, ...]
    trained: int
    skipped: int


def quick(*overrides: str) -> list[ArchitectureResult]:
    """Search one architecture with few epochs: is there anything to find? (dendritic-quick)."""
    return run_scenario("dendritic-quick", overrides)


def budget(*overrides: str) -> list[ArchitectureResult]:
    """Search one architecture whose size follows the budget (dendritic-budget)."""
    return run_scenario("dendritic-budget", overrides)


def compare(*overrides: str) -> list[ArchitectureResult]:
    """Compare the three architectures and the controls at one budget (dendritic-compare)."""
    return run_scenario("dendritic-compare", overrides)


def thorough(*overrides: str) -> list[ArchitectureResult]:
    """Search broadly with more epochs, then around the best (dendritic-thorough)."""
    return run_scenario("dendritic-thorough", overrides)


def run_scenario(preset: str, overrides: Sequence[str] = ()) -> list[ArchitectureResult]:
    """Run the protocol with a preset of conf/experiment and further overrides."""
    return run_architectures([f"experiment={preset}", *overrides])


def run_dendritic(overrides: Sequence[str]) -> dict[str, Any]:
    """Run the protocol from wherever its studies have it, and return its table as plain values."""
    results = run_architectures(overrides)
    return {"results": [dataclasses.asdict(result) for result in results]}


def run_architectures(overrides: Sequence[str]) -> list[ArchitectureResult]:
    """Search each architecture, run its best on fresh seeds, and print the table.

    Raises:
        UserError: a mistake in the input, a budget that no candidate fits, or too many failed runs.
    """
    from synaptune.config.settings import check_config
    from synaptune.core.console import make_console
    from synaptune.report.console import print_table

    composed = compose_config(["model=dendritic", *overrides], protocol="dendritic")
    assert composed.protocol is not None
    config = read_protocol_config(DendriticConfig, composed.protocol)
    check_config(composed.base)
    plans = _list_plans(config, composed)
    if config.dry_run:
        total = sum(plan.runs for plan in plans)
        for plan in plans:
            print_message(f"{plan.base.network.architecture}: {plan.runs} runs")
        print_message(f"{total} runs of {composed.base.training.steps} steps; nothing was started")
        return []
    name = composed.location.name
    results = [_run_architecture(plan, config, f"{name}-{plan.key}") for plan in plans]
    table = make_result_table(results, composed.base)
    print_table(table, make_console())
    path = composed.location.folder.with_name(f"{name}.json")
    content = {
        "budget": OmegaConf.to_container(composed.base.budget),
        "data": composed.base.data.source,
        "results": [dataclasses.asdict(result) for result in results],
    }
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())
    print_message(f"written to {show_path(path)}; a report: synaptune report {name}-{plans[0].key}")
    return results


class _Plan(NamedTuple):
    """The study of one architecture: its key in the name, configuration, space and runs."""

    key: str
    base: DictConfig
    space: Space
    runs: int


def _list_plans(config: DendriticConfig, composed: ComposedConfig) -> list[_Plan]:
    from synaptune.config.search_space import read_dimensions

    unknown = [name for name in config.architectures if name not in ARCHITECTURES]
    if unknown or not config.architectures:
        raise user_error(
            got=f"protocol.architectures=[{', '.join(config.architectures)}]",
            expected=f"names among {', '.join(ARCHITECTURES)}",
            do="correct them",
        )
    plans = []
    for name in config.architectures:
        base = composed.base.copy()
        base.network.architecture = name
        free = [
            dimension
            for dimension in read_dimensions(base)
            if dimension.name not in composed.fixed_names
        ]
        space = make_space(free)
        sides = 2 if RESAMPLING in space.names else 1
        plans.append(
            _Plan(
                name.replace("_", "-"),
                base,
                space,
                config.budget + config.refine + sides * config.seeds,
            )
        )
    return plans


def _run_architecture(plan: _Plan, config: DendriticConfig, name: str) -> ArchitectureResult:
    study = OmegaConf.to_object(plan.base.study)
    assert isinstance(study, StudyConfig)
    location = resolve_location(replace(study, name=name, dir=None), name)
    first_seed = int(plan.base.seed) + SEED_OFFSETS["dendritic"]
    with open_protocol(
        plan.base,
        location,
        plan.space,
        optimizer=config.optimizer,
        budget=config.budget,
        seeds=range(first_seed, first_seed + config.seeds),
        settings={"protocol": "dendritic"},
    ) as protocol:
        print_message(f"study {name} ({location.shown_folder})")
        trials = run_search(protocol, protocol.make_ledger("search"), protocol.plan)
        best = find_best_trial(protocol, trials)
        assert best is not None  # a search whose every trial failed ends with an error
        if config.refine:
            refined = replace(protocol, space=_narrow(plan.space, best))
            limits = replace(protocol.plan, budget=config.refine)
            trials += run_search(refined, refined.make_ledger("refine"), limits, label="refine")
            best = find_best_trial(protocol, trials) or best
        accuracies, without = _run_tests(protocol, best)
    complete = [trial for trial in trials if trial.state == "complete"]
    assert best.objective is not None
    return ArchitectureResult(
        plan.base.network.architecture,
        best.values,
        best.objective,
        int(best.facts[PARAMETERS]),
        accuracies,
        without,
        len(complete),
        sum(trial.state == "failed" for trial in trials),
    )


def _narrow(space: Space, best: Trial) -> Space:
    """Return the ranges around the best point, a part of the width of those of the search."""

    def narrow(dimension: Dimension) -> Dimension:
        if dimension.scale == "categorical":
            return dimension
        middle, half = dimension.to_unit(best.values[dimension.name]), _REFINED_SHARE / 2.0
        low = max(0.0, min(middle - half, 1.0 - 2.0 * half))
        ends = [dimension.to_value(unit) for unit in (low, low + 2.0 * half)]
        if ends[0] == ends[1]:
            return dimension
        return replace(dimension, low=ends[0], high=ends[1], start=best.values[dimension.name])

    return Space(tuple(narrow(dimension) for dimension in space.dimensions))


def _run_tests(protocol: Protocol, best: Trial) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Run the best on the fresh seeds, with and without resampling; return test accuracies."""
    wide = Space(
        tuple(
            replace(dimension, low=0) if dimension.name == RESAMPLING else dimension
            for dimension in protocol.space.dimensions
        )
    )
    sides = [best.values]
    if RESAMPLING in wide.names:
        sides.append({**best.values, RESAMPLING: 0})
    points = [(wide.to_unit(values), seed) for values in sides for seed in protocol.seeds]
    print_message(f"test: the best on {len(protocol.seeds)} fresh seeds")
    ledger = protocol.make_ledger(TEST, wide)
    runs = run_points(protocol, ledger, points, label="test run", test=True)
    accuracies: list[float] = [run.facts.get("test_accuracy", math.nan) for run in runs]
    if any(map(math.isnan, accuracies)):
        raise user_error(
            got=f"a failed test run: {next(run.reason for run in runs if run.reason)}",
            expected="runs that end",
            do="correct the cause and give the same command",
        )
    count = len(protocol.seeds)
    return tuple(accuracies[:count]), tuple(accuracies[count:])


def make_result_table(results: Sequence[ArchitectureResult], base: DictConfig) -> Table:
    """Return the comparison; differences are paired by seed, in points of test accuracy."""
    reference = next((result for result in results if result.architecture == "dense"), None)

    def subtract(after: Sequence[float], before: Sequence[float]) -> str:
        gains = [100.0 * (new - old) for new, old in zip(after, before, strict=True)]
        mean, low, high = compute_interval(gains)
        return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"

    means = [compute_interval(result.accuracies) for result in results]
    cells: dict[Column, list[Any]] = {
        Column("architecture"): [result.architecture for result in results],
        Column("test accuracy", "text", "%"): [
            f"{100 * mean:.2f} ({100 * low:.2f} to {100 * high:.2f})" for mean, low, high in means
        ],
        Column("parameters", "count"): [result.parameters for result in results],
        Column("accuracy per 1,000 parameters", "text", "%"): [
            f"{100.0 * mean.mean / result.parameters * 1000.0:.1f}"
            for mean, result in zip(means, results, strict=True)
        ],
        Column("against dense", "text", "points"): [
            None
            if reference is None or result is reference
            else subtract(result.accuracies, reference.accuracies)
            for result in results
        ],
        Column("gain of resampling", "text", "points"): [
            subtract(result.accuracies, result.without) if result.without else None
            for result in results
        ],
        Column("over the budget", "count"): [result.skipped for result in results],
    }
    seeds, limit = len(results[0].accuracies), base.budget.max_params
    note = (
        f"Means and 95 % intervals over {seeds} seeds on the test split of {base.data.source}, "
        f"{'no budget' if limit is None else f'at most {limit:,} parameters'}; "
        "selected on the validation split."
    )
    return make_table("dendritic", "architectures", cells, note)
