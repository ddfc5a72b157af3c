"""The host transformer, with or without its synapses: RMS-normalised, rotary, pre-norm, without biases.

    x += attention(norm(x))         with the bias of model/presynapse.py
    x += f(norm(x)) + memory        model/feedforward.py, model/memory.py
    logits = 15 tanh(head(norm(x)) / 15)

Source: block of Xiong et al., arXiv 2002.04745; soft-capped logits as in Gemma 2, arXiv 2408.00118 (its cap is 30; 15 chosen for bytes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from synaptune.core.seeds import make_generator
from synaptune.model.attention import (
    Attention,
    alibi_slopes,
    biased_attention,
    rms_norm,
    rope_table,
    upcast,
)
from synaptune.model.config import ModelConfig, check_model
from synaptune.model.feedforward import FeedForward, FeedForwardOutput, mix_experts
from synaptune.model.memory import Memory
from synaptune.model.presynapse import Presynapse, distance_rows
from synaptune.synapse.circuit import SynapseParams, SynapseTensors
from synaptune.synapse.experts import Routing, remodel_metabolism
from synaptune.synapse.fast_weights import Consolidation

LOGIT_CAP = 15.0
INITIAL_HEAD_STD = 0.02  # standard deviation of the head's first weights


class LayerActivity(NamedTuple):
    """What a batch leaves behind in one layer for the plasticity between steps; None where the mechanism is off."""

    routing: Routing | None
    consolidation: Consolidation | None


Activity = tuple[LayerActivity, ...]


class ModelOutput(NamedTuple):
    """logits (batch, token, vocabulary) in fp32, weighted load-balancing loss (0-dim), activity of the layers."""

    logits: Tensor
    balance: Tensor
    activity: Activity


class StructuralReport(NamedTuple):
    """Experts merged and split at this step, over all layers; layers: (merged, split) of each, empty when no event was due."""

    merges: int
    splits: int
    layers: tuple[tuple[int, int], ...] = ()


class SharedInputs(NamedTuple):
    """What all layers of a forward share: rotary tables, code of the query's bias row (token, row), bias rows (1, head or 1, row, key)."""

    rope: tuple[Tensor, Tensor] | None
    code: Tensor | None
    rows: Tensor | None


