"""What a program hands to a search: an objective and callbacks, and the parameters it gets back."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yaml.representer import SafeRepresenter

from synaptune.core.terminal import print_line
from synaptune.core.text import get_first_line
from synaptune.search.callback import Callback
from synaptune.search.space.values import to_number
from synaptune.search.trial import Result, Trial, make_failure

if TYPE_CHECKING:
    from synaptune.study.manager import TrialManager

Objective = Callable[[dict[str, Any]], Any]
TrialCallback = Callable[["TrialManager", Trial], Any]


class BestParameters(dict[str, Any]):
    """The parameters of the best trial by name.

    The attributes of the trial are attributes of this dict as well (`objective`, `number`), because
    `optimize` of version 0.1.0 returned the trial.

    Attributes:
        trial: the best trial.
    """

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial.params)
        self.trial = trial

    def __getattr__(self, name: str) -> Any:
        if name == "trial" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.trial, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return BestParameters, (self.trial,)


SafeRepresenter.add_representer(BestParameters, SafeRepresenter.represent_dict)  # a plain mapping


@dataclass(frozen=True)
class CallableEvaluation:
    """An objective as an evaluation of trials."""

    objective: Objective

    def __call__(self, trial: Trial) -> Result:
        """Return the number that the objective returns; raises what it raises, or TypeError."""
        started_at = time.perf_counter()
        returned = self.objective(trial.values)
        try:
            value = to_number(returned)
        except TypeError as error:
            raise TypeError(f"the objective returned {error}, expected a number") from error
        return Result(value, time.perf_counter() - started_at)


@dataclass
class TrialCallbacks(Callback):
    """Calls the functions of a program after every trial, and prints what they raise.

    Attributes:
        manager: the first argument of the functions.
        trials: the trials that have ended, by number; a trial is added before the calls.
        functions: called with a copy of the trial.
    """

    manager: TrialManager
    trials: dict[int, Trial]
    functions: Sequence[TrialCallback]

    def on_foreign_end(self, trial: Trial, values: Mapping[int, float]) -> None:
        """Add a trial of another process, which calls its own functions."""
        self.trials[trial.number] = trial

    def on_end(self, trial: Trial, finished: int) -> None:
        """Call every function."""
        self.trials[trial.number] = trial
        for function in self.functions:
            try:
                function(self.manager, trial.copy())
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # of the program, SystemExit included
                name = getattr(function, "__name__", type(function).__name__)
                reason = get_first_line(make_failure(error).reason)
                print_line(
                    f"callback {name} failed at trial {trial.number}, the search continues: "
                    f"{reason}",
                    sys.stderr,
                )
