"""Which points of a search are run on another scale, and with which values there."""

import math

import pytest

from synaptune.core.errors import UserError
from synaptune.protocols import transfer
from synaptune.search.space.space import Dimension, Space, make_dimension
from synaptune.search.trial import Trial
from synaptune.study.reader import StudySnapshot
from synaptune.synapse.circuit import SPECS

INTERVAL = "synapse.structural.structural_interval"
TAU = "synapse.calcium.tau_c"
STEPS_THERE, STEPS_HERE = 200, 5000


def space(steps):
    return Space(
        tuple(make_dimension(spec, steps=steps) for spec in SPECS if spec.name in (INTERVAL, TAU))
    )


def point(number, objective=1.0, *, generation=0, interval=30, tau=0.8, phase="search", **metrics):
    facts = {"phase": phase, "generation": generation, **metrics}
    return Trial(
        number,
        number,
        (0.5, 0.5),
        {TAU: tau, INTERVAL: interval},
        "complete",
        objective,
        facts=facts,
    )


def record(trials, *, maximize=False, **configuration):
    given = {name.replace("__", "."): value for name, value in configuration.items()}
    return StudySnapshot("s", "sqlite://", maximize, given, {}, trials, {}, {}, {}, {})


@pytest.mark.parametrize("there", [4, 10, 30, 50, 90, 100])
def test_a_fraction_of_the_run_stays_that_fraction_on_a_longer_run(there):
    longer = space(STEPS_HERE)
    (values,) = transfer.transfer_values(
        [point(0, interval=there)], longer, there=STEPS_THERE, here=STEPS_HERE
    )
    assert values == {TAU: 0.8, INTERVAL: there * STEPS_HERE // STEPS_THERE}
    assert longer.to_values(longer.to_unit(values))[INTERVAL] == pytest.approx(
        values[INTERVAL], abs=1
    )


def test_the_ends_of_a_short_run_come_out_at_the_ends_of_a_long_one():
    for steps in (24, 64, 200):
        short, long = (
            next(entry for entry in space(length).dimensions if entry.name == INTERVAL)
            for length in (steps, STEPS_HERE)
        )
        for end in (short.low, short.high):
            (values,) = transfer.transfer_values(
                [point(0, interval=int(end))], space(STEPS_HERE), there=steps, here=STEPS_HERE
            )
            assert long.low <= values[INTERVAL] <= long.high


def test_a_value_that_the_space_does_not_hold_is_refused():
    with pytest.raises(
        UserError, match=r"tau_c=0\.3 of trial 7, expected lin \[0\.5, 0\.99\][\s\S]*to do"
    ):
        transfer.transfer_values(
            [point(3), point(7, tau=0.3)], space(STEPS_HERE), there=STEPS_THERE, here=STEPS_HERE
        )
    with pytest.raises(UserError, match="other, which trial 3 does not have"):
        transfer.transfer_values(
            [point(3)], Space((Dimension("other", "lin"),)), there=STEPS_THERE, here=STEPS_HERE
        )
    with pytest.raises(UserError, match=r"does not say its training\.steps[\s\S]*to do"):
        transfer.transfer_values([point(3)], space(STEPS_HERE), there=None, here=STEPS_HERE)


def test_points_are_ranked_by_their_objectives_each_once():
    trials = [
        point(0, 3.0, tau=0.6),
        point(1, 1.0, tau=0.7),
        point(2, 1.0, tau=0.7),
        point(3, 0.1, phase="sanity"),
        point(4, 2.0, tau=0.9),
    ]
    assert [trial.number for trial in transfer.find_best_points(record(trials))] == [1, 4, 0]


@pytest.mark.parametrize("given", [True, False])
def test_points_of_a_hybrid_search_are_ranked_by_what_it_ended_with(given):
    """The losses of the first generations are larger numbers than the scores of the later ones,
    whatever they mean.
    """

    def metrics(loss):
        return {"val_loss": loss, "val_perplexity": math.exp(loss), "val_calibration_error": 0.1}

    early = [point(0, 2.0, tau=0.6, **metrics(2.0)), point(1, 2.2, tau=0.7, **metrics(2.2))]
    late = [
        point(2, 1.45, tau=0.8, generation=2, **metrics(2.3)),
        point(3, 1.3, tau=0.9, generation=2, **metrics(2.1)),
    ]
    baseline = {
        f"objective__baseline__{name}": value if given else None
        for name, value in metrics(2.1).items()
        if name != "val_loss"
    }
    reference = [] if given else [point(4, 2.1, phase="reference", **metrics(2.1))]
    study = record(
        [*early, *late, *reference], objective__name="hybrid", objective__switch=1, **baseline
    )
    found = transfer.find_best_points(study)
    assert [trial.number for trial in found] == [0, 3, 1, 2]
    assert found[1].objective == pytest.approx(1.2)


def test_a_study_that_maximises_is_refused():
    with pytest.raises(UserError, match="maximises"):
        transfer.find_best_points(record([point(0)], maximize=True))
