import contextlib
import errno
import io
import sys
from dataclasses import replace

import pytest

from synaptune.core.errors import UserError
from synaptune.search.callback import Callback, CallbackList
from synaptune.search.loop import Plan
from synaptune.search.optimizers.base import Engine
from synaptune.search.runner import TrialPolicy, run_trials
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Result, Trial
from synaptune.search.workers.base import InlineWorkers, NeverStop
from synaptune.search.workers.reporting import report
from synaptune.study.callbacks.base import (
    NO_LOGGING,
    TERMINAL_ONLY,
    PhaseTrials,
    open_callbacks,
)
from synaptune.study.callbacks.trial_lines import TrialLines
from synaptune.study.location import StudyConfig, resolve_location
from synaptune.study.optimize import PhaseSearch, optimize
from synaptune.study.study import PhaseLedger, Study

SPACE = Space((Dimension("a", "lin", 0.0, 1.0), Dimension("b", "log", 1.0, 100.0)))


class Notes(Callback):
    """Records every call; raises at the events that `raises` names."""

    def __init__(self, raises=None, *, phase=None, is_required=False):
        self.heard, self._raises = [], raises or {}
        self.phase, self.is_required = phase, is_required

    def _hear(self, event, *about):
        self.heard.append((event, *about))
        if event in self._raises:
            raise self._raises[event]

    def on_start(self, trial):
        self._hear("started", trial.number)

    def on_report(self, trial, step, value):
        self._hear("reported", trial.number, step)

    def on_end(self, trial, finished):
        self._hear("ended", trial.number, finished)

    def on_generation(self, diagnostics, members):
        self._hear("generation", diagnostics.generation, tuple(trial.number for trial in members))

    def close(self, exit_code):
        self._hear("close", exit_code)

    def of(self, event):
        return [about for name, *about in self.heard if name == event]


def trial(number=0, objective=1.0, **facts):
    values = {"a": 0.5, "b": 10.0}
    return Trial(number, number, (0.5, 0.5), values, "complete", objective, facts=facts)


def evaluated(trial):
    report(1, trial.values["a"])
    return Result(trial.values["a"] ** 2, 0.01)


def ledger_in(folder):
    study = Study(resolve_location(StudyConfig("s", str(folder)), "s"), {"x": 1})
    return PhaseLedger(study, SPACE, "search", {})


def searched(folder, callbacks, budget, engine="cma"):
    ledger = ledger_in(folder)
    search = PhaseSearch(ledger, Engine(engine, 0), Plan(budget), on_message=lambda line: None)
    with ledger.study:
        return optimize([search], InlineWorkers(evaluated), callbacks)[0]


def test_a_failing_callback_is_dropped_with_one_line_and_the_others_go_on(capsys):
    broken, whole = Notes({"ended": RuntimeError("no such luck\nsecond line")}), Notes()
    callbacks = CallbackList([broken, whole])
    for number in range(3):
        callbacks.on_end(trial(number), number + 1)
    callbacks.close(0)
    assert broken.heard == [("ended", 0, 1), ("close", 1)]
    assert [about[0] for about in whole.of("ended")] == [0, 1, 2]
    assert whole.of("close") == [[0]]
    said = capsys.readouterr().err
    assert said == "Notes failed and is left out, the search goes on: RuntimeError: no such luck\n"


def test_a_required_callback_that_fails_ends_the_search():
    with pytest.raises(ValueError, match="mine"):
        CallbackList([Notes({"ended": ValueError("mine")}, is_required=True)]).on_end(trial(), 1)


def test_a_callback_of_one_phase_receives_its_trials_only():
    one, every = Notes(phase="a"), Notes()
    callbacks = CallbackList([CallbackList([one, every])])
    for number, phase in enumerate("aba"):
        callbacks.on_start(trial(number, phase=phase))
    assert one.of("started") == [[0], [2]]
    assert every.of("started") == [[0], [1], [2]]


