"""An interrupted run continues from the configuration in its own folder."""

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers import processes
from helpers.paths import ROOT
from synaptune.config.resume import expand_resume
from synaptune.study.reader import find_study

TRAIN = str(ROOT / "train.py")
# fmt: off
WORDS = [
    "scale=smoke", "logger=csv", "training.steps=120", "training.checkpoint_every=5", "seed=3",
    "hydra.run.dir='a folder'",
]
# fmt: on


def test_ctrl_c_prints_the_command_that_continues_the_run(tmp_path):
    process = processes.start([TRAIN, *WORDS], tmp_path)
    deadline = time.monotonic() + processes.TIMEOUT
    while not (tmp_path / "a folder/checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    python, *command = shlex.split(errors.split("to continue: ")[1])
    assert python == "python"
    assert not (tmp_path / "a folder/result.json").exists()

    stored = (tmp_path / "a folder/.hydra/overrides.yaml").read_text()
    refused = processes.run([*command, "model=gpt"], tmp_path)
    assert refused.returncode == 2
    assert "leave out the overrides that differ" in refused.stderr

    done = processes.run([*command, "training.checkpoint_every=50"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a folder/result.json").exists()
    # Neither the refused nor the continued run changed the configuration of the first command.
    assert (tmp_path / "a folder/.hydra/overrides.yaml").read_text() == stored


def test_ctrl_c_before_the_first_checkpoint_says_that_nothing_is_saved(tmp_path):
    words = [*WORDS, "training.steps=100000", "training.checkpoint_every=0"]
    process = processes.start([TRAIN, *words], tmp_path)
    deadline = time.monotonic() + processes.TIMEOUT
    while not (tmp_path / "a folder/metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert "it has no checkpoint yet" in errors
    assert "to start it again: python" in errors


def test_ctrl_c_inside_a_finalizer_is_not_lost(tmp_path):
    code = """
import os, signal, time
from synaptune.core.terminal import repeat_lost_interrupts

class File:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

repeat_lost_interrupts()
try:
    File()
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, cwd=tmp_path
    )
    assert (ended.stdout, ended.stderr) == ("interrupted\n", "")


def test_words_of_the_command_line_replace_the_stored_ones_of_their_name(tmp_path):
    path = tmp_path / ".hydra" / "overrides.yaml"
    path.parent.mkdir()
    path.write_text("- scale=smoke\n- +data.path=a\n- training.steps=5\n")
    words = [f"hydra.run.dir={tmp_path}", "training.resume=true", "data.path=b"]
    assert expand_resume(words) == [
        *("scale=smoke", "training.steps=5"),
        *words,
        "hydra.output_subdir=null",
    ]
    for others in (words[:1], words[1:], ["-m", *words], ["hydra.run.dir=none", words[1]]):
        assert expand_resume(others) == others
    assert Path(path).read_text().count("\n") == 3


def test_sigterm_ends_a_search_at_once_and_its_trial_is_run_again(tmp_path):
    """Lightning turns the signal into an exit, which must not count as a failure of the trial."""
    words = ["scale=smoke", "logger=csv", "hydra/sweeper=random", "hydra.sweeper.optim.budget=1"]
    process = processes.start([TRAIN, "-m", *words, "training.steps=100000"], tmp_path)
    deadline = time.monotonic() + processes.TIMEOUT
    while not list(tmp_path.rglob("metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == -signal.SIGTERM
    (folder,) = tmp_path.glob("outputs/studies/*")
    assert [trial.state for trial in find_study(str(folder)).trials] == ["running"]
