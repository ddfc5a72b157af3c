"""Population-based training: which members copy which, and what a copy changes."""

import pytest

from synaptune.core.errors import UserError
from synaptune.search.optimizers.base import Engine, Observation
from synaptune.search.optimizers.pbt import PbtOptimizer, count_trials
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import PARENT, SLICE, SLICES

SPACE = Space(tuple(Dimension(name, "lin", 0.0, 1.0, start=0.3) for name in "abc"))
MEMBERS = 10
LOSSES = [5.0, 1.0, 3.0, 9.0, 2.0, 7.0, 4.0, 8.0, 6.0, 3.5]  # best 1 and 4, worst 3 and 7


def make(**settings):
    return PbtOptimizer(Engine("pbt", 3, budget=3 * MEMBERS, slices=3, **settings), SPACE)


def train_slice(optimizer, losses, first=0):
    """Ask and tell a slice; return the points and the parents of its members."""
    units = [optimizer.ask() for _ in losses]
    parents = [optimizer.get_facts(first + i)[PARENT] for i in range(len(losses))]
    optimizer.tell([Observation(unit, loss) for unit, loss in zip(units, losses, strict=True)])
    return units, parents


def test_the_worst_fifth_continues_changed_copies_of_the_best_fifth_and_the_others_go_on():
    optimizer = make()
    before, parents = train_slice(optimizer, LOSSES)
    assert parents == [None] * MEMBERS
    after, parents = train_slice(optimizer, LOSSES, MEMBERS)
    for member in range(MEMBERS):
        if member in (3, 7):
            assert parents[member] in (1, 4)
            assert after[member] not in before
            assert all(0.0 <= u <= 1.0 for u in after[member])
        else:
            assert (after[member], parents[member]) == (before[member], member)
    assert optimizer.get_facts(2 * MEMBERS + 5) == {SLICE: 2, SLICES: 3, PARENT: MEMBERS + 5}


def test_three_quarters_of_the_parameters_of_a_copy_move_by_the_step():
    space = Space(tuple(Dimension(f"p{i}", "lin", 0.0, 1.0, start=0.3) for i in range(100)))
    engine = Engine("pbt", 3, budget=3 * MEMBERS, slices=3, step=0.01)
    optimizer = PbtOptimizer(engine, space)
    before, _ = train_slice(optimizer, LOSSES)
    after, parents = train_slice(optimizer, LOSSES, MEMBERS)
    pairs = list(zip(after[3], before[parents[3]], strict=True))
    steps = [round(abs(now - then), 9) for now, then in pairs]
    assert 60 <= steps.count(0.01) <= 90  # those within the step of an end are reflected
    assert sum(step > 0.02 for step in steps) >= 10


def test_a_failed_member_is_replaced_even_where_others_are_worse():
    optimizer = make()
    train_slice(optimizer, [None if loss == 2.0 else loss for loss in LOSSES])
    _, parents = train_slice(optimizer, LOSSES, MEMBERS)
    assert parents[4] in (1, 2)  # the best two of those that did not fail


def test_without_copied_weights_a_member_keeps_its_own_unless_it_failed():
    optimizer = make(copy_weights=False)
    before, _ = train_slice(optimizer, [None if loss == 9.0 else loss for loss in LOSSES])
    after, parents = train_slice(optimizer, LOSSES, MEMBERS)
    assert parents[7] == 7
    assert after[7] != before[7]
    assert parents[3] in (1, 4)


def test_the_search_ends_after_the_last_slice():
    optimizer = make()
    for first in range(0, 3 * MEMBERS, MEMBERS):
        train_slice(optimizer, LOSSES, first)
    assert optimizer.ask() is None


def test_the_budget_gives_the_members_and_must_suffice():
    assert count_trials(Engine("pbt", 0, budget=43, slices=4)) == 40
    assert count_trials(Engine("pbt", 0, budget=43, slices=4, population=5)) == 20
    for settings in ({"budget": 15}, {"budget": 40, "population": 11}):
        with pytest.raises(UserError, match="expected: at least"):
            count_trials(Engine("pbt", 0, slices=4, **settings))
