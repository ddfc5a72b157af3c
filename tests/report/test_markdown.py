"""The Markdown follows GitHub's rules, its links lead to files, its tables keep every digit."""

import csv
import re
from xml.etree import ElementTree

import pytest

from helpers.evidence_maker import (
    AWKWARD,
    make_empty_evidence,
    make_full_evidence,
    make_unfinished_evidence,
)
from synaptune.report.markdown import escape_markdown, format_table, make_fence, write_markdown
from synaptune.report.table_model import UNKNOWN, Column, Table, format_csv

COUNT = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    write_markdown(make_full_evidence(count=COUNT, awkward=True), path)
    return path


def test_every_link_leads_to_a_file(folder):
    text = (folder / "report.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert any(link.endswith(".svg") for link in links)
    assert any(link.endswith(".csv") for link in links)
    assert all((folder / link).is_file() for link in links)


def test_figures_are_standalone_svg_files(folder):
    figures = list((folder / "figures").glob("*.svg"))
    assert figures
    for path in figures:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        assert "var(--" not in path.read_text()


def test_tables_keep_every_digit_and_name_their_units(folder):
    study = make_full_evidence(count=COUNT, awkward=True)
    with (folder / "tables" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == COUNT
    assert [row["objective"] for row in rows] == [
        "" if trial.objective is None else str(trial.objective) for trial in study.trials
    ]
    assert [row[AWKWARD] for row in rows] == [str(trial.values[AWKWARD]) for trial in study.trials]
    assert "run [s]" in rows[0]
    with (folder / "tables" / "ablation.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    top = study.ablation[0]
    assert float(first["worth at the optimum low [%]"]) == top.reverted.low


def test_every_row_of_a_table_has_the_columns_of_its_head(folder):
    for block in re.split(r"\n\n", (folder / "report.md").read_text()):
        lines = block.splitlines()
        if block.startswith("|"):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, block


def test_names_are_shown_as_text(folder):
    text = (folder / "report.md").read_text().split("```")[0]
    assert "<script>" not in text
    assert "<speare>" not in text
    assert (
        escape_markdown("a|b <i> *c* $x_1$ `rm -rf` [d](e)")
        == r"a\|b \<i\> \*c\* \$x_1\$ `rm -rf` \[d\](e)"
    )
    assert escape_markdown("two\nlines") == "two lines"


def test_a_fence_is_longer_than_any_fence_in_the_text():
    assert make_fence("a ``` b") == "````"


def test_studies_without_a_result_have_a_report(tmp_path):
    assert "No claim" in write_markdown(make_empty_evidence(), tmp_path / "bare").read_text()
    text = write_markdown(make_unfinished_evidence(), tmp_path / "unfinished").read_text()
    assert "(running)" in text
    assert "the loss is nan" in text


def test_an_unknown_cell_is_empty_in_csv_and_a_dash_for_people():
    table = Table("t", "T", (Column("a", "value"), Column("b", "gain", "%")), [[None, None]])
    assert format_csv(table) == "a,b mean [%],b low [%],b high [%],b pairs\n,,,,\n"
    assert format_table(table).splitlines()[-1] == f"| {UNKNOWN} | {UNKNOWN} |"
