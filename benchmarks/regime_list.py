"""The regimes: tasks, and the variants that are compared in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import regime_tasks
from regime_tasks import CODE
from runs import OPTION, Task
from tuning import LEARNING_RATE

BARRIER = "synapse.attention.barrier_strength"
DISTANCE = f"{BARRIER}=24"
NO_MEMORY = "ablation=[no_release,no_memory,no_experts]"
MEMORY = (
    "synapse.postsynaptic.post_fast_decay=0.999",
    "synapse.postsynaptic.post_fast_lr=5e-3",
    "synapse.postsynaptic.rank_eligibility=16",
)
ALONE = ("model.release=off", "model.distance=off", *MEMORY)  # the memory without the rest
NOISE = ("ablation=[no_memory,no_experts]", "synapse.stochastic.stochastic_train_frac=1.0")
LEARNED = "synapse.learn=[{}]".format(
    ",".join(
        (
            "calcium.alpha_ca",
            "vesicles.tau_rrp",
            "postsynaptic.post_fast_lr",
            "postsynaptic.post_fast_decay",
            "attention.lambda_loge",
            "attention.barrier_strength",
        )
    )
)
# Entries of search_space.ranges by name; an empty one stands for the declared range. Options of a
# task have their range here too.
Ranges = Mapping[str, Mapping[str, Any]]
RATE: Ranges = {LEARNING_RATE: dict(low=1e-3, high=3e-2, log=True)}
SLOPE: Ranges = {BARRIER: dict(low=4.0, high=128.0, log=True)}
WRITES: Ranges = {
    "synapse.postsynaptic.post_fast_decay": {},
    "synapse.postsynaptic.post_fast_lr": {},
    "synapse.postsynaptic.rank_eligibility": {},
}
DYNAMICS: Ranges = {
    "synapse.attention.lambda_loge": {},
    "synapse.calcium.alpha_ca": {},
    "synapse.vesicles.tau_rrp": {},
}
SHARE: Ranges = {"synapse.stochastic.stochastic_train_frac": {}}
METABOLISM: Ranges = {
    "synapse.structural.structural_tau_util": {},
    "synapse.structural.energy_cost_rel": {},
    "synapse.energy.energy_fill": {},
}


@dataclass(frozen=True)
class Variant:
    """One side of a comparison.

    Attributes:
        overrides: of train.py.
        ranges: what tuning searches beside the learning rate.
    """

    overrides: tuple[str, ...] = ()
    ranges: Ranges = field(default_factory=dict)


@dataclass(frozen=True)
class Regime:
    """A task and the variants that are compared in it.

    Attributes:
        common: overrides of every variant.
        metric: metric of the gain, without its prefix.
        variants: by name; the first is the reference of the gains.
        higher_is_better: whether a larger metric is better.
        task: what a run does instead of one training run.
        also: further metrics of the table, without their prefix.
    """

    common: tuple[str, ...]
    metric: str
    variants: dict[str, Variant]
    higher_is_better: bool = False
    task: Task | None = None
    also: tuple[str, ...] = ()


ROLES = {
    "window alone": Variant(("model=gpt",)),
    "full attention": Variant(("model=gpt", "model.window=0")),
    "full attention, smeared keys": Variant(("model=gpt", "model.window=0", "model.smear=true")),
    "gated DeltaNet": Variant(("model=deltanet", "model.window=0")),
    "memory, hebbian": Variant((*ALONE, "model.fast_weights=hebbian"), WRITES),
    "memory, delta": Variant(ALONE, WRITES),
}
WITH_MEMORY = "ablation=[no_release,no_experts]"
SLOW_RATE = "synapse.postsynaptic.post_slow_lr"
INTERVAL = "synapse.structural.structural_interval"
EXPERTS = "experiment=experts"
EVENTS: Ranges = {
    "synapse.structural.router_sim_threshold": {},
    "synapse.structural.merge_health_max": {},
    "synapse.structural.split_health_min": {},
}
FIXED_OR_NOT = {
    "fixed experts": Variant(),
    "split and merge": Variant((f"{INTERVAL}=${{fraction_of_steps:0.1}}",), EVENTS),
    "split and merge, rarely": Variant((f"{INTERVAL}=${{fraction_of_steps:0.5}}",), EVENTS),
    "split and merge, once": Variant((f"{INTERVAL}=${{fraction_of_steps:1.0}}",), EVENTS),
}
SECOND_TEXT = ("data=text", f"data.path={CODE}")  # after prose
REGIMES = {
    "locality": Regime(
        (),
        "perplexity",
        {
            "plain, RoPE": Variant(("ablation=plain",)),
            "plain, ALiBi": Variant(("ablation=plain", "position=alibi")),
            "barrier": Variant((NO_MEMORY, DISTANCE, "model.distance=barrier"), SLOPE),
            "learned slope": Variant((NO_MEMORY, DISTANCE, "model.distance=learned"), SLOPE),
            "clock": Variant((NO_MEMORY, DISTANCE), SLOPE),
            "barrier + dynamics": Variant(
                ("ablation=[no_memory,no_experts]", DISTANCE, "model.distance=barrier"),
                {**SLOPE, **DYNAMICS},
            ),
        },
    ),
    "chains": Regime(("experiment=chains",), "loss", ROLES),
    "recall": Regime(("experiment=distractors",), "recall_accuracy", ROLES, higher_is_better=True),
    "code": Regime(
        ("experiment=code",),
        "perplexity",
        {
            "clock": Variant((NO_MEMORY,), SLOPE),
            "clock, wider feed-forward": Variant((NO_MEMORY, "model.ff_multiple=5"), SLOPE),
            "clock, memory": Variant(
                ("ablation=[no_release,no_experts]", *MEMORY), {**SLOPE, **WRITES}
            ),
            "clock, memory of four heads": Variant(
                ("ablation=[no_release,no_experts]", *MEMORY, "model.memory_heads=4"),
                {**SLOPE, **WRITES},
            ),
            "window of 16": Variant((NO_MEMORY, "model.window=16"), SLOPE),
            "window of 16, memory": Variant(
                ("ablation=[no_release,no_experts]", "model.window=16", *MEMORY),
                {**SLOPE, **WRITES},
            ),
        },
    ),
    "few_data": Regime(
        ("experiment=few-data", "data.max_bytes=8_000_000"),  # the task takes pieces of it
        "perplexity",
        {
            "no noise": Variant((NO_MEMORY,)),
            "attention dropout": Variant(
                (NO_MEMORY, "model.dropout=0.4"), {"model.dropout": dict(low=0.0, high=0.8)}
            ),
            "release per tick": Variant(NOISE, SHARE),
            "release per event": Variant(
                (*NOISE, "model.noise=event"), {**SHARE, "synapse.vesicles.init_rrp": {}}
            ),
        },
        task=regime_tasks.train_on_few,
        also=("calibration_error",),
    ),
    "kinetics": Regime(
        ("synapse=local",),  # tuned=FILE replaces its values
        "perplexity",
        {
            "fixed": Variant(("ablation=no_experts",), {**SLOPE, **DYNAMICS, **WRITES}),
            "learned": Variant(("ablation=no_experts", LEARNED), {**SLOPE, **DYNAMICS, **WRITES}),
        },
    ),
    "reading": Regime(
        (DISTANCE,),
        "perplexity_8x",
        {
            "plain, RoPE": Variant(("ablation=plain",)),
            "plain, ALiBi": Variant(("ablation=plain", "position=alibi")),
            "plain, clock": Variant(("ablation=plain", "model.distance=clock"), SLOPE),
            "memory": Variant(("ablation=[no_release,no_experts]", *MEMORY), {**SLOPE, **WRITES}),
            "whole synapse": Variant(MEMORY, {**SLOPE, **DYNAMICS, **WRITES}),
        },
        task=regime_tasks.read_longer,
        also=("perplexity_1x", "perplexity_4x"),
    ),
    "generation": Regime(
        (DISTANCE,),
        "looping",
        {
            "greedy": Variant((NO_MEMORY,)),
            "vesicle fatigue": Variant(("ablation=[no_memory,no_experts]",), DYNAMICS),
            "repetition penalty": Variant(
                (NO_MEMORY, f"{OPTION}penalty=1.2"), {f"{OPTION}penalty": dict(low=1.0, high=2.0)}
            ),
            "fatigue of the output": Variant(
                (NO_MEMORY, f"{OPTION}fatigue=0.7"), {f"{OPTION}fatigue": dict(low=0.0, high=3.0)}
            ),
            "sampling": Variant(
                (NO_MEMORY, f"{OPTION}temperature=0.8"),
                {f"{OPTION}temperature": dict(low=0.1, high=1.5)},
            ),
        },
        task=regime_tasks.continue_freely,
        also=("distinct", "judge_perplexity"),
    ),
    "experts": Regime(
        (EXPERTS,),
        "perplexity",
        {
            "neither": Variant(("model.balance_weight=0", f"{OPTION}metabolism=0")),
            "balance loss": Variant(
                ("model.balance_weight=0.01", f"{OPTION}metabolism=0"),
                {"model.balance_weight": dict(low=1e-3, high=1.0, log=True)},
            ),
            "selection bias": Variant(
                (
                    "model.balance_weight=0",
                    "model.balance_rate=0.01",
                    f"{OPTION}metabolism=0",
                ),
                {"model.balance_rate": dict(low=1e-3, high=0.1, log=True)},
            ),
            "metabolism": Variant(("model.balance_weight=0",), METABOLISM),
            "both": Variant(("model.balance_weight=0.01",), METABOLISM),
        },
        task=regime_tasks.start_badly,
        also=("dead_experts", "gini"),
    ),
    "drift": Regime(
        (*SECOND_TEXT, EXPERTS),
        "perplexity",
        FIXED_OR_NOT,
        task=regime_tasks.drift,
        also=("at_first", "soon"),
    ),
    "lesion": Regime(
        (EXPERTS,),
        "perplexity",
        FIXED_OR_NOT,
        task=regime_tasks.kill_expert,
        also=("at_first", "soon"),
    ),
    "continual": Regime(
        (*SECOND_TEXT, DISTANCE, "training.steps=400"),
        "loss",
        {
            "nothing": Variant((NO_MEMORY,)),
            "memory, K almost still": Variant(
                (WITH_MEMORY, *MEMORY, f"{SLOW_RATE}=1e-5"), {**SLOPE, **WRITES}
            ),
            "memory, K and BDNF": Variant(
                (WITH_MEMORY, *MEMORY, f"{SLOW_RATE}=5e-3"),
                {**SLOPE, **WRITES, SLOW_RATE: {}, "synapse.bdnf.bdnf_scale": {}},
            ),
            "Fisher information (EWC)": Variant(
                (NO_MEMORY, f"{OPTION}fisher=1e-3"),
                {f"{OPTION}fisher": dict(low=1e-5, high=1.0, log=True)},
            ),
            "path integral": Variant(
                (NO_MEMORY, f"{OPTION}path=1e-3"),
                {f"{OPTION}path": dict(low=1e-5, high=1.0, log=True)},
            ),
            "replay of a quarter": Variant((NO_MEMORY, f"{OPTION}replay=4")),
        },
        task=regime_tasks.continual,
        also=("forgetting", "second_text", "relearned"),
    ),
}
