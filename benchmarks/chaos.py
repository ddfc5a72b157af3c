"""A search under attack: its controller, its workers and its database server killed at random moments.

    python benchmarks/chaos.py [--kills 50] [--trials 400] [--workers 2] [--server] [--seed 0]

The same search runs once undisturbed and once under attack; the final trials (order, parameters, objectives, states) have to be the
same, each once. A kill of the controller or of a worker is SIGKILL; with --server the study is on a PostgreSQL server of its
own, which is stopped in the immediate mode (no clean-up) and started again. Exit code 1 when anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPACE = {f"x{number}": ("uniform", -5.0, 10.0) for number in range(5)} | {
    "n": ("int", 0, 12),
    "rate": ("log_uniform", 1e-4, 1.0),
}


def manager(folder: Path, url: str | None, trials: int, workers: int):
    """The search of the program below."""
    from synaptune import TrialManager

    return TrialManager(
        "chaos",
        trials,
        storage=url,
        workers=workers,
        retries=10**6,
        seed=3,
        directory=folder,
        progress=False,
    )


def search(folder: Path, url: str | None, trials: int, workers: int, seconds: float) -> None:
    """One attempt at the search, as a process that may be killed."""

    def objective(params):
        time.sleep(seconds)
        return (
            sum((params[f"x{number}"] - number) ** 2 for number in range(5))
            + params["n"]
            + abs(params["rate"] - 0.1)
        )

    manager(folder, url, trials, workers).optimize(objective, SPACE)


def sequence(folder: Path, url: str | None, trials: int, workers: int) -> list[tuple]:
    """What has to be the same."""
    return [
        (trial.index, trial.values, trial.objective, trial.state)
        for trial in manager(folder, url, trials, workers).trials
    ]


def attack(given: argparse.Namespace, folder: Path, server, url: str | None) -> Counter[str]:
    """Run the search to its end through the kills; how many of each kind there were."""
    draw, done = random.Random(given.seed), Counter()
    kinds = [
        "controller",
        *(["worker"] if given.workers > 1 else []),
        *(["server"] if server is not None else []),
    ]
    command = [
        sys.executable,
        __file__,
        "--attempt",
        str(folder),
        "--trials",
        str(given.trials),
        "--workers",
        str(given.workers),
    ]
    command += ["--seconds", str(given.seconds)]
    command += ["--url", url] if url else []
    process = None
    while sum(done.values()) < given.kills:
        process = process or subprocess.Popen(command)
        time.sleep(draw.uniform(1.0, 4.0))
        if process.poll() is not None:
            if process.returncode == 0:
                break
            raise SystemExit(f"the search ended by itself with code {process.returncode}")
        kind = draw.choice(kinds)
        if kind == "controller":
            process.send_signal(signal.SIGKILL)
            process.wait()
            process = None
        elif kind == "server":
            server.stop("immediate")
            server.start()
        elif not kill_worker(process.pid, draw):
            continue
        done[kind] += 1
    process = process or subprocess.Popen(command)
    if process.wait() != 0:
        raise SystemExit(f"the search ended with code {process.returncode}")
    return done


def kill_worker(controller: int, draw: random.Random) -> bool:
    """SIGKILL to one of the controller's children; whether there was one."""
    children = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    if not children:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(draw.choice(children)), signal.SIGKILL)
    return True


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kills", type=int, default=50, help="kills to survive (default %(default)s)"
    )
    parser.add_argument(
        "--trials", type=int, default=400, help="trials of the search (default %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="1 runs in the controller's own process (default %(default)s)",
    )
    parser.add_argument(
        "--seconds", type=float, default=0.2, help="of a trial, asleep (default %(default)s)"
    )
    parser.add_argument(
        "--server", action="store_true", help="on a PostgreSQL server, which is attacked as well"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the moments and the targets (default %(default)s)"
    )
    parser.add_argument("--attempt", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.attempt is not None:
        search(given.attempt, given.url, given.trials, given.workers, given.seconds)
        return 0
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder, server, url = Path(place), None, None
        if given.server:
            sys.path.insert(0, str(ROOT / "tests"))
            from helpers.servers import run_postgres

            server = stack.enter_context(run_postgres())
            url = server.make_url()
        search(folder / "whole", None, given.trials, given.workers, 0.0)
        whole = sequence(folder / "whole", None, given.trials, given.workers)
        began = time.monotonic()
        done = attack(given, folder / "attacked", server, url)
        came = sequence(folder / "attacked", url, given.trials, given.workers)
    print(
        f"{sum(done.values())} kills ({', '.join(f'{count} of the {kind}' for kind, count in sorted(done.items()))})"
    )
    print(
        f"{len(came)} trials in {time.monotonic() - began:.0f} s; {'the same as undisturbed' if came == whole else 'NOT the same'}"
    )
    return 0 if came == whole else 1


if __name__ == "__main__":
    sys.exit(main())
