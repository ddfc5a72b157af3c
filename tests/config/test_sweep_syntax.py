"""Entries of a parametrization and sweeps that cannot be: each is refused with what was got, what
was expected, what to do.
"""

import re

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from helpers import processes
from helpers.paths import APPS
from synaptune.config import sweep_syntax as syntax
from synaptune.config.sweep_syntax import parse_parametrization, parse_sweep
from synaptune.core.errors import UserError
from synaptune.search.space.space import Dimension

APP = APPS / "app.py"
FORM = r"got [\s\S]*x[\s\S]*\n  expected: [\s\S]*\n  to do: "


@pytest.mark.parametrize(
    "entry",
    [
        {"lower": "a", "upper": 2},
        {"lower": None, "upper": 2},
        {"lower": [1], "upper": 2},
        {"lower": True, "upper": 2},
        {"lower": 0, "upper": 2, "init": "foo"},
        {"lower": 0, "upper": 2, "log": "maybe"},
        {"lower": 0, "upper": 2, "integer": 1},
        "interval(1,",
        "interval(a,b)",
        "choice()",
        "a=b",
        "range(1,9,0)",
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(entry):
    given = OmegaConf.create(entry) if isinstance(entry, dict) else entry
    with pytest.raises(UserError, match=FORM):
        parse_parametrization("x", given, None, 1.0)


@pytest.mark.parametrize("start", ["abc", True, [1]])
def test_a_range_over_a_value_that_is_no_number_is_refused_unless_it_says_where_to_begin(start):
    with pytest.raises(UserError, match=re.escape(f"where the value is {start!r}")):
        parse_parametrization("x", {"lower": 0, "upper": 2}, None, start)
    assert parse_parametrization(
        "x", {"lower": 0, "upper": 2, "init": 1}, None, start
    ) == Dimension("x", "lin", 0, 2, start=1)


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
