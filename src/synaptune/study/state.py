"""State of a study: whether it is running, and how many evaluations its searches plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from synaptune.study.database import keys as schema
from synaptune.study.database.locks import Holder

State = Literal["running", "interrupted", "ended"]


class SearchPlan(NamedTuple):
    """The plan of the search of a phase, by the latest command.

    Attributes:
        budget: planned number of ended trials; None when it is unknown.
        stopped: why the search ended before its budget; None when no rule ended it.
        is_current: whether the latest command stored the plan; False for a study of version 0.1.0,
            which stored the budget of its first command only.
    """

    budget: int | None
    stopped: str | None = None
    is_current: bool = True


UNKNOWN_PLAN = SearchPlan(None)


def read_search_plan(
    notes: Mapping[str, Any], configuration: Mapping[str, Any], phase: str, ended: int
) -> SearchPlan:
    """Read the plan of a search from the notes of its study.

    Args:
        notes: notes of the study.
        configuration: flat configuration of the study.
        phase: phase of the search.
        ended: number of its ended trials. A budget below it belongs to an earlier command and is
            unknown.
    """
    stored = (notes.get(schema.SEARCHES) or {}).get(phase)
    if stored is not None:
        budget, stopped, is_current = stored["budget"], stored["stopped"], True
    else:
        budget, stopped, is_current = (notes.get(schema.ENGINE) or {}).get("budget"), None, False
        # The engine of phase 2 has the budget of its last search.
        if configuration.get("search.protocol") == "phase2" and phase != schema.JOINT:
            budget = configuration.get("search.group_budget")
    known = budget if isinstance(budget, int) and budget >= ended else None
    return SearchPlan(known, stopped, is_current)


def parse_holder(notes: Mapping[str, Any]) -> Holder | None:
    """Parse the process that holds or held a study; None if the note is missing or invalid."""
    try:
        return Holder.from_note(notes[schema.HOLDER])
    except (KeyError, TypeError, ValueError):
        return None


def find_state(holder: Holder | None, plan: SearchPlan, *, ended: int, open_count: int) -> State:
    """Find the state of a study.

    Args:
        holder: the process that holds or held the study.
        plan: plan of its last search.
        ended: number of ended trials of that search.
        open_count: number of trials of all phases that have not ended.

    Returns:
        `running` while a process holds the study; `interrupted` if trials or planned evaluations
        are missing, or the last command did not come to its end; else `ended`.
    """
    if holder is not None and holder.is_running():
        return "running"
    was_cut = holder is not None and holder.state in ("open", "interrupted")
    is_short = (
        plan.is_current and plan.stopped is None and plan.budget is not None and ended < plan.budget
    )
    return "interrupted" if open_count or was_cut or is_short else "ended"
