"""`synaptune export`: a complete, typed table of the trials in a stable order."""

import csv
import io
import math
import sys

import hypothesis
import hypothesis.strategies as st
import pytest

from synaptune.analysis.refine.csv_file import read_table
from synaptune.cli import main as cli
from synaptune.core.errors import UserError
from synaptune.search.space.space import Dimension, Space
from synaptune.search.space.values import make_key
from synaptune.search.trial import Result, Trial, make_failure
from synaptune.study.cells import decode_column
from synaptune.study.location import StudyLocation
from synaptune.study.reader import find_study
from synaptune.study.study import PhaseLedger, Study
from synaptune.study.table import tabulate_trials, to_csv, to_parquet

SPACE = Space(
    (
        Dimension("rate", "log", 0.001, 10.0),
        Dimension("n", "lin", 1, 5, integer=True),
        Dimension("seed", "categorical", choices=("a", True, 3)),
    )
)
VALUES = {"rate": 0.1 + 0.2, "n": 2, "seed": "a"}
ORDER = [
    *(
        "number",
        "phase",
        "index",
        "generation",
        "state",
        "objective",
        "estimate",
        "seed",
        "seconds",
    ),
    *(
        "rate",
        "n",
        "parameter.seed",
        "attempts",
        "reason",
        "config_fingerprint",
        "failure",
        "odd",
        "metric.rate",
        "val_loss",
    ),
]


def write_study(folder, url=None, name="s"):
    """Write a study with a trial of every state; return it open."""
    study = Study(StudyLocation(name, folder, url or f"sqlite:///{folder}/study.db", "auto"), {})
    ledger = PhaseLedger(study, SPACE, "search", {"seed": 4})
    results = (
        Result(1.5, 2.0, {"val_loss": 1.5, "odd": math.nan}, {"rate": 7}),
        Result(None, 1.0, {"val_loss": 3.0}, pruned=True, estimate=2.5),
        Result(None, 0.5, failure=make_failure(ValueError('a "bad"\nday, really'))),
    )
    for index, result in enumerate(results):
        ledger.finish(
            ledger.record_retry(
                ledger.start(index, (0.1, 0.2, 0.3), VALUES, index // 2), "out of memory"
            ),
            result,
        )
    ledger.start(3, (0.1, 0.2, 0.3), VALUES | {"seed": 3}, 1)
    return study


def export(capsys, *arguments):
    assert cli.main(["export", *arguments]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_every_trial_is_a_row_with_all_its_facts(tmp_path, capsys):
    write_study(tmp_path).close()
    rows = export(capsys, str(tmp_path))
    assert list(rows[0]) == ORDER
    assert [row["state"] for row in rows] == ["complete", "pruned", "failed", "running"]
    assert [row["objective"] for row in rows] == ["1.5", "", "", ""]
    assert [row["estimate"] for row in rows] == ["", "2.5", "", ""]
    assert [row["reason"] for row in rows] == ["", "", 'ValueError: a "bad"\nday, really', ""]
    assert [row["generation"] for row in rows] == ["0", "0", "1", "1"]
    assert [row["attempts"] for row in rows] == ["1", "1", "1", "0"]
    assert {float(row["rate"]) for row in rows} == {0.1 + 0.2}
    assert {row["seed"] for row in rows} == {"4"}
    assert [row["parameter.seed"] for row in rows] == ['"a"', '"a"', '"a"', "3"]


def test_no_cell_is_a_formula_for_a_spreadsheet(tmp_path):
    table = {"=cmd()": [1.0, -2.0], "@x": ["=1+1", "-inf"], "-a": ["+b", "-b"], "λ": ["a", "b"]}
    path = tmp_path / "table.csv"
    path.write_text(to_csv(table))
    with path.open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert [cell for cell in cells if cell[0] in "=+-@"] == ["-2.0", "-inf"]
    assert list(read_table(path).columns) == list(table)


def test_parquet_has_the_same_table_with_types(tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    with write_study(tmp_path) as study:
        expected = tabulate_trials(study.read_trials())
        out = tmp_path / "deep" / "trials.parquet"
        assert cli.main(["export", str(tmp_path), "--out", str(out)]) == 0
    table = parquet.read_table(out)
    assert table.column_names == ORDER
    assert [
        str(table.schema.field(name).type) for name in ("number", "objective", "odd", "rate", "n")
    ] == [*("int64", "double", "double", "double", "int64")]
    odd = table.to_pydict().pop("odd")
    assert math.isnan(odd[0])
    assert odd[1:] == [None] * 3
    same = {name: column for name, column in table.to_pydict().items() if name != "odd"}
    assert same == {name: column for name, column in expected.items() if name != "odd"}
    assert list(out.parent.iterdir()) == [out]
    assert "4 trials" in capsys.readouterr().out


def test_a_study_is_found_by_its_name_its_folder_or_its_database(
    tmp_path, capsys, monkeypatch, postgres_url
):
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path / "outputs" / "studies" / "mine", name="other-name").close()
    write_study(tmp_path / "elsewhere", postgres_url, name="first").close()
    write_study(tmp_path / "elsewhere", postgres_url, name="second").close()
    rows = export(capsys, "mine")
    assert export(capsys, "outputs/studies/mine") == rows
    assert export(capsys, "second", "--storage", postgres_url) == rows
    assert len(rows) == 4


def test_a_study_without_trials_is_a_table_without_rows(tmp_path):
    Study(StudyLocation("s", tmp_path, f"sqlite:///{tmp_path}/study.db", "auto"), {}).close()
    assert set(map(len, tabulate_trials(find_study(str(tmp_path)).trials).values())) == {0}


def test_several_studies_in_a_folder_are_distinguished_by_name(tmp_path):
    for name in ("a", "b"):
        write_study(tmp_path, name=name).close()
    with pytest.raises(UserError, match="one of its studies: a, b"):
        find_study(str(tmp_path))
    assert len(find_study("b", f"sqlite:///{tmp_path}/study.db").trials) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "no study database outputs/studies/nosuch/study.db"),
        (["s", "--format", "parquet"], "--out FILE.parquet"),
        (["s", "--storage", "sqlite:///nosuch.db"], "no study database nosuch.db"),
        (["broken"], "not a SQLite database"),
    ],
)
def test_invalid_arguments_are_reported(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "study.db").write_text("this is no database")
    assert cli.main(["export", *arguments]) == 2
    output = capsys.readouterr().err
    assert message in output
    assert "to do: " in output


