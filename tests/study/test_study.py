"""The study in its database: durable, refused when unreadable, honest about what differs."""

import sqlite3
import subprocess
import sys

import optuna
import pytest

from synaptune.core.errors import UserError
from synaptune.report.dashboard.study_status import read_statuses
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Result, make_failure
from synaptune.study.artifacts import write_best
from synaptune.study.location import StudyLocation
from synaptune.study.reader import read_study
from synaptune.study.study import PhaseLedger, Study

SPACE = Space(
    (
        Dimension("x", "log", 0.1, 10.0),
        Dimension("n", "lin", 1, 5, integer=True),
        Dimension("c", "categorical", choices=("a", True, 3)),
    )
)
VALUES = {"x": 0.5, "n": 2, "c": True}


def place(folder, resume="auto", url=None):
    return StudyLocation("s", folder, url or f"sqlite:///{folder}/study.db", resume)


def ledger(study, phase="search"):
    return PhaseLedger(study, SPACE, phase, {"seed": 4})


def test_a_trial_comes_back_as_it_was_written(tmp_path):
    with Study(place(tmp_path), {}) as study:
        begun = ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0)
        running = ledger(study).read_trials()
        ended = ledger(study).finish(
            begun,
            Result(1.5, 2.0, {"val_loss": 1.5, "odd": float("nan")}, {"data_fingerprint": "d"}),
        )
    with Study(place(tmp_path), {}) as study:
        (back,) = ledger(study).read_trials()
    assert [trial.state for trial in running] == ["running"]
    assert (back.number, back.values, back.unit, back.objective) == (
        0,
        VALUES,
        (0.1, 0.2, 0.3),
        1.5,
    )
    assert back.facts == ended.facts | {"odd": "nan"}
    assert (back.facts["seed"], back.facts["seconds"], back.facts["data_fingerprint"]) == (
        4,
        2.0,
        "d",
    )


def test_phases_are_counted_apart_and_numbered_together(tmp_path):
    with Study(place(tmp_path), {}) as study:
        for phase in ("sanity", "search", "sanity"):
            ledger(study, phase).start(len(study.read_trials(phase)), (0.5, 0.5, 0.5), VALUES, 0)
        assert [(trial.number, trial.index) for trial in study.read_trials("sanity")] == [
            (0, 0),
            (2, 1),
        ]
        assert [(trial.number, trial.index) for trial in study.read_trials("search")] == [(1, 0)]


def test_optuna_itself_reads_the_study(tmp_path):
    with Study(place(tmp_path), {}) as study:
        ledger(study).finish(ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0), Result(1.5, 2.0))
    loaded = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/study.db")
    assert loaded.best_params == VALUES
    assert sqlite3.connect(tmp_path / "study.db").execute("pragma journal_mode").fetchone() == (
        "wal",
    )


def finished_study(folder):
    with Study(place(folder), {"a": 1, "b": 2}) as study:
        ledger(study).finish(ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0), Result(1.5, 2.0))


def test_another_configuration_is_refused_with_the_differing_keys(tmp_path):
    finished_study(tmp_path)
    with pytest.raises(
        UserError,
        match=(
            r"2 differ\n  b: the study has 2, this command 3\n  c: the study has \(absent\), this"
            r" command 4"
        ),
    ):
        Study(place(tmp_path), {"a": 1, "b": 3, "c": 4})
    Study(place(tmp_path), {"b": 2, "a": 1}).close()


def test_a_study_in_which_nothing_finished_may_be_begun_anew(tmp_path):
    with Study(place(tmp_path), {"path": "wrong"}) as study:
        ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0)
    with Study(place(tmp_path), {"path": "right"}) as study:
        assert study.read_trials() == []


def test_resume_must_and_never_mean_it(tmp_path):
    with pytest.raises(UserError, match="must"):
        Study(place(tmp_path, "must"), {})
    finished_study(tmp_path)
    with pytest.raises(UserError, match="never"):
        Study(place(tmp_path, "never"), {"a": 1, "b": 2})


@pytest.mark.parametrize(
    "content",
    [b"this is no database, whatever its name may say", b"SQLite format 3\0" + b"\xff" * 5000],
)
def test_an_unreadable_database_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "study.db").write_bytes(content)
    with pytest.raises(UserError, match="to do"):
        Study(place(tmp_path), {})
    assert (tmp_path / "study.db").read_bytes() == content


def test_a_folder_in_the_databases_place_is_refused(tmp_path):
    (tmp_path / "study.db").mkdir()
    with pytest.raises(UserError, match=r"study\.db"):
        Study(place(tmp_path), {})


def test_a_database_out_of_reach_is_refused(tmp_path):
    with pytest.raises(UserError, match="to do"):
        Study(place(tmp_path, url="nosuchdatabase://host/name"), {})


@pytest.mark.parametrize("url", ["postgresql://user:secret@host:54a32/name", "no address at all"])
def test_an_address_that_cannot_be_read_is_refused_in_words(tmp_path, url):
    for opening in (
        lambda: Study(place(tmp_path, url=url), {}),
        lambda: read_study(url, "s"),
        lambda: read_statuses(url),
    ):
        with pytest.raises(UserError, match="dialect://user@host:port/database") as raised:
            opening()
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("driver", "url", "said"),
    [
        ("psycopg", "postgresql://user:secret@host/name", r"pip install 'synaptune\[postgres\]'"),
        ("pymysql", "mysql://user:secret@host/name", r"pip install 'synaptune\[mysql\]'"),
    ],
)
def test_a_missing_driver_is_named_with_what_to_install(tmp_path, monkeypatch, driver, url, said):
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(UserError, match=said) as raised:
        Study(place(tmp_path, url=url), {})
    assert "secret" not in str(raised.value)


