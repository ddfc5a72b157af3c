import contextlib
import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest
from rich.console import Console
from rich.text import Text

from synaptune.search.optimizers.diagnostics import diagnose
from synaptune.search.space.space import Dimension, Space
from synaptune.search.stopping import StopConfig
from synaptune.search.trial import Trial
from synaptune.study.callbacks.live_table import render_progress
from synaptune.study.callbacks.progress import SearchInfo, SearchProgress
from synaptune.study.callbacks.screen import Screen, make_picture_console

SPACE = Space(
    (
        Dimension("synapse.tau", "log", 1.0, 100.0),
        Dimension("synapse.cost", "lin", 0.0, 1.0, start=0.5),
    )
)
TIMEOUT = 900.0  # seconds


def trial(number, objective=None, state="complete", **facts):
    unit = (0.5, 0.75)
    return Trial(
        number,
        number,
        unit,
        SPACE.to_values(unit),
        state,
        objective,
        facts={"seconds": 36.0, "generation": number // 4} | facts,
    )


def render(progress, now, width=90):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(render_progress(progress, now))
    return console.file.getvalue()


def test_the_table_shows_the_progress_of_a_search():
    earlier = [trial(0, 5.0), trial(1, None, "failed", failure="memory")]
    stop = StopConfig(price=10.0, money=2.0)
    progress = SearchProgress(
        SearchInfo("s: search", SPACE, "evaluation", 12, stop=stop), earlier, now=100.0
    )
    for number, state, objective, facts in (
        (2, "complete", 4.0, {}),
        (3, "failed", None, {"failure": "number"}),
        (4, "pruned", None, {}),
        (5, "failed", None, {"failure": "number"}),
    ):
        progress.record_start(trial(number, state="running"), 100.0)
        progress.record_end(trial(number, objective, state, **facts))
    progress.record_start(trial(6, state="running"), 130.0)
    progress.record_start(trial(7, state="running"), 190.0)
    progress.record_report(trial(6), 50, 3.25)
    text = render(progress, 220.0)
    assert "6 of 12 ended, 3 failed (2 number, 1 memory), 1 pruned" in text
    assert "4 in trial 2, 3 ended since" in text
    # The largest distance first; tau is at its start.
    assert re.search(r"at +cost=0.75  tau=10", text)
    assert "120 an hour, 3 min left" in text  # four in two minutes, six to go
    assert "0.6 so far, 0.6 more to the budget, 1.4 left of 2" in text
    assert re.search(r"trial 6 +1.5 min +50 +3.25", text)
    assert re.search(r"trial 7 +30 s *\n", text)
    assert re.search(r"^generation +1 *$", text, re.MULTILINE)


def test_a_table_without_price_budget_or_ended_trial_leaves_these_rows_out():
    text = render(SearchProgress(SearchInfo("s: search", SPACE), [], now=0.0), 5.0)
    assert "0 ended" in text
    assert not any(
        word in text for word in ("cost", "left", "best", "running", "None", "generation")
    )


def test_the_table_shows_the_step_and_stagnation_of_the_distribution():
    import numpy as np

    progress = SearchProgress(SearchInfo("s", SPACE), [], now=0.0)
    progress.diagnostics = diagnose(
        generation=7,
        names=SPACE.names,
        mean=np.zeros(2),
        step=0.2,
        covariance=np.eye(2),
        stagnation=3,
    )
    assert "step 0.2, 3 without a new best" in render(progress, 1.0)


def test_all_parameters_of_the_best_trial_are_shown_whole_at_80_columns():
    names = [f"synapse.group{number}.a_parameter_{number % 20}" for number in range(22)]
    space = Space(tuple(Dimension(name, "lin", 0.0, 1.0) for name in names))
    progress = SearchProgress(SearchInfo("s: search", space), [], now=0.0)
    unit = tuple(number / 22 for number in range(22))
    progress.record_end(Trial(0, 0, unit, space.to_values(unit), "complete", 1.0))
    lines = render(progress, 1.0, width=80).splitlines()
    words = " ".join(lines).split()
    # Short names, longer where two parameters share the last part.
    assert {"a_parameter_2=0.09091", "group1.a_parameter_1=0.04545"} <= set(words)
    assert sum("a_parameter_" in word for word in words) == 22
    assert max(map(len, lines)) <= 80


def test_more_parameters_than_fit_show_those_that_moved_most():
    space = Space(tuple(Dimension(f"p{number}", "lin", 0.0, 1.0) for number in range(48)))
    progress = SearchProgress(SearchInfo("s: search", space), [], now=0.0)
    unit = tuple(0.5 + (number >= 30) * 0.3 for number in range(48))
    progress.record_end(Trial(0, 0, unit, space.to_values(unit), "complete", 1.0))
    text = render(progress, 1.0, width=80)
    assert all(f"p{number}=0.8" in text for number in range(30, 48))
    assert "and 24 more" in " ".join(text.split())


def test_stop_hours_limits_the_time_left():
    progress = SearchProgress(
        SearchInfo("s", SPACE, total=1000, stop=StopConfig(hours=2.0)), [], now=0.0
    )
    progress.record_end(trial(0, 1.0))
    assert progress.get_seconds_left(3600.0) == pytest.approx(3600.0)


def test_many_running_trials_give_a_short_table():
    progress = SearchProgress(SearchInfo("s", SPACE), [], now=0.0)
    for number in range(64):
        progress.record_start(trial(number, state="running"), 0.0)
    text = render(progress, 1.0)
    assert "and 56 more" in text
    assert len(text.splitlines()) < 16


def test_two_attempts_at_a_trial_are_one_running_trial():
    progress = SearchProgress(SearchInfo("s", SPACE), [], now=0.0)
    progress.record_start(trial(3, state="running"), 0.0)
    progress.record_start(trial(3, state="running"), 50.0)
    assert list(progress.running) == [3]
    assert progress.running[3].started_at == 50.0


def test_a_file_gets_no_table():
    assert make_picture_console(io.StringIO()) is None


def test_a_failed_drawing_raises_in_the_search_and_restores_the_streams():
    before = sys.stdout, sys.stderr

    def render():
        raise ArithmeticError("no picture")

    screen = Screen(render, Console(file=io.StringIO(), force_terminal=True))
    with pytest.raises(ArithmeticError, match="no picture"):
        wait_until(lambda: screen.redraw())
    screen.close()
    assert (sys.stdout, sys.stderr) == before


def wait_until(condition):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


class ScreenText:
    """The text on a terminal after the control sequences that rich sends."""

    def __init__(self):
        self.lines, self.row, self._rest = [""], 0, ""

    def feed(self, text):
        text = self._rest + text
        self._rest = ""
        if (cut := re.search(r"\x1b\[?[?0-9;]*$", text)) is not None:
            text, self._rest = text[: cut.start()], cut.group()
        for code in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
            self._take(code)

    def _take(self, code):
        if code == "\n":
            self.row += 1
            self.lines += [""] * (self.row + 1 - len(self.lines))
            self.column = 0
        elif code == "\r":
            self.column = 0
        elif code == "\x1b[2K":
            self.lines[self.row] = ""
        elif (up := re.fullmatch(r"\x1b\[(\d+)A", code)) is not None:
            self.row = max(0, self.row - int(up.group(1)))
        elif not code.startswith("\x1b"):
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + code + line[self.column + len(code) :]
            self.column += len(code)

    column = 0

    @property
    def text(self):
        return "\n".join(line.rstrip() for line in self.lines)


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *command):
        self._terminal, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        environment = {
            key: value
            for key, value in os.environ.items()
            if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
        }
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env=environment | {"TERM": "xterm-256color"},
        )
        os.close(child)
        self.screen, self.open = ScreenText(), True

    def read(self):
        if self.open and select.select([self._terminal], [], [], 0.05)[0]:
            data = b""
            with contextlib.suppress(OSError):
                data = os.read(self._terminal, 65536)
            self.open = bool(data)
            self.screen.feed(data.decode(errors="replace"))
        return self.screen.text

    def wait_for(self, pattern):
        deadline = time.monotonic() + TIMEOUT
        while not re.search(pattern, self.read(), re.MULTILINE):
            assert time.monotonic() < deadline, f"no {pattern} in\n{self.screen.text}"
            assert self.open, f"ended without {pattern}:\n{self.screen.text}"

    def press(self, key):
        os.write(self._terminal, key)

    def end(self):
        while self.open:
            self.read()
        os.close(self._terminal)
        return self.process.wait(TIMEOUT)


