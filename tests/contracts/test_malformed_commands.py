"""Malformed command lines: each ends with a message and a code, without a traceback or a hang.

The lines are drawn from a grammar with fixed seeds. Every line has at least one fault that no valid
words can mend, so no line may succeed.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from helpers import processes
from helpers.paths import ROOT

LINES = int(os.environ.get("FUZZ_LINES", "10"))  # 500 take some minutes
BATCH = 10
TIMEOUT = 120.0
APPLICATION = """
import hydra
@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    return float(cfg.x)
if __name__ == "__main__":
    main()
"""
FILES = {
    "app.py": APPLICATION,
    "conf/config.yaml": "x: 1.0\nname: a\nlayers: [1, 2]\noptimizer: {lr: 0.1, kind: adam}\n",
    "space.yaml": "ranges: {model.width: {low: 5, high: 1}}\n",
    "broken.yaml": "parameters: {a: [1, 2\n",
    "list.yaml": "[1, 2]\n",
    "binary.yaml": "\udcff\udcfe\x00",
    "empty.csv": "",
    "head.csv": "number,objective\n",
    "text.csv": "trial,x,objective\n0,low,abc\n1,high,\n",
    "ragged.csv": "a;b;c\n1;2\n3;4;5;6\n",
    "best.yaml": "parameters: {synapse.calcium.none: 1.0}\n",
}
NUMBERS = [
    "training.steps",
    "model.width",
    "model.heads",
    "seed",
    "training.batch",
    "model.context",
]
NO_NUMBERS = ["many", "[1]", "{a: 1}", "1e", "''", "true", "0x", "nan", "-1", "1.5"]
GROUPS = ["model", "scale", "data", "position", "synapse/calcium", "objective", "pruner", "stop"]
SYNTAX = [
    "model.width=[1,2",
    "seed=choice(1,",
    "=3",
    "model.width=interval(5,1)",
    "model.width=interval(1)",
    "model.width=int(choice())",
    "training..steps=1",
    "model.width==3",
    "'seed=1",
    "seed=\x01",
    "+seed=1",
    "~nothing",
    "++=1",
    "seed=${nowhere}",
    "seed=${oc.env:NO_SUCH_VARIABLE}",
    "name=${unknown_resolver:1}",
    "\N{GREEK SMALL LETTER ALPHA}=1",
    "model=[gpt,synaptic]",
    "model=null",
    "model@other=gpt",
]
PATHS = ["none.yaml", "list.yaml", "broken.yaml", "binary.yaml", ".", "best.yaml", "/dev/null"]
SWEEPER = [
    "hydra.sweeper.optim.budget=-1",
    "hydra.sweeper.optim.budget=some",
    "hydra.sweeper.optim.optimizer=nosuch",
    "hydra.sweeper.optim.num_workers=0",
    "hydra.sweeper.optim.max_failure_rate=x",
    "hydra.sweeper.optim.seed=a",
    "hydra.sweeper.params={x: 3..4}",
    "+hydra.sweeper.params.name={lower: 2, upper: 1}",
    "+hydra.sweeper.params.nothing='choice(1,2)'",
    "+hydra.sweeper.nosuch=1",
    "hydra/sweeper=nosuch",
    "hydra/launcher=nosuch",
]
STUDY = [
    "study.resume=maybe",
    "study.name=a/b",
    "study.name=..",
    f"study.name={'n' * 300}",
    "study.resume=must",
    "study.storage=nosuch://x",
    "study.storage=sqlite",
    "study.storage=sqlite:////proc/none/study.db",
    "study.storage=postgresql://u@127.0.0.1:1/x",
    "study.dir=/proc/none",
    "workers.count=0",
    "workers.count=x",
    "stop.nosuch=1",
    "search.seeds=0",
    "search.start=nosuch",
    "trial.timeout=-1",
    "notify.urls=[nonsense]",
]
# Faults in the configuration of any application.
GRAMMAR = [
    "x=interval(1,0)",
    "x=interval(1)",
    "x=int(choice())",
    "nothing=1,2",
    "layers.7=1,2",
    "x=[1,2",
    "++=1",
    "~nothing",
    "x=\x01",
    "hydra/sweeper=nosuch",
]
SUBCOMMANDS = [
    ["report", "nosuch"],
    ["report"],
    ["report", "x", "--storage", "nosuch://y"],
    ["report", "list.yaml"],
    ["refine", "nosuch"],
    ["refine", "empty.csv"],
    ["refine", "head.csv"],
    ["refine", "text.csv"],
    ["refine", "ragged.csv"],
    ["refine", "text.csv", "--quantile", "7"],
    ["refine", "text.csv", "--threshold", "x"],
    ["refine", "binary.yaml"],
    ["export", "nosuch"],
    ["export", "nosuch", "--format", "xml"],
    ["cost", "scale=nosuch"],
    ["cost", "--plan", "phase9"],
    ["cost", "--devices", "-1"],
    ["cost", "--study", "nosuch"],
    ["sample", "nosuch", "--prompt", "a"],
    ["sample", "list.yaml", "--prompt", "a"],
    ["sample", "app.py", "--prompt", "", "--tokens", "x"],
    ["dashboard", "nosuch"],
    ["dashboard", "--port", "99999999"],
    ["dashboard", "--host", "0.0.0.0"],
    ["dashboard", "--storage", "sqlite:///none.db"],
    ["wandb", "sync", "nosuch"],
    ["wandb", "report", "nosuch"],
    ["wandb"],
    ["nosuch"],
    ["--nosuch"],
    [""],
]


def draw_fault(rng: random.Random) -> str:
    """Return a word that no configuration of train.py takes."""
    kind = rng.randrange(5)
    if kind == 0:
        return f"{rng.choice(NUMBERS)}={rng.choice(NO_NUMBERS)}"
    if kind == 1:
        return f"{rng.choice(GROUPS)}={rng.choice(['nosuch', '3', '../train', 'a b', ''])}"
    if kind == 2:
        name = rng.choice(NUMBERS)
        return f"{name[:-1]}{rng.choice('qxz')}={rng.randrange(9)}"
    if kind == 3:
        return f"{rng.choice(['tuned', 'search_space'])}={rng.choice(PATHS)}"
    return rng.choice(SYNTAX)


def draw_line(rng: random.Random) -> list[str]:
    """Return the words of a malformed command line, after `python`."""
    kind = rng.randrange(5)
    faults = [draw_fault(rng) for _ in range(rng.choice([1, 1, 2, 3]))]
    valid = rng.sample(
        ["training.lr=0.01", "seed=3", "logger.every=4", "scale=smoke"], rng.randrange(3)
    )
    words = [*valid, *faults]
    rng.shuffle(words)
    if kind == 0:
        return [str(ROOT / "train.py"), *words]
    if kind == 1:
        sweeper = rng.choice([["hydra/sweeper=cma"], ["hydra/sweeper=grid"], []])
        own = rng.choice([*SWEEPER, *STUDY])
        return [str(ROOT / "train.py"), "-m", *sweeper, *words, own, "study.resume=must"]
    if kind == 2:
        fault = rng.choice([*SWEEPER, *GRAMMAR, *STUDY])
        sweep = rng.sample(["optimizer.lr=tag(log,interval(1,2))", "layers.0=3,4"], 1)
        return ["app.py", "-m", "hydra/sweeper=random", *sweep, fault]
    if kind == 3:
        protocol = rng.choice(["phase1", "phase2", "ablation", "transfer"])
        own = [
            *STUDY[:-1],
            "protocol.budget=x",
            "protocol.nosuch=1",
            "protocol.seeds=-1",
            "hydra.run.dir=x",
        ]
        return ["-m", "synaptune.cli.main", protocol, *words, rng.choice(own), "study.resume=must"]
    line = rng.choice(SUBCOMMANDS)
    return [
        "-m",
        "synaptune.cli.main",
        *line,
        *rng.sample(["--nosuch", "--storage=nosuch"], rng.randrange(2)),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode(errors="surrogateescape"))
    return tmp_path


def find_fault(line: list[str], folder: Path) -> str | None:
    """Run a command line; return what is wrong with its end, or None."""
    env = {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": ""}
    process = processes.start(line, folder, env=env)
    try:
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    except processes.subprocess.TimeoutExpired:
        process.kill()
        return "still runs"
    if "Traceback" in stdout + stderr:
        return "traceback: " + (stdout + stderr).strip().splitlines()[-1]
    if process.returncode not in (1, 2):
        return f"code {process.returncode}"
    return None if stderr.strip() else "no message"


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(LINES // BATCH))
def test_a_malformed_command_line_ends_with_a_message_and_a_code(batch, folder):
    rng = random.Random(batch)
    lines = [draw_line(rng) for _ in range(BATCH)]
    faults = [(line, fault) for line in lines if (fault := find_fault(line, folder))]
    assert not faults, "\n".join(f"{fault}: {' '.join(line)}" for line, fault in faults)
