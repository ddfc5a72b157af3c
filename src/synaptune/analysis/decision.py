"""The gate after a phase: whether the next one is worth its compute."""

from __future__ import annotations

from typing import Literal, NamedTuple

from synaptune.analysis.compare import Improvement
from synaptune.core.parameters import constant

PROCEED = constant("decision.proceed", 10.0, unit="%", meaning="improvement that is enough alone", source="chosen: the plan's gate")
CONSIDER = constant("decision.consider", 5.0, unit="%", meaning="improvement worth a second look", source="chosen: the plan's gate")
GINI_GAIN = constant(
    "decision.gini_gain", 10.0, unit="%", meaning="rise of the experts' Gini that makes up for less", source="chosen: the plan's gate"
)


class Decision(NamedTuple):
    """What to do next, and why."""

    word: Literal["proceed", "re-evaluate", "stop"]
    why: str


def decide(improvement: Improvement, gini_gain: float | None) -> Decision:
    """The decision on an improvement of test perplexity [%]; gini_gain: relative rise of the expert Gini [%], null when dense.

    An improvement whose interval reaches zero never proceeds: it may be none.
    """
    mean = improvement.mean
    if mean < CONSIDER:
        why = f"worsened by {-mean:.1f} %" if mean < 0.0 else f"improved by {mean:.1f} %, below {CONSIDER:g} %"
        return Decision("stop", f"perplexity {why}")
    if improvement.low <= 0.0:
        return Decision("re-evaluate", f"perplexity improved by {mean:.1f} %, but its interval reaches zero")
    if mean > PROCEED:
        return Decision("proceed", f"perplexity improved by {mean:.1f} %, above {PROCEED:g} %")
    if gini_gain is not None and gini_gain >= GINI_GAIN:
        return Decision("proceed", f"perplexity improved by {mean:.1f} % and the expert Gini by {gini_gain:.0f} %")
    gini = "" if gini_gain is None else f", with the expert Gini changed by {gini_gain:+.0f} %"
    return Decision("re-evaluate", f"perplexity improved by {mean:.1f} %, between {CONSIDER:g} and {PROCEED:g} %{gini}")
