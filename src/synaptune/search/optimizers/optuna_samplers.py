"""Optuna's samplers with the `Optimizer` interface, each on an in-memory study.

    tpe      tree-structured Parzen estimator, multivariate     true types (float, int, category)
    gp       Gaussian process with expected improvement         true types
    cmaes    CMA-ES of the `cmaes` package                      unit box; equal bins as integers,
                                                                with a margin
    qmc      scrambled Sobol points                             unit box

`tpe` and `gp` handle categories as such and do not use the weights of choices. The weights affect
only the samples of `cmaes` and `qmc`. A failed point has an infinite loss: all four samplers rank
or clip it, so that it counts as the worst point and does not enter a mean.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from synaptune.search.optimizers.base import SEED_MODULUS, Engine, Observation, Optimizer
from synaptune.search.optimizers.cma import population_size
from synaptune.search.optimizers.start_design import sample_design
from synaptune.search.optimizers.uniform_grid import batch_size
from synaptune.search.space.space import Dimension, Space, UnitPoint

SAMPLERS = ("tpe", "gp", "cmaes", "qmc")
# Samplers that use true types, keep every trial, and accept the trials of an earlier study.
MODEL_SAMPLERS = ("tpe", "gp")
STARTUP_POINTS = 10  # points before `gp` has a model; Optuna's default
_KEPT_GENERATIONS = 4


class OptunaDimension(NamedTuple):
    """Representation of a dimension in Optuna's study.

    Attributes:
        dimension: the dimension.
        kind: `typed` (the true type), `bin` (the index of the bin) or `unit` (the unit coordinate).
    """

    dimension: Dimension
    kind: str

    def to_distribution(self) -> Any:
        """Return Optuna's distribution."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        dimension = self.dimension
        if self.kind == "unit":
            return FloatDistribution(0.0, 1.0)
        if self.kind == "bin":
            assert dimension.bins is not None
            return IntDistribution(0, dimension.bins - 1)
        if dimension.scale == "categorical":
            return CategoricalDistribution(range(len(dimension.choices)))
        if dimension.integer:
            return IntDistribution(
                int(dimension.low),
                int(dimension.high),
                log=dimension.scale == "log",
                step=dimension.step,
            )
        return FloatDistribution(
            float(dimension.low), float(dimension.high), log=dimension.scale == "log"
        )

    def to_parameter(self, unit: float) -> Any:
        """Return Optuna's parameter at a unit coordinate."""
        if self.kind == "unit":
            return unit
        if self.dimension.scale == "categorical":
            return self.dimension.get_choice_index(unit)
        value = self.dimension.to_value(unit)
        if self.kind == "bin":
            return (int(value) - int(self.dimension.low)) // self.dimension.step
        return value

    def to_unit(self, parameter: Any) -> float:
        """Return the unit coordinate of Optuna's parameter."""
        if self.kind == "unit":
            return float(parameter)
        if self.dimension.scale == "categorical":
            return self.dimension.get_choice_unit(parameter)
        if self.kind == "bin":
            parameter = int(self.dimension.low) + parameter * self.dimension.step
        return self.dimension.to_unit(parameter)


def make_optuna_dimension(dimension: Dimension, sampler: str) -> OptunaDimension:
    """Return the representation of a dimension for a sampler."""
    if dimension.scale == "decay":  # Optuna has no such scale
        return OptunaDimension(dimension, "unit")
    if sampler in MODEL_SAMPLERS:
        return OptunaDimension(dimension, "typed")
    equal = dimension.scale != "log" and not dimension.weights
    several = dimension.bins is not None and dimension.bins > 1
    return OptunaDimension(dimension, "bin" if sampler == "cmaes" and several and equal else "unit")


class _StoredTrial(NamedTuple):
    """An ended trial.

    Attributes:
        parameters: Optuna's parameters in the order of the dimensions.
        value: loss; None for a point that was asked for but never told.
    """

    parameters: tuple[Any, ...]
    value: float | None


class _CompactStudy(NamedTuple):
    """The pickled form of a study."""

    sampler: Any
    trials: list[_StoredTrial]


