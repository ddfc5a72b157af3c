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
from synaptune.study.callbacks.live_table import SearchInfo, SearchProgress, render_progress
from synaptune.study.callbacks.screen import Screen, make_console

SPACE = Space(
    (
        Dimension("synapse.tau", "log", 1.0, 100.0),
        Dimension("synapse.cost", "lin", 0.0, 1.0, start=0.5),
    )
)
PATIENCE = 900.0  # seconds


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


def shown(standing, now, width=90):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(render_progress(standing, now))
    return console.file.getvalue()


def test_the_table_says_where_a_search_stands():
    earlier = [trial(0, 5.0), trial(1, None, "failed", failure="memory")]
    stop = StopConfig(price=10.0, money=2.0)
    standing = SearchProgress(
        SearchInfo("s: search", SPACE, "evaluations", 12, stop=stop), earlier, now=100.0
    )
    for number, state, objective, facts in (
        (2, "complete", 4.0, {}),
        (3, "failed", None, {"failure": "number"}),
        (4, "pruned", None, {}),
        (5, "failed", None, {"failure": "number"}),
    ):
        standing.record_start(trial(number, state="running"), 100.0)
        standing.record_end(trial(number, objective, state, **facts))
    standing.record_start(trial(6, state="running"), 130.0)
    standing.record_start(trial(7, state="running"), 190.0)
    standing.record_report(trial(6), 50, 3.25)
    text = shown(standing, 220.0)
    assert "6 of 12 ended, 3 failed (2 number, 1 memory), 1 pruned" in text
    assert "4 in trial 2, 3 ended since" in text
    assert re.search(
        r"at +cost 0.75  tau 10", text
    )  # what moved farthest first; tau is where it began
    assert "120 an hour, 3 min left" in text  # four in two minutes, six to go
    assert "0.6 so far, 0.6 more to the budget, 1.4 left of 2" in text
    assert re.search(r"trial 6 +1.5 min +50 +3.25", text)
    assert re.search(r"trial 7 +30 s *\n", text)
    assert re.search(r"^generation +1 *$", text, re.MULTILINE)


def test_a_table_without_a_price_budget_or_end_leaves_them_out():
    text = shown(SearchProgress(SearchInfo("s: search", SPACE), [], now=0.0), 5.0)
    assert "0 ended" in text
    assert not any(
        word in text for word in ("cost", "left", "best", "running", "None", "generation")
    )


def test_the_distributions_health_is_in_the_table():
    import numpy as np

    standing = SearchProgress(SearchInfo("s", SPACE), [], now=0.0)
    standing.diagnostics = diagnose(
        generation=7,
        names=SPACE.names,
        mean=np.zeros(2),
        step=0.2,
        covariance=np.eye(2),
        stagnation=3,
    )
    assert "step 0.2, 3 without a new best" in shown(standing, 1.0)


def test_hours_of_the_stopping_rules_bound_the_time_left():
    standing = SearchProgress(
        SearchInfo("s", SPACE, total=1000, stop=StopConfig(hours=2.0)), [], now=0.0
    )
    standing.record_end(trial(0, 1.0))
    assert standing.seconds_left(3600.0) == pytest.approx(3600.0)


def test_many_running_trials_stay_a_short_table():
    standing = SearchProgress(SearchInfo("s", SPACE), [], now=0.0)
    for number in range(64):
        standing.record_start(trial(number, state="running"), 0.0)
    text = shown(standing, 1.0)
    assert "and 56 more" in text
    assert len(text.splitlines()) < 16


def test_an_attempt_that_is_made_again_is_one_running_trial():
    standing = SearchProgress(SearchInfo("s", SPACE), [], now=0.0)
    standing.record_start(trial(3, state="running"), 0.0)
    standing.record_start(trial(3, state="running"), 50.0)
    assert list(standing.running) == [3]
    assert standing.running[3].started_at == 50.0


def test_a_file_holds_no_table():
    assert make_console(io.StringIO()) is None


def test_a_picture_that_breaks_is_told_to_the_search_and_gives_the_streams_back():
    before = sys.stdout, sys.stderr

    def render():
        raise ArithmeticError("no picture")

    screen = Screen(render, Console(file=io.StringIO(), force_terminal=True))
    with pytest.raises(ArithmeticError, match="no picture"):
        wait_until(lambda: screen.redraw())
    screen.close()
    assert (sys.stdout, sys.stderr) == before


def wait_until(condition):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


