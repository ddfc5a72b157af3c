import contextlib
import errno
import io
import sys
from dataclasses import replace

import pytest

from synaptune.core.errors import UserError
from synaptune.search.callback import Callback, CallbackList
from synaptune.search.optimizers.base import Engine
from synaptune.search.plan import Plan
from synaptune.search.runner import TrialPolicy, run_trials
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Result, Trial
from synaptune.search.workers.base import InlineWorkers, NeverStop
from synaptune.search.workers.reporting import report
from synaptune.study.callbacks import search_lines
from synaptune.study.callbacks.base import (
    TERMINAL_ONLY,
    PhaseTrials,
    open_callbacks,
)
from synaptune.study.callbacks.progress import SearchInfo
from synaptune.study.callbacks.trial_lines import TrialLines
from synaptune.study.location import StudyConfig, resolve_location
from synaptune.study.optimize import PhaseSearch, optimize
from synaptune.study.study import PhaseLedger, Study

SPACE = Space((Dimension("a", "lin", 0.0, 1.0), Dimension("b", "log", 1.0, 100.0)))


class Recorder(Callback):
    """Records every call; raises the exceptions of `raises` at their events."""

    def __init__(self, raises=None, *, phase=None, is_required=False):
        self.calls, self._raises = [], raises or {}
        self.phase, self.is_required = phase, is_required

    def _record(self, event, *details):
        self.calls.append((event, *details))
        if event in self._raises:
            raise self._raises[event]

    def on_start(self, trial):
        self._record("start", trial.number)

    def on_report(self, trial, step, value):
        self._record("report", trial.number, step)

    def on_end(self, trial, finished):
        self._record("end", trial.number, finished)

    def on_generation(self, diagnostics, members):
        self._record("generation", diagnostics.generation, tuple(trial.number for trial in members))

    def close(self, exit_code):
        self._record("close", exit_code)

    def get(self, event):
        """Return the arguments of the calls of an event."""
        return [details for name, *details in self.calls if name == event]


def trial(number=0, objective=1.0, **facts):
    values = {"a": 0.5, "b": 10.0}
    return Trial(number, number, (0.5, 0.5), values, "complete", objective, facts=facts)


def evaluate(trial):
    report(1, trial.values["a"])
    return Result(trial.values["a"] ** 2, 0.01)


def open_ledger(folder):
    study = Study(resolve_location(StudyConfig("s", str(folder)), "s"), {"x": 1})
    return PhaseLedger(study, SPACE, "search", {})


def run_search(folder, callbacks, budget, engine="cma"):
    ledger = open_ledger(folder)
    search = PhaseSearch(ledger, Engine(engine, 0), Plan(budget), on_message=lambda line: None)
    with ledger.study:
        return optimize([search], InlineWorkers(evaluate), callbacks)[0]


def test_a_failing_callback_is_dropped_with_one_line_and_the_others_continue(capsys):
    broken, other = Recorder({"end": RuntimeError("no such luck\nsecond line")}), Recorder()
    callbacks = CallbackList([broken, other])
    for number in range(3):
        callbacks.on_end(trial(number), number + 1)
    callbacks.close(0)
    assert broken.calls == [("end", 0, 1), ("close", 1)]
    assert [number for number, *_ in other.get("end")] == [0, 1, 2]
    assert other.get("close") == [[0]]
    message = capsys.readouterr().err
    assert (
        message
        == "Recorder failed and is switched off; the search continues: RuntimeError: no such luck\n"
    )


def test_a_required_callback_that_fails_ends_the_search():
    with pytest.raises(ValueError, match="mine"):
        CallbackList([Recorder({"end": ValueError("mine")}, is_required=True)]).on_end(trial(), 1)


def test_a_callback_of_one_phase_receives_its_trials_only():
    one, every = Recorder(phase="a"), Recorder()
    callbacks = CallbackList([CallbackList([one, every])])
    for number, phase in enumerate("aba"):
        callbacks.on_start(trial(number, phase=phase))
    assert one.get("start") == [[0], [2]]
    assert every.get("start") == [[0], [1], [2]]


