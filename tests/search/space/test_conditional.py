"""Choices that depend on the value of another parameter."""

from __future__ import annotations

import pytest

from synaptune.core.errors import UserError
from synaptune.search.space.file import parse_range_entry
from synaptune.search.space.space import Dimension, Space

BATCH = Dimension("batch", "categorical", choices=(4, 8, 12))
ENTRY = {"choices": [16, 24, 40], "given": "batch", "cases": {4: [24, 40], 8: [16]}}


def make_space() -> Space:
    return Space((parse_range_entry("generations", ENTRY, None, 16), BATCH))


def test_each_value_of_the_parent_allows_its_choices_in_equal_parts():
    space = make_space()
    counts: dict[tuple, int] = {}
    for first in range(60):
        for second in range(3):
            values = space.to_values(((first + 0.5) / 60, (second + 0.5) / 3))
            key = (values["batch"], values["generations"])
            counts[key] = counts.get(key, 0) + 1
    assert counts == {
        (4, 24): 30,
        (4, 40): 30,
        (8, 16): 60,
        (12, 16): 20,
        (12, 24): 20,
        (12, 40): 20,
    }


@pytest.mark.parametrize("batch", [4, 8, 12])
def test_values_and_coordinates_are_inverse(batch):
    space = make_space()
    for generations in {4: (24, 40), 8: (16,), 12: (16, 24, 40)}[batch]:
        values = {"generations": generations, "batch": batch}
        assert space.to_values(space.to_unit(values)) == values


def test_the_description_names_the_cases_so_that_another_study_is_refused():
    assert make_space().describe()["generations"] == (
        "choice [16, 24, 40] given batch {4: [24, 40], 8: [16]}"
    )


@pytest.mark.parametrize(
    "changes",
    [{"cases": {4: [17]}}, {"cases": {4: []}}, {"cases": [4]}, {"given": 3}, {"cases": None}],
)
def test_a_malformed_case_is_refused(changes):
    with pytest.raises(UserError, match="generations"):
        parse_range_entry("generations", ENTRY | changes, None, 16)


def test_given_without_cases_and_a_chain_are_refused():
    entry = {"choices": [1, 2], "given": "batch"}
    with pytest.raises(UserError, match="one of given and cases"):
        parse_range_entry("x", entry, None, 1)
    chained = Dimension("x", "categorical", choices=(1,), given="generations", cases=((16, (1,)),))
    with pytest.raises(UserError, match="which depends on batch"):
        Space((*make_space().dimensions, chained))
