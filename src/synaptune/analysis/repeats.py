"""Spread of a search: the same protocol repeated with other search seeds.

The repeats share model, data, training seeds and validation seeds. They differ in the points that
the optimizer proposes, so that their spread is that of the search alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from synaptune.search.space.space import Space
from synaptune.search.space.values import Value

LEAST_MOVE = 0.1  # move that counts, as a share of the range; chosen: what a person would see


class RepeatedParameter(NamedTuple):
    """A parameter over all searches.

    Attributes:
        name: name of the parameter.
        start: value at the start.
        best: value at the best of each search.
        raised: number of searches that moved it up by at least a tenth of its range.
        lowered: number of searches that moved it down as far, or chose another category.
    """

    name: str
    start: Value
    best: Sequence[Value]
    raised: int
    lowered: int


class Repeats(NamedTuple):
    """The result of repeated searches.

    Attributes:
        studies: name of the study of each search.
        gains: mean improvement of test perplexity [%].
        perplexities: mean test perplexity of the best.
        parameters: those that were searched.
    """

    studies: Sequence[str]
    gains: Sequence[float]
    perplexities: Sequence[float]
    parameters: Sequence[RepeatedParameter]

    @property
    def mean(self) -> float:
        """Mean gain [%]."""
        return statistics.fmean(self.gains)

    @property
    def deviation(self) -> float:
        """Standard deviation of the gain over the searches [%]."""
        return statistics.stdev(self.gains)


def collect_repeats(summaries: Sequence[Mapping[str, Any]], space: Space) -> Repeats:
    """Collect the summaries (the content of summary.json) of at least two searches of a space."""
    moves = []
    for summary in summaries:
        parameters = summary["parameters"].items()
        start, best = (
            space.to_unit({name: pair[side] for name, pair in parameters})
            for side in ("start", "best")
        )
        pairs = zip(start, best, strict=True)
        moves.append(dict(zip(space.names, (new - old for old, new in pairs), strict=True)))
    return Repeats(
        [summary["study"] for summary in summaries],
        [summary["improvement"]["mean"] for summary in summaries],
        [statistics.fmean(summary["best"]["test_perplexity"]) for summary in summaries],
        [
            RepeatedParameter(
                name,
                summaries[0]["parameters"][name]["start"],
                [summary["parameters"][name]["best"] for summary in summaries],
                sum(move[name] >= LEAST_MOVE for move in moves),
                sum(move[name] <= -LEAST_MOVE for move in moves),
            )
            for name in space.names
        ],
    )


def to_note(repeats: Repeats) -> dict[str, Any]:
    """Return repeated searches as plain values, which the study stores."""
    return repeats._asdict() | {"parameters": [entry._asdict() for entry in repeats.parameters]}


def from_note(note: Mapping[str, Any]) -> Repeats:
    """Return the repeated searches of `to_note`."""
    parameters = [RepeatedParameter(**entry) for entry in note["parameters"]]
    return Repeats(**{**note, "parameters": parameters})