def test_a_callback_that_fails_to_close_does_not_keep_others_from_closing(capsys):
    other = Recorder()
    CallbackList([Recorder({"close": OSError(errno.EIO, "gone")}), other]).close(0)
    assert other.get("close") == [[0]]
    assert "gone" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("got a mistake")])
def test_ctrl_c_and_user_errors_pass_through(error):
    with pytest.raises(type(error)):
        CallbackList([Recorder({"start": error})]).on_start(trial())


def test_a_full_disk_ends_a_search_with_a_user_error():
    with pytest.raises(UserError, match=r"(?s)No space left.*make room"):
        CallbackList([Recorder({"end": OSError(errno.ENOSPC, "No space left on device")})]).on_end(
            trial(), 1
        )


def test_a_search_calls_back_at_starts_reports_ends_and_generations(tmp_path):
    recorder = Recorder()
    trials = run_search(tmp_path / "s", CallbackList([recorder]), 18)
    size = len(recorder.get("generation")[0][1])
    assert [number for number, *_ in recorder.get("start")] == list(range(18))
    assert recorder.get("end") == [[number, number + 1] for number in range(18)]
    assert recorder.get("report") == [[number, 1] for number in range(18)]
    assert recorder.get("generation") == [
        [number + 1, tuple(range(number * size, (number + 1) * size))]
        for number in range(18 // size)
    ]
    resumed = Recorder()
    run_search(tmp_path / "s", CallbackList([resumed]), 18 + size)
    assert resumed.get("end")[0] == [18, 19]
    assert resumed.get("generation")[0][0] == 18 // size + 1
    assert trials[0].state == "complete"


def test_a_search_continues_after_a_callback_that_always_fails(tmp_path, capsys):
    events = ("start", "report", "end", "generation", "close")
    trials = run_search(
        tmp_path / "s", CallbackList([Recorder({event: ValueError("bad")}) for event in events]), 8
    )
    assert [entry.state for entry in trials] == ["complete"] * 8
    assert capsys.readouterr().err.count("is switched off") == 4  # nothing closes the fifth


def test_reports_reach_the_callbacks_and_the_stopper_decides(tmp_path):
    class Strict(NeverStop):
        def __call__(self, trial, step, value):
            return value > 2.0

        def estimate(self, trial):
            return 7.0

    def run(trial):
        stops = [report(step, value) for step, value in ((1, 1.0), (2, 3.0))]
        return Result(None, 0.0, pruned=True) if stops == [False, True] else Result(0.0, 0.0)

    recorder, ledger = Recorder(), open_ledger(tmp_path / "s")
    policy = TrialPolicy(ledger, stopper=Strict(), callbacks=CallbackList([recorder]))
    with ledger.study:
        first = ledger.start(0, (0.5, 0.5), {"a": 0.5, "b": 10.0})
        (ended,) = run_trials([first], InlineWorkers(run), policy)
    assert (ended.state, ended.estimate) == ("pruned", 7.0)
    assert recorder.get("start") == [[0]]
    assert recorder.get("report") == [[0, 1], [0, 2]]


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 0), (KeyboardInterrupt(), 130), (UserError("got x"), 2), (ValueError("x"), 1)],
)
def test_callbacks_are_closed_with_the_exit_code(tmp_path, monkeypatch, error, code):
    from synaptune.study.callbacks import base as module

    recorder = Recorder()
    monkeypatch.setattr(module, "_make_view", lambda *_: recorder)
    ledger = open_ledger(tmp_path / "s")
    with (
        ledger.study,
        contextlib.suppress(KeyboardInterrupt, UserError, ValueError),
        open_callbacks([PhaseTrials(ledger, 3)], replace(TERMINAL_ONLY, progress="lines")),
    ):
        if error is not None:
            raise error
    assert recorder.calls == [("close", code)]


