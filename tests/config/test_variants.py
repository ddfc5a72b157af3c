"""Every variant, preset, ablation and experiment trains, and a neutral one takes its mechanism out
of the model exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from helpers.paths import ROOT
from synaptune.config.run import Outcome, run
from synaptune.config.schema import register
from synaptune.config.settings import read_settings
from synaptune.model.gpt import GPT
from synaptune.study.artifacts import read_best
from synaptune.synapse.circuit import SPECS, SynapseParams
from synaptune.synapse.metaplasticity import consolidate
from synaptune.synapse.tensors import SynapseTensors
from synaptune.synapse.terminal import init_terminals, terminal_step

CONF = ROOT / "conf"
TRAINED = [
    path
    for group in ("synapse", "ablation", "experiment")
    for path in sorted((CONF / group).rglob("*.yaml"))
    if not path.stem.startswith(
        "policy"
    )  # it begins at a checkpoint: tests/training/test_policy.py
]
WORDS = [
    f"{path.parent.relative_to(CONF)}={path.stem}"
    for path in TRAINED
    if path.parent.parent == CONF or path.stem != "default"
]
SHORT = [
    "scale=smoke",
    "training.batch=4",
    "training.evaluations=1",
    "training.eval_batches=1",
    "logger=csv",
    "logger.progress=off",
]
NEEDED = {
    # A front divides by a baseline, which the phase-1 protocol measures first.
    "experiment=tradeoff": [
        f"objective.baseline.{name}=1"
        for name in ("val_perplexity", "val_recall_accuracy", "tokens_per_second")
    ],
    "experiment=screening": ["pruner=none"],  # which judges no run of two steps
} | {
    f"experiment=dendritic-{name}": ["data=digits", "data.path=null"]
    for name in ("budget", "compare", "quick", "thorough")
}


@pytest.fixture(scope="module")
def composed() -> Iterator[Callable[..., DictConfig]]:
    """Overrides -> the configuration of train.py."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield functools.cache(lambda *words: compose("train", overrides=list(words)))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> list[str]:
    """Overrides of a run of a tenth of a second, on a small text."""
    text = tmp_path_factory.mktemp("text") / "words.txt"
    text.write_text("axon bouton calcium dendrite energy fusion glia hebb ion kinase. " * 400)
    return [*SHORT, "data=text", f"data.path={text}"]


@pytest.fixture(scope="module")
def train(composed, small, tmp_path_factory) -> Callable[..., Outcome]:
    """Overrides -> a run in this process."""
    return lambda *words, steps=2: run(
        composed(*small, f"training.steps={steps}", *words), tmp_path_factory.mktemp("run"), []
    )


def synapse(composed: Callable[..., DictConfig], *words: str) -> SynapseParams:
    return read_settings(composed(*words)).synapse


@pytest.mark.parametrize("words", WORDS)
def test_every_choice_trains_and_a_variant_changes_its_own_subsystem_alone(
    words, composed, small, train
):
    outcome = train(words, *NEEDED.get(words, []))
    assert outcome.metrics["steps"] == 2
    assert outcome.metrics["val_loss"] < 10.0
    if words.startswith("synapse/"):
        usual, varied = (
            synapse(composed, *small, "training.steps=2", *choice) for choice in ([], [words])
        )
        changed = {
            spec.subsystem
            for spec in SPECS
            if usual.get_value(spec.name) != varied.get_value(spec.name)
        }
        assert changed == {words.removeprefix("synapse/").partition("=")[0]}


@pytest.mark.parametrize(
    ("variant", "without"),
    [
        ("synapse/attention=off", "ablation=[no_release,no_distance]"),
        ("synapse/attention=distance", "ablation=no_release"),
        ("synapse/attention=efficacy", "ablation=no_distance"),
    ],
)
def test_a_neutral_attention_trains_like_the_model_without_the_mechanism(variant, without, train):
    choices = (variant, without, "synapse=default")
    losses = [
        train(words, "synapse/stochastic=off", steps=6).metrics["val_loss"] for words in choices
    ]
    assert losses[0] == losses[1] != losses[2]


def test_attention_off_leaves_the_terminals_nothing_to_change(train):
    """Whatever release does then, no logit sees it."""
    ways = (
        [],
        ["synapse/calcium=slow"],
        ["synapse/vesicles=single"],
        ["synapse/energy=rigid"],
        ["synapse/stochastic=full"],
    )
    losses = {train("synapse/attention=off", *words, steps=6).metrics["val_loss"] for words in ways}
    assert len(losses) == 1