class OptunaOptimizer(Optimizer):
    """One of Optuna's samplers; the first point is the start of the space.

    With the start design `sobol` the first points of `gp` are those of start_design.py.
    """

    def __init__(self, engine: Engine, space: Space, prior: Sequence[Observation] = ()) -> None:
        import optuna

        self.learns = engine.name != "qmc"
        self.generation_size = _generation_size(engine, len(space.dimensions))
        self._axes = {
            name: make_optuna_dimension(dimension, engine.name)
            for name, dimension in zip(space.names, space.dimensions, strict=True)
        }
        has_design = engine.name == "gp" and engine.start_design == "sobol"
        # The first points, and the number of those that were asked for.
        self._design = sample_design(space, engine.seed, STARTUP_POINTS if has_design else 1)
        self._asked = 0
        self._open: dict[UnitPoint, list[int]] = {}
        self._models = engine.name in MODEL_SAMPLERS
        with _silence_optuna():
            self._distributions = {
                name: entry.to_distribution() for name, entry in self._axes.items()
            }
            self._study = optuna.create_study(sampler=self._make_sampler(engine))
            for point in prior if self._models else ():
                self._add_trial(self._to_parameters(point.unit), _to_value(point), self._study)

    @property
    def is_asynchronous(self) -> bool:
        """Whether this is a model sampler."""
        return self._models

    def reseed(self, engine: Engine, index: int) -> None:
        """Replace a model sampler by one with another seed."""
        self._asked = index
        if self._models:
            with _silence_optuna():
                self._study.sampler = self._make_sampler(replace(engine, seed=engine.seed + index))

    def ask(self) -> UnitPoint:
        """Return the next point; the first one is the start of the space."""
        with _silence_optuna():
            if self._asked < len(self._design):
                self._study.enqueue_trial(self._to_parameters(self._design[self._asked]))
            self._asked += 1
            trial = self._study.ask(self._distributions)
        unit = tuple(entry.to_unit(trial.params[name]) for name, entry in self._axes.items())
        self._open.setdefault(unit, []).append(trial.number)
        return unit

    def tell(self, generation: Sequence[Observation]) -> None:
        """Learn a generation; a failed point counts as the worst of all."""
        if not self.learns:
            return
        import optuna

        with _silence_optuna():
            for point in generation:
                numbers = self._open.get(point.unit)
                if numbers:
                    self._study.tell(numbers.pop(0), _to_value(point))
                else:
                    self._asked = max(self._asked, int(point.is_asked))
                    self._add_trial(self._to_parameters(point.unit), _to_value(point), self._study)
            for number in (number for numbers in self._open.values() for number in numbers):
                self._study.tell(number, state=optuna.trial.TrialState.FAIL)
            self._open.clear()
            if not self._models:
                self._trim()

    def __getstate__(self) -> dict[str, Any]:
        """Reduce the study of a model sampler to the numbers of its ended trials.

        This applies between generations. Optuna's own pickle repeats the distributions in each
        trial.
        """
        state = dict(self.__dict__)
        if self._models and not self._open:
            trials = self._study.get_trials(deepcopy=False)
            stored_trials = [
                _StoredTrial(tuple(trial.params[name] for name in self._axes), trial.value)
                for trial in trials
            ]
            state["_study"] = _CompactStudy(self._study.sampler, stored_trials)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._study, _CompactStudy):
            self._study = self._restore_study(self._study)

    def _restore_study(self, compact: _CompactStudy) -> Any:
        import optuna

        with _silence_optuna():
            study = optuna.create_study(sampler=compact.sampler)
            for trial in compact.trials:
                self._add_trial(
                    dict(zip(self._axes, trial.parameters, strict=True)), trial.value, study
                )
        return study

    def _add_trial(self, parameters: dict[str, Any], value: float | None, study: Any) -> None:
        """Add an ended trial. A trial without a value was asked for but never told."""
        import optuna

        state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
        trial = optuna.trial.create_trial(
            params=parameters, distributions=self._distributions, value=value, state=state
        )
        study.add_trial(trial)

    def _to_parameters(self, unit: UnitPoint) -> dict[str, Any]:
        return {
            name: entry.to_parameter(u)
            for (name, entry), u in zip(self._axes.items(), unit, strict=True)
        }

    def _make_sampler(self, engine: Engine) -> Any:
        from optuna.samplers import GPSampler, QMCSampler, TPESampler

        seed = engine.seed % SEED_MODULUS
        if engine.name == "tpe":
            return TPESampler(seed=seed, multivariate=True, constant_liar=engine.workers > 1)
        if engine.name == "gp":
            return GPSampler(
                seed=seed,
                n_startup_trials=STARTUP_POINTS,
                deterministic_objective=not engine.noisy,
            )
        if engine.name == "qmc":
            return QMCSampler(seed=seed, scramble=True)
        from synaptune.search.optimizers.optuna_cmaes import BoxCmaEsSampler

        margin = any(entry.kind == "bin" for entry in self._axes.values())
        options = dict(
            seed=seed, n_startup_trials=0, popsize=self.generation_size, with_margin=margin
        )
        return BoxCmaEsSampler(
            self._distributions, x0=self._to_parameters(self._design[0]), **options
        )

    def _trim(self) -> None:
        """Drop the trials that CMA-ES no longer needs.

        Optuna stores a copy of the full CMA-ES state in one trial of each generation.
        """
        import optuna

        trials = self._study.get_trials(deepcopy=False)
        if len(trials) < _KEPT_GENERATIONS * self.generation_size:
            return
        state_indices = [
            index
            for index, trial in enumerate(trials)
            if any("optimizer" in key for key in trial.system_attrs)
        ]
        if state_indices:
            recent_trials = self._study.get_trials()[state_indices[-1] :]
            self._study = optuna.create_study(sampler=self._study.sampler)
            self._study.add_trials(recent_trials)


def _generation_size(engine: Engine, dimension: int) -> int:
    """Return a population for CMA-ES; for a model sampler the number of concurrent trials."""
    if engine.name == "cmaes":
        return population_size(max(dimension, 2), engine.workers)
    return batch_size(engine.workers) if engine.name == "qmc" else engine.workers


def _to_value(observation: Observation) -> float:
    return float("inf") if observation.loss is None else observation.loss


@contextlib.contextmanager
def _silence_optuna() -> Iterator[None]:
    """Suppress Optuna's warnings about experimental options and its log messages."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)