class Block(nn.Module):
    """One layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads)
        self.presynapse = (
            Presynapse(config.heads, config.tick, config.kernel)
            if config.release == "dynamic"
            else None
        )
        self.feedforward = FeedForward(config)
        self.memory = (
            Memory(config.width, config.tick, config.fast_weights)
            if config.fast_weights != "off"
            else None
        )

    def forward(
        self,
        x: Tensor,
        shared: SharedInputs,
        params: SynapseTensors,
        noise: torch.Generator | None,
        *,
        release_off: bool,
    ) -> tuple[Tensor, Tensor, LayerActivity]:
        """(batch, token, width) -> same, load-balancing loss, activity."""
        q, k, v = self.attention.project(rms_norm(x), shared.rope)
        rows = shared.rows
        if self.presynapse is not None and not release_off:
            synaptic = self.presynapse(q, k, params, noise)
            rows = synaptic if rows is None else synaptic + rows
        x = x + self.attention.merge(biased_attention(q, k, v, shared.code, rows))
        return self.transform(x, params)

    def transform(self, x: Tensor, params: SynapseTensors) -> tuple[Tensor, Tensor, LayerActivity]:
        """The half after attention."""
        normed = rms_norm(x)
        mixed: FeedForwardOutput = self.feedforward(normed, params)
        if self.memory is None:
            return x + mixed.out, mixed.balance, LayerActivity(mixed.routing, None)
        added, handed = self.memory(normed, mixed.out, params)
        return x + mixed.out + added, mixed.balance, LayerActivity(mixed.routing, handed)


class GPT(nn.Module):
    """The model; which mechanisms it carries is its `config`, what they are worth its `params`.

    Weights are drawn per name from `seed`, so models that share a weight's name and shape start with the same weight.
    Raises UserError on a configuration that no model can be built from.
    """

    blocks: Sequence[Block]
    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: ModelConfig, params: SynapseParams, vocab: int, seed: int) -> None:
        super().__init__()
        check_model(config)
        self.config, self.params = config, params
        self.synapse = SynapseTensors(params)
        self.embedding = nn.Embedding(vocab, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))  # type: ignore[assignment]
        self.head = nn.Linear(config.width, vocab, bias=False)
        cos, sin = rope_table(config.context, config.head_width)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)
        # Exactly 0 is "off": the plain transformer's program, not a bias of zeros.
        self.release_off = config.release == "off" or params.attention.lambda_loge == 0.0
        self.has_barrier = config.distance == "barrier" and params.attention.barrier_strength != 0.0
        self.interval = int(params.structural.structural_interval)
        init_weights(self, seed)

    def forward(self, tokens: Tensor, noise: torch.Generator | None = None) -> ModelOutput:
        """tokens (batch, token) -> ModelOutput; `noise` switches stochastic release on and draws it."""
        x = rms_norm(self.embedding(tokens))
        shared = self.make_shared_inputs(tokens.shape[1])
        balance, activity = x.new_zeros(()), []
        for block in self.blocks:
            x, loss, left = block(x, shared, self.synapse, noise, release_off=self.release_off)
            balance = balance + self.config.balance_weight * loss
            activity.append(left)
        return ModelOutput(self.compute_logits(x), balance, tuple(activity))

    def compute_logits(self, x: Tensor) -> Tensor:
        """Residual stream (..., width) -> soft-capped logits (..., vocabulary) in fp32."""
        return LOGIT_CAP * torch.tanh(upcast(self.head(rms_norm(x))) / LOGIT_CAP)

    def make_shared_inputs(self, length: int) -> SharedInputs:
        """Positions and bias rows of a sequence: a row per tick when synapses are at work, else one for all."""
        rope = (
            (self.rope_cos[:length], self.rope_sin[:length])
            if self.config.position == "rope"
            else None
        )
        tick = self.config.tick if not self.release_off else length
        count = -(-length // tick)
        rows = self.make_static_rows(
            torch.arange(count, device=self.head.weight.device), length, tick
        )
        if rows is None and self.release_off:
            return SharedInputs(rope, None, None)
        index = torch.arange(length, device=self.head.weight.device) // tick
        code = (index[:, None] == torch.arange(count, device=index.device)).to(
            self.head.weight.dtype
        )
        return SharedInputs(rope, code, rows)

    def make_static_rows(self, ticks: Tensor, length: int, tick: int) -> Tensor | None:
        """Bias that depends on positions only, (1, head or 1, tick, key): ALiBi and the distance barrier; None when neither is on."""
        rows = None
        if self.has_barrier:
            rows = distance_rows(
                ticks, length, self.synapse, context=self.config.context, tokens=tick
            )[None, None]
        if self.config.position == "alibi":
            keys = torch.arange(length, device=ticks.device)
            slopes = alibi_slopes(self.config.heads).to(ticks.device)
            alibi = slopes[None, :, None, None] * (keys[None, :] - tick * ticks[:, None])
            rows = alibi if rows is None else rows + alibi
        return rows

    def step_buffers(self, activity: Activity) -> dict[str, Tensor]:
        """Buffers after one optimizer step of slow plasticity and metabolism, by name; pure."""
        after = {}
        for i, (block, left) in enumerate(zip(self.blocks, activity, strict=True)):
            if left.routing is not None and block.feedforward.router is not None:
                lived = block.feedforward.router.step_metabolism(left.routing, self.synapse)
                after |= {
                    f"blocks.{i}.feedforward.router.{name}": value
                    for name, value in lived._asdict().items()
                }
            if left.consolidation is not None and block.memory is not None:
                after[f"blocks.{i}.memory.slow"] = block.memory.consolidate_slow(
                    left.consolidation, self.synapse
                )
        return after

    def remodel_experts(self) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Structural events of all layers: (weights and buffers after, mixing matrix of each weight, (layer, 2) counts of both); pure."""
        after, mixes, counts = (
            {},
            {},
            [torch.zeros(2, device=self.head.weight.device)] * len(self.blocks),
        )
        for i, block in enumerate(self.blocks):
            if block.feedforward.router is None:
                continue
            path, router = f"blocks.{i}.feedforward", block.feedforward.router
            plan = router.plan_event(self.synapse)
            after |= {
                f"{path}.{name}": value
                for name, value in block.feedforward.remodel_weights(plan).items()
            }
            mixes |= {
                f"{path}.{name}": mix
                for name, mix in block.feedforward.get_mixing_matrices(plan).items()
            }
            after |= {
                f"{path}.router.{n}": v
                for n, v in remodel_metabolism(router.get_state(), plan)._asdict().items()
            }
            counts[i] = torch.stack([plan.merged, plan.split]).to(counts[i])
        return after, mixes, torch.stack(counts)

    @torch.no_grad()
    def apply_plasticity(
        self, activities: list[Activity], step: int, optimizer: torch.optim.Optimizer | None
    ) -> StructuralReport:
        """Plasticity outside the gradient, once per optimizer step (counted from 1), from the activities of its micro-batches.

        At a structural event the optimizer's moments are mixed as their weights are.
        """
        tensors = dict(self.named_parameters()) | dict(self.named_buffers())
        for name, value in self.step_buffers(average_activity(activities)).items():
            tensors[name].copy_(value)
        if self.config.experts == 1 or step % self.interval != self.interval // 2:
            return StructuralReport(0, 0)
        after, mixes, counts = self.remodel_experts()
        layers = tuple((int(merged), int(split)) for merged, split in counts.tolist())
        merges, splits = (sum(column) for column in zip(*layers, strict=True))
        if merges:
            for name, value in after.items():
                tensors[name].copy_(value)
            for name, mix in mixes.items():
                _mix_moments(optimizer, tensors[name], mix)
        return StructuralReport(merges, splits, layers)

    def get_utilisation(self) -> Tensor | None:
        """Average share of routed slots, (layer, expert); None when dense."""
        routers = [block.feedforward.router for block in self.blocks]
        return (
            None
            if self.config.experts == 1
            else torch.stack([router.utilisation for router in routers if router is not None])
        )

    def make_decay_groups(self, weight_decay: float) -> list[dict]:
        """AdamW groups: matrices of the blocks decay; embeddings, gains, thresholds and biases do not."""
        decayed = [
            p
            for name, p in self.named_parameters()
            if p.ndim >= 2 and not name.startswith("embedding")
        ]
        kept = [
            p for name, p in self.named_parameters() if p.ndim < 2 or name.startswith("embedding")
        ]
        return [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": kept, "weight_decay": 0.0},
        ]


