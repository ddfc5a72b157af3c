"""Metrics that an objective can weight: their direction, and their scale relative to a baseline.

    scale    s = max(m0, floor)        [unit of the metric]    (1)
    share    r = d m / s               [1]                     (2)
    change   x = d (m - m0) / s        [1]                     (3)

m is the metric and m0 its baseline; d = +1 if smaller is better and -1 if larger is better. Smaller
r and x are therefore always better. A baseline of zero is common (no dead expert, no recall yet).
The scale is then the floor of the metric, which is chosen so that no such term outweighs a doubled
perplexity under the default weights: one dead expert of eight counts 0.125, all of them 1.
Perplexity and speed need none.
Source: (2) the plan of the search; (1) chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from synaptune.core.errors import user_error


class Measure(NamedTuple):
    """A metric of a run.

    Attributes:
        metric: name of the metric.
        direction: +1 if smaller is better, -1 if larger is better.
        floor: least scale of eq. (1), in the unit of the metric.
    """

    metric: str
    direction: int
    floor: float = 1e-12

    def share(self, value: float, baseline: float) -> float:
        """Compute eq. (2)."""
        return self.direction * value / max(baseline, self.floor)

    def change(self, value: float, baseline: float) -> float:
        """Compute eq. (3): 0 at the baseline, negative if better."""
        return self.direction * (value - baseline) / max(baseline, self.floor)


MEASURES = {
    measure.metric: measure
    for measure in (
        Measure("val_perplexity", +1),
        Measure("val_recall_accuracy", -1, floor=0.5),
        Measure("expert_gini", -1, floor=0.25),
        Measure("expert_dead_fraction", +1, floor=0.5),
        Measure("val_calibration_error", +1, floor=0.1),
        Measure("tokens_per_second", -1),
    )
}


def match_baseline(
    names: Iterable[str], metrics: Mapping[str, float], baseline: Mapping[str, float]
) -> Iterator[tuple[Measure, float, float]]:
    """Yield (measure, value, baseline) of the named metrics.

    A metric that neither the run nor the baseline has (no recall rows, no experts) is left out.
    This concerns all runs of a study alike.

    Args:
        names: names of the metrics.
        metrics: metrics of the run by name.
        baseline: metrics of the baseline by name.

    Raises:
        UserError: only one of run and baseline has a metric, so they cannot be compared.
    """
    for name in names:
        if (name in metrics) != (name in baseline):
            has, lacks = ("run", "baseline") if name in metrics else ("baseline", "run")
            raise user_error(
                got=f"{name} in the {has} and not in the {lacks}",
                expected="a baseline of the same configuration",
                do="measure the baseline with the same data and model, "
                f"or set the weight of {name} to 0",
            )
        if name in metrics:
            yield MEASURES[name], metrics[name], baseline[name]