def test_a_full_disk_is_said_and_loses_nothing(tmp_path):
    finished_study(tmp_path)
    with Study(place(tmp_path), {"a": 1, "b": 2}) as study:
        connection = study._storage.engine.raw_connection()
        pages = connection.cursor().execute("pragma page_count").fetchone()[0]
        connection.cursor().execute(f"pragma max_page_count={pages}")
        connection.close()
        with pytest.raises(UserError, match="full"):
            study.write_note("large", "x" * 1_000_000)
    with Study(place(tmp_path), {"a": 1, "b": 2}) as study:
        assert [trial.state for trial in study.read_trials()] == ["complete"]


def test_one_process_at_a_time(tmp_path):
    code = f"""
from pathlib import Path
from synaptune.study.location import StudyLocation
from synaptune.study.study import Study
Study(StudyLocation("s", Path({str(tmp_path)!r}), "sqlite:///{tmp_path}/study.db", "auto"), {{}})
"""
    with Study(place(tmp_path), {}):
        other = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
    assert "another process" in other.stderr
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode
        == 0
    )


def test_best_yaml_holds_the_parameters_and_what_the_space_fixed(tmp_path):
    from omegaconf import OmegaConf

    with Study(place(tmp_path), {}) as study:
        best = ledger(study).finish(
            ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0), Result(1.5, 2.0)
        )
    write_best(tmp_path / "best.yaml", "s", best, {"width": 32})
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "best.yaml")) == {
        "parameters": {"width": 32, **VALUES}
    }
    assert "trial 0" in (tmp_path / "best.yaml").read_text()


def test_a_pruned_trial_keeps_its_estimate_and_has_no_objective(tmp_path):
    with Study(place(tmp_path), {}) as study:
        begun = ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0)
        ended = ledger(study).finish(
            begun, Result(None, 2.0, {"val_loss": 3.0}, pruned=True, estimate=1.25)
        )
        (back,) = ledger(study).read_trials()
    assert back == ended
    assert (back.state, back.objective, back.estimate, back.reason) == ("pruned", None, 1.25, None)
    assert "estimate" not in back.facts
    (theirs,) = optuna.load_study(study_name="s", storage=place(tmp_path).url).trials
    assert (theirs.state.name, theirs.user_attrs["estimate"]) == ("PRUNED", 1.25)


def test_a_pruned_trial_with_an_error_has_failed(tmp_path):
    with Study(place(tmp_path), {}) as study:
        begun = ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0)
        ended = ledger(study).finish(
            begun, Result(None, 2.0, failure=make_failure(ValueError("no")), pruned=True)
        )
    assert (ended.state, ended.reason) == ("failed", "ValueError: no")


def test_reported_values_come_back_by_step_and_the_last_word_counts(tmp_path):
    with Study(place(tmp_path), {}) as study:
        trial = ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0)
        assert ledger(study).read_intermediate_values(trial) == {}
        for step, value in ((20, 2.0), (10, 3.0), (20, 1.5), (30, float("inf"))):
            ledger(study).report(trial, value, step)
    with Study(place(tmp_path), {}) as study:
        (back,) = ledger(study).read_trials()
        assert list(ledger(study).read_intermediate_values(back).items()) == [
            (10, 3.0),
            (20, 1.5),
            (30, float("inf")),
        ]
        ledger(study).report(back, 1.0, 40)


def test_attempts_are_counted_while_the_trial_runs_on(tmp_path):
    with Study(place(tmp_path), {}) as study:
        trial = ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0)
        trial = ledger(study).record_retry(trial, "the worker died")
    with Study(place(tmp_path), {}) as study:
        (back,) = ledger(study).read_trials()
        assert back == trial
        trial = ledger(study).record_retry(back, "out of memory")
        assert (trial.state, trial.facts["attempts"]) == (
            "running",
            ["the worker died", "out of memory"],
        )
        ledger(study).finish(trial, Result(1.0, 0.1))
        assert ledger(study).read_trials()[0].facts["attempts"] == trial.facts["attempts"]


def test_an_ended_trial_takes_no_second_end(tmp_path):
    with Study(place(tmp_path), {}) as study:
        trial = ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0)
        ledger(study).finish(trial, Result(1.0, 0.1))
        with pytest.raises(UserError, match="already finished"):
            ledger(study).finish(trial, Result(2.0, 0.1))
        assert ledger(study).read_trials()[0].objective == 1.0


def test_our_reader_and_optunas_see_the_same_trials(tmp_path):
    with Study(place(tmp_path), {}) as study:
        book = ledger(study)
        for index, result in enumerate(
            (
                Result(1.5, 2.0, {"odd": float("nan")}),
                Result(None, 1.0, pruned=True),
                Result(None, 1.0),
            )
        ):
            book.finish(
                book.start(
                    index, (0.1, 0.2, 0.3), VALUES | {"n": 1 + index, "c": ("a", True, 3)[index]}, 0
                ),
                result,
            )
        book.start(3, (0.1, 0.2, 0.3), VALUES, 0)
        ours = study.read_trials()
        theirs = study._storage.get_all_trials(study._id)
    names = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "running": "RUNNING"}
    assert [names[trial.state] for trial in ours] == [trial.state.name for trial in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.number, list(mine.values.items()), mine.objective) == (
            other.number,
            list(other.params.items()),
            other.value,
        )
        assert {**mine.facts, "index": mine.index, "unit": list(mine.unit)} == other.user_attrs
