"""Sensitivity of the training loss to each parameter, in short deterministic runs.

Each parameter is set to its low and its high end. It acts only in a regime: a split threshold needs
experts that split, and consolidation needs fast weights to consolidate. The regimes are listed
here. The effect of a parameter is the distance of the losses at its two ends, as a mean over seeds:
the sign of the difference depends on the text and the seed, so one difference alone can be near
zero. Every effect is compared with two scales: the spread of the loss over seeds, and the rounding
noise, which is the effect of changing one number by a millionth. The runs use double precision. In
single precision a rounding error grows to 1e-4 within a hundred steps.
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

MIN_EFFECT = 1e-4  # [nat/token]; a parameter with a smaller effect counts as dead
_WIDTH = max(len(spec.name) for spec in SPECS)  # width of the column of names


@dataclass(frozen=True)
class ShortRun:
    """The short run; its sizes are in the units of model and training."""

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
    """Effect of one parameter.

    Attributes:
        spec: the parameter.
        low: loss at its low end, mean over the seeds [nat/token].
        high: loss at its high end, mean over the seeds [nat/token].
        effect: distance of the losses at the two ends, mean over the seeds [nat/token].
        ratio: effect divided by the standard deviation over seeds.
    """

    spec: Spec
    low: float
    high: float
    effect: float
    ratio: float


class Regime(NamedTuple):
    """Conditions under which a parameter acts: values of other parameters and number of experts."""

    fixed: dict[str, float]
    experts: int


# The synapse has a strong influence (lambda_loge at its high end), so that a short run shows it.
_STRONG_BIAS = {"synapse.attention.lambda_loge": 5.0}
# Much calcium, so that the terminals release and tire.
_MUCH_CALCIUM = _STRONG_BIAS | {"synapse.calcium.alpha_ca": 2.0}
# A small reserve makes the terminal depend on recycled vesicles.
_RECYCLING = _MUCH_CALCIUM | {
    "synapse.vesicles.init_reserve": 2.0,
    "synapse.vesicles.rec_rate": 0.3,
    "synapse.vesicles.tau_rrp": 10.0,
}
# Terminals that hardly release, so that their efficacy falls to its floor.
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

# Parameters whose two ends would have nearly the same loss in the regime of their subsystem.
_OWN_REGIMES = {
    "synapse.calcium.syt1_slope": _MUCH_CALCIUM,
    "synapse.energy.energy_max": {"synapse.energy.energy_fill": 0.1},
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
    """Train a short run on the CPU in float64; the same arguments give the same number.

    Returns:
        The mean training loss over the second half of the run [nat/token].
    """
    model = GPT(
        dataclasses.replace(run.model, experts=experts), params, corpus.vocab, seed
    ).double()
    optimizer = torch.optim.AdamW(model.make_decay_groups(0.1), lr=run.learning_rate)
    late_losses: list[torch.Tensor] = []
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
            late_losses.append(loss.detach())
    return float(torch.stack(late_losses).mean())


def measure_sensitivities(
    run: ShortRun | None = None, on_result: Callable[[Sensitivity], None] | None = None
) -> tuple[list[Sensitivity], float]:
    """Measure every parameter of the registry in its regime.

    Args:
        run: the short run; None means the default.
        on_result: called with each sensitivity as soon as it is measured.

    Returns:
        The sensitivities, and the largest rounding noise of a regime [nat/token].
    """
    run, data = run or ShortRun(), DataConfig()
    corpus = load_corpus(data, run.model.context)
    base = SynapseParams().with_values({"synapse.structural.structural_interval": run.steps + 1})
    specs = [spec.for_run(run.steps) for spec in SPECS]
    sensitivities, rounding_noise = [], 0.0
    for subsystem, group in itertools.groupby(specs, key=lambda spec: spec.subsystem):
        regime = _REGIMES[subsystem]

        def compute_loss(values: dict[str, float], seed: int = 0, regime: Regime = regime) -> float:
            params = base.with_values(regime.fixed | values)
            return train_short_run(run, corpus, data, params, experts=regime.experts, seed=seed)

        seeds = range(run.seeds)
        seed_losses = [compute_loss({}, seed) for seed in seeds]
        spread = statistics.stdev(seed_losses)
        tau_c = base.calcium.tau_c * (1 + 1e-6)
        noise = abs(compute_loss({"synapse.calcium.tau_c": tau_c}) - seed_losses[0])
        rounding_noise = max(rounding_noise, noise)
        for spec in group:
            own = _OWN_REGIMES.get(spec.name, {})
            low, high = (
                [compute_loss(own | {spec.name: _cast_value(spec, value)}, seed) for seed in seeds]
                for value in (spec.low, spec.high)
            )
            effect = statistics.fmean(abs(b - a) for a, b in zip(low, high, strict=True))
            sensitivities.append(
                Sensitivity(
                    spec, statistics.fmean(low), statistics.fmean(high), effect, effect / spread
                )
            )
            if on_result is not None:
                on_result(sensitivities[-1])
    return sensitivities, rounding_noise


def _cast_value(spec: Spec, value: float) -> float:
    return int(value) if spec.scale == "int" or spec.name.endswith("structural_interval") else value


def format_header() -> str:
    """Format the names of the columns."""
    return (
        f"{'parameter':{_WIDTH}}  {'low':>9} {'high':>9}  {'loss, low':>9} {'loss, high':>10}  "
        f"{'effect':>8} {'/ seeds':>8}"
    )


def format_row(sensitivity: Sensitivity) -> str:
    """Format one parameter as a row."""
    spec, low, high, effect, ratio = sensitivity
    mark = "" if effect >= MIN_EFFECT else "  DEAD"
    return (
        f"{spec.name:{_WIDTH}}  {spec.low:>9.4g} {spec.high:>9.4g}  {low:>9.4f} {high:>10.4f}  "
        f"{effect:>8.5f} {ratio:>8.3f}{mark}"
    )


def format_summary(sensitivities: list[Sensitivity], rounding_noise: float) -> str:
    """Format the number of dead parameters and the rounding noise."""
    dead = sum(sensitivity.effect < MIN_EFFECT for sensitivity in sensitivities)
    return (
        f"{len(sensitivities)} parameters, {dead} dead (effect below {MIN_EFFECT:g} nats per "
        f"token); rounding noise {rounding_noise:.1e}"
    )