def test_concurrent_searches_share_their_callbacks(tmp_path):
    study, recorder = (
        Study(resolve_location(StudyConfig("s", str(tmp_path)), "s"), {"x": 1}),
        Recorder(),
    )
    one = Recorder(phase="b")
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
        optimize(jobs, workers, CallbackList([recorder, one]))
    assert [number for number, _ in recorder.get("end")] == list(range(24))
    assert [finished for _, finished in one.get("end")] == list(range(1, 13))
    assert len(recorder.get("generation")) == 2 * len(one.get("generation")) > 0


@pytest.mark.parametrize("progress", ["lines", "bar"])
def test_the_terminal_counts_the_trials_of_all_concurrent_searches(
    tmp_path, progress, capsys, monkeypatch
):
    from rich.console import Console

    from synaptune.study.callbacks import screen

    screen_text = io.StringIO()
    monkeypatch.setattr(
        screen,
        "make_picture_console",
        lambda: Console(file=screen_text, force_terminal=True, width=100),
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
    output = capsys.readouterr().out if progress == "lines" else screen_text.getvalue()
    assert ("evaluation 10/10" if progress == "lines" else "10 of 10 ended") in output
    assert progress == "lines" or "s: a, b" in output


def test_a_log_that_cannot_be_opened_is_reported_and_the_other_callbacks_work(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "synaptune.study.callbacks.tensorboard", None)
    ledger, logger = open_ledger(tmp_path / "s"), replace(TERMINAL_ONLY, progress="lines")
    phases, logger = [PhaseTrials(ledger, 3)], replace(logger, tensorboard=True)
    with ledger.study, open_callbacks(phases, logger) as callbacks:
        callbacks.on_end(trial(), 1)
    output = capsys.readouterr()
    assert "trial 1/3  1  best 1" in output.out
    assert "the TensorBoard log failed and is switched off; the search continues:" in output.err


def make_ended_trials():
    failed = Trial(
        1, 1, (0.5, 0.5), {"a": 0.5, "b": 10.0}, state="failed", reason="worker: died\nmore"
    )
    pruned = Trial(2, 2, (0.5, 0.5), {"a": 0.5, "b": 10.0}, state="pruned", estimate=2.5)
    return trial(0, 0.25), failed, pruned


def test_each_trial_has_a_line_on_request():
    stream = io.StringIO()
    lines = TrialLines(SearchInfo("s", SPACE, "evaluation", 3), stream=stream)
    for number, entry in enumerate(make_ended_trials(), 1):
        lines.on_end(entry, number)
    printed = stream.getvalue().splitlines()
    assert printed[0].startswith("  evaluation 1/3  0.25  best 0.25 (#0)")
    assert "failed (worker: died)" in printed[1]
    assert "pruned (estimate 2.5)" in printed[2]


def test_a_log_file_gets_a_line_a_generation_or_every_half_minute(monkeypatch):
    clock, stream = [1000.0], io.StringIO()
    monkeypatch.setattr(search_lines.time, "monotonic", lambda: clock[0])
    lines = search_lines.SearchLines(SearchInfo("s", SPACE, "evaluation", 9), stream=stream)

    def print_after(seconds, call, *values):
        clock[0] += seconds
        before = len(stream.getvalue())
        call(*values)
        return stream.getvalue()[before:]

    complete, failed, pruned = make_ended_trials()
    assert print_after(29, lines.on_end, complete, 1) == ""
    assert print_after(1, lines.on_end, failed, 2) == (
        "  evaluations 2/9  best 0.25 (#0)  1 failed  left 1.8 min\n"
    )
    assert print_after(1, lines.on_start, pruned) == ""
    assert "1 running (#2 at step 5: 0.75)" in print_after(30, lines.on_report, pruned, 5, 0.75)
    assert print_after(1, lines.on_generation, None, [complete]) == ""  # a flood otherwise
    assert print_after(2, lines.on_generation, None, [complete]).startswith("  evaluations 2/9")
    assert print_after(1, lines.on_end, pruned, 3) == ""
    assert "evaluations 3/9" in print_after(1, lines.close, 0)