def test_stochastic_off_draws_nothing_in_training(composed):
    tokens = torch.randint(0, 64, (2, 64), generator=torch.Generator().manual_seed(0))

    def logits(words: str, noise: int | None) -> torch.Tensor:
        built = read_settings(composed("scale=smoke", words))
        model = GPT(built.model, built.synapse, 64, seed=0).train()
        with torch.no_grad():
            for (
                weight
            ) in model.parameters():  # some start at zero, and would hide what comes before them
                weight.add_(0.1)
            return model(
                tokens, noise=None if noise is None else torch.Generator().manual_seed(noise)
            ).logits

    assert torch.equal(logits("synapse/stochastic=off", 1), logits("synapse/stochastic=off", None))
    assert not torch.equal(
        logits("synapse/stochastic=full", 1), logits("synapse/stochastic=full", None)
    )


def test_bdnf_off_consolidates_as_if_there_were_none(composed):
    draw = torch.Generator().manual_seed(0)
    slow, gated, bdnf = (
        torch.randn(*shape, generator=draw).abs() for shape in ((8, 8), (8, 8), (8,))
    )

    def after(words: str, bdnf: torch.Tensor) -> torch.Tensor:
        params = SynapseTensors(synapse(composed, words))
        return consolidate(slow, gated, bdnf, params.postsynaptic, params.bdnf)

    without = after("synapse/bdnf=default", torch.zeros_like(bdnf))
    assert torch.equal(after("synapse/bdnf=off", bdnf), without)
    assert not torch.equal(after("synapse/bdnf=strong", bdnf), without)


def test_bdnf_off_trains_alike_at_any_time_constant(train):
    usual, other = (
        train("synapse/bdnf=off", f"synapse.bdnf.bdnf_tau={tau}", steps=6) for tau in (0.985, 0.9)
    )
    assert usual.metrics["val_loss"] == other.metrics["val_loss"]


def test_frozen_experts_neither_merge_nor_split_where_restless_ones_do(train):
    thresholds = [
        "synapse.structural.merge_health_max=0.45",
        "synapse.structural.router_sim_threshold=0.2",
    ]
    frozen, restless = (
        train(f"synapse/structural={name}", *thresholds, steps=24).metrics
        for name in ("frozen", "restless")
    )
    assert (frozen["merges"], frozen["splits"]) == (0, 0)
    assert restless["merges"] > 0


def driven(params: SynapseParams, drive: float, tokens: int = 80) -> list:
    """The states of a terminal under a constant drive, token by token."""
    tensors, like = SynapseTensors(params), torch.full((1, 1, 1), drive)
    states = [init_terminals(like, tensors)]
    for _ in range(tokens):
        states.append(terminal_step(states[-1], like, tensors, 1)[0])
    return states


def test_an_inexhaustible_reserve_never_limits_the_refill(composed):
    for name, least in (("inexhaustible", 0.98), ("default", 0.94)):
        states = driven(synapse(composed, f"synapse/vesicles={name}"), drive=3.0)
        reserve = min(float(state.vesicles.reserve) for state in states)
        assert least < reserve / (reserve + 1.0) < least + 0.02
    usual, quick, lasting = (
        float(driven(synapse(composed, f"synapse/vesicles={name}"), 3.0)[-1].vesicles.ready)
        for name in ("default", "inexhaustible", "depressing")
    )
    assert lasting < usual < quick


def test_calcium_is_slow_and_fast_as_said(composed):
    left = {}
    for name in ("slow", "default", "fast"):
        params = synapse(composed, f"synapse/calcium={name}")
        tensors, state = SynapseTensors(params), driven(params, 3.0)[-1]
        peak = float(state.calcium.free)
        for _ in range(10):
            state, _ = terminal_step(state, torch.full((1, 1, 1), -8.0), tensors, 1)
        left[name] = float(state.calcium.free) / peak
    assert left["slow"] > 0.6 > left["default"] > 0.1 > left["fast"]


def test_energy_is_scarce_and_abundant_as_said(composed):
    least = {
        name: min(
            float(state.energy.energy)
            for state in driven(synapse(composed, f"synapse/energy={name}"), 3.0)
        )
        for name in ("scarce", "default", "abundant")
    }
    assert least["scarce"] < 0.01 < least["default"] < 0.9 < least["abundant"]
    rigid = [
        float(state.energy.ampa) for state in driven(synapse(composed, "synapse/energy=rigid"), 3.0)
    ]
    assert 0.8 < min(rigid) <= max(rigid) < 1.2


def test_tuned_is_the_best_point_of_the_committed_report(composed):
    best = read_best(CONF.parent / "docs/reports/stdlib/best.yaml")
    usual, tuned = synapse(composed), synapse(composed, "synapse=tuned")
    assert {
        spec.name: tuned.get_value(spec.name)
        for spec in SPECS
        if tuned.get_value(spec.name) != usual.get_value(spec.name)
    } == best
