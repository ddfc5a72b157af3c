"""The host transformer with optional synapses: RMS-normalised, rotary, pre-norm, without biases.

    x += attention(norm(x))         with the bias of model/presynapse.py, or model/deltanet.py
    x += f(norm(x)) + memory        model/feedforward.py, model/memory.py
    logits = 15 tanh(head(norm(x)) / 15)

Source: block of Xiong et al., arXiv 2002.04745; soft-capped logits as in Gemma 2, arXiv 2408.00118
(its cap is 30; 15 chosen for bytes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from synaptune.core.seeds import make_generator
from synaptune.model.attention import (
    Attention,
    AttentionBias,
    alibi_slopes,
    biased_attention,
    rms_norm,
    rope_table,
    upcast,
)
from synaptune.model.config import ModelConfig, check_model
from synaptune.model.deltanet import DeltaNet
from synaptune.model.distance import Distance
from synaptune.model.feedforward import FeedForward, FeedForwardOutput, mix_experts
from synaptune.model.learned import LearnedParameters
from synaptune.model.memory import Memory
from synaptune.model.noise import draw_attention_noise
from synaptune.model.presynapse import Presynapse
from synaptune.synapse.circuit import SynapseParams
from synaptune.synapse.experts import Routing, remodel_metabolism
from synaptune.synapse.fast_weights import Consolidation
from synaptune.synapse.tensors import SynapseTensors

LOGIT_CAP = 15.0
INITIAL_HEAD_STD = 0.02  # standard deviation of the head's first weights
ZERO_WEIGHTS = ("attention.out.weight", "down", "memory.out", "distance.weight")  # at first


class LayerActivity(NamedTuple):
    """Activity of one layer in a batch, the input of the plasticity between steps.

    Attributes:
        routing: routing of the experts; None for a dense layer.
        consolidation: means for the slow weights; None without a memory.
    """

    routing: Routing | None
    consolidation: Consolidation | None


Activity = tuple[LayerActivity, ...]


class ModelOutput(NamedTuple):
    """Output of a forward pass.

    Attributes:
        logits: (batch, token, vocabulary) in fp32.
        balance: weighted load-balancing loss, 0-dim.
        activity: activity of each layer.
    """

    logits: Tensor
    balance: Tensor
    activity: Activity


class SharedInputs(NamedTuple):
    """Inputs that all layers share in a forward pass.

    Attributes:
        rope: rotary tables; None without rotary positions.
        alibi: ALiBi's bias of each key, (1, head, key) [nat]; None without ALiBi.
    """

    rope: tuple[Tensor, Tensor] | None
    alibi: Tensor | None


class Block(nn.Module):
    """One layer; `rank` is the rank of its memory."""

    def __init__(self, config: ModelConfig, rank: int) -> None:
        super().__init__()
        self.config = config
        self.attention = (
            DeltaNet(config.width, config.heads)
            if config.mixer == "deltanet"
            else Attention(config.width, config.heads, smear=config.smear)
        )
        self.distance = (
            Distance(config.width, config.heads, config.distance, config.context)
            if config.distance != "off"
            else None
        )
        self.presynapse = (
            Presynapse(config.heads, config.tick, config.kernel)
            if config.release == "dynamic"
            else None
        )
        self.feedforward = FeedForward(config)
        self.memory = Memory(config, rank) if config.fast_weights != "off" else None

    def forward(
        self,
        x: Tensor,
        shared: SharedInputs,
        params: SynapseTensors,
        noise: torch.Generator | None,
        *,
        release_off: bool,
        distance_off: bool,
    ) -> tuple[Tensor, Tensor, LayerActivity]:
        """Run the layer.

        Args:
            x: residual stream, (batch, token, width).
            shared: inputs that all layers share.
            params: parameters of the synapse.
            noise: generator of the noise of training; None for none.
            release_off: compute attention without the terminals.
            distance_off: compute attention without the distance.

        Returns:
            The new residual stream, the load-balancing loss and the activity.
        """
        config, normed = self.config, rms_norm(x)
        if isinstance(self.attention, DeltaNet):
            mixed, _ = self.attention(normed, self.attention.init_state(len(x)))
            return self.transform(x + mixed, params)
        q, k, v = self.attention.project(normed, shared.rope)
        distance, rows, efficacy, factor = shared.alibi, None, None, None
        is_event = config.noise == "event"
        if self.distance is not None and not distance_off:
            bias, _ = self.distance(normed, params)
            distance = bias if distance is None else distance + bias
        if self.presynapse is not None and not release_off:
            draws = noise if config.noise == "terminal" else None
            rows, efficacy = self.presynapse(q, k, params, draws, needs_efficacy=is_event)
        if noise is not None and (is_event or config.dropout > 0.0):
            factor = draw_attention_noise(
                q,
                efficacy,
                params,
                noise,
                is_event=is_event,
                dropout=config.dropout,
                tick=config.tick,
            )
        bias = AttentionBias(rows, distance, config.tick)
        heads = biased_attention(
            q, k, v, bias, window=config.window, noise=factor, kernel=config.kernel
        )
        return self.transform(x + self.attention.merge(heads), params)

    def transform(self, x: Tensor, params: SynapseTensors) -> tuple[Tensor, Tensor, LayerActivity]:
        """Run the half of the layer after attention; same results as `forward`."""
        normed = rms_norm(x)
        hidden: FeedForwardOutput = self.feedforward(normed, params)
        if self.memory is None:
            return x + hidden.out, hidden.balance, LayerActivity(hidden.routing, None)
        recalled, consolidation = self.memory(normed, params)
        activity = LayerActivity(hidden.routing, consolidation)
        return x + hidden.out + recalled, hidden.balance, activity


class GPT(nn.Module):
    """The model: `config` selects its mechanisms, `params` sets their numbers.

    Each weight is drawn from `seed` and its name, so models that share the name and shape of a
    weight start with the same weight.

    Args:
        config: sizes and mechanisms.
        params: numbers of the synapse.
        vocab: size of the vocabulary.
        seed: seed of the weights.

    Raises:
        UserError: a model cannot be built from the configuration.
    """

    blocks: Sequence[Block]
    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: ModelConfig, params: SynapseParams, vocab: int, seed: int) -> None:
        super().__init__()
        check_model(config)
        self.config, self.params = config, params
        self.synapse = SynapseTensors(params)
        self.learned = LearnedParameters(params, config.layers) if params.learn else None
        self.embedding = nn.Embedding(vocab, config.width)
        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            Block(config, int(params.postsynaptic.rank_eligibility)) for _ in range(config.layers)
        )
        self.head = nn.Linear(config.width, vocab, bias=False)
        cos, sin = rope_table(config.context, config.head_width)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)
        # A weight of exactly 0 removes the term from the program instead of adding zeros.
        self.release_off = config.release == "off" or params.attention.lambda_loge == 0.0
        self.distance_off = config.distance == "off" or params.attention.barrier_strength == 0.0
        self.interval = int(params.structural.structural_interval)
        init_weights(self, seed)

    def forward(self, tokens: Tensor, noise: torch.Generator | None = None) -> ModelOutput:
        """Run the model on tokens (batch, token).

        `noise` is the generator of stochastic release and dropout; None gives neither.
        """
        x = rms_norm(self.embedding(tokens))
        shared = self.make_shared_inputs(tokens.shape[1])
        balance, activity = x.new_zeros(()), []
        for number, block in enumerate(self.blocks):
            x, loss, layer = block(
                x,
                shared,
                self.get_synapse(number),
                noise,
                release_off=self.release_off,
                distance_off=self.distance_off,
            )
            balance = balance + self.config.balance_weight * loss
            activity.append(layer)
        return ModelOutput(self.compute_logits(x), balance, tuple(activity))

    def get_synapse(self, layer: int) -> SynapseTensors:
        """Return the parameters of the synapse in a layer."""
        return (
            self.synapse if self.learned is None else self.learned.substitute(self.synapse, layer)
        )

    def get_learned_values(self) -> dict[str, float]:
        """Return the learned values, such as `learned.calcium.tau_c.0` of the first layer."""
        if self.learned is None:
            return {}
        return {
            f"learned.{name.removeprefix('synapse.')}.{layer}": value
            for name, values in self.learned.compute_values().items()
            for layer, value in enumerate(values.tolist())
        }

    def compute_logits(self, x: Tensor) -> Tensor:
        """Return the soft-capped logits (..., vocabulary) in fp32 of x (..., width)."""
        return LOGIT_CAP * torch.tanh(upcast(self.head(rms_norm(x))) / LOGIT_CAP)

    def make_shared_inputs(self, length: int) -> SharedInputs:
        """Return positions and ALiBi's bias of a sequence of `length` tokens."""
        rope = None
        if self.config.position == "rope":
            rope = (self.rope_cos[:length], self.rope_sin[:length])
        index = torch.arange(length, device=self.head.weight.device)
        return SharedInputs(rope, self.make_alibi(index))

    def extend_positions(self, length: int) -> None:
        """Continue the rotary angles to rows of `length` tokens, beyond the trained context."""
        self.rope_cos, self.rope_sin = (
            table.to(self.rope_cos.device) for table in rope_table(length, self.config.head_width)
        )

    def make_alibi(self, positions: Tensor) -> Tensor | None:
        """Return ALiBi's bias of keys at `positions`, (1, head, key) [nat]; None without ALiBi."""
        if self.config.position != "alibi":
            return None
        slopes = alibi_slopes(self.config.heads).to(positions.device)
        return (slopes[:, None] * positions)[None]

    def step_buffers(self, activity: Activity) -> dict[str, Tensor]:
        """Return by name the buffers after one optimizer step; does not change the model.

        The step advances the metabolism and the selection bias of the experts, and the slow weights
        of the memories.
        """
        after = {}
        for i, (block, layer) in enumerate(zip(self.blocks, activity, strict=True)):
            if layer.routing is not None and block.feedforward.router is not None:
                router, rate = block.feedforward.router, self.config.balance_rate
                state = router.step_metabolism(layer.routing, self.get_synapse(i))
                changed = state._asdict() | router.step_selection(layer.routing, rate)
                after |= {f"blocks.{i}.feedforward.router.{n}": v for n, v in changed.items()}
            if layer.consolidation is not None and block.memory is not None:
                after[f"blocks.{i}.memory.slow"] = block.memory.consolidate_slow(
                    layer.consolidation, self.get_synapse(i)
                )
        return after

    def remodel_experts(self) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Compute the structural events of all layers; does not change the model.

        Returns:
            The weights and buffers after the events, the mixing matrix of each weight, and the
            merges and splits of each layer, (layer, 2).
        """
        after, mixes = {}, {}
        counts = [torch.zeros(2, device=self.head.weight.device)] * len(self.blocks)
        for i, block in enumerate(self.blocks):
            if block.feedforward.router is None:
                continue
            path, router = f"blocks.{i}.feedforward", block.feedforward.router
            plan = router.plan_event(self.get_synapse(i))
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
            if router.selection is not None:
                after[f"{path}.router.selection"] = plan.mix @ router.selection
            counts[i] = torch.stack([plan.merged, plan.split]).to(counts[i])
        return after, mixes, torch.stack(counts)

    def apply_plasticity(
        self, activities: list[Activity], step: int, optimizer: torch.optim.Optimizer | None
    ) -> list[tuple[int, int]]:
        """Run `update_buffers` and `apply_events` after one optimizer step."""
        self.update_buffers(activities)
        return self.apply_events(step, optimizer)

    @torch.no_grad()
    def update_buffers(self, activities: list[Activity]) -> None:
        """Write the buffers after one optimizer step, from the activity of its micro-batches."""
        buffers = dict(self.named_buffers())
        for name, value in self.step_buffers(average_activity(activities)).items():
            buffers[name].copy_(value)

    @torch.no_grad()
    def apply_events(
        self, step: int, optimizer: torch.optim.Optimizer | None
    ) -> list[tuple[int, int]]:
        """Change the experts after one optimizer step when a structural event is due.

        The moments of the optimizer are mixed like their weights.

        Args:
            step: number of the optimizer step, from 1.
            optimizer: optimizer whose moments are mixed; None without one.

        Returns:
            Merges and splits of each layer; empty when no event was due.
        """
        if self.config.experts == 1 or step % self.interval != self.interval // 2:
            return []
        tensors = dict(self.named_parameters()) | dict(self.named_buffers())
        after, mixes, counts = self.remodel_experts()
        events = [(int(merges), int(splits)) for merges, splits in counts.tolist()]
        if any(merges for merges, _ in events):
            for name, value in after.items():
                tensors[name].copy_(value)
            for name, mix in mixes.items():
                _mix_moments(optimizer, tensors[name], mix)
        return events

    def get_utilisation(self) -> Tensor | None:
        """Return the average share of routed slots, (layer, expert); None for a dense model."""
        routers = [block.feedforward.router for block in self.blocks]
        shares = [router.utilisation for router in routers if router is not None]
        return torch.stack(shares) if shares else None

    def make_decay_groups(self, weight_decay: float) -> list[dict]:
        """Return the parameter groups of AdamW.

        Matrices except the embedding decay; gains, thresholds and biases do not.
        """
        groups: tuple[list, list] = [], []
        for name, p in self.named_parameters():
            groups[p.ndim >= 2 and not name.startswith("embedding")].append(p)
        undecayed, decayed = groups
        return [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": undecayed, "weight_decay": 0.0},
        ]


def average_activity(activities: list[Activity]) -> Activity:
    """Return the mean activity of the micro-batches of a step."""
    if len(activities) == 1:
        return activities[0]

    def mean(parts: Sequence[Any]) -> Any:
        if parts[0] is None:
            return None
        return type(parts[0])(*(torch.stack(x).mean(0) for x in zip(*parts, strict=True)))

    layers = zip(*activities, strict=True)
    return tuple(LayerActivity(*map(mean, zip(*layer, strict=True))) for layer in layers)


def init_weights(model: GPT, seed: int) -> None:
    """Draw the initial weights, each from (seed, name).

    The output projections of the blocks are zero, the head is small, and all other weights give
    outputs of unit variance. A head of zeros would give the blocks no gradient at first, and
    associative recall would stay on its plateau of guessing.
    """
    scales = {"embedding.weight": 1.0, "head.weight": INITIAL_HEAD_STD}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim < 2:
                continue
            generator = make_generator("weight", seed, name)
            if name.endswith(ZERO_WEIGHTS):
                p.zero_()
            else:
                scale = scales.get(name, float(p.shape[-1]) ** -0.5)
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
