"""Objectives of a search: one number, which is minimized, from the metrics of a run.

    val_loss    validation loss                                                [nats/token]    (1)
    composite   sum_i w_i r_i over perplexity, long-context recall, expert
                specialisation (Gini), dead experts and calibration error,
                with r_i the share of the baseline (measures.py)               [1]             (2)
    hybrid      (1) before generation `switch`, (2) from it on; scores of the two kinds are never
                compared with each other
    pareto      one number for a vector of objectives, eq. (3) of pareto.py    [1]             (3)
    accuracy    validation accuracy of an image network, which is maximized        [0..1]      (4)
    policy      evaluation reward after fine-tuning minus before, which is
                maximized (training/policy_job.py)                             [0..1]      (5)
    proxy       (1) extrapolated from a fraction of the steps
                (learning_curve.py)                                            [nats/token]

A score depends on the metrics of a run only, which the study stores. A trial can therefore be
scored again at any time.
Source: the plan of the search.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from synaptune.core.errors import user_error
from synaptune.search.objective.measures import match_baseline
from synaptune.search.objective.pareto import achievement

OBJECTIVES = ("val_loss", "composite", "hybrid", "pareto", "proxy", "accuracy", "policy")
# Objectives that are better when larger; a search maximizes them. Each is one metric.
MAXIMIZED = {"accuracy": "val_accuracy", "policy": "reward_delta"}
# Names of the objectives with their units, for titles and axes.
_LABELS = {
    "val_loss": "val_loss [nats/token]",
    "composite": "composite score [1]",
    "hybrid": "hybrid score",
    "pareto": "pareto score [1]",
    "accuracy": "validation accuracy [0..1]",
    "policy": "change of the evaluation reward [0..1]",
    "proxy": "extrapolated val_loss [nats/token]",
}
TERMS = {
    "perplexity": "val_perplexity",
    "recall": "val_recall_accuracy",
    "specialisation": "expert_gini",
    "dead_experts": "expert_dead_fraction",
    "calibration": "val_calibration_error",
}


@dataclass(frozen=True)
class CompositeWeights:
    """Weights w_i of eq. (2).

    Larger recall and specialisation are better; the other terms are better if smaller. A term
    without its metric (no recall rows, one expert) is left out of all scores of a study.
    """

    perplexity: float = 1.0
    recall: float = 0.3
    specialisation: float = 0.2
    dead_experts: float = 0.5
    calibration: float = 0.2


@dataclass(frozen=True)
class ParetoAxes:
    """Weights of the axes of eq. (3), by metric.

    An axis of weight 0 is left out. The Pareto front depends only on which weights are above 0.
    """

    val_perplexity: float = 1.0
    val_recall_accuracy: float = 1.0
    tokens_per_second: float = 1.0


@dataclass(frozen=True)
class Baseline:
    """Metrics of the run at the default values; None for a missing metric."""

    val_perplexity: float | None = None
    val_recall_accuracy: float | None = None
    expert_gini: float | None = None
    expert_dead_fraction: float | None = None
    val_calibration_error: float | None = None
    tokens_per_second: float | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The available metrics by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class ObjectiveConfig:
    """Configuration of the objective, which is minimized unless it is in MAXIMIZED.

    Attributes:
        name: an entry of OBJECTIVES.
        weights: weights of eq. (2).
        switch: first generation that `hybrid` scores by eq. (2).
        axes: weights of the axes of eq. (3).
        fraction: fraction of training.steps that `proxy` trains.
        baseline: metrics that scale the terms of eqs. (2) and (3).
    """

    name: str = "val_loss"
    weights: CompositeWeights = field(default_factory=CompositeWeights)
    switch: int = 10
    axes: ParetoAxes = field(default_factory=ParetoAxes)
    fraction: float = 0.25
    baseline: Baseline = field(default_factory=Baseline)


def get_objective_label(configuration: Mapping[str, Any]) -> str:
    """Return the name of the objective of a study, with its unit if it is known.

    Args:
        configuration: flat configuration of the study. That of another application has no
            objective of ours.
    """
    name = str(configuration.get("objective.name", "objective"))
    return _LABELS.get(name, name)


def get_objective_noun(configuration: Mapping[str, Any]) -> str:
    """Return the objective of a study in a sentence: `loss`, `hybrid objective`, `objective`."""
    name = configuration.get("objective.name")
    if name in MAXIMIZED:
        return "reward change" if name == "policy" else str(name)
    return "loss" if name == "val_loss" else "objective" if name is None else f"{name} objective"


def find_objective_faults(config: ObjectiveConfig) -> list[str]:
    """Return the invalid values, one line each; empty if there are none."""
    faults = []
    if config.name not in OBJECTIVES:
        faults.append(f"objective.name={config.name}: expected one of {', '.join(OBJECTIVES)}")
    weights = {f"objective.weights.{name}": value for name, value in vars(config.weights).items()}
    weights |= {f"objective.axes.{name}": value for name, value in vars(config.axes).items()}
    faults += [
        f"{name}={value:g}: expected at least 0"
        for name, value in weights.items()
        if not 0.0 <= value < math.inf
    ]
    if not any(vars(config.weights).values()):
        faults.append("objective.weights: expected at least one above 0")
    if not any(vars(config.axes).values()):
        faults.append("objective.axes: expected at least one above 0")
    for name, value in config.baseline.metrics.items():
        if not 0.0 <= value < math.inf:
            faults.append(
                f"objective.baseline.{name}={value:g}: expected a finite number of at least 0"
            )
    if config.switch < 0:
        faults.append(f"objective.switch={config.switch}: expected a generation, at least 0")
    if not 0.0 < config.fraction <= 1.0:
        faults.append(
            f"objective.fraction={config.fraction:g}: "
            "expected a fraction of the steps, above 0 and at most 1"
        )
    return faults


def get_score_kind(config: ObjectiveConfig, generation: int) -> str:
    """Return the kind of score by which a generation (from 0) is ranked.

    Only scores of the same kind can be compared.
    """
    if config.name == "hybrid":
        return "val_loss" if generation < config.switch else "composite"
    return "val_loss" if config.name == "proxy" else config.name


def needs_baseline(config: ObjectiveConfig) -> bool:
    """Return whether the objective requires a baseline and has none."""
    return config.name in ("composite", "hybrid", "pareto") and not config.baseline.metrics


def with_baseline(config: ObjectiveConfig, metrics: Mapping[str, float]) -> ObjectiveConfig:
    """Return the objective with a baseline.

    Args:
        config: the objective.
        metrics: metrics of the run at the default values by name.
    """
    return replace(
        config,
        baseline=Baseline(
            **{name: metrics[name] for name in vars(config.baseline) if name in metrics}
        ),
    )


def check_ready(config: ObjectiveConfig, metrics: Collection[str], generation: int = 0) -> None:
    """Check before training that runs of a generation can be scored.

    Args:
        config: the objective.
        metrics: names of the metrics that the runs will have.
        generation: generation of the runs.

    Raises:
        UserError: runs with these metrics cannot be scored.
    """
    kind, known = get_score_kind(config, generation), config.baseline.metrics
    if kind == "val_loss" or kind in MAXIMIZED:
        return
    if not known:
        raise user_error(
            got=f"objective={config.name} without a baseline",
            expected="the metrics of the run at the default values, by which each term is divided",
            do="run make sweep-phase1, which measures the baseline first; or run "
            "objective=val_loss and pass the metrics of its result.json as "
            "'objective.baseline={val_perplexity: 9.7, ...}'",
        )
    weights = _get_axis_weights(config) if kind == "pareto" else _get_term_weights(config)
    if not list(match_baseline(weights, dict.fromkeys(metrics, 0.0), known)):
        raise user_error(
            got=f"objective={config.name} over {', '.join(weights)}, "
            "which neither the run nor the baseline has",
            expected="a weight above 0 for an available metric",
            do="set objective.weights, or objective.axes of pareto",
        )


def score(config: ObjectiveConfig, metrics: Mapping[str, float], generation: int = 0) -> float:
    """Compute the objective, eqs. (1) to (5); a search minimizes it unless it is in MAXIMIZED.

    Args:
        config: the objective.
        metrics: metrics of the run by name.
        generation: generation of the run.

    Raises:
        UserError: the objective requires a baseline and has none.
    """
    kind = get_score_kind(config, generation)
    if kind == "val_loss":
        return metrics["val_loss"]
    if kind in MAXIMIZED:
        return metrics[MAXIMIZED[kind]]
    check_ready(config, metrics, generation)
    if kind == "pareto":
        return achievement(
            compute_costs(config, metrics),
            [weight for name, weight in _get_axis_weights(config).items() if name in metrics],
        )
    weights = _get_term_weights(config)
    terms = match_baseline(weights, metrics, config.baseline.metrics)
    return sum(weights[entry.metric] * entry.share(value, base) for entry, value, base in terms)


def compute_costs(config: ObjectiveConfig, metrics: Mapping[str, float]) -> tuple[float, ...]:
    """Return the changes from the baseline on the axes of pareto, a row of costs for pareto.py.

    Smaller is better.
    """
    return tuple(
        entry.change(value, base)
        for entry, value, base in match_baseline(
            _get_axis_weights(config), metrics, config.baseline.metrics
        )
    )


def _get_term_weights(config: ObjectiveConfig) -> dict[str, float]:
    """Return the weights of eq. (2) above 0 by metric."""
    return {TERMS[term]: weight for term, weight in vars(config.weights).items() if weight > 0.0}


def _get_axis_weights(config: ObjectiveConfig) -> dict[str, float]:
    """Return the weights of eq. (3) above 0 by metric."""
    return {metric: weight for metric, weight in vars(config.axes).items() if weight > 0.0}


def rescore(
    config: ObjectiveConfig, metrics: Sequence[Mapping[str, float] | None], generation: int
) -> list[float | None]:
    """Score earlier trials as a generation ranks them, from their stored metrics.

    Args:
        config: the objective.
        metrics: metrics of each trial; None for a failed trial.
        generation: the generation.

    Returns:
        The score of each trial; None for a failed trial.
    """
    return [None if entry is None else score(config, entry, generation) for entry in metrics]
