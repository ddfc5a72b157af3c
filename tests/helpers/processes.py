"""Python commands as processes of their own, forked from one that has imported the libraries.

A fresh interpreter spends seconds on `import torch`, Lightning and Optuna before a command begins.
A test whose subject is the command, not its start, runs it with `run` or `start`: the command is
still a real process with its own working directory, environment, signals and exit code. With
`fresh`, and where a process cannot be forked safely (no Linux), a new interpreter is started.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

SERVER = Path(__file__).with_name("fork_server.py")
TIMEOUT = 900.0  # of a command [s]


def run(
    arguments: Sequence[str],
    cwd: Path,
    *,
    env: Mapping[str, str | None] | None = None,
    fresh: bool = False,
    timeout: float = TIMEOUT,
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` to its end.

    Args:
        arguments: what follows `python` on a command line: a script, `-m MODULE` or `-c CODE`,
            and its words.
        cwd: working directory.
        env: variables that are set in addition to those of this process; None removes one.
        fresh: start a new interpreter, as a user does.
        timeout: limit after which the command is killed [s].

    Raises:
        subprocess.TimeoutExpired: the command took longer.
    """
    process = start(arguments, cwd, env=env, fresh=fresh)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    return subprocess.CompletedProcess(list(arguments), process.wait(), stdout, stderr)


def start(
    arguments: Sequence[str],
    cwd: Path,
    *,
    env: Mapping[str, str | None] | None = None,
    fresh: bool = False,
) -> ForkedCommand | subprocess.Popen[str]:
    """Start `python ARGUMENTS`; the arguments are those of `run`."""
    merged = os.environ | (env or {})
    environment = {name: value for name, value in merged.items() if value is not None}
    if fresh or sys.platform != "linux":
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    return ForkedCommand(arguments, cwd, environment)


class ForkedCommand:
    """A forked command, with the methods of `subprocess.Popen` that tests use.

    Attributes:
        pid: its process number.
        returncode: exit code, negative for a signal; None while it runs.
    """

    def __init__(self, arguments: Sequence[str], cwd: Path, env: dict[str, str]) -> None:
        self.arguments = list(arguments)
        self.returncode: int | None = None
        self._stdout = tempfile.TemporaryFile()  # noqa: SIM115
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._status, status = os.pipe()
        request = {"arguments": self.arguments, "cwd": str(cwd), "env": env}
        files = [self._stdout.fileno(), self._stderr.fileno(), status]
        socket.send_fds(_start_server(), [json.dumps(request).encode()], files)
        os.close(status)
        self.pid = self._read_number()

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self.returncode is None and select.select([self._status], [], [], 0.0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait for the end; returns the exit code, or raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.arguments, timeout)
            self.returncode = os.waitstatus_to_exitcode(self._read_number())
            os.close(self._status)
        return self.returncode

    def communicate(self, timeout: float = TIMEOUT) -> tuple[str, str]:
        """Wait for the end; returns what the command wrote to stdout and to stderr."""
        self.wait(timeout)
        return _read_text(self._stdout), _read_text(self._stderr)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _read_number(self) -> int:
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self._status, 1)
            assert byte, f"the fork server has ended; command: {self.arguments}"
            line += byte
        return int(line)


def _read_text(file) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


@functools.cache
def _start_server() -> socket.socket:
    """The connection to the fork server of this process; it ends when the connection does."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with there:
        server = subprocess.Popen(
            [sys.executable, str(SERVER), str(there.fileno())],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    atexit.register(_stop_server, here, server)
    return here


def _stop_server(connection: socket.socket, server: subprocess.Popen) -> None:
    connection.close()
    server.wait()


def kill_when(
    arguments: Sequence[str],
    cwd: Path,
    is_due: Callable[[], bool],
    *,
    env: Mapping[str, str | None] | None = None,
) -> None:
    """Start `python ARGUMENTS` and kill it with SIGKILL as soon as `is_due` is true.

    Args:
        arguments: as for `run`.
        cwd: working directory.
        is_due: asked every hundredth of a second.
        env: as for `run`.

    Raises:
        AssertionError: the command ended before, or took too long.
    """
    process = start(arguments, cwd, env=env)
    deadline = time.monotonic() + 120.0
    while not is_due():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it was not due in two minutes"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
