"""Entries of a parametrization and sweeps that cannot be: each is refused with what was got, what
was expected, what to do.
"""

import re

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from helpers import processes
from helpers.paths import APPS
from synaptune.config import sweep_syntax as syntax
from synaptune.config.sweep_overrides import read_overrides
from synaptune.config.sweep_syntax import parse_parametrization, parse_sweep
from synaptune.core.errors import UserError
from synaptune.search.space.override_text import format_value
from synaptune.search.space.space import Dimension
from synaptune.search.space.values import is_same

APP = APPS / "app.py"
FORM = r"got [\s\S]*x[\s\S]*\n  expected: [\s\S]*\n  to do: "


@pytest.mark.parametrize(
    "entry",
    [
        {"lower": "a", "upper": 2},
        {"lower": [1], "upper": 2},
        {"lower": True, "upper": 2},
        {"lower": 0, "upper": 2, "init": "foo"},
        {"lower": 0, "upper": 2, "log": "maybe"},
        {"lower": 0, "upper": 2, "integer": 1},
        {"lower": 0, "upper": 2, "init": 3},
        {"init": 1, "step": 0},
        {"init": 1, "step": 1, "log": True},
        {"init": -1, "step": 2, "log": True},
        {"init": 1, "step": 1e300, "log": True},
        {"lower": 0, "steps": 2},
        {"choices": "ab"},
        [],
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(entry):
    with pytest.raises(UserError, match=FORM):
        parse_parametrization("x", entry, 1.0)


@pytest.mark.parametrize("text", ["interval(1,", "interval(a,b)", "choice()", "a=b"])
def test_a_text_that_makes_no_sense_is_refused(text):
    with pytest.raises(UserError, match=FORM):
        read_overrides({"x": text}, [], OverridesParser.create())


@pytest.mark.parametrize(
    ("entry", "ends"),
    [
        ({"init": 0.02, "step": 2.0, "log": True}, (0.02 / 1024, 0.02 * 1024)),
        ({"init": 3, "step": 0.5}, (-2.0, 8.0)),
        ({"init": 3}, (-7.0, 13.0)),
        ({"lower": 1.0, "init": 3.0, "step": 2.0}, (1.0, 23.0)),
        ({"upper": 4.0}, (-9.0, 4.0)),
        ({"init": 2, "step": 1.5, "log": True, "integer": True}, (1, 116)),
        ({"lower": 0.0, "upper": 1.0, "step": 0.1}, (0.0, 1.0)),
    ],
)
def test_an_end_that_is_not_given_lies_ten_steps_from_the_start(entry, ends):
    dimension = parse_parametrization("x", entry, 1.0)
    assert (dimension.low, dimension.high) == pytest.approx(ends)
    assert dimension.start == entry.get("init", 1.0)


@pytest.mark.parametrize(
    ("params", "words", "built"),
    [
        ({}, ["x=1,2", "x=3"], ["x=3"]),
        ({}, ["x=3", "x=1,2"], ["x=9"]),
        ({}, ["+x=1,2", "x=3"], ["+x=3"]),
        ({}, ["x=1,2", "++x=3"], ["++x=3"]),
        ({}, ["~y", "+x=1,2"], ["~y", "+x=9"]),
        ({"x": "1,2", "y": 5}, ["y=6"], ["x=9", "y=6"]),
        ({"x": [1, 2], "y": None, "z": "a"}, [], ["x=9", "y=null", "z=a"]),
        ({"x": {"lower": 1}}, ["x=4"], ["x=4"]),
    ],
)
def test_the_last_word_of_a_name_holds(params, words, built):
    overrides = read_overrides(params, words, OverridesParser.create())
    values = {"x": 9} if any(word.endswith("x=9") for word in built) else {}
    assert overrides.build(values) == built


@pytest.mark.parametrize(
    "value",
    [
        *("a", "", "1", "true", "null", "a b", "a,b", "it's", "é", "a\\b", "${x}", "~/x"),
        *("[a]", "x=1", "a:b", "\n", None, True, 2, 1e-300, [1, "1", [None]], {"a": {"b": "1"}}),
    ],
)
def test_a_value_is_read_back_from_its_override(value):
    parsed = OverridesParser.create().parse_override(f"x={format_value(value)}")
    assert not parsed.is_sweep_override()
    assert is_same(parsed.value(), value)


@pytest.mark.parametrize("start", ["abc", True, [1]])
def test_a_range_over_a_value_that_is_no_number_is_refused_unless_it_says_where_to_begin(start):
    with pytest.raises(UserError, match=re.escape(f"where the value is {start!r}")):
        parse_parametrization("x", {"lower": 0, "upper": 2}, start)
    assert parse_parametrization("x", {"lower": 0, "upper": 2, "init": 1}, start) == Dimension(
        "x", "lin", 0, 2, start=1
    )


@pytest.mark.parametrize("text", ["x=range(1,9,0)", "x=range(0,1,nan)", "x=range(9,1)"])
def test_a_range_without_values_is_refused(text):
    with pytest.raises(UserError, match=FORM):
        parse_sweep(OverridesParser.create().parse_override(text), None, 1)


def test_the_example_of_weighted_choices_is_a_command_that_runs(tmp_path):
    (example,) = re.findall(r"`(\S*hydra\.sweeper\.parametrization=.*)`", syntax.__doc__)
    words = [
        "-m",
        "hydra/sweeper=random",
        "hydra.sweeper.optim.budget=1",
        example.replace("name", "kind"),
    ]
    done = processes.run([str(APP), *words], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "kind=" in done.stdout