def test_parquet_without_pyarrow_writes_nothing_and_says_what_to_install(
    tmp_path, monkeypatch, capsys
):
    write_study(tmp_path).close()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert cli.main(["export", str(tmp_path), "--out", str(tmp_path / "t.parquet")]) == 2
    assert "pip install pyarrow" in capsys.readouterr().err
    assert not (tmp_path / "t.parquet").exists()


VALUES_OF_YAML = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=2).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers(), st.none()), inner, max_size=3),
    ),
    max_leaves=6,
)
COLUMNS = st.one_of(
    *(
        st.lists(kind, min_size=1, max_size=6)
        for kind in (
            st.sampled_from(["adam", "sgd", "nan", "None", "true", "1", "1e5", "inf", "", " a"]),
            st.sampled_from([1, 1.0, True, "1", None, "null"]),
            st.integers(),
            st.floats(allow_nan=False),
            st.booleans(),
            st.text(min_size=1),
            VALUES_OF_YAML,
        )
    )
)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_values_of_parameters_come_back_with_their_types(tmp_path, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"t.{kind}"

    @hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
    @hypothesis.given(COLUMNS)
    @hypothesis.example(["!literal 1", "a"])
    @hypothesis.example([(1, 2), [1, 2]])
    def check(values):
        trials = [
            Trial(at, at, (), {"name": value}, "complete", 0.0, reason="a\rb")
            for at, value in enumerate(values)
        ]
        table = tabulate_trials(trials)
        path.write_bytes(to_parquet(table) if kind == "parquet" else to_csv(table).encode())
        read = decode_column(read_table(path).columns["name"])
        assert list(map(make_key, read)) == list(map(make_key, values))

    check()
