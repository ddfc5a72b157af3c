"""The Markdown of a refinement: its numbers, and the escaping of names."""

import re

import pytest
from rich.console import Console

from helpers.plan_runs import METRIC, THRESHOLD, make_plan_runs, write_runs
from synaptune.analysis.refine.rule import refine
from synaptune.analysis.refine.runs import RunParameter, RunSelection, RunTable
from synaptune.analysis.refine.table import read_csv_runs
from synaptune.report.refinement import format_refinement, print_refinement
from synaptune.report.table_model import describe_range
from synaptune.search.space.space import Dimension


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> RunTable:
    return read_csv_runs(
        write_runs(tmp_path_factory.mktemp("plan") / "runs.csv", make_plan_runs(), exported=True),
        RunSelection(METRIC, maximize=True),
    )


def row(text: str, first: str) -> list[str]:
    """The cells of the first table row whose first cell is `first`."""
    (line, *_) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[2:-1]]


def test_the_markdown_has_the_tables_of_the_plan(runs):
    text = format_refinement(refine(runs, threshold=THRESHOLD), "next.yaml")
    assert "16 high performers of 48 runs of runs.csv: eval_change at least 0.1." in text
    assert "`search_space=next.yaml`" in text
    assert row(text, "1e-07 to 3e-07") == ["19", "6", "31.6 %", "12.6 % to 56.6 %", "-0.132"]
    assert row(text, "3e-07 to 1e-06")[:3] == ["19", "5", "26.3 %"]
    assert row(text, "1e-06 to 2e-06")[:3] == ["10", "5", "50.0 %"]
    assert row(text, "batch_size")[1:] == [
        "fixed at 8",
        "0.0013",
        "0.0065",
        "yes",
        "all 16 high performers agree",
    ]
    assert row(text, "learning_rate")[1] == "unchanged"
    assert row(text, "schedule")[4] == "no"
    assert "Success among bins p = 0.45, of position" in text
    assert row(text, "train_reward") == ["named like a measurement"]


def test_the_plan_rule_shows_that_its_narrowings_are_not_supported(runs):
    text = format_refinement(refine(runs, threshold=THRESHOLD, rule="plan"), "next.yaml")
    assert row(text, "learning_rate")[:2] == ["1e-07 to 2e-06, log", "8e-08 to 4e-07, log"]
    assert row(text, "schedule")[1] == "advanced (65 %), cosine (35 %)"
    assert [
        row(text, name)[4] for name in ("learning_rate", "batch_size", "generations", "schedule")
    ] == ["no", "yes", "no", "no"]


def test_an_adaptive_search_is_reported_as_a_dependent_sample():
    values = tuple(index / 20 for index in range(20))
    parameters = (RunParameter(Dimension("a|b `c`\nd", "lin", 0.0, 1.0), values),)
    runs = RunTable(
        "study *x*",
        "objective",
        False,
        parameters,
        values,
        tuple(index // 5 for index in range(20)),
        adaptive="cma",
    )
    text = format_refinement(refine(runs, shuffles=99), "next.yaml")
    assert (
        "adaptive search (cma) and no independent sample: "
        "labels are shuffled within generations only" in text
    )
    assert "nothing is narrowed" in text
    assert r"study \*x\*" in text
    assert text.count(r"| a\|b `c` d |") == 2 - 1 + text.count(r"| a\|b `c` d | runs |")
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    print_refinement(refine(runs, shuffles=99), console)
    assert "no independent sample" in console.export_text()


def test_ranges_and_choices_are_described_in_words():
    assert describe_range(Dimension("x", "log", 1e-3, 1.0)) == "0.001 to 1, log"
    assert describe_range(Dimension("x", "lin", 2, 8, integer=True)) == "2 to 8, integer"
    assert (
        describe_range(Dimension("x", "categorical", choices=("a", 3), weights=(3.0, 1.0)))
        == "a (75 %), 3 (25 %)"
    )