class Glass:
    """What a terminal would show, from the bytes it was sent: enough of one for what rich sends."""

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
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        environment = {
            key: value
            for key, value in os.environ.items()
            if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
        }
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env=environment | {"TERM": "xterm-256color"},
        )
        os.close(theirs)
        self.glass, self.open = Glass(), True

    def read(self):
        if self.open and select.select([self._ours], [], [], 0.05)[0]:
            data = b""
            with contextlib.suppress(OSError):
                data = os.read(self._ours, 65536)
            self.open = bool(data)
            self.glass.feed(data.decode(errors="replace"))
        return self.glass.text

    def until(self, pattern):
        until = time.monotonic() + PATIENCE
        while not re.search(pattern, self.read(), re.MULTILINE):
            assert time.monotonic() < until, f"no {pattern} in\n{self.glass.text}"
            assert self.open, f"ended without {pattern}:\n{self.glass.text}"

    def press(self, key):
        os.write(self._ours, key)

    def end(self):
        while self.open:
            self.read()
        os.close(self._ours)
        return self.process.wait(PATIENCE)


SEARCH = """
import sys, time
from pathlib import Path
from synaptune import TrialManager

folder = Path(sys.argv[1])

def objective(parameters):
    number = len(list(folder.glob("began-*")))
    (folder / f"began-{number}").touch()
    print(f"inside {number}", flush=True)
    print(f"aside {number}", file=sys.stderr)
    manager.report(0.5 + number, 10)
    while number >= 2 and not (folder / f"go-{number}").exists():
        time.sleep(0.02)
    if number == 1:
        raise ArithmeticError("told to fail")
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


def test_a_search_on_a_terminal_has_a_live_table_whose_last_state_stays(tmp_path):
    with searching(tmp_path) as program:
        program.until(r"^trial 2 .* 10 +2\.5$")
        program.until(r"2 of 6 ended, 1 failed \(1 error\)")
        program.until(r"^aside 2$")
        assert (
            "inside 0\naside 0\ninside 1\naside 1\ninside 2\naside 2\nbowl: search\n"
            in program.glass.text
        )  # none torn, all above
        for number in range(2, 6):
            (tmp_path / f"go-{number}").touch()
        assert program.end() == 0
    text = program.glass.text
    assert text.count("bowl: search") == 1
    assert "6 of 6 ended, 1 failed (1 error)" in text
    assert "running" not in text
    assert text.index("6 of 6 ended") < text.rindex("\nbest ")
    assert re.fullmatch(
        r"best \d+\.\d+", text.rstrip().splitlines()[-1]
    )  # what the program printed afterwards


def test_ctrl_c_once_lets_the_running_trial_finish_and_is_said_above_the_table(tmp_path):
    with searching(tmp_path) as program:
        program.until(r"^trial 2 .* 10 +2\.5$")
        program.press(b"\x03")
        program.until(
            r"^Ctrl-C: waiting for the running trials, no new ones start; press again to stop now$"
        )
        program.until(r"^trial 2 .* 10 +2\.5$")
        (tmp_path / "go-2").touch()
        assert program.end() == 130
    assert "3 of 6 ended" in program.glass.text
    assert "interrupted after 3" in program.glass.text
    assert not (tmp_path / "began-3").exists()


def test_ctrl_c_twice_stops_at_once_and_leaves_the_terminal_whole(tmp_path):
    with searching(tmp_path) as program:
        program.until(r"^trial 2 .* 10 +2\.5$")
        program.press(b"\x03")
        program.until(r"^Ctrl-C: waiting")
        program.press(b"\x03")
        assert program.end() == 130
    assert "2 of 6 ended" in program.glass.text
    assert "interrupted after 2" in program.glass.text
    assert "Traceback" not in program.glass.text


def test_what_several_threads_print_comes_out_whole(tmp_path):
    ours, theirs = pty.openpty()
    stream = os.fdopen(theirs, "w", buffering=1)
    glass, got = Glass(), []

    def drain():
        with contextlib.suppress(OSError):
            while data := os.read(ours, 65536):
                got.append(data)

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
    reader.join(PATIENCE)
    os.close(ours)
    glass.feed(b"".join(got).decode())
    lines = [line for line in glass.text.splitlines() if line]
    assert sorted(lines[:200]) == sorted(f"line {n} {k}" for n in range(4) for k in range(50))
    assert lines[200:] == ["no newline at the end", "PICTURE", "after"]
