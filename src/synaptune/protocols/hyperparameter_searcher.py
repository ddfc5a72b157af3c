"""Searches of dendritic networks under a parameter budget, from Python.

    from synaptune import HyperparameterSearcher

    searcher = HyperparameterSearcher("digits", max_params=2000, n_epochs=10)
    searcher.random_search({"n_neurons": (4, 32), "lr": [1e-3, 3e-3, 1e-2]}, n_trials=20)
    searcher.print_results(k=3)

A search is a study like any other: the same call continues it, `synaptune report` and `dashboard`
show it. Candidates are ranked by the validation split. The test split is read for the results that
`get_best_results`, `print_results` or `save_results` return as the best, and for no other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from synaptune.config.compose import ComposedConfig, compose_config
from synaptune.core.errors import suggest, user_error
from synaptune.core.files import write_atomic
from synaptune.data.config import CLASSES, IMAGE_SOURCES
from synaptune.model.budget import PARAMETERS, NothingFits
from synaptune.model.network import NetworkConfig
from synaptune.protocols.session import open_protocol
from synaptune.protocols.stages import run_search
from synaptune.search.optimizers.registry import Engine, GridOptimizer, make_optimizer
from synaptune.search.space.space import Dimension, Space, make_choices, make_space
from synaptune.search.trial import Trial

# Short names of the settings that a search may vary.
_NAMES = {name: f"network.{name}" for name in NetworkConfig.__dataclass_fields__} | {
    "lr": "training.learning_rate",
    "weight_decay": "training.weight_decay",
    "batch_size": "training.batch",
}
# Candidates over the budget that a random search draws for each one that it trains, at most.
_MOST_DRAWS = 50


@dataclass(frozen=True)
class SearchResult:
    """One trained configuration.

    Attributes:
        params: the searched settings by the names of the search.
        val_accuracy: accuracy on the validation split, which ranks the results [0..1].
        test_accuracy: accuracy on the test split; None unless it was read [0..1].
        train_accuracy: accuracy on the training split [0..1].
        total_params: trainable parameters.
        train_time: wall time of the training [s].
        final_test_loss: loss on the test split; None unless it was read [nats/image].
        trial: number of the trial in the study.
    """

    params: dict[str, Any]
    val_accuracy: float
    test_accuracy: float | None
    train_accuracy: float
    total_params: int
    train_time: float
    final_test_loss: float | None
    trial: int


class HyperparameterSearcher:
    """Searches the settings of a dendritic network or of a control under a parameter budget.

    Attributes:
        results: the trained configurations in the order of their trials.
        skipped: candidates over the budget, which were not trained.
    """

    def __init__(
        self,
        dataset: str = "fashion-mnist",
        subset_size: int | None = None,
        max_params: int = 8000,
        n_epochs: int = 15,
        lr: float = 5e-4,
        weight_decay: float = 0.01,
        batch_size: int = 256,
        n_classes: int = 10,
        verbose: bool = True,
        *,
        architecture: str = "dendritic_simple",
        data_path: str | Path | None = None,
        study_name: str | None = None,
        seed: int = 0,
        overrides: Sequence[str] = (),
    ) -> None:
        """Compose the configuration of all runs; nothing is read or written yet.

        Args:
            dataset: an entry of IMAGE_SOURCES.
            subset_size: training images that are used; None for all.
            max_params: largest number of trainable parameters.
            n_epochs: passes over the training split.
            lr: peak of the learning rate, unless it is searched.
            weight_decay: weight decay, unless it is searched.
            batch_size: images of a step, unless it is searched.
            n_classes: classes of the images; every set has 10.
            verbose: whether to print the progress.
            architecture: a dendritic architecture or a control, unless it is searched.
            data_path: folder of the image files; None for the one in the cache.
            study_name: name of the studies; None means `dendritic-<dataset>`.
            seed: seed of the search and of every run.
            overrides: further overrides of conf/train.yaml.

        Raises:
            UserError: a value that cannot run.
        """
        if dataset not in IMAGE_SOURCES:
            raise user_error(
                got=f"dataset={dataset!r}",
                expected=f"one of {', '.join(IMAGE_SOURCES)}",
                do="choose one of them",
            )
        if n_classes != CLASSES:
            raise user_error(
                got=f"n_classes={n_classes}",
                expected=f"{CLASSES}, the classes of every set",
                do="leave it out",
            )
        quoted = None if data_path is None else json.dumps(str(data_path))
        self._name = study_name or f"dendritic-{dataset}"
        self._overrides = [
            *("model=dendritic", f"data={dataset}", "logger=csv"),
            *([f"data.path={quoted}"] if quoted else []),
            f"data.subset_size={'null' if subset_size is None else subset_size}",
            f"budget.max_params={max_params}",
            f"training.batch={batch_size}",
            f"training.steps=${{steps_of_epochs:{n_epochs}}}",
            f"training.learning_rate={lr}",
            f"training.weight_decay={weight_decay}",
            f"network.architecture={architecture}",
            f"seed={seed}",
            *("training.keep=all", "training.evaluations=1", "stop.plateau=null"),
            *([] if verbose else ["logger.progress=off"]),
            *overrides,
        ]
        self._compose(self._name)
        self._seed, self._verbose = seed, verbose
        self._places: dict[int, tuple[ComposedConfig, Trial]] = {}
        self.results: list[SearchResult] = []
        self.skipped = 0

    def grid_search(
        self, param_grid: Mapping[str, Sequence[Any]], max_trials: int | None = None
    ) -> list[SearchResult]:
        """Train every configuration of a grid, or a seeded sample of it.

        Args:
            param_grid: lists of values by name.
            max_trials: size of the sample, configurations over the budget included; None for all.

        Returns:
            The results in the order of their trials.

        Raises:
            UserError: a name or value does not fit, or no configuration fits the budget.
        """
        space = _read_space({name: list(values) for name, values in param_grid.items()})
        optimizer = "grid" if max_trials is None else "shuffled_grid"
        grid = make_optimizer(Engine(optimizer, self._seed), space)
        assert isinstance(grid, GridOptimizer)
        count = min(grid.size, max_trials or grid.size)
        return self._search(space, optimizer, count, lambda trials: count)

    def random_search(self, distributions: Mapping[str, Any], n_trials: int) -> list[SearchResult]:
        """Train random configurations until `n_trials` of them fit the budget.

        Args:
            distributions: by name (low, high), a list of values, or a dict of the keys `type`
                (randint, uniform, loguniform or choice) and low and high, or values. The end `high`
                of randint is excluded, as by numpy.
            n_trials: configurations to train.

        Returns:
            The results in the order of their trials.

        Raises:
            UserError: a name or value does not fit, or no configuration fits the budget.
        """

        def plan(trials: Sequence[Trial]) -> int:
            missing = n_trials - sum(trial.state != "failed" for trial in trials)
            return min(len(trials) + missing, _MOST_DRAWS * n_trials)

        return self._search(_read_space(distributions), "random", n_trials, plan)

    def get_best_results(self, k: int = 5) -> list[SearchResult]:
        """Return the `k` results of the highest validation accuracy, with their test accuracy."""
        ranked = sorted(self.results, key=lambda result: -result.val_accuracy)[:k]
        return [self._read_test(result) for result in ranked]

    def print_results(self, k: int = 5) -> None:
        """Print the `k` best results as a table."""
        from synaptune.core.console import make_console
        from synaptune.report.console import print_table
        from synaptune.report.table_model import Column, make_table

        best = self.get_best_results(k)
        cells: dict[Column, list[Any]] = {
            Column("validation accuracy", "value"): [result.val_accuracy for result in best],
            Column("test accuracy", "value"): [result.test_accuracy for result in best],
            Column("parameters", "count"): [result.total_params for result in best],
            Column("training", "seconds"): [result.train_time for result in best],
            Column("settings"): [_format_params(result.params) for result in best],
        }
        note = f"{len(self.results)} trained, {self.skipped} over the budget"
        print_table(make_table("best", "best by validation accuracy", cells, note), make_console())

    def save_results(self, path: str | Path) -> None:
        """Write all results as JSON, the best first; its test accuracy is read."""
        best = self.get_best_results(1)
        ranked = sorted(self.results, key=lambda result: -result.val_accuracy)
        content = {
            "best": asdict(best[0]) if best else None,
            "results": [asdict(result) for result in ranked],
            "skipped": self.skipped,
        }
        write_atomic(Path(path), (json.dumps(content, indent=1) + "\n").encode())

    def _compose(self, study: str) -> ComposedConfig:
        from synaptune.config.settings import check_config

        composed = compose_config([*self._overrides, "search_space=base"], study=study)
        check_config(composed.base)
        return composed

    def _search(
        self,
        space: Space,
        optimizer: str,
        budget: int,
        plan: Callable[[Sequence[Trial]], int],
    ) -> list[SearchResult]:
        """Search until `plan`, the number of trials for those that there are, asks for no more."""
        composed = self._compose(f"{self._name}-{optimizer.replace('_', '-')}")
        base = composed.base
        start = [replace_start(dimension, base) for dimension in space.dimensions]
        with open_protocol(
            base,
            composed.location,
            make_space(start),
            optimizer=optimizer,
            budget=budget,
            seeds=(),
            settings={},
        ) as protocol:
            ledger = protocol.make_ledger("search")
            trials: list[Trial] = ledger.read_trials()
            while (count := plan(trials)) > len(trials) or not trials:
                limits = replace(protocol.plan, budget=count)
                try:
                    trials = run_search(protocol, ledger, limits, label=None)
                except NothingFits:
                    trials = ledger.read_trials()
                    if plan(trials) <= len(trials):
                        raise
        complete = [trial for trial in trials if trial.state == "complete"]
        found = [_make_result(trial, len(self.results) + i) for i, trial in enumerate(complete)]
        self._places |= {
            len(self.results) + i: (composed, trial) for i, trial in enumerate(complete)
        }
        self.results += found
        self.skipped += sum(trial.state == "failed" for trial in trials)
        return found

    def _read_test(self, result: SearchResult) -> SearchResult:
        """Return a result with its test accuracy, which is read from the checkpoint of its run."""
        from synaptune.config.run import run

        index = self.results.index(result)
        if result.test_accuracy is not None:
            return result
        composed, trial = self._places[index]
        cfg = composed.base.copy()
        changes = {**trial.values, "training.resume": True, "training.test": True}
        for name, value in {**changes, "logger.progress": "off"}.items():
            OmegaConf.update(cfg, name, value)
        outcome = run(cfg, composed.location.trials_folder / str(trial.number), overrides=[])
        self.results[index] = replace(
            result,
            test_accuracy=outcome.metrics["test_accuracy"],
            final_test_loss=outcome.metrics["test_loss"],
        )
        return self.results[index]


def replace_start(dimension: Dimension, base: Any) -> Dimension:
    """Return a dimension that starts at the configured value where that is one of its values."""
    value = OmegaConf.select(base, dimension.name)
    return replace(dimension, start=value) if dimension.contains(value) else dimension


def _make_result(trial: Trial, number: int) -> SearchResult:
    facts = trial.facts
    short = {long: name for name, long in _NAMES.items()}
    assert trial.objective is not None
    return SearchResult(
        params={short.get(name, name): value for name, value in trial.values.items()},
        val_accuracy=trial.objective,
        test_accuracy=None,
        train_accuracy=facts["train_accuracy"],
        total_params=int(facts[PARAMETERS]),
        train_time=facts["train_seconds"],
        final_test_loss=None,
        trial=trial.number,
    )


def _format_params(params: Mapping[str, Any]) -> str:
    texts = (
        f"{value:.4g}" if isinstance(value, float) else str(value) for value in params.values()
    )
    return " ".join(f"{name}={text}" for name, text in zip(params, texts, strict=True))


def _read_space(entries: Mapping[str, Any]) -> Space:
    """Return the space of a grid or of distributions by name.

    Raises:
        UserError: a name or an entry is invalid.
    """
    if not entries:
        raise user_error(got="nothing to search", expected="settings by name", do="name some")
    unknown = [name for name in entries if name not in _NAMES and "." not in name]
    if unknown:
        raise user_error(
            got=f"a search over {unknown[0]}{suggest(unknown[0], _NAMES)}",
            expected=f"one of {', '.join(_NAMES)}, or a dotted name of the configuration",
            do="correct the name",
        )
    return make_space(
        _read_dimension(_NAMES.get(name, name), entry) for name, entry in entries.items()
    )


def _read_dimension(name: str, entry: Any) -> Dimension:
    match entry:
        case list() as values:
            return make_choices(name, values)
        case (int() as low, int() as high) if not isinstance(low, bool):
            return Dimension(name, "lin", low, high, integer=True)
        case (int() | float() as low, int() | float() as high):
            return Dimension(name, "lin", low, high)
        case {"type": "randint", "low": int() as low, "high": int() as high} if high == low + 1:
            return make_choices(name, [low])
        case {"type": "randint", "low": int() as low, "high": int() as high}:
            return Dimension(name, "lin", low, high - 1, integer=True)
        case {"type": "uniform", "low": low, "high": high}:
            return Dimension(name, "lin", float(low), float(high))
        case {"type": "loguniform", "low": low, "high": high}:
            return Dimension(name, "log", float(low), float(high))
        case {"type": "choice", "values": values} | {"type": "choice", "choices": values}:
            return make_choices(name, list(values))
    raise user_error(
        got=f"{name}: {entry!r}",
        expected="(low, high), a list, or a dict of type randint, uniform or loguniform with low "
        "and high, or of type choice with values",
        do="correct the entry",
    )
