"""Checks of the arguments of TrialManager, and of where it is called."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from synaptune.core.errors import user_error
from synaptune.search.pruning import PRUNERS, PrunerConfig
from synaptune.search.space.values import to_plain
from synaptune.study.location import StudyLocation
from synaptune.study.objective import TrialCallback

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


class _RunningSearches(threading.local):
    """The studies that this thread searches, by the URL of the database and the name."""

    def __init__(self) -> None:
        self.studies: set[tuple[str, str]] = set()


_running = _RunningSearches()


@contextlib.contextmanager
def refuse_nested_search(location: StudyLocation) -> Iterator[None]:
    """Mark a study as searched by this thread.

    Raises:
        UserError: it is so already. The inner search would wait for the trial that calls it.
    """
    study = location.url, location.name
    if study in _running.studies:
        raise user_error(
            got=f"optimize of study {location.name} within a trial or a callback of its own",
            expected="one search of a study at a time in a thread",
            do="give the inner search a study_name of its own",
        )
    _running.studies.add(study)
    try:
        yield
    finally:
        _running.studies.remove(study)


def check_choice(name: str, value: Any, known: Sequence[Any]) -> None:
    """Raise UserError for a value that is not among the known ones."""
    if value not in known:
        names = ", ".join(map(str, known))
        raise user_error(got=f"{name}={value}", expected=f"one of {names}", do="choose one of them")


def read_number(name: str, value: Any) -> float:
    """Return a number of Python or numpy; raises UserError for anything else."""
    plain = None
    if not isinstance(value, str):
        try:
            plain = to_plain(value)
        except TypeError:
            plain = None
    if isinstance(plain, bool) or not isinstance(plain, int | float):
        raise user_error(got=f"{name}={value!r}", expected="a number", do=f"correct {name}")
    if isinstance(plain, int) and abs(plain) > sys.float_info.max:
        raise user_error(
            got=f"{name} with an integer of {plain.bit_length()} bits",
            expected="a number that a float can hold",
            do=f"correct {name}",
        )
    return plain


def read_objective(value: Any) -> float | None:
    """Return the objective of a finished trial; raises UserError unless it is finite or None."""
    number = None if value is None else read_number("value", value)
    if number is not None and not math.isfinite(number):
        raise user_error(
            got=f"value={number}",
            expected="a finite number, or None for a failed trial",
            do="correct value",
        )
    return number


def read_parameters(params: Any) -> dict[str, Any]:
    """Return parameters by name as a dict; raises UserError for anything but a mapping."""
    if not isinstance(params, Mapping):
        raise user_error(
            got=f"params={params!r}", expected="a dict of values by name", do="give a dict"
        )
    return dict(params)


def check_storage(storage: Any) -> None:
    """Raise UserError for a storage that is neither a URL nor None."""
    if storage is not None and not isinstance(storage, str):
        raise user_error(
            got=f"storage={storage!r}",
            expected="a URL such as sqlite:///study.db, or None for a file in the study's folder",
            do="give the URL as a string",
        )


def read_integer(name: str, value: Any, least: int | None = None) -> int:
    """Return an integer of Python or numpy; raises UserError for anything else."""
    number = read_number(name, value)
    if number != number or number in (float("inf"), float("-inf")) or number != int(number):
        raise user_error(got=f"{name}={value!r}", expected="an integer", do=f"correct {name}")
    if least is not None and number < least:
        raise user_error(
            got=f"{name}={value!r}", expected=f"at least {least}", do=f"correct {name}"
        )
    return int(number)


def read_callbacks(
    callbacks: TrialCallback | Iterable[TrialCallback] | None,
) -> list[TrialCallback]:
    """Return one function or several as a list; raises UserError for anything else."""
    found = [] if callbacks is None else callbacks
    functions = [found] if callable(found) else list(found) if isinstance(found, Iterable) else None
    if functions is None or not all(map(callable, functions)):
        raise user_error(
            got=f"callbacks={callbacks!r}",
            expected="functions of (manager, trial)",
            do="give a list of functions",
        )
    return functions


def make_pruner(pruner: str | BasePruner | None) -> BasePruner | None:
    """Make a pruner from its name. The steps of a callable become known by its first trials."""
    import optuna

    if isinstance(pruner, optuna.pruners.BasePruner):
        return pruner
    config = PrunerConfig()
    makers: dict[str, Callable[[], BasePruner | None]] = {
        "none": lambda: None,
        "median": lambda: optuna.pruners.PercentilePruner(50.0, config.startup_trials),
        "percentile": lambda: optuna.pruners.PercentilePruner(
            config.percentile, config.startup_trials
        ),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(
            reduction_factor=config.reduction_factor
        ),
    }
    name = "none" if pruner is None else pruner
    if name not in PRUNERS:
        raise user_error(
            got=f"pruner={pruner}",
            expected=f"{', '.join(PRUNERS)}, or a pruner of Optuna",
            do="choose one of them",
        )
    return makers[name]()