SEARCH = """
import sys, time
from pathlib import Path
from synaptune import TrialManager

folder = Path(sys.argv[1])

def objective(parameters):
    number = len(list(folder.glob("started-*")))
    (folder / f"started-{number}").touch()
    print(f"inside {number}", flush=True)
    print(f"aside {number}", file=sys.stderr)
    manager.report(0.5 + number, 10)
    while number >= 2 and not (folder / f"go-{number}").exists():
        time.sleep(0.02)
    if number == 1:
        raise ArithmeticError("fails on purpose")
    return parameters["x"]

manager = TrialManager("bowl", 6, sampler="random", directory=folder / "study", progress="bar")
try:
    manager.optimize(objective, {"x": ("uniform", 1, 10)})
except KeyboardInterrupt:
    print("interrupted after", sum(trial.state != "running" for trial in manager.trials))
    sys.exit(130)
print("best", manager.best_value)
"""


@contextlib.contextmanager
def searching(folder):
    (folder / "search.py").write_text(SEARCH)
    program = Terminal(str(folder / "search.py"), str(folder))
    try:
        yield program
    finally:
        program.process.kill()
        program.process.wait()


def test_the_result_of_the_search_stays_on_the_terminal_instead_of_the_live_table(tmp_path):
    with searching(tmp_path) as program:
        program.wait_for(r"^trial 2 .* 10 +2\.5$")
        program.wait_for(r"2 of 6 ended, 1 failed \(1 error\)")
        program.wait_for(r"^aside 2$")
        assert (
            "inside 0\naside 0\ninside 1\naside 1\ninside 2\naside 2\nbowl: search\n"
            in program.screen.text
        )  # none torn, all above
        for number in range(2, 6):
            (tmp_path / f"go-{number}").touch()
        assert program.end() == 0
    text = program.screen.text
    assert text.count("bowl: search") == 1
    assert "6 of 6 ended, 1 failed (1 error)" in text
    assert "running" not in text
    assert text.index("6 of 6 ended") < text.rindex("\nbest ")
    # Neither a rate nor a time left of the past stays above what is printed later.
    assert "an hour" not in text
    assert re.fullmatch(
        r"best \d+\.\d+", text.rstrip().splitlines()[-1]
    )  # what the program printed afterwards


