"""One search of a study, put together: optimizer, workers, pruner, warm start; what train.py -m, the protocols and TrialManager share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from synaptune.search.contract import Engine, Told
from synaptune.search.judging import Judging
from synaptune.search.loop import Plan, Watch, search
from synaptune.search.pruning import NoPruner, Pruner
from synaptune.search.space import Space
from synaptune.search.state import StateFile
from synaptune.search.trial import Trial, loss_of
from synaptune.search.warm import Known, WarmStart, warm_start
from synaptune.search.workers import Workers
from synaptune.storage.study import PhaseLedger
from synaptune.storage.table import locate


def conduct(
    ledger: PhaseLedger,
    engine: Engine,
    plan: Plan,
    workers: Workers,
    *,
    pruner: Pruner | None = None,
    prior: Sequence[Told] = (),
    watch: Iterable[Watch] = (),
    say: Callable[[str], None] = print,
) -> list[Trial]:
    """Search a phase to its budget from wherever the study has it; returns all its trials. Raises as search/loop.py does.

    pruner: stops trials by what they report; prior: points of an earlier study, for the optimizers that take them.
    """
    watching, judge = list(watch), None
    if pruner is not None and not isinstance(pruner, NoPruner):
        ended = [trial for trial in ledger.trials() if trial.state != "running"]
        judge = Judging(pruner, [(trial, ledger.intermediate(trial)) for trial in ended], maximize=plan.maximize)

    def watched(trial: Trial, finished: int) -> None:
        if judge is not None:
            judge.ended(trial)
        ledger.beat()
        for listener in watching:
            listener(trial, finished)

    state = StateFile(ledger.study.place.folder / f"{_STATE.get(ledger.phase, ledger.phase)}.pkl", engine, ledger.space.describe())
    return search(
        ledger.space,
        engine,
        plan,
        ledger=ledger,
        state=state,
        workers=workers,
        watch=watched,
        judge=judge,
        prior=prior,
        say=say,
    )


_STATE = {"search": "optimizer"}


def begun_at(space: Space, start: str | None, *, maximize: bool = False) -> WarmStart:
    """A space that begins at the best of another study (null: where it is); raises UserError for a study that cannot be begun at."""
    if start is None:
        return WarmStart(space, ())
    trials = [trial for trial in locate(start) if trial.facts.get("phase") == "search"]
    return warm_start(space, [Known(trial.values, loss_of(trial, maximize)) for trial in trials], start)
