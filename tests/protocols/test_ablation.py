"""The ablation as a user runs it on a finished study: killed, continued, shown again.

And what it refuses.
"""

import json
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from helpers import processes
from helpers.phase1_study import NAMES, SEEDS, TUNED, make_study
from synaptune.analysis.evidence import gather_evidence
from synaptune.cli.main import main
from synaptune.config.flat import flatten_config
from synaptune.core.errors import UserError
from synaptune.protocols import ablation
from synaptune.protocols.session import reopen_protocol
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Trial
from synaptune.study.reader import StudySnapshot, find_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A validated study."""
    folder = tmp_path_factory.mktemp("studies") / "small"
    make_study(folder, "model.tick=8", "search.incumbents=2", "training.learning_rate=5e-3")
    return folder


def runs(folder: Path) -> list[Trial]:
    return find_study(str(folder)).get_phase_trials("ablation")


def kill_at(folder: Path, number: int, *words: str) -> None:
    """Start the command and kill it when the run of a trial begins."""
    command = [
        "-m",
        "synaptune.cli.main",
        "ablation",
        f"study.dir={folder}",
        *words,
    ]
    process = processes.start(command, folder.parent, fresh=True)
    deadline = time.monotonic() + 900
    while not (folder / f"trials/{number}").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=900)


@pytest.mark.slow
def test_a_killed_ablation_goes_on_to_its_table_and_runs_nothing_twice(study, capsys):
    before = len(find_study(str(study)).trials)
    words = ["workers.count=1", "logger=csv"]
    kill_at(study, before + 3, *words)
    early = [trial for trial in runs(study) if trial.state == "complete"]
    assert main(["ablation", f"study.dir={study}", *words]) == 0
    whole = runs(study)
    assert whole[: len(early)] == early
    assert all(trial.state == "complete" for trial in whole)
    assert set(
        Counter((tuple(trial.values.items()), trial.facts["seed"]) for trial in whole).values()
    ) == {1}
    assert Counter(trial.facts["seed"] for trial in whole) == dict.fromkeys(
        SEEDS, 4
    )  # of two parameters, one reverted is the other alone
    copied = [trial for trial in whole if "copied_from" in trial.facts]
    assert len(copied) == 2 * len(SEEDS)
    assert all(trial.facts["test"] and trial.facts["test_perplexity"] > 1.0 for trial in whole)
    said = capsys.readouterr().out
    assert "barrier_strength" in said
    assert "not significantly different from zero" in said
    written = json.loads((study / "ablation.json").read_text())
    rows = {row["name"]: row for row in written["rows"]}
    assert set(rows) == set(NAMES)
    assert rows[NAMES[0]]["tuned"] == TUNED[NAMES[0]]
    assert rows[NAMES[0]]["reverted"]["count"] == len(SEEDS)
    record = find_study(str(study))
    found = gather_evidence(record, deep=False)
    assert found.provenance["reproduced to the last bit"] == {"baseline": True, "best": True}
    assert [row.name for row in found.ablation] == [row["name"] for row in written["rows"]]
    assert (study / "report/report.html").exists()
    assert main(["ablation", f"study.dir={study}", "protocol.report=false", *words]) == 0
    assert len(find_study(str(study)).trials) == len(record.trials)
    assert json.loads((study / "ablation.json").read_text()) == written


def test_a_study_is_opened_again_with_the_configuration_it_stored(study):
    record = find_study(str(study))
    space = record.spaces["validation"]
    with reopen_protocol(
        record, study, ["workers.count=1", "logger=csv"], space=space, seeds=SEEDS
    ) as protocol:
        base, stored = flatten_config(protocol.base), record.configuration
        assert protocol.study.configuration == stored
        assert protocol.engine == record.engine
    assert (
        base["model.tick"],
        base["search.incumbents"],
        base["training.learning_rate"],
        base["model.width"],
    ) == (8, 2, 5e-3, 16)
    of_search = (
        "search.space.",
        "search.start.",
        "search.optimizer",
        "search.seed",
        "search.maximize",
        "search.protocol",
    )
    assert {key: base.get(key) for key in stored if not key.startswith(of_search)} == {
        key: value for key, value in stored.items() if not key.startswith(of_search)
    }
    assert base["search.seeds"] == stored["search.seeds"]


def test_overrides_that_would_change_the_study_are_refused(study, capsys):
    assert main(["ablation", f"study.dir={study}", "training.steps=7", "workers.count=1"]) == 2
    said = capsys.readouterr().err
    assert "got training.steps=7\n" in said
    assert "workers, trial, logger, notify" in said


@pytest.mark.parametrize(("count", "message"), [(1, "at least 2"), (3, "2 to 2")])
def test_a_number_of_seeds_that_the_validation_does_not_have_is_refused(
    study, count, message, capsys
):
    assert main(["ablation", f"study.dir={study}", f"protocol.seeds={count}"]) == 2
    assert message in capsys.readouterr().err


def test_a_search_that_has_not_ended_is_refused(tmp_path, capsys):
    make_study(tmp_path / "early", validate=False)
    assert main(["ablation", f"study.dir={tmp_path / 'early'}"]) == 2
    assert "2 evaluations of its last search and no validation" in capsys.readouterr().err


SPACE = Space(
    (Dimension("a", "lin", 0.0, 1.0, start=0.5), Dimension("b", "lin", 0.0, 1.0, start=0.5))
)


def record(
    protocol="phase1", *, maximize=False, best=(0.2, 0.5), validated=True, configuration=None
):
    """A study made by hand, validated on seeds 5 and 6."""
    points = [(unit, seed) for seed in (5, 6) for unit in ((0.5, 0.5), best)]
    trials = [
        Trial(
            0, 0, best, SPACE.to_values(best), "complete", 1.0, facts={"phase": "search", "seed": 0}
        )
    ]
    for index, (unit, seed) in enumerate(points if validated else ()):
        trials.append(
            Trial(
                1 + index,
                index,
                unit,
                SPACE.to_values(unit),
                "complete",
                1.0,
                facts={"phase": "validation", "seed": seed},
            )
        )
    stored = {
        "search.protocol": protocol,
        "seed": 0,
        "search.start.a": 0.5,
        "search.start.b": 0.5,
    } | (configuration or {})
    notes = {"engine": {"name": "cma", "seed": 0, "workers": 1, "budget": 1}}
    return StudySnapshot(
        "hand",
        "sqlite://",
        maximize,
        stored,
        notes,
        trials,
        {},
        {},
        {},
        dict.fromkeys(("search", "validation"), SPACE),
    )


@pytest.mark.parametrize(
    ("study_record", "said"),
    [
        (record(None), "no protocol made"),
        (record("transfer"), "no protocol made"),
        (record(maximize=True), "maximises"),
        (record("phase2", validated=False), "0 evaluations of its last search"),
        (record(best=(0.5, 0.5)), "whose best point is its start"),
    ],
)
def test_a_study_without_an_optimum_to_take_apart_is_refused(study_record, said):
    with pytest.raises(UserError, match=said):
        ablation.require_endpoints(study_record)


def test_an_ended_search_without_validation_is_ablated_on_the_seeds_of_its_protocol():
    found = record(validated=False)
    between = ablation.require_endpoints(found)
    assert between.tuned == (0.2, 0.5)
    assert ablation.choose_seeds(found, between, None) == [1000, 1001, 1002, 1003, 1004]
    assert ablation.choose_seeds(found, between, 2) == [1000, 1001]
    validated = record()
    assert ablation.choose_seeds(validated, ablation.require_endpoints(validated), None) == [5, 6]


def test_a_setting_that_this_version_does_not_have_is_named(tmp_path):
    odd = record(configuration={"model.wings": 2})
    with (
        pytest.raises(UserError, match=r"model\.wings=2"),
        reopen_protocol(odd, tmp_path, [], space=SPACE, seeds=(5, 6)),
    ):
        pass
