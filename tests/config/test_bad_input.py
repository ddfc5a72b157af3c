"""Bad input at the real command line: what was got, what was expected, what to do; code 2, no
traceback, nothing lost.

More of it stands beside what refuses it: tests/protocols, test_sweep.py, tests/data, tests/study.
"""

import contextlib
import os
import resource
import sqlite3
import subprocess
from pathlib import Path

import pytest

from helpers import processes
from helpers.paths import ROOT
from synaptune.cli.main import main
from synaptune.config.guard import _arrange_words
from synaptune.core.errors import UserError
from synaptune.training import checkpoint

SMALL = ["scale=smoke", "logger=csv", "logger.progress=off"]
SWEEP = ["-m", *SMALL, "hydra/sweeper=random", "study.name=s"]


def train(folder: Path, *words: str, fresh: bool = False) -> subprocess.CompletedProcess:
    return processes.run([str(ROOT / "train.py"), *words], folder, fresh=fresh)


def refused(done: subprocess.CompletedProcess, said: str) -> None:
    """The form of every refusal."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("got "), done.stderr
    assert said in done.stderr
    assert "\n  to do: " in done.stderr
    assert "Traceback" not in done.stderr


@contextlib.contextmanager
def file_limit(size: int):
    """No file of this process may grow beyond `size` bytes: what a full disk is to one file,
    without being root.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """A file system of its own at `folder`; yields the function that gives it room."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o"]
    if (
        os.geteuid() != 0
        or subprocess.run(
            [*mount, f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("only root can mount a small disk")
    try:
        yield lambda: subprocess.run([*mount, "remount,size=50m", "tmpfs", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def ended(folder: Path) -> list[tuple]:
    """What is stored of the finished trials."""
    query = (
        "SELECT number, state, value, datetime_complete FROM trials JOIN trial_values USING"
        " (trial_id) ORDER BY number"
    )
    with contextlib.closing(sqlite3.connect(folder / "outputs/studies/s/study.db")) as database:
        return database.execute(query).fetchall()


def protocol(capsys, *words: str) -> subprocess.CompletedProcess:
    """The phase-1 program in this process, in the form of a finished command."""
    code = main(["phase1", "study.name=s", *words])
    return subprocess.CompletedProcess(words, code, *capsys.readouterr())


def test_every_fault_of_a_command_line_is_told_at_once(tmp_path):
    done = train(
        tmp_path, "synapse.calcium.tau_c=7", "training.batch=-3", "model.heads=7", "scale=smoke"
    )
    refused(done, "synapse.calcium.tau_c=7: expected 0.5 to 0.99")
    assert "training.batch=-3: expected" in done.stderr
    assert "model.heads=7" in done.stderr


@pytest.mark.parametrize("width", [10**14, 10**17])  # beyond the addresses, and beyond a number
def test_a_run_that_does_not_fit_into_the_memory_says_so(tmp_path, width):
    done = train(tmp_path, *SMALL, f"model.width={width}")
    refused(done, "got too little memory: ")
    assert "training.batch" in done.stderr


def test_a_cache_that_cannot_be_made_is_named(tmp_path):
    words, env = [str(ROOT / "train.py"), *SMALL], {"SYNAPTUNE_CACHE": "/proc/none"}
    done = processes.run(words, tmp_path, env=env)
    refused(done, "got the folder /proc/none")
    assert "SYNAPTUNE_CACHE" in done.stderr


def test_a_relative_path_is_one_of_the_first_working_folder(tmp_path):
    (tmp_path / "some.txt").write_text("some words\n" * 1000)
    words = [*SMALL, "training.steps=1", "data=text", "data.path=some.txt"]
    done = train(tmp_path, *words, "hydra.job.chdir=true", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/result.json").is_file()


def test_a_value_without_a_name_is_refused(tmp_path):
    refused(train(tmp_path, "training.steps", "=3"), "=3, a value without a name")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "--cfg", "job"], "--multirun with --cfg"),
        (["--cfg=job", "-m", "seed=1"], "--cfg with --multirun"),
        (["--shell-completion"], "install|uninstall|query=SHELL"),
        (["seed=1", "search.dry_run=true"], "search.dry_run=true for a run that no search"),
        (["-m", "seed=1,2", "search.dry_run=true"], "search.dry_run=true for a run that no search"),
    ],
)
def test_what_a_run_cannot_do_is_refused(tmp_path, words, said):
    done = train(tmp_path, *words, "scale=smoke")
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("metrics.csv"))


def test_flags_stand_anywhere_between_overrides(tmp_path):
    words = ["scale=smoke", "--cfg", "job", "seed=3", "-p", "seed", "~hydra.sweeper"]
    done = train(tmp_path, *words[:-1])
    assert (done.returncode, done.stdout.strip()) == (0, "3")
    assert _arrange_words(words) == [*words[1:3], *words[4:6], words[0], words[3], words[6]]


def test_the_help_of_hydra_ignores_the_choices_of_a_run(tmp_path):
    done = train(tmp_path, "--hydra-help", "scale=smoke")
    assert done.returncode == 0, done.stderr
    assert "hydra/sweeper: auto" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra.sweeper.optim.bugdet=3"], "closest: hydra.sweeper.optim.budget"),
        (["hydra/sweeper=nosuch"], "hydra/sweeper=auto|basic|cma|cmaes|gp|grid"),
    ],
)
def test_a_sweep_that_cannot_be_understood_is_refused(tmp_path, words, said):
    refused(train(tmp_path, *SWEEP, *words), said)
    assert not list(tmp_path.rglob("study.db"))


def test_a_study_of_another_configuration_or_damaged_is_left_as_it_is(tmp_path):
    assert train(tmp_path, *SWEEP, "hydra.sweeper.optim.budget=1").returncode == 0
    before = ended(tmp_path)
    refused(
        train(tmp_path, *SWEEP, "synapse.calcium.tau_c=0.9"),
        "synapse.calcium.tau_c: the study has 0.85, this command 0.9",
    )
    assert ended(tmp_path) == before
    database = tmp_path / "outputs/studies/s/study.db"
    damaged = database.read_bytes()[:1000] + os.urandom(50_000)
    database.write_bytes(damaged)
    refused(train(tmp_path, *SWEEP), "study.db, which is damaged")
    assert database.read_bytes() == damaged


@pytest.mark.slow
def test_a_search_on_a_full_disk_keeps_what_is_finished_and_goes_on_with_room(tmp_path):
    words = [*SWEEP, "hydra.sweeper.optim.budget=4"]
    with small_disk(tmp_path / "outputs", "2200k") as give_room:
        refused(train(tmp_path, *words), "space")
        before = ended(tmp_path)
        assert 1 <= len(before) < 4
        give_room()
        assert train(tmp_path, *words).returncode == 0
        assert len(ended(tmp_path)) == 4
        assert ended(tmp_path)[: len(before)] == before


@pytest.mark.slow
def test_a_run_on_a_full_disk_says_so(tmp_path):
    with file_limit(100_000):  # the program inherits it
        done = train(tmp_path, *SMALL, "data.max_bytes=20_000", "hydra.run.dir=run", fresh=True)
    refused(done, "checkpoint.pt (File too large)")


def test_a_checkpoint_without_space_leaves_the_one_before(tmp_path):
    import torch

    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"weights": torch.ones(10)})
    with file_limit(10_000), pytest.raises(UserError, match="no space to write"):
        checkpoint.save(path, {"weights": torch.ones(100_000)})
    assert checkpoint.load(path)["weights"].sum() == 10
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["protocol.budget=-3"], "budget=-3: expected at least 1"),
        (["synapse.calcium.tau_d=1"], "closest: synapse.calcium.tau_c"),
        (["synapse.calcium.tau_c=7"], "synapse.calcium.tau_c=7: expected 0.5 to 0.99"),
        (["=3"], "a value without a name"),
        (["search.recommend=bogus"], "search.recommend=bogus: expected posterior or observed"),
        (["search.incumbents=-1"], "search.incumbents=-1: expected at least 0"),
        (["search_space=base", "study.name=null"], "search_space=base, which has no name"),
        (["hydra.sweeper.optim.num_workers=-1"], "protocol.optimizer the strategy"),
        (["data=text", "data.path=empty.txt"], "empty.txt, an empty file"),
        (["data=text", "data.path=short.txt"], "more than one context of 64 tokens"),
        (["data=text", "data.path=nosuch.txt"], "nosuch.txt, which does not exist"),
    ],
)
def test_the_protocol_refuses_what_it_cannot_run(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("short")
    refused(protocol(capsys, *SMALL, *words), said)


def test_the_protocol_refuses_a_study_that_cannot_be_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    database = tmp_path / "outputs/studies/s/study.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"no database")
    refused(protocol(capsys, *SMALL), "study.db, which is not a SQLite database")
    assert database.read_bytes() == b"no database"
    database.unlink()
    database.mkdir()
    refused(protocol(capsys, *SMALL), "study.db, which is a folder")
    database.rmdir()
    with file_limit(30_000):
        refused(protocol(capsys, *SMALL), "a full or failing disk")
