"""Studies in a database: durability, refusal of other configurations, readable errors."""

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


def make_location(folder, resume="auto", url=None):
    return StudyLocation("s", folder, url or f"sqlite:///{folder}/study.db", resume)


def make_ledger(study, phase="search"):
    return PhaseLedger(study, SPACE, phase, {"seed": 4})


def test_a_trial_is_read_as_it_was_written(tmp_path):
    with Study(make_location(tmp_path), {}) as study:
        started = make_ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0)
        running = make_ledger(study).read_trials()
        ended = make_ledger(study).finish(
            started,
            Result(1.5, 2.0, {"val_loss": 1.5, "odd": float("nan")}, {"data_fingerprint": "d"}),
        )
    with Study(make_location(tmp_path), {}) as study:
        (stored,) = make_ledger(study).read_trials()
    assert [trial.state for trial in running] == ["running"]
    assert (stored.number, stored.values, stored.unit, stored.objective) == (
        0,
        VALUES,
        (0.1, 0.2, 0.3),
        1.5,
    )
    assert stored.facts == ended.facts | {"odd": "nan"}
    assert (stored.facts["seed"], stored.facts["seconds"], stored.facts["data_fingerprint"]) == (
        4,
        2.0,
        "d",
    )


def test_trials_have_an_index_in_their_phase_and_a_number_in_the_study(tmp_path):
    with Study(make_location(tmp_path), {}) as study:
        for phase in ("sanity", "search", "sanity"):
            make_ledger(study, phase).start(
                len(study.read_trials(phase)), (0.5, 0.5, 0.5), VALUES, 0
            )
        assert [(trial.number, trial.index) for trial in study.read_trials("sanity")] == [
            (0, 0),
            (2, 1),
        ]
        assert [(trial.number, trial.index) for trial in study.read_trials("search")] == [(1, 0)]


def test_optuna_reads_the_study(tmp_path):
    with Study(make_location(tmp_path), {}) as study:
        make_ledger(study).finish(
            make_ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0), Result(1.5, 2.0)
        )
    loaded = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/study.db")
    assert loaded.best_params == VALUES
    assert sqlite3.connect(tmp_path / "study.db").execute("pragma journal_mode").fetchone() == (
        "wal",
    )


def finished_study(folder):
    with Study(make_location(folder), {"a": 1, "b": 2}) as study:
        make_ledger(study).finish(
            make_ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0), Result(1.5, 2.0)
        )


def test_another_configuration_is_refused_with_the_differing_keys(tmp_path):
    finished_study(tmp_path)
    with pytest.raises(
        UserError,
        match=(
            r"2 differ\n  b: the study has 2, this command 3\n  c: the study has \(absent\), this"
            r" command 4"
        ),
    ):
        Study(make_location(tmp_path), {"a": 1, "b": 3, "c": 4})
    Study(make_location(tmp_path), {"b": 2, "a": 1}).close()


def test_values_that_an_earlier_version_stored_become_the_references_they_were(tmp_path):
    finished_study(tmp_path)
    written = {"a": "${oc.env:A}", "group": "${other}"}
    earlier = {"a": {"a": 1}, "group": {"b": 2}}
    with Study(make_location(tmp_path), written, references=earlier) as study:
        assert study.configuration == {"a": 1, "b": 2}
    with pytest.raises(UserError, match=r"a: the study has 1, this command \$\{oc\.env:A\}"):
        Study(make_location(tmp_path), written, references=earlier | {"a": {"a": 3}})


def test_a_study_without_an_ended_trial_can_be_replaced(tmp_path):
    with Study(make_location(tmp_path), {"path": "wrong"}) as study:
        make_ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0)
    with Study(make_location(tmp_path), {"path": "right"}) as study:
        assert study.read_trials() == []


def test_resume_must_needs_a_study_and_never_needs_none(tmp_path):
    with pytest.raises(UserError, match="must"):
        Study(make_location(tmp_path, "must"), {})
    finished_study(tmp_path)
    with pytest.raises(UserError, match="never"):
        Study(make_location(tmp_path, "never"), {"a": 1, "b": 2})


