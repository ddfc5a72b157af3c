"""The metrics that an objective may weigh: which way is better, and what a baseline makes of them.

    scale    s = max(m0, FLOOR)                                                  [unit of the metric]    (1)
    share    r = d m / s                                                         [1]                     (2)
    change   x = d (m - m0) / s                                                  [1]                     (3)

m metric, m0 its baseline, d = +1 where smaller is better and -1 where larger is; so smaller r and x are always better.
A baseline of zero is common (no dead expert, no recall yet): (1) then divides by FLOOR, so that the term counts in units of a
small but visible amount and a difference of a few per mille cannot outweigh perplexity. Perplexity and speed are far above it.
Source: (2) the plan of the search; (1) chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from synaptune.core.errors import user_error
from synaptune.core.parameters import constant

FLOOR = constant(
    "objective.floor",
    0.05,
    meaning="least scale of eq. (1)",
    source="chosen: a twentieth of the range of accuracies, shares and errors",
)


class Measure(NamedTuple):
    """A metric of a run by its name, and its direction: +1 smaller is better, -1 larger is better."""

    metric: str
    direction: int

    def share(self, value: float, baseline: float) -> float:
        """Eq. (2)."""
        return self.direction * value / max(baseline, FLOOR)

    def change(self, value: float, baseline: float) -> float:
        """Eq. (3): 0 at the baseline, negative when better."""
        return self.direction * (value - baseline) / max(baseline, FLOOR)


MEASURES = {
    measure.metric: measure
    for measure in (
        Measure("val_perplexity", +1),
        Measure("val_recall_accuracy", -1),
        Measure("expert_gini", -1),
        Measure("expert_dead_fraction", +1),
        Measure("val_calibration_error", +1),
        Measure("tokens_per_second", -1),
    )
}


def match_baseline(
    wanted: Iterable[str], metrics: Mapping[str, float], baseline: Mapping[str, float]
) -> Iterator[tuple[Measure, float, float]]:
    """(measure, value, baseline) of the wanted metrics.

    A metric that neither the run nor the baseline has (no recall rows, no experts) is left out, for every run of the study alike.
    Raises UserError for one that only one of the two has: the runs are not comparable.
    """
    for name in wanted:
        if (name in metrics) != (name in baseline):
            has, lacks = ("run", "baseline") if name in metrics else ("baseline", "run")
            raise user_error(
                got=f"{name} in the {has} and not in the {lacks}",
                expected="a baseline of the same configuration",
                do=f"measure the baseline with the same data and model, or take the weight of {name} away (0)",
            )
        if name in metrics:
            yield MEASURES[name], metrics[name], baseline[name]
