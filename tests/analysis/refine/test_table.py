"""Runs from tables: columns that are parameters, runs that count, metrics that rank them."""

import pytest

from helpers.plan_runs import METRIC, make_plan_runs, write_runs
from synaptune.analysis.refine.rule import refine
from synaptune.analysis.refine.runs import RunSelection
from synaptune.analysis.refine.table import read_csv_runs
from synaptune.core.errors import UserError


def write_table(tmp_path, *changes, **columns):
    rows = [
        row | {name: column[index] for name, column in columns.items()}
        for index, row in enumerate(make_plan_runs())
    ]
    for index, change in changes:
        rows[index] |= change
    return write_runs(tmp_path / "r.csv", rows, exported=True)


def test_of_an_export_only_what_varies_and_was_set_is_a_parameter(tmp_path):
    plan = read_csv_runs(write_table(tmp_path), RunSelection(METRIC, maximize=True))
    assert [parameter.dimension.name for parameter in plan.parameters] == [
        *("learning_rate", "batch_size", "generations", "schedule", "entropy_coef")
    ]
    reasons = dict(plan.left_out)
    assert reasons["model"] == "constant (small)"
    assert reasons["train_reward"] == "named like a measurement"
    assert {reasons[name] for name in ("Name", "State", "Created", "Runtime", "seed")} == {
        "about the run"
    }
    assert not plan.notes


def test_runs_that_crashed_or_lack_the_metric_are_left_out_and_counted(tmp_path):
    path = write_table(tmp_path, (3, {"State": "crashed"}), (4, {METRIC: "NaN"}), (5, {METRIC: ""}))
    runs = read_csv_runs(path, RunSelection(METRIC, maximize=True))
    assert len(runs.scores) == 45
    assert runs.notes == (
        "1 runs that did not finish are left out",
        f"2 runs without a number for {METRIC} are left out",
    )


def test_of_a_table_that_we_exported_the_last_search_counts_whatever_it_is_called(tmp_path):
    phases = ["baseline"] + ["calcium", "vesicles"] * 8 + ["joint"] * 16 + ["validation"] * 4
    rows = [
        {
            "number": at,
            "phase": phase,
            "index": at,
            "generation": 0,
            "state": "complete",
            "objective": at % 7,
            "x": at / 100,
        }
        for at, phase in enumerate(phases)
    ]
    runs = read_csv_runs(write_runs(tmp_path / "r.csv", rows, exported=False), RunSelection())
    assert runs.parameters[0].values == tuple(
        at / 100 for at, phase in enumerate(phases) if phase == "joint"
    )
    foreign = [
        {name: value for name, value in row.items() if name not in ("number", "index")}
        for row in rows
    ]
    assert len(
        read_csv_runs(
            write_runs(tmp_path / "f.csv", foreign, exported=False), RunSelection()
        ).scores
    ) == len(phases)


@pytest.mark.parametrize("metric", ["train_reward", "train/loss", "training_loss", "loss.train"])
def test_a_training_metric_is_refused_and_evaluation_metrics_are_named(tmp_path, metric):
    path = write_table(tmp_path, **{metric: range(48)})
    with pytest.raises(
        UserError, match=rf"measured in training[\s\S]*an evaluation metric \({METRIC}\)"
    ):
        read_csv_runs(path, RunSelection(metric))


def test_the_metric_of_a_table_is_its_only_evaluation_metric_or_must_be_named(tmp_path):
    assert read_csv_runs(write_table(tmp_path), RunSelection()).metric == METRIC
    two = write_table(tmp_path, val_loss=range(48))
    with pytest.raises(
        UserError, match="2 columns that may be the metric to rank by: eval_change, val_loss"
    ):
        read_csv_runs(two, RunSelection())
    assert read_csv_runs(two, RunSelection("val_loss")).metric == "val_loss"
    with pytest.raises(UserError, match="closest: val_loss"):
        read_csv_runs(two, RunSelection("val_los"))


def test_a_column_is_a_parameter_when_it_is_named_and_has_another_name_when_renamed(tmp_path):
    path = write_table(tmp_path, reward_scale=[index % 9 / 3 for index in range(48)])
    assert "reward_scale" in dict(read_csv_runs(path, RunSelection(METRIC)).left_out)
    runs = read_csv_runs(
        path,
        RunSelection(
            METRIC,
            parameters=("reward_scale",),
            new_names={"learning_rate": "training.learning_rate"},
        ),
    )
    assert [parameter.dimension.name for parameter in runs.parameters] == [
        "training.learning_rate",
        "reward_scale",
    ]
    with pytest.raises(UserError, match="no parameter learning_rat "):
        read_csv_runs(path, RunSelection(METRIC, parameters=("learning_rat",)))
    with pytest.raises(UserError, match=r"model: constant \(small\)"):
        read_csv_runs(path, RunSelection(METRIC, parameters=("model",)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "with 0 lines"),
        (b"a,b\n", "with 1 lines"),
        (b"a,b\n1\n", "line 2 with 1 cells"),
        (b"a,a\n1,2\n", "several columns a"),
        (b"PK\x03\x04\0\0", "r.csv, which is not text"),
        (b"a,b\n1,2\n", "no columns that may be the metric"),
        (b"a,val_loss\n1,2\n1,3\n", "no parameter that varies"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_a_reason(tmp_path, content, message):
    path = tmp_path / "r.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        refine(read_csv_runs(path, RunSelection()))
