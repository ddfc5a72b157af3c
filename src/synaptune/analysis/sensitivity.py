"""The census of the parameters: what the low and the high end of each do to the training loss of a short deterministic run.

A parameter acts in a regime: a split threshold only where experts split, consolidation only where there is something to consolidate. The
regimes are written down here. Two yardsticks stand beside every effect: the spread of the same loss over seeds, and the dust, the effect of
moving one number by a millionth. The runs are in double precision, so that dust stays dust: in single precision a hundred steps make 1e-4
of a rounding error.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.nn import functional as F

from synaptune.core.parameters import Spec
from synaptune.core.seeds import make_generator
from synaptune.data.batches import make_train_batch
from synaptune.data.config import DataConfig
from synaptune.data.corpus import Corpus, load_corpus
from synaptune.data.recall import IGNORE_INDEX
from synaptune.model.config import ModelConfig
from synaptune.model.gpt import GPT
from synaptune.synapse.circuit import SPECS, SynapseParams

MIN_EFFECT = 1e-4  # nats: below this a parameter counts as dead
_WIDTH = max(len(spec.name) for spec in SPECS)  # letters of the name's column


@dataclass(frozen=True)
class ShortRun:
    """The short run of the census; sizes in the units of model and training."""

    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            layers=1, width=32, heads=2, context=96, tick=8, experts=1
        )
    )
    batch: int = 4
    steps: int = 40
    learning_rate: float = 1e-2
    seeds: int = 3


class Sensitivity(NamedTuple):
    """Losses [nat/token] at the low and the high end; how far apart these and the one at the default lie, and that over the spread
    across seeds. With the default, since two ends may meet by chance: in another text they did."""

    spec: Spec
    low: float
    high: float
    effect: float
    ratio: float


class Regime(NamedTuple):
    """Where a parameter acts: the values that hold while its ends are compared, and the number of experts."""

    fixed: dict[str, float]
    experts: int


# The synapse is heard well (lambda_loge at its high end), so that what it does shows in a short run.
_STRONG_BIAS = {"synapse.attention.lambda_loge": 5.0}
# A small reserve makes the terminal live on what it recycles.
_RECYCLING = _STRONG_BIAS | {
    "synapse.vesicles.init_reserve": 2.0,
    "synapse.vesicles.rec_rate": 0.3,
    "synapse.vesicles.tau_rrp": 10.0,
}
# Terminals that hardly release: their efficacy comes down to its floor.
_WEAK_RELEASE = _STRONG_BIAS | {
    "synapse.calcium.doc2_gain": 0.005,
    "synapse.calcium.cpx_thresh": 1.5,
}
_FAST_WRITES = {"synapse.postsynaptic.post_fast_lr": 1e-2}
_CONSOLIDATING = _FAST_WRITES | {
    "synapse.postsynaptic.post_slow_lr": 1e-2,
    "synapse.postsynaptic.post_fast_decay": 0.995,
    "synapse.postsynaptic.camkii_up": 0.2,
    "synapse.bdnf.bdnf_scale": 4.0,
}
# Structural events within the run, and embeddings that move within it.
_STRUCTURAL = {
    "synapse.structural.structural_interval": 10,
    "synapse.structural.router_contrastive_lr": 1e-2,
    "synapse.structural.router_contrastive_push": 0.5,
}
_REGIMES = {
    "calcium": Regime(_STRONG_BIAS, 1),
    "vesicles": Regime(_RECYCLING, 1),
    "energy": Regime(_STRONG_BIAS, 1),
    "stochastic": Regime(_STRONG_BIAS, 1),
    "attention": Regime(_WEAK_RELEASE, 1),
    "postsynaptic": Regime(_FAST_WRITES, 1),
    "bdnf": Regime(_CONSOLIDATING, 1),
    "structural": Regime(_STRUCTURAL, 4),
}


def train_short_run(
    run: ShortRun,
    corpus: Corpus,
    data: DataConfig,
    params: SynapseParams,
    *,
    experts: int = 1,
    seed: int = 0,
) -> float:
    """Mean training loss [nat/token] over the second half of a run on the CPU in float64; the same arguments give the same number."""
    model = GPT(
        dataclasses.replace(run.model, experts=experts), params, corpus.vocab, seed
    ).double()
    optimizer = torch.optim.AdamW(model.make_decay_groups(0.1), lr=run.learning_rate)
    late: list[torch.Tensor] = []
    for step in range(1, run.steps + 1):
        batch = make_train_batch(
            corpus, data, seed=seed, step=step, size=run.batch, context=run.model.context
        )
        out = model(batch.tokens, make_generator("noise", seed, step))
        loss = F.cross_entropy(
            out.logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE_INDEX
        )
        optimizer.zero_grad()
        (loss + out.balance).backward()
        optimizer.step()
        model.apply_plasticity([out.activity], step, optimizer)
        if step > run.steps // 2:
            late.append(loss.detach())
    return float(torch.stack(late).mean())


def measure_sensitivities(
    run: ShortRun | None = None, on_result: Callable[[Sensitivity], None] | None = None
) -> tuple[list[Sensitivity], float]:
    """Every parameter of the registry in its regime, and the largest dust of a regime [nat/token].

    on_effect: sees each as it is measured.
    """
    run, data = run or ShortRun(), DataConfig()
    corpus = load_corpus(data, run.model.context)
    base = SynapseParams().with_values({"synapse.structural.structural_interval": run.steps + 1})
    specs = [spec.for_run(run.steps) for spec in SPECS]
    effects, dust = [], 0.0
    for subsystem, group in itertools.groupby(specs, key=lambda spec: spec.subsystem):
        held, experts = _REGIMES[subsystem]

        def loss(
            values: dict[str, float],
            seed: int = 0,
            held: dict[str, float] = held,
            experts: int = experts,
        ) -> float:
            return train_short_run(
                run, corpus, data, base.with_values(held | values), experts=experts, seed=seed
            )

        over_seeds = [loss({}, seed) for seed in range(run.seeds)]
        tau_c = base.calcium.tau_c * (1 + 1e-6)
        dust = max(dust, abs(loss({"synapse.calcium.tau_c": tau_c}) - over_seeds[0]))
        for spec in group:
            low, high = (
                loss({spec.name: _cast_value(spec, value)}) for value in (spec.low, spec.high)
            )
            apart = max(low, high, over_seeds[0]) - min(low, high, over_seeds[0])
            effects.append(
                Sensitivity(spec, low, high, apart, apart / statistics.stdev(over_seeds))
            )
            if on_result is not None:
                on_result(effects[-1])
    return effects, dust


def _cast_value(spec: Spec, value: float) -> float:
    return int(value) if spec.scale == "int" or spec.name.endswith("structural_interval") else value


def format_header() -> str:
    """The names of a row's columns."""
    return f"{'parameter':{_WIDTH}}  {'low':>9} {'high':>9}  {'loss, low':>9} {'loss, high':>10}  {'effect':>8} {'/ seeds':>8}"


def format_row(sensitivity: Sensitivity) -> str:
    """One parameter as a person reads it."""
    spec, low, high, size, ratio = sensitivity
    mark = "" if size >= MIN_EFFECT else "  DEAD"
    return f"{spec.name:{_WIDTH}}  {spec.low:>9.4g} {spec.high:>9.4g}  {low:>9.4f} {high:>10.4f}  {size:>8.5f} {ratio:>8.3f}{mark}"


def format_summary(sensitivities: list[Sensitivity], rounding_noise: float) -> str:
    """How many parameters are dead."""
    dead = sum(effect.effect < MIN_EFFECT for effect in sensitivities)
    return f"{len(sensitivities)} parameters, {dead} dead (effect below {MIN_EFFECT:g} nats per token); rounding dust {rounding_noise:.1e}"
