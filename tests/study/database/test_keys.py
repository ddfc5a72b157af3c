"""Only studies of this version of synaptune are continued; others are refused and not changed."""

import optuna
import pytest

from synaptune.core.errors import UserError
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Result
from synaptune.study.database import keys as schema
from synaptune.study.location import StudyLocation
from synaptune.study.provenance import get_code_version
from synaptune.study.study import PhaseLedger, Study

SPACE = Space((Dimension("x", "lin", 0.0, 1.0),))
CONFIGURATION = {"a": 1}


def make_location(folder, resume="auto"):
    return StudyLocation("s", folder, f"sqlite:///{folder}/study.db", resume)


def write_study(folder):
    """Write a study with one trial; return the study as Optuna loads it."""
    with Study(make_location(folder), CONFIGURATION) as study:
        ledger = PhaseLedger(study, SPACE, "search", {})
        ledger.finish(ledger.start(0, (0.5,), {"x": 0.5}, 0), Result(1.0, 0.1))
    return optuna.load_study(study_name="s", storage=make_location(folder).url)


def set_notes(optuna_study, **notes):
    for name, value in notes.items():
        optuna_study.set_user_attr(name, value)


def remove_note(optuna_study, name):
    """Remove a note with SQL, since Optuna has no function for it."""
    import sqlite3

    path = optuna_study._storage._backend.url.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection:
        assert (
            connection.execute("DELETE FROM study_user_attributes WHERE key = ?", (name,)).rowcount
            == 1
        )


def test_a_study_stores_the_version_that_wrote_it(tmp_path):
    notes = write_study(tmp_path).user_attrs
    assert (notes["schema_version"], notes["synaptune_version"]) == (
        schema.SCHEMA_VERSION,
        get_code_version(),
    )


@pytest.mark.parametrize("version", [2, 0])
def test_a_study_of_another_version_is_refused_and_not_changed(tmp_path, version):
    optuna_study = write_study(tmp_path)
    set_notes(optuna_study, schema_version=version, synaptune_version="9.9")
    with pytest.raises(UserError, match=rf"schema version {version}, written by synaptune 9\.9"):
        Study(make_location(tmp_path), CONFIGURATION)
    assert len(optuna_study.get_trials()) == 1


def test_a_study_without_a_version_is_continued(tmp_path):
    optuna_study = write_study(tmp_path)
    remove_note(optuna_study, "schema_version")
    remove_note(optuna_study, "synaptune_version")
    with Study(make_location(tmp_path), CONFIGURATION) as study:
        assert [trial.objective for trial in study.read_trials("search")] == [1.0]


def test_a_study_of_another_program_is_refused_and_not_changed(tmp_path):
    optuna_study = optuna.create_study(study_name="s", storage=make_location(tmp_path).url)
    optuna_study.optimize(lambda trial: trial.suggest_float("y", 0, 1), n_trials=2)
    with pytest.raises(UserError, match="which another program made"):
        Study(make_location(tmp_path), CONFIGURATION)
    assert len(optuna_study.get_trials()) == 2


def test_a_study_whose_creation_was_interrupted_is_created_again(tmp_path):
    optuna.create_study(study_name="s", storage=make_location(tmp_path).url)
    with Study(make_location(tmp_path, "auto"), CONFIGURATION) as study:
        assert study.read_note(schema.CONFIGURATION) == CONFIGURATION


def test_a_trial_of_another_program_is_reported_with_its_number(tmp_path):
    optuna_study = write_study(tmp_path)
    optuna_study.ask()
    with (
        Study(make_location(tmp_path), CONFIGURATION) as study,
        pytest.raises(UserError, match=r"trial 1 of study s .* which another program added"),
    ):
        study.read_trials()
