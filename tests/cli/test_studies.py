"""`synaptune list|show|rm|rename|archive|gc`, retention of checkpoints, and dry runs."""

import json
import shutil
from pathlib import Path

import pytest

from helpers import phase1_study, processes
from helpers.paths import ROOT
from synaptune import TrialManager
from synaptune.cli.main import main
from synaptune.search.trial import find_best
from synaptune.study.location import StudyConfig, resolve_location
from synaptune.study.reader import RECOMMENDED, find_study, read_study
from synaptune.study.study import Study

SEARCH = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
from helpers import phase1_study
folder, text = map(Path, sys.argv[1:])
phase1_study.make_study(folder, "training.keep=best:1", f"data.path={{text}}")
"""


def search(folder: Path, text: Path) -> None:
    """Make a small study of training runs, or continue it, in a process that then ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = processes.run(["-c", SEARCH, str(folder), str(text)], folder.parent)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A working folder with a small study of training runs."""
    folder = tmp_path_factory.mktemp("work")
    search(folder / "outputs/studies/mine", folder / "outputs/studies/words.txt")
    return folder


@pytest.fixture
def work(original, tmp_path, monkeypatch) -> Path:
    """A copy of it, in which the commands run."""
    shutil.copytree(original, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def run(capsys, *words: str) -> str:
    assert main(list(words)) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def run_refused(capsys, *words: str) -> str:
    assert main(list(words)) == 2
    return capsys.readouterr().err


def list_studies(capsys, *words: str) -> list[dict]:
    return json.loads(run(capsys, "list", "--json", *words))


def list_checkpoints(work: Path) -> list[int]:
    folder = work / "outputs/studies/mine/trials"
    return sorted(int(path.parent.name) for path in folder.glob("*/checkpoint.pt"))


def test_the_list_shows_state_trials_best_size_and_age(work, capsys):
    (row,) = list_studies(capsys)
    snapshot = find_study("mine")
    best = min(trial.objective for trial in snapshot.search_trials)
    assert (row["study"], row["state"], row["best"]) == ("mine", "ended", best)
    assert row["trials"] == len(snapshot.trials) == 6
    assert row["size_bytes"] > 100_000
    lines = run(capsys, "list").splitlines()
    assert lines[0].split() == ["study", "state", "trials", "best", "size", "last", "event"]
    assert lines[1].split()[:3] == ["mine", "ended", "6"]
    assert run(capsys, "list", str(work / "outputs")).startswith("no studies in ")


def test_show_names_phases_best_point_and_checkpoints(work, capsys):
    shown = json.loads(run(capsys, "show", "mine", "--json"))
    assert [phase["phase"] for phase in shown["phases"]] == ["search", "validation"]
    assert set(shown["best"]["values"]) == set(phase1_study.NAMES)
    text = run(capsys, "show", "mine")
    assert "of it checkpoints" in text
    assert all(name in text for name in phase1_study.NAMES)


def test_show_has_the_values_of_the_recommended_trial(work, capsys):
    snapshot = find_study("mine")
    trials = snapshot.search_trials
    best = find_best(trials)
    other = next(trial for trial in trials if trial.number != best.number)
    choice = {"of": [trials[-1].number, len(trials)], "trial": other.number}
    with Study(resolve_location(StudyConfig("mine"), "mine"), snapshot.configuration) as study:
        study.write_note(RECOMMENDED, {"search": choice})
    shown = json.loads(run(capsys, "show", "mine", "--json"))
    assert shown["best"]["trial"] == best.number
    assert (shown["recommended"]["trial"], shown["recommended"]["values"]) == (
        other.number,
        other.values,
    )
    assert f"recommended, as in best.yaml: trial {other.number}" in run(capsys, "show", "mine")


def test_a_study_is_removed_only_after_a_yes(work, capsys, monkeypatch):
    error = run_refused(capsys, "rm", "mine")
    assert "remove study mine: 6 trials" in error
    assert "--yes" in error
    assert list_studies(capsys)
    assert "removed study mine: 6 trials" in run(capsys, "rm", "mine", "--yes")
    assert not (work / "outputs/studies/mine").exists()
    assert list_studies(capsys) == []


def test_a_folder_with_other_files_is_not_removed(work, capsys):
    shutil.move("outputs/studies/mine", "elsewhere")
    Path("elsewhere/thesis.tex").write_text("mine")
    assert "also holds thesis.tex" in run_refused(capsys, "rm", "elsewhere", "--yes")
    assert Path("elsewhere/study.db").exists()
    Path("elsewhere/thesis.tex").unlink()
    run(capsys, "rm", "elsewhere", "--yes", "--quiet")
    assert not Path("elsewhere").exists()


def test_a_running_study_is_neither_removed_nor_renamed_nor_collected(work, capsys):
    code = """
import time
from pathlib import Path
from synaptune.study.location import StudyConfig, resolve_location
from synaptune.study.reader import find_study
from synaptune.study.study import Study
location = resolve_location(StudyConfig("mine"), "mine")
with Study(location, find_study("mine").configuration):
    Path("held").touch()
    time.sleep(600)
