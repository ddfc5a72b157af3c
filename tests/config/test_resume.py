"""An interrupted run continues from the configuration in its own folder."""

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import processes
from helpers.paths import ROOT
from synaptune.config.resume import expand_resume
from synaptune.core.errors import UserError
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
    for others in (words[:1], words[1:], ["-m", *words], ["hydra.run.dir=none", *words[1:]]):
        assert expand_resume(others) == others
    assert Path(path).read_text().count("\n") == 3


def test_a_folder_without_a_run_is_not_continued(tmp_path):
    words = [f"hydra.run.dir={tmp_path}/none", "training.resume=true"]
    with pytest.raises(UserError, match="none, which has no run"):
        expand_resume(words)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none, which has no run"):
        expand_resume(words)
    (tmp_path / "none/checkpoint.pt").touch()
    assert expand_resume(words) == words


@pytest.mark.parametrize("content", [b"- [", b"a: 1", b"- a: 1", b"text", b"", b"\xff\xfe\xff"])
def test_damaged_overrides_of_a_run_are_refused(tmp_path, content):
    path = tmp_path / ".hydra" / "overrides.yaml"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"overrides\.yaml, which cannot be read"):
        expand_resume([f"hydra.run.dir={tmp_path}", "training.resume=true"])


def test_a_run_does_not_replace_the_results_of_another(tmp_path):
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    for name in ("metrics.csv", "train.log"):  # of a run that ended before its first checkpoint
        (folder / name).touch()
    words = [
        TRAIN,
        *WORDS[:2],
        "training.steps=1",
        "name=run",
        f"hydra.run.dir={tmp_path}/${{name}}",
    ]
    assert processes.run(words, tmp_path).returncode == 0
    before = read_files(folder)
    refused = processes.run([*words, "seed=1"], tmp_path)
    assert refused.returncode == 2
    assert f"{folder}, which has the result.json and checkpoint.pt of a run" in refused.stderr
    assert "training.resume=true" in refused.stderr
    assert read_files(folder) == before


def read_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra.job.name=x/y"], "No such file or directory"),
        (["hydra.job_logging.root.level=BOGUS"], "Unknown level: 'BOGUS'"),
        (["hydra.run.dir=/proc/none"], "the folder /proc/none: "),
        (["hydra.run.dir=/proc/self"], "a log that cannot be written"),
    ],
)
def test_a_folder_or_log_that_cannot_be_written_is_named(tmp_path, words, said):
    refused = processes.run([TRAIN, *WORDS, *words], tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("got ")
    assert said in refused.stderr


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
