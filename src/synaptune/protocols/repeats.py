"""Repeated searches of phase 1 (`protocol.repeats`): the spread of a result over search seeds.

The first search is that of the study. Each further one is a study of its own beside it, named
`STUDY-repeat2` and so on, with another seed of the optimizer. It has the space that the screening
chose, the same training seeds and the same validation seeds; sanity, screening and ablation are
those of the first. The note `repeats` of the first study holds the result, and each other study
names the first in its note `repeat_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from synaptune.analysis.repeats import Repeats, collect_repeats, to_note
from synaptune.protocols.protocol import print_message
from synaptune.search.space.space import Space
from synaptune.study.database.connection import get_sqlite_path, make_sqlite_url
from synaptune.study.location import StudyLocation
from synaptune.study.reader import REPEATS
from synaptune.study.study import Study

REPEAT_OF = "repeat_of"  # note: name of the first study
# Distance of the search seeds of two repeats; chosen: far from the training seeds of a study.
SEED_STEP = 10_000


def run_repeats(
    first: StudyLocation,
    count: int,
    summary: Mapping[str, Any],
    space: Space,
    *,
    run_one: Callable[[StudyLocation, int], Mapping[str, Any]],
) -> Repeats:
    """Run the searches from the second on, and print their spread.

    Args:
        first: location of the first study.
        count: number of searches, the first included.
        summary: of the first search.
        space: of all searches.
        run_one: runs a search at a location with the distance of its search seed, and returns its
            summary.
    """
    from synaptune.core.console import make_console
    from synaptune.report.console import print_table
    from synaptune.report.repeats import tabulate_repeats

    summaries = [summary]
    for number in range(2, count + 1):
        location = locate_repeat(first, number)
        print_message(f"search {number} of {count}: study {location.name}")
        summaries.append(run_one(location, SEED_STEP * (number - 1)))
    repeats = collect_repeats(summaries, space)
    print_table(tabulate_repeats(repeats), make_console())
    return repeats


def locate_repeat(first: StudyLocation, number: int) -> StudyLocation:
    """Return the location of a repeat: a folder beside the first, or the same server database."""
    name = f"{first.name}-repeat{number}"
    folder = first.folder.parent / f"{first.folder.name}-repeat{number}"
    path = get_sqlite_path(first.url)
    own = path is not None and path.parent == first.folder
    url = make_sqlite_url(folder / "study.db") if own else first.url
    return replace(first, name=name, folder=folder, url=url, resume="auto", runs=None)


def store_repeats(study: Study, repeats: Repeats) -> dict[str, Any]:
    """Store the result in the first study; return it as plain values."""
    note = to_note(repeats)
    study.write_note(REPEATS, note)
    return note
