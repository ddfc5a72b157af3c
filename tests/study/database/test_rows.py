"""Facts that the result of any program adds to its trial."""

import pytest

from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Result
from synaptune.study.database import keys as schema
from synaptune.study.database.keys import collect_facts
from synaptune.study.location import StudyLocation
from synaptune.study.study import PhaseLedger, Study

SPACE = Space((Dimension("x", "lin"),))


@pytest.mark.parametrize("metrics", [[1, 2], "abc", 3, None])
def test_metrics_that_are_not_a_mapping_are_left_out(metrics):
    assert collect_facts(Result(1.0, 2.0, metrics, {"a": "b"})) == {"a": "b", "seconds": 2.0}


def test_metrics_that_are_not_numbers_are_left_out():
    assert collect_facts(
        Result(1.0, 2.0, {"a": [1], "b": "c", "d": None, "e": 3, "f": float("inf")})
    ) == {
        "e": 3,
        "f": "inf",
        "seconds": 2.0,
    }  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "name",
    ["phase", "index", "unit", "generation", "seed", "attempts", "estimate", "seconds", "reason"],
)
def test_a_metric_or_fact_never_replaces_a_reserved_attribute(tmp_path, name):
    with Study(StudyLocation("s", tmp_path, f"sqlite:///{tmp_path}/study.db", "auto"), {}) as study:
        ledger = PhaseLedger(study, SPACE, "search", {"seed": 4})
        started = ledger.start(0, (0.5,), {"x": 0.5})
        ended = ledger.finish(started, Result(1.0, 2.0, {name: 7.0}, {name: "other"}))
        assert ledger.read_trials() == [ended]
        assert ended.facts.pop(f"run.{name}") == 7.0
        assert (ended.index, ended.unit, ended.state, ended.estimate, ended.reason) == (
            0,
            (0.5,),
            "complete",
            None,
            None,
        )
        assert ended.facts == {**started.facts, schema.SECONDS: 2.0}