def test_ctrl_c_once_finishes_the_running_trial_and_prints_a_message_above_the_table(tmp_path):
    with searching(tmp_path) as program:
        program.wait_for(r"^trial 2 .* 10 +2\.5$")
        program.press(b"\x03")
        program.wait_for(
            r"^Ctrl-C: waiting for the running trials, no new ones start; press again to stop now$"
        )
        program.wait_for(r"^trial 2 .* 10 +2\.5$")
        (tmp_path / "go-2").touch()
        assert program.end() == 130
    assert "3 of 6 ended" in program.screen.text
    assert "interrupted after 3" in program.screen.text
    assert not (tmp_path / "started-3").exists()


def test_ctrl_c_twice_stops_at_once_and_leaves_the_terminal_intact(tmp_path):
    with searching(tmp_path) as program:
        program.wait_for(r"^trial 2 .* 10 +2\.5$")
        program.press(b"\x03")
        program.wait_for(r"^Ctrl-C: waiting")
        program.press(b"\x03")
        assert program.end() == 130
    assert "2 of 6 ended" in program.screen.text
    assert "interrupted after 2" in program.screen.text
    assert "Traceback" not in program.screen.text


def test_lines_that_several_threads_print_are_not_torn(tmp_path):
    terminal, child = pty.openpty()
    stream = os.fdopen(child, "w", buffering=1)
    screen_text, chunks = ScreenText(), []

    def drain():
        with contextlib.suppress(OSError):
            while data := os.read(terminal, 65536):
                chunks.append(data)

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    with contextlib.redirect_stdout(stream):
        screen = Screen(
            lambda: Text("PICTURE"), Console(file=stream, force_terminal=True, width=80)
        )
        writers = [
            threading.Thread(target=lambda n=n: [print(f"line {n} {k}") for k in range(50)])
            for n in range(4)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        print("no newline at the end", end="")
        screen.close()
        print("after")
    stream.close()
    reader.join(TIMEOUT)
    os.close(terminal)
    screen_text.feed(b"".join(chunks).decode())
    lines = [line for line in screen_text.text.splitlines() if line]
    assert sorted(lines[:200]) == sorted(f"line {n} {k}" for n in range(4) for k in range(50))
    assert lines[200:] == ["no newline at the end", "PICTURE", "after"]
