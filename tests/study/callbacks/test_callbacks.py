import contextlib
import errno
import io
from dataclasses import replace

import pytest

from synaptune.core.errors import UserError
from synaptune.search.loop import Plan
from synaptune.search.optimizers.base import Engine
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Result, Trial
from synaptune.search.workers.base import InlineWorkers
from synaptune.search.workers.reporting import report
from synaptune.study.callbacks.base import (
    NO_LOGGING,
    TERMINAL_ONLY,
    Listeners,
    Overheard,
    Show,
    Together,
    open_callbacks,
    open_shared_callbacks,
)
from synaptune.study.callbacks.trial_lines import TrialLines
from synaptune.study.location import StudyConfig, resolve_location
from synaptune.study.optimize import Company, PhaseSearch, optimize
from synaptune.study.study import PhaseLedger, Study

SPACE = Space((Dimension("a", "lin", 0.0, 1.0), Dimension("b", "log", 1.0, 100.0)))


class Notes:
    """Writes down what it hears; raises at an event when told to."""

    def __init__(self, raises=None):
        self.heard, self._raises = [], raises or {}

    def _hear(self, event, *about):
        self.heard.append((event, *about))
        if event in self._raises:
            raise self._raises[event]

    def started(self, trial):
        self._hear("started", trial.number)

    def reported(self, trial, step, value):
        self._hear("reported", trial.number, step)

    def ended(self, trial, finished):
        self._hear("ended", trial.number, finished)

    def generation(self, diagnostics, members):
        self._hear("generation", diagnostics.generation, tuple(trial.number for trial in members))

    def close(self, exit_code):
        self._hear("close", exit_code)

    def of(self, event):
        return [about for name, *about in self.heard if name == event]


def trial(number=0, objective=1.0):
    return Trial(
        number, number, (0.5, 0.5), {"a": 0.5, "b": 10.0}, state="complete", objective=objective
    )


def evaluated(trial):
    report(1, trial.values["a"])
    return Result(trial.values["a"] ** 2, 0.01)


def ledger_in(folder):
    study = Study(resolve_location(StudyConfig("s", str(folder)), "s"), {"x": 1})
    return PhaseLedger(study, SPACE, "search", {})


def searched(folder, listeners, budget, engine="cma"):
    ledger = ledger_in(folder)
    with ledger.study:
        company = Company(listeners, on_message=lambda line: None)
        return optimize(
            [PhaseSearch(ledger, Engine(engine, 0), Plan(budget), company=company)],
            InlineWorkers(evaluated),
        )[0]


def test_a_failing_listener_is_dropped_with_one_line_and_the_others_hear_on(capsys):
    broken, whole = Notes({"ended": RuntimeError("no such luck\nsecond line")}), Notes()
    listeners = Listeners([broken, whole])
    for number in range(3):
        listeners.on_end(trial(number), number + 1)
    listeners.close(0)
    assert broken.heard == [("ended", 0, 1), ("close", 1)]
    assert [about[0] for about in whole.of("ended")] == [0, 1, 2]
    assert whole.of("close") == [[0]]
    said = capsys.readouterr().err
    assert said == "Notes failed and is left out, the search goes on: RuntimeError: no such luck\n"


def test_a_listener_that_fails_at_the_end_keeps_no_other_from_closing(capsys):
    whole = Notes()
    Listeners([Notes({"close": OSError(errno.EIO, "gone")}), whole]).close(0)
    assert whole.of("close") == [[0]]
    assert "gone" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("got a mistake")])
def test_ctrl_c_and_a_users_mistake_go_through(error):
    with pytest.raises(type(error)):
        Listeners([Notes({"started": error})]).on_start(trial())


def test_a_full_disk_ends_a_search_in_words():
    with pytest.raises(UserError, match=r"(?s)No space left.*make room"):
        Listeners([Notes({"ended": OSError(errno.ENOSPC, "No space left on device")})]).on_end(
            trial(), 1
        )