@pytest.mark.parametrize(
    "content",
    [b"this is no database, whatever its name may say", b"SQLite format 3\0" + b"\xff" * 5000],
)
def test_an_unreadable_database_is_refused_and_not_changed(tmp_path, content):
    (tmp_path / "study.db").write_bytes(content)
    with pytest.raises(UserError, match="to do"):
        Study(make_location(tmp_path), {})
    assert (tmp_path / "study.db").read_bytes() == content


def test_a_folder_with_the_name_of_the_database_is_refused(tmp_path):
    (tmp_path / "study.db").mkdir()
    with pytest.raises(UserError, match=r"study\.db"):
        Study(make_location(tmp_path), {})


def test_an_unknown_kind_of_database_is_refused(tmp_path):
    with pytest.raises(UserError, match="to do"):
        Study(make_location(tmp_path, url="nosuchdatabase://host/name"), {})


@pytest.mark.parametrize("url", ["postgresql://user:secret@host:54a32/name", "no address at all"])
def test_an_invalid_url_is_refused_without_its_password(tmp_path, url):
    for open_study in (
        lambda: Study(make_location(tmp_path, url=url), {}),
        lambda: read_study(url, "s"),
        lambda: read_statuses(url),
    ):
        with pytest.raises(UserError, match="dialect://user@host:port/database") as raised:
            open_study()
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("driver", "url", "message"),
    [
        ("psycopg", "postgresql://user:secret@host/name", r"pip install 'synaptune\[postgres\]'"),
        ("pymysql", "mysql://user:secret@host/name", r"pip install 'synaptune\[mysql\]'"),
    ],
)
def test_the_error_for_a_missing_driver_says_what_to_install(
    tmp_path, monkeypatch, driver, url, message
):
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(UserError, match=message) as raised:
        Study(make_location(tmp_path, url=url), {})
    assert "secret" not in str(raised.value)


def test_a_full_disk_is_reported_and_loses_nothing(tmp_path):
    finished_study(tmp_path)
    with Study(make_location(tmp_path), {"a": 1, "b": 2}) as study:
        study._storage.engine.dispose()  # the limit of pages holds for one connection
        connection = study._storage.engine.raw_connection()
        pages = connection.cursor().execute("pragma page_count").fetchone()[0]
        connection.cursor().execute(f"pragma max_page_count={pages}")
        connection.close()
        with pytest.raises(UserError, match="full"):
            study.write_note("large", "x" * 1_000_000)
    with Study(make_location(tmp_path), {"a": 1, "b": 2}) as study:
        assert [trial.state for trial in study.read_trials()] == ["complete"]


def test_a_second_process_is_refused_until_the_study_is_closed(tmp_path):
    code = f"""
from pathlib import Path
from synaptune.study.location import StudyLocation
from synaptune.study.study import Study
Study(StudyLocation("s", Path({str(tmp_path)!r}), "sqlite:///{tmp_path}/study.db", "auto"), {{}})
"""
    with Study(make_location(tmp_path), {}):
        other = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
    assert "another process" in other.stderr
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode
        == 0
    )


def test_best_yaml_contains_the_parameters_and_the_fixed_values(tmp_path):
    from omegaconf import OmegaConf

    with Study(make_location(tmp_path), {}) as study:
        best = make_ledger(study).finish(
            make_ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0), Result(1.5, 2.0)
        )
    write_best(tmp_path / "best.yaml", "s", best, {"width": 32})
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "best.yaml")) == {
        "parameters": {"width": 32, **VALUES}
    }
    assert "trial 0" in (tmp_path / "best.yaml").read_text()


def test_a_pruned_trial_keeps_its_estimate_and_has_no_objective(tmp_path):
    with Study(make_location(tmp_path), {}) as study:
        started = make_ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0)
        ended = make_ledger(study).finish(
            started, Result(None, 2.0, {"val_loss": 3.0}, pruned=True, estimate=1.25)
        )
        (stored,) = make_ledger(study).read_trials()
    assert stored == ended
    assert (stored.state, stored.objective, stored.estimate, stored.reason) == (
        "pruned",
        None,
        1.25,
        None,
    )
    assert "estimate" not in stored.facts
    (optuna_trial,) = optuna.load_study(study_name="s", storage=make_location(tmp_path).url).trials
    assert (optuna_trial.state.name, optuna_trial.user_attrs["estimate"]) == ("PRUNED", 1.25)