def average_activity(activities: list[Activity]) -> Activity:
    """Mean over the micro-batches of a step."""
    if len(activities) == 1:
        return activities[0]

    def mean(parts: list) -> NamedTuple | None:
        return (
            None
            if parts[0] is None
            else type(parts[0])(*(torch.stack(x).mean(0) for x in zip(*parts, strict=True)))
        )

    layers = zip(*activities, strict=True)
    return tuple(
        LayerActivity(*(mean(list(parts)) for parts in zip(*layer, strict=True)))
        for layer in layers
    )  # type: ignore[arg-type]


def init_weights(model: GPT, seed: int) -> None:
    """Draw the first weights, each from (seed, name): outputs of blocks zero, everything else with unit-variance outputs, the head small.

    A head of zeros gives the blocks no gradient at first, and associative recall then stays on its plateau of guessing.
    """
    known = {"embedding.weight": 1.0, "head.weight": INITIAL_HEAD_STD}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim < 2:
                continue
            generator = make_generator("weight", seed, name)
            if name.endswith(("attention.out.weight", "down", "memory.out")):
                p.zero_()
            else:
                scale = known.get(name, float(p.shape[-1]) ** -0.5)
                p.copy_(scale * torch.randn(p.shape, generator=generator))  # type: ignore[operator]
        for i, block in enumerate(model.blocks):
            if block.feedforward.router is not None:
                block.feedforward.router.init_state(
                    model.synapse, make_generator("router", seed, i)
                )


def _mix_moments(optimizer: torch.optim.Optimizer | None, weight: Tensor, mix: Tensor) -> None:
    for value in (optimizer.state.get(weight, {}) if optimizer is not None else {}).values():
        if isinstance(value, Tensor) and value.shape == weight.shape:
            value.copy_(mix_experts(mix, value))