def test_a_search_tells_of_starts_reports_ends_and_generations_with_their_trials(tmp_path):
    notes = Notes()
    trials = searched(tmp_path / "s", Listeners([notes]), 18)
    size = len(notes.of("generation")[0][1])
    assert [about[0] for about in notes.of("started")] == list(range(18))
    assert notes.of("ended") == [[number, number + 1] for number in range(18)]
    assert notes.of("reported") == [[number, 1] for number in range(18)]
    assert notes.of("generation") == [
        [number + 1, tuple(range(number * size, (number + 1) * size))]
        for number in range(18 // size)
    ]
    again = Notes()
    searched(tmp_path / "s", Listeners([again]), 18 + size)
    assert again.of("ended")[0] == [18, 19]
    assert again.of("generation")[0][0] == 18 // size + 1
    assert trials[0].state == "complete"


def test_a_search_outlives_a_listener_that_always_fails(tmp_path, capsys):
    events = ("started", "reported", "ended", "generation", "close")
    trials = searched(
        tmp_path / "s", Listeners([Notes({event: ValueError("bad")}) for event in events]), 8
    )
    assert [entry.state for entry in trials] == ["complete"] * 8
    assert capsys.readouterr().err.count("is left out") == 4  # nothing closes the fifth


def test_reports_reach_the_listeners_and_the_judges_answer_stays():
    class Strict:
        def __call__(self, trial, step, value):
            return value > 2.0

        def estimate(self, trial):
            return 7.0

    notes = Notes()
    judge = Overheard(Listeners([notes]), Strict())
    assert [judge(trial(), step, value) for step, value in ((1, 1.0), (2, 3.0))] == [False, True]
    assert judge.estimate(trial()) == 7.0
    assert notes.of("reported") == [[0, 1], [0, 2]]
    assert Overheard(Listeners())(trial(), 1, 5.0) is False


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 0), (KeyboardInterrupt(), 130), (UserError("got x"), 2), (ValueError("x"), 1)],
)
def test_listeners_are_closed_with_the_exit_code(tmp_path, monkeypatch, error, code):
    from synaptune.study.callbacks import base as module

    notes = Notes()
    monkeypatch.setitem(module._MAKERS, "the terminal's view", lambda phases, logger: (notes,))
    ledger = ledger_in(tmp_path / "s")
    with (
        ledger.study,
        contextlib.suppress(KeyboardInterrupt, UserError, ValueError),
        open_callbacks(ledger, NO_LOGGING, Show(3)),
    ):
        if error is not None:
            raise error
    assert notes.heard == [("close", code)]


def test_searches_side_by_side_are_shown_as_one_and_closed_once(tmp_path):
    study, notes = Study(resolve_location(StudyConfig("s", str(tmp_path)), "s"), {"x": 1}), Notes()
    with study:
        ledgers = [
            PhaseLedger(study, Space((dimension,)), name, {})
            for dimension, name in zip(SPACE.dimensions, "ab", strict=True)
        ]
        together = Together(notes, 3, 2)
        jobs = [
            PhaseSearch(
                ledger,
                Engine("cma", 0),
                Plan(5),
                company=Company(Listeners([together]), on_message=lambda line: None),
            )
            for ledger in ledgers
        ]
        optimize(jobs, InlineWorkers(lambda trial: Result(1.0, 0.01)))
        for job in jobs:
            assert notes.of("close") == []
            job.company.listeners.close(0)
    assert [finished for _, finished in notes.of("ended")] == list(range(4, 14))
    assert notes.of("generation") == []
    assert notes.of("close") == [[0]]


def test_a_view_of_several_searches_that_fails_is_left_out_of_all_once(capsys):
    together = Together(Notes({"ended": RuntimeError("torn")}), 0, 2)
    both = [Listeners([together]), Listeners([together])]
    for listeners in both * 2:
        listeners.on_end(trial(), 1)
    for listeners in both:
        listeners.close(0)
    assert (
        capsys.readouterr().err
        == "Notes failed and is left out, the search goes on: RuntimeError: torn\n"
    )


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
        with open_shared_callbacks(
            [(ledger, Show(5, "evaluation")) for ledger in ledgers],
            replace(TERMINAL_ONLY, progress=progress),
        ) as listeners:
            companies = [Company(heard, on_message=lambda line: None) for heard in listeners]
            jobs = [
                PhaseSearch(ledger, Engine("cma", 0), Plan(5), company=company)
                for ledger, company in zip(ledgers, companies, strict=True)
            ]
            optimize(jobs, InlineWorkers(lambda trial: Result(1.0 + trial.number, 0.01)))
    shown = capsys.readouterr().out if progress == "lines" else screened.getvalue()
    assert ("evaluation 10/10" if progress == "lines" else "10 of 10 ended") in shown
    assert progress == "lines" or "s: a, b" in shown


def test_a_log_that_cannot_be_opened_is_said_and_the_rest_is_heard(tmp_path, monkeypatch, capsys):
    from synaptune.study.callbacks import base as module

    def broken(phases, logger):
        raise ImportError("no such module")

    notes = Notes()
    monkeypatch.setitem(module._MAKERS, "W&B's log", broken)
    monkeypatch.setitem(module._MAKERS, "the terminal's view", lambda phases, logger: (notes,))
    ledger = ledger_in(tmp_path / "s")
    with ledger.study, open_callbacks(ledger, TERMINAL_ONLY, Show(3)) as listeners:
        listeners.on_start(trial())
    assert notes.of("started") == [[0]]
    assert (
        "W&B's log failed and is left out, the search goes on: ImportError: no such module"
        in capsys.readouterr().err
    )


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