def test_a_callback_that_fails_at_the_end_keeps_no_other_from_closing(capsys):
    whole = Notes()
    CallbackList([Notes({"close": OSError(errno.EIO, "gone")}), whole]).close(0)
    assert whole.of("close") == [[0]]
    assert "gone" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("got a mistake")])
def test_ctrl_c_and_a_users_mistake_go_through(error):
    with pytest.raises(type(error)):
        CallbackList([Notes({"started": error})]).on_start(trial())


def test_a_full_disk_ends_a_search_in_words():
    with pytest.raises(UserError, match=r"(?s)No space left.*make room"):
        CallbackList([Notes({"ended": OSError(errno.ENOSPC, "No space left on device")})]).on_end(
            trial(), 1
        )


def test_a_search_tells_of_starts_reports_ends_and_generations_with_their_trials(tmp_path):
    notes = Notes()
    trials = searched(tmp_path / "s", CallbackList([notes]), 18)
    size = len(notes.of("generation")[0][1])
    assert [about[0] for about in notes.of("started")] == list(range(18))
    assert notes.of("ended") == [[number, number + 1] for number in range(18)]
    assert notes.of("reported") == [[number, 1] for number in range(18)]
    assert notes.of("generation") == [
        [number + 1, tuple(range(number * size, (number + 1) * size))]
        for number in range(18 // size)
    ]
    again = Notes()
    searched(tmp_path / "s", CallbackList([again]), 18 + size)
    assert again.of("ended")[0] == [18, 19]
    assert again.of("generation")[0][0] == 18 // size + 1
    assert trials[0].state == "complete"


def test_a_search_outlives_a_callback_that_always_fails(tmp_path, capsys):
    events = ("started", "reported", "ended", "generation", "close")
    trials = searched(
        tmp_path / "s", CallbackList([Notes({event: ValueError("bad")}) for event in events]), 8
    )
    assert [entry.state for entry in trials] == ["complete"] * 8
    assert capsys.readouterr().err.count("is left out") == 4  # nothing closes the fifth


def test_reports_reach_the_callbacks_and_the_stopper_decides(tmp_path):
    class Strict(NeverStop):
        def __call__(self, trial, step, value):
            return value > 2.0

        def estimate(self, trial):
            return 7.0

    def run(trial):
        stops = [report(step, value) for step, value in ((1, 1.0), (2, 3.0))]
        return Result(None, 0.0, pruned=True) if stops == [False, True] else Result(0.0, 0.0)

    notes, ledger = Notes(), ledger_in(tmp_path / "s")
    policy = TrialPolicy(ledger, stopper=Strict(), callbacks=CallbackList([notes]))
    with ledger.study:
        first = ledger.start(0, (0.5, 0.5), {"a": 0.5, "b": 10.0})
        (ended,) = run_trials([first], InlineWorkers(run), policy)
    assert (ended.state, ended.estimate) == ("pruned", 7.0)
    assert notes.of("started") == [[0]]
    assert notes.of("reported") == [[0, 1], [0, 2]]


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 0), (KeyboardInterrupt(), 130), (UserError("got x"), 2), (ValueError("x"), 1)],
)
def test_callbacks_are_closed_with_the_exit_code(tmp_path, monkeypatch, error, code):
    from synaptune.study.callbacks import base as module

    notes = Notes()
    monkeypatch.setattr(module, "_make_view", lambda *_: notes)
    ledger = ledger_in(tmp_path / "s")
    with (
        ledger.study,
        contextlib.suppress(KeyboardInterrupt, UserError, ValueError),
        open_callbacks([PhaseTrials(ledger, 3)], replace(NO_LOGGING, progress="lines")),
    ):
        if error is not None:
            raise error
    assert notes.heard == [("close", code)]


