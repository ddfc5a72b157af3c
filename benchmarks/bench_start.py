"""CPU time until a command answers, and until the first training step of a run begins.

    python benchmarks/bench_start.py [--rounds 5] [--against FOLDER]

Each command runs in a new process, `--rounds` times. Prints the median user CPU time of each
[s]. With `--against`, another checkout runs the same commands alternately; its medians and the
median of the paired ratios (this checkout over the other) are printed too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The first backward pass ends the process: it stands for the first training step.
FIRST_STEP = """
import os, runpy, sys
import torch
torch.Tensor.backward = lambda *_, **__: os._exit(0)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
os._exit(1)
"""
RUN_CLI = "from synaptune.cli.main import main; raise SystemExit(main())"
RUN = ("scale=smoke", "logger=csv", "training.device=cpu")


def list_commands(checkout: Path) -> dict[str, list[str]]:
    """Return the arguments of the interpreter by what they measure."""
    train = str(checkout / "train.py")
    return {
        "train.py --help": [train, "--help"],
        "train.py --cfg job": [train, "--cfg", "job"],
        "synaptune --help": ["-c", RUN_CLI, "--help"],
        "first training step": ["-c", FIRST_STEP, train, *RUN],
    }


def measure_cpu(checkout: Path, arguments: list[str], folder: Path) -> float:
    """Return the user CPU time of one process [s]; raises RuntimeError when it fails."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments} failed:\n{(folder / 'output.txt').read_text()}")
    return usage.ru_utime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout, measured alternately")
    options = parser.parse_args()
    checkouts = [ROOT] if options.against is None else [ROOT, options.against.resolve()]
    with tempfile.TemporaryDirectory() as folder:
        for name in list_commands(ROOT):
            seconds: list[list[float]] = [[] for _ in checkouts]
            for number in range(-1, options.rounds):  # the first round warms the caches
                order = range(len(checkouts)) if number % 2 else reversed(range(len(checkouts)))
                for index in order:
                    arguments = list_commands(checkouts[index])[name]
                    cpu = measure_cpu(checkouts[index], arguments, Path(folder))
                    if number >= 0:
                        seconds[index].append(cpu)
            text = f"{name:20} {statistics.median(seconds[0]):6.2f} s"
            if len(checkouts) == 2:
                ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
                text += f"  against {statistics.median(seconds[1]):6.2f} s  ratio {ratio:.3f}"
            print(text, flush=True)


if __name__ == "__main__":
    main()
