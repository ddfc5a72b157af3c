"""The copy of a study that is kept in step while its search runs."""

import shutil

import pytest

from synaptune.core.errors import UserError
from synaptune.search.optimizers.registry import Engine
from synaptune.search.plan import Plan
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Result
from synaptune.search.workers.base import InlineWorkers
from synaptune.study.location import StudyConfig, StudyLocation, resolve_location
from synaptune.study.mirror import make_mirror
from synaptune.study.optimize import PhaseSearch, optimize
from synaptune.study.reader import read_study
from synaptune.study.study import PhaseLedger, Study

SPACE = Space(tuple(Dimension(name, "lin", 0.0, 1.0, start=0.5) for name in "xy"))


def search(folder, mirror, budget, evaluate=None):
    """Search a bowl in a study `s`; returns the units of its trials."""
    location = StudyLocation("s", folder, f"sqlite:///{folder}/study.db", "auto", mirror=mirror)

    def run(trial):
        if evaluate is not None:
            evaluate(trial)
        (run_folder := location.trials_folder / str(trial.number)).mkdir(parents=True)
        (run_folder / "result.json").write_text("{}")
        (run_folder / "checkpoint.pt").write_text("large")
        return Result(sum((value - 0.3) ** 2 for value in trial.unit), 1.0)

    with Study(location, {"a": 1}) as study:
        ledger = PhaseLedger(study, SPACE, "search", {})
        engine = Engine("cma", 3, workers=1)
        (trials,) = optimize([PhaseSearch(ledger, engine, Plan(budget))], InlineWorkers(run))
    return [trial.unit for trial in trials]


def test_a_copy_follows_the_generations_and_continues_the_study_at_its_place(tmp_path):
    folder, mirror = tmp_path / "here", tmp_path / "there"
    seen = []

    def look(trial):
        if (mirror / "s/study.db").exists():
            seen.append(len(read_study(f"sqlite:///{mirror}/s/study.db").trials))

    search(folder, f"file://{mirror}", 24, look)
    assert 0 < min(seen) < 24
    copied = read_study(f"sqlite:///{mirror}/s/study.db")
    assert copied.trials == read_study(f"sqlite:///{folder}/study.db").trials
    assert (mirror / "s/generations.jsonl").exists()
    assert sorted(path.name for path in (mirror / "s/trials/7").iterdir()) == ["result.json"]
    assert not list(mirror.rglob("*.part"))
    whole = search(tmp_path / "whole", None, 30)
    shutil.rmtree(folder)
    shutil.copytree(mirror / "s", folder)
    assert search(folder, None, 30) == whole


def test_a_copy_that_fails_is_reported_once_and_ends_no_search(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    assert len(search(tmp_path / "here", f"file://{tmp_path}/file/below", 18)) == 18
    assert capsys.readouterr().out.count("mirror: no copy in") == 1


def test_an_unknown_place_is_refused_before_the_study_is_made(tmp_path):
    config = StudyConfig(name="s", dir=str(tmp_path / "s"), mirror="nosuch://bucket/folder")
    with pytest.raises(UserError, match="nosuch"):
        make_mirror(resolve_location(config, "s"))