def test_a_pruned_trial_with_an_error_has_failed(tmp_path):
    with Study(make_location(tmp_path), {}) as study:
        started = make_ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0)
        ended = make_ledger(study).finish(
            started, Result(None, 2.0, failure=make_failure(ValueError("no")), pruned=True)
        )
    assert (ended.state, ended.reason) == ("failed", "ValueError: no")


def test_reported_values_are_read_by_step_and_the_last_one_of_a_step_counts(tmp_path):
    with Study(make_location(tmp_path), {}) as study:
        trial = make_ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0)
        assert make_ledger(study).read_intermediate_values(trial) == {}
        for step, value in ((20, 2.0), (10, 3.0), (20, 1.5), (30, float("inf"))):
            make_ledger(study).report(trial, value, step)
    with Study(make_location(tmp_path), {}) as study:
        (stored,) = make_ledger(study).read_trials()
        assert list(make_ledger(study).read_intermediate_values(stored).items()) == [
            (10, 3.0),
            (20, 1.5),
            (30, float("inf")),
        ]
        make_ledger(study).report(stored, 1.0, 40)


def test_attempts_are_stored_while_the_trial_is_running(tmp_path):
    with Study(make_location(tmp_path), {}) as study:
        trial = make_ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0)
        trial = make_ledger(study).record_retry(trial, "the worker died")
    with Study(make_location(tmp_path), {}) as study:
        (stored,) = make_ledger(study).read_trials()
        assert stored == trial
        trial = make_ledger(study).record_retry(stored, "out of memory")
        assert (trial.state, trial.facts["attempts"]) == (
            "running",
            ["the worker died", "out of memory"],
        )
        make_ledger(study).finish(trial, Result(1.0, 0.1))
        assert make_ledger(study).read_trials()[0].facts["attempts"] == trial.facts["attempts"]


def test_an_ended_trial_cannot_end_again(tmp_path):
    with Study(make_location(tmp_path), {}) as study:
        trial = make_ledger(study).start(0, (0.1, 0.2, 0.3), VALUES, 0)
        make_ledger(study).finish(trial, Result(1.0, 0.1))
        with pytest.raises(UserError, match="already finished"):
            make_ledger(study).finish(trial, Result(2.0, 0.1))
        assert make_ledger(study).read_trials()[0].objective == 1.0


def test_synaptune_and_optuna_read_the_same_trials(tmp_path):
    with Study(make_location(tmp_path), {}) as study:
        ledger = make_ledger(study)
        for index, result in enumerate(
            (
                Result(1.5, 2.0, {"odd": float("nan")}),
                Result(None, 1.0, pruned=True),
                Result(None, 1.0),
            )
        ):
            ledger.finish(
                ledger.start(
                    index, (0.1, 0.2, 0.3), VALUES | {"n": 1 + index, "c": ("a", True, 3)[index]}, 0
                ),
                result,
            )
        ledger.start(3, (0.1, 0.2, 0.3), VALUES, 0)
        trials = study.read_trials()
        optuna_trials = study._storage.get_all_trials(study._id)
    names = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "running": "RUNNING"}
    assert [names[trial.state] for trial in trials] == [trial.state.name for trial in optuna_trials]
    for trial, other in zip(trials, optuna_trials, strict=True):
        assert (trial.number, list(trial.values.items()), trial.objective) == (
            other.number,
            list(other.params.items()),
            other.value,
        )
        assert {**trial.facts, "index": trial.index, "unit": list(trial.unit)} == other.user_attrs


@pytest.mark.parametrize(
    ("configuration", "name"),
    [
        ({"objective.name": "val_loss"}, "val_loss [nats/token]"),
        ({"objective.name": "composite"}, "composite score [1]"),
        ({"x": 1}, "objective"),
    ],
)
def test_a_study_names_its_objective_for_optuna_dashboard(tmp_path, configuration, name):
    url = f"sqlite:///{tmp_path}/study.db"
    with Study(StudyLocation("s", tmp_path, url, "auto"), configuration):
        pass
    assert optuna.load_study(study_name="s", storage=url).metric_names == [name]