def test_searches_side_by_side_share_their_callbacks(tmp_path):
    study, notes = Study(resolve_location(StudyConfig("s", str(tmp_path)), "s"), {"x": 1}), Notes()
    one = Notes(phase="b")
    with study:
        ledgers = [
            PhaseLedger(study, Space((dimension,)), name, {})
            for dimension, name in zip(SPACE.dimensions, "ab", strict=True)
        ]
        jobs = [
            PhaseSearch(ledger, Engine("cma", 0), Plan(12), on_message=lambda line: None)
            for ledger in ledgers
        ]
        workers = InlineWorkers(lambda trial: Result(1.0, 0.01))
        optimize(jobs, workers, CallbackList([notes, one]))
    assert [number for number, _ in notes.of("ended")] == list(range(24))
    assert [finished for _, finished in one.of("ended")] == list(range(1, 13))
    assert len(notes.of("generation")) == 2 * len(one.of("generation")) > 0


@pytest.mark.parametrize("progress", ["lines", "bar"])
def test_the_terminals_view_of_searches_side_by_side_counts_all(
    tmp_path, progress, capsys, monkeypatch
):
    from rich.console import Console

    from synaptune.study.callbacks import screen

    screened = io.StringIO()
    monkeypatch.setattr(
        screen, "make_console", lambda: Console(file=screened, force_terminal=True, width=100)
    )
    study = Study(resolve_location(StudyConfig("s", str(tmp_path)), "s"), {"x": 1})
    with study:
        ledgers = [
            PhaseLedger(study, Space((dimension,)), name, {})
            for dimension, name in zip(SPACE.dimensions, "ab", strict=True)
        ]
        jobs = [
            PhaseSearch(ledger, Engine("cma", 0), Plan(5), on_message=lambda line: None)
            for ledger in ledgers
        ]
        with open_callbacks(
            [PhaseTrials(ledger, 5) for ledger in ledgers],
            replace(TERMINAL_ONLY, progress=progress),
            label="evaluation",
        ) as callbacks:
            workers = InlineWorkers(lambda trial: Result(1.0 + trial.number, 0.01))
            optimize(jobs, workers, callbacks)
    shown = capsys.readouterr().out if progress == "lines" else screened.getvalue()
    assert ("evaluation 10/10" if progress == "lines" else "10 of 10 ended") in shown
    assert progress == "lines" or "s: a, b" in shown


def test_a_log_that_cannot_be_opened_is_said_and_the_rest_is_heard(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "synaptune.study.callbacks.tensorboard", None)
    ledger, logger = ledger_in(tmp_path / "s"), replace(NO_LOGGING, progress="lines")
    phases, logger = [PhaseTrials(ledger, 3)], replace(logger, tensorboard=True)
    with ledger.study, open_callbacks(phases, logger) as callbacks:
        callbacks.on_end(trial(), 1)
    shown = capsys.readouterr()
    assert "trial 1/3  1  best 1" in shown.out
    assert "TensorBoard's log failed and is left out, the search goes on:" in shown.err


def test_lines_appear_where_there_is_no_terminal_only_when_asked_for():
    quiet, loud = io.StringIO(), io.StringIO()
    failed = Trial(
        1, 1, (0.5, 0.5), {"a": 0.5, "b": 10.0}, state="failed", reason="worker: died\nmore"
    )
    pruned = Trial(2, 2, (0.5, 0.5), {"a": 0.5, "b": 10.0}, state="pruned", estimate=2.5)
    for stream, always in ((quiet, False), (loud, True)):
        lines = TrialLines(3, "evaluation", stream=stream, always=always)
        for number, entry in enumerate((trial(0, 0.25), failed, pruned), 1):
            lines.on_end(entry, number)
    assert quiet.getvalue() == ""
    shown = loud.getvalue().splitlines()
    assert shown[0].startswith("  evaluation 1/3  0.25  best 0.25 (#0)")
    assert "failed (worker: died)" in shown[1]
    assert "pruned (estimate 2.5)" in shown[2]
