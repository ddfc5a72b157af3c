"""The process that imports the libraries once and forks for each command of processes.py.

python fork_server.py FD        FD: number of its socket, inherited

A request is one message: JSON with arguments, cwd and env, and the file numbers of stdout, stderr
and the status pipe. The server writes the number of the command's process to the pipe and, when
the command has ended, its wait status.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib.util
import json
import os
import random
import signal
import socket
import sys
import threading
import types
from pathlib import Path
from typing import Any

PRELOADED = (
    "synaptune",  # first: it sets the wait policy of OpenMP
    "nevergrad",
    "optuna",
    "cmaes",
    "lightning",
    "hydra",
    "cma",
    "optuna.storages._rdb.models",
    "alembic.migration",
    "torch.utils.tensorboard",
    "wandb.sdk.launch",
    "synaptune.config.run",
    "synaptune.config.sweep",
    "synaptune.protocols.phase1",
    "synaptune.protocols.phase2",
    "synaptune.protocols.transfer",
    "synaptune.protocols.ablation",
)
Request = dict[str, Any]


def serve(connection: socket.socket) -> Request:
    """Fork for each request; returns the request in the child. The server ends with its client."""
    status_pipes: dict[int, int] = {}

    def reap(*_: Any) -> None:
        for pid in list(status_pipes):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                pipe = status_pipes.pop(pid)
                _write_number(pipe, status)
                os.close(pipe)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, reap)
    while True:
        message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        if not message:
            os._exit(0)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            connection.close()
            for number in (files[2], *status_pipes.values()):
                os.close(number)
            for source, target in zip(files, (1, 2), strict=False):
                os.dup2(source, target)
                os.close(source)
            return json.loads(message)
        for number in files[:2]:
            os.close(number)
        status_pipes[pid] = files[2]
        _write_number(files[2], pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def prepare(request: Request) -> types.CodeType:
    """Set this process up as `python ARGUMENTS` would; returns the code of its `__main__`."""
    import numpy as np
    from wandb.sdk.data_types._private import MEDIA_TMP

    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    random.seed()
    np.random.seed()  # a fork has the stream of its parent
    MEDIA_TMP._finalizer.detach()  # W&B makes this folder at import; a fork needs one of its own
    MEDIA_TMP.__init__("wandb-media")  # type: ignore[misc]
    first, *words = request["arguments"]
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    if first == "-m":
        spec = importlib.util.find_spec(words[0])
        assert spec is not None, words[0]
        assert spec.origin is not None, words[0]
        main.__spec__, main.__package__, main.__file__ = spec, spec.parent, spec.origin
        sys.path[0], sys.argv = os.getcwd(), [spec.origin, *words[1:]]
        return spec.loader.get_code(words[0])  # type: ignore[union-attr]
    if first == "-c":
        sys.path[0], sys.argv = "", ["-c", *words[1:]]
        return compile(words[0], "<string>", "exec")
    path = Path(first).resolve()
    main.__file__ = str(path)
    sys.path[0], sys.argv = str(path.parent), [first, *words]
    return compile(path.read_bytes(), str(path), "exec")


def run_to_end(code: types.CodeType) -> None:
    """Run `__main__` and end the process as the interpreter does, without taking it apart.

    Clearing every module of a fork copies the memory it shares with its parent: 0.4 s a command.
    """
    status: Any = 0
    try:
        exec(code, sys.modules["__main__"].__dict__)
    except SystemExit as end:
        status = 0 if end.code is None else end.code
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or its reader has gone
            stream.flush()
    if status < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)


def _write_number(pipe: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the test has ended
        os.write(pipe, f"{number}\n".encode())


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    code = prepare(serve(socket.socket(fileno=int(sys.argv[1]))))
    run_to_end(code)
