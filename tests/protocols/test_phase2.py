"""The decisions of phase 2 without its runs; tests/test_objectives.py makes it whole."""

import pytest

from synaptune.config.compose import compose_config
from synaptune.core.errors import UserError
from synaptune.protocols import phase2
from synaptune.protocols.protocol import Protocol
from synaptune.search.optimizers.base import Engine
from synaptune.search.plan import Plan
from synaptune.search.stopping import StopConfig
from synaptune.search.trial import Trial
from synaptune.search.workers.base import NoWorkers
from synaptune.study.callbacks.notify import Notifier, NotifyConfig


def run(number, perplexity):
    facts = {"val_perplexity": perplexity, "seed": number}
    if perplexity is None:
        return Trial(
            number,
            number,
            (0.5,),
            {"x": 1.0},
            "failed",
            reason="the loss is nan\nmore",
            facts=facts,
        )
    return Trial(number, number, (0.5,), {"x": 1.0}, "complete", objective=perplexity, facts=facts)


def runs(*perplexities):
    return [run(number, perplexity) for number, perplexity in enumerate(perplexities)]


@pytest.mark.parametrize(
    ("after", "decision"),
    [((9.0, 9.5, 9.2), "winner"), ((10.0, 10.5, 10.1), "start"), ((9.0, None, 9.2), "start")],
)
def test_a_gate_keeps_what_is_better_on_fresh_seeds_and_the_start_when_the_winner_fails(
    after, decision
):
    account = phase2._decide_gate("calcium", runs(10.0, 9.9, 9.8), runs(*after))
    assert account["decision"] == decision
    assert (account["reason"] == "1 of 3 runs on fresh seeds failed (the loss is nan)") == (
        None in after
    )


def test_a_failing_start_ends_the_gates_in_words():
    with pytest.raises(UserError, match="at least 2"):
        phase2._decide_gate("calcium", runs(None, None, 9.0), runs(9.0, 9.0, 9.0))


@pytest.mark.parametrize(
    "word", ["search_space=phase1", "search_space.parameters=[synapse.*]", "search.start=other"]
)
def test_another_search_than_over_all_parameters_is_refused(word):
    with pytest.raises(UserError, match="NAME=VALUE"):
        phase2.compose_phase2(["scale=smoke", word])


def test_a_plan_counts_the_longer_runs_of_the_validation():
    composed = phase2.compose_phase2(["scale=smoke", "protocol.final_steps=48"])
    config, space = phase2.read_config(composed), phase2.build_space(composed)
    plan = phase2.plan_runs(config, composed.base, space)
    assert {runs.name: runs.length for runs in plan if runs.length != 1.0} == {
        "validation": 2.0,
        "inspection": 2.0,
    }


def test_the_study_may_be_named_on_the_command_line():
    assert phase2.compose_phase2(["scale=smoke"]).location.name == "phase2"
    assert phase2.compose_phase2(["scale=smoke", "study.name=mine"]).location.name == "mine"


def of_objective(*words):
    begun = compose_config(["scale=smoke", *words])
    space, notifier = phase2.build_space(begun), Notifier(NotifyConfig(), "s")
    rest = ("cpu", "code", NoWorkers(), StopConfig(), notifier)
    return Protocol(begun.base, space, None, Engine("cma", 0), Plan(3), (1, 2), *rest)


def trial(generation, *, test=False, **values):
    return Trial(
        0, 0, (0.5,), values, "complete", facts={"seed": 0, "test": test, "generation": generation}
    )


def test_a_run_is_no_copy_for_one_that_is_scored_otherwise():
    hybrid, plain = of_objective("objective=hybrid", "objective.switch=2"), of_objective()
    assert (
        hybrid.make_trial_key(trial(0))
        == hybrid.make_trial_key(trial(1))
        != hybrid.make_trial_key(trial(2))
    )
    assert hybrid.make_trial_key(trial(0, test=True)) == hybrid.make_trial_key(trial(2, test=True))
    assert plain.make_trial_key(trial(0)) == plain.make_trial_key(trial(5))


def test_a_run_of_a_part_of_the_space_stands_among_the_configured_values():
    protocol = of_objective("synapse.calcium.tau_c=0.9")
    name = "synapse.vesicles.tau_rrp"
    start = protocol.space.to_values(protocol.space.get_start())
    assert protocol.make_trial_key(trial(0, **{name: start[name]})) == protocol.make_trial_key(
        trial(0, **start)
    )
    assert protocol.make_trial_key(trial(0, **{name: 99.0})) != protocol.make_trial_key(
        trial(0, **start)
    )