"""
    process = processes.start(["-c", code], work)
    try:
        while not Path("held").exists():
            assert process.poll() is None
        for words in (["rm", "mine", "--yes"], ["rename", "mine", "other"], ["gc", "mine"]):
            assert "another process is running" in run_refused(capsys, *words)
        assert main(["gc"]) == 0
        assert "left out: got study mine" in capsys.readouterr().err
        run(capsys, "archive", "mine")  # changes nothing that a search needs
    finally:
        process.kill()
        process.wait()
    assert len(find_study("mine").trials) == 6


def test_a_renamed_study_is_found_under_its_new_name_only(work, original, capsys):
    before = find_study("mine")
    assert "renamed study mine to other" in run(capsys, "rename", "mine", "other")
    after = find_study("other")
    assert after.name == "other"
    assert after.trials == before.trials
    assert not Path("outputs/studies/mine").exists()
    assert "no study database" in run_refused(capsys, "show", "mine")
    # A search under the new name continues it.
    search(work / "outputs/studies/other", original / "outputs/studies/words.txt")
    assert find_study("other").trials == before.trials
    Path("outputs/studies/taken").mkdir()
    assert "exists" in run_refused(capsys, "rename", "other", "taken")
    for name in ("a/b", ""):
        assert "no name of a folder" in run_refused(capsys, "rename", "other", name)


@pytest.mark.parametrize("words", [["rm", "--yes"], ["archive"], ["show"], ["gc"]])
def test_an_empty_name_is_not_the_study_of_the_working_folder(work, capsys, monkeypatch, words):
    monkeypatch.chdir(work / "outputs/studies/mine")
    assert "an empty name of a study" in run_refused(capsys, words[0], "", *words[1:])
    url = f"sqlite:///{Path.cwd()}/study.db"
    assert "no such studies" in run_refused(capsys, words[0], "", *words[1:], "--storage", url)
    assert Path("study.db").exists()


def test_an_archived_study_is_hidden_until_it_is_listed_again(work, capsys):
    run(capsys, "archive", "mine")
    assert list_studies(capsys) == []
    assert "1 archived (--all lists them)" in run(capsys, "list")
    (row,) = list_studies(capsys, "--all")
    assert row["state"] == "archived"
    run(capsys, "archive", "--undo", "mine")
    assert [row["study"] for row in list_studies(capsys)] == ["mine"]


def test_a_study_in_a_shared_database_is_managed_by_its_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/shared.db"
    for name in ("a", "b"):
        manager = TrialManager(name, n_trials=3, sampler="random", storage=url, progress=False)
        manager.optimize(lambda values: values["x"], {"x": ("uniform", 0.0, 1.0)})
    assert {row["study"] for row in list_studies(capsys, "--storage", url)} == {"a", "b"}
    run(capsys, "rename", "a", "c", "--storage", url)
    assert Path("outputs/studies/c").is_dir()
    assert "exists" in run_refused(capsys, "rename", "c", "b", "--storage", url)
    shutil.rmtree("outputs/studies/b")
    assert "a study of the same database" in run_refused(
        capsys, "rename", "c", "b", "--storage", url
    )
    run(capsys, "rm", "b", "--yes", "--storage", url)
    assert [row["study"] for row in list_studies(capsys, "--storage", url)] == ["c"]
    assert len(read_study(url, "c").trials) == 3


def test_a_search_keeps_the_checkpoints_of_the_best_trials_of_each_phase(work):
    trials = find_study("mine").trials
    phases = {trial.facts["phase"] for trial in trials}
    best = [
        min((trial for trial in trials if trial.facts["phase"] == phase), key=lambda t: t.objective)
        for phase in phases
    ]
    assert list_checkpoints(work) == sorted(trial.number for trial in best)


def test_gc_frees_what_nothing_needs_and_says_so_first(work, original, capsys):
    study = work / "outputs/studies/mine"
    for path in ("trials/77", "portraits/best"):
        (study / path).mkdir(parents=True)
        (study / path / "checkpoint.pt").write_bytes(b"x" * 1000)
    kept = list_checkpoints(work)
    planned = json.loads(run(capsys, "gc", "--keep", "0", "--runs", "--dry-run", "--json"))
    assert list_checkpoints(work) == kept
    freed = json.loads(run(capsys, "gc", "--keep", "0", "--runs", "--json"))
    assert (freed["removed"], planned["dry_run"]) == (planned["removed"], True)
    assert freed["bytes"] == sum(entry["bytes"] for entry in freed["removed"]) > 100_000
    assert not list(study.rglob("checkpoint.pt"))
    assert not list((study / "trials").iterdir())
    assert len(find_study("mine").trials) == 6
    # The search, its report and an ablation go on without these files.
    search(study, original / "outputs/studies/words.txt")
    run(capsys, "report", "mine", "--format", "md")
    assert "freed 0 B" in run(capsys, "gc")


def test_gc_leaves_the_best_trials_of_each_phase(work, capsys):
    kept = list_checkpoints(work)
    assert "freed 0 B in 0 files" in run(capsys, "gc", "mine")
    run(capsys, "gc", "mine", "--runs", "--keep", "1")
    folders = sorted(int(path.name) for path in (work / "outputs/studies/mine/trials").iterdir())
    assert folders == kept == list_checkpoints(work)


def test_a_study_of_trial_manager_in_a_folder_of_its_own_is_removed_with_its_locks(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    manager = TrialManager("mine", n_trials=2, directory=tmp_path / "mine", progress=False)
    manager.optimize(lambda p: p["x"], {"x": ("uniform", 0, 1)})
    run(capsys, "rm", str(tmp_path / "mine"), "--yes")
    assert not (tmp_path / "mine").exists()
