"""Which studies may be continued: ours of this version; others are refused and left as they are."""

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


def place(folder, resume="auto"):
    return StudyLocation("s", folder, f"sqlite:///{folder}/study.db", resume)


def written(folder):
    """A study with one trial; returns Optuna's view of it."""
    with Study(place(folder), CONFIGURATION) as study:
        book = PhaseLedger(study, SPACE, "search", {})
        book.finish(book.start(0, (0.5,), {"x": 0.5}, 0), Result(1.0, 0.1))
    return optuna.load_study(study_name="s", storage=place(folder).url)


def set_notes(theirs, **notes):
    for name, value in notes.items():
        theirs.set_user_attr(name, value)


def remove_note(theirs, name):
    """Optuna has no call for it."""
    import sqlite3

    path = theirs._storage._backend.url.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection:
        assert (
            connection.execute("DELETE FROM study_user_attributes WHERE key = ?", (name,)).rowcount
            == 1
        )


def test_a_study_says_which_version_wrote_it(tmp_path):
    notes = written(tmp_path).user_attrs
    assert (notes["schema_version"], notes["synaptune_version"]) == (
        schema.SCHEMA_VERSION,
        get_code_version(),
    )


@pytest.mark.parametrize("version", [2, 0])
def test_a_study_of_another_version_is_refused_and_left_as_it_is(tmp_path, version):
    theirs = written(tmp_path)
    set_notes(theirs, schema_version=version, synaptune_version="9.9")
    with pytest.raises(UserError, match=rf"schema version {version}, written by synaptune 9\.9"):
        Study(place(tmp_path), CONFIGURATION)
    assert len(theirs.get_trials()) == 1


def test_a_study_from_before_versions_were_written_goes_on(tmp_path):
    theirs = written(tmp_path)
    remove_note(theirs, "schema_version")
    remove_note(theirs, "synaptune_version")
    with Study(place(tmp_path), CONFIGURATION) as study:
        assert [trial.objective for trial in study.read_trials("search")] == [1.0]


def test_a_study_of_another_program_is_refused_and_left_as_it_is(tmp_path):
    theirs = optuna.create_study(study_name="s", storage=place(tmp_path).url)
    theirs.optimize(lambda trial: trial.suggest_float("y", 0, 1), n_trials=2)
    with pytest.raises(UserError, match="which another program made"):
        Study(place(tmp_path), CONFIGURATION)
    assert len(theirs.get_trials()) == 2


def test_a_study_whose_creation_was_cut_short_is_begun_anew(tmp_path):
    optuna.create_study(study_name="s", storage=place(tmp_path).url)
    with Study(place(tmp_path, "auto"), CONFIGURATION) as study:
        assert study.read_note(schema.CONFIGURATION) == CONFIGURATION


def test_a_trial_that_another_program_added_is_named(tmp_path):
    theirs = written(tmp_path)
    theirs.ask()
    with (
        Study(place(tmp_path), CONFIGURATION) as study,
        pytest.raises(UserError, match=r"trial 1 of study s .* which another program added"),
    ):
        study.read_trials()
