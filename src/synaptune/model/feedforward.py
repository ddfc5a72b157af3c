"""Feed-forward blocks: squared ReLU or SwiGLU, dense or as a mixture of experts.

    y = sum_i p_i f_i(x)                                                                        (1)
    balance = E sum_i share_i pbar_i                                                            (2)

p softmax of the router over all experts, restricted to the top k and renormalised; share share of
routed slots; pbar mean probability; E number of experts. With one expert a token p is 1 and keeps
the gradient of the log of its probability, without which the language-model loss would not train
the router.
With `model.balance_rate` = r above 0 the top k are chosen by p_i + b_i. The selection bias b does
not enter p; after each optimizer step
    b_i' = b_i + r sign(1 / E - share_i)                                                        (3)
All experts are stored side by side in two matrices. Evaluation computes all of them and (1) weighs
their hidden units, so that a token does not depend on another one to the last bit. Training on a
CPU sorts the slots of the tokens by expert, computes the chosen experts only and weighs their
outputs, which are narrower than the hidden units. Either way no token is dropped, and no shape
depends on the routing.
Source: squared ReLU, So et al., arXiv 2109.08668; SwiGLU, Shazeer, arXiv 2002.05202; (1), (2) Fedus
et al., arXiv 2101.03961; (3) Wang et al., arXiv 2408.15664, algorithm 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptune.core.parameters import list_specs
from synaptune.core.seeds import make_generator
from synaptune.model.attention import upcast
from synaptune.model.config import ModelConfig
from synaptune.synapse.experts import (
    OWN_EMBEDDING_LENGTH,
    SPLIT_NOISE,
    Metabolism,
    RemodelPlan,
    Routing,
    StructuralParams,
    metabolism_step,
    plan_remodel,
    router_logits,
)
from synaptune.synapse.tensors import SynapseTensors

EMBED_MAX = next(int(s.high) for s in list_specs(StructuralParams) if s.label == "router_embed_dim")


class FeedForwardOutput(NamedTuple):
    """Output of a feed-forward block.

    Attributes:
        out: (batch, token, width).
        balance: load-balancing loss (2), 0-dim.
        routing: routing of the batch; None for a dense block.
    """

    out: Tensor
    balance: Tensor
    routing: Routing | None


class SquaredRelu(torch.autograd.Function):
    """relu(u)^2, or w relu(u)^2, with its gradient in closed form.

    It makes half as many passes over the hidden units as the derivative by autograd, and a third
    without weights.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(up: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        rectified = F.relu(up)
        squared = rectified * rectified
        return squared if weight is None else squared * weight, rectified

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor | None], output: tuple[Tensor, Tensor]
    ) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        rectified, weight = ctx.saved_tensors
        if weight is None:
            return torch.addcmul(grad.new_zeros(()), grad, rectified, value=2.0), None
        slope = grad * rectified
        return slope * (2.0 * weight), (slope * rectified).sum(-1, keepdim=True)


class ChosenExperts(torch.autograd.Function):
    """y (1) with squared ReLU from slots that are sorted by expert, with its gradient.

    It keeps the rectified hidden units alone, and not their squares, the inputs and the outputs of
    the slots: these are computed again in a pass over the hidden units and a selection of rows.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, factor: Tensor, up: Tensor, down: Tensor, token: Tensor, ends: Tensor
    ) -> Tensor:
        """Return y, (token, width).

        Args:
            ctx: context of autograd.
            x: normalised input, (token, width).
            factor: p of (1) of the slots, (slot, 1).
            up: (expert, hidden, width).
            down: (expert, hidden, width).
            token: index of the token of each slot, (slot,).
            ends: end of each expert's slots, (expert,), int32.
        """
        rectified = F.grouped_mm(x[token], up.transpose(1, 2), offs=ends).relu_()
        ctx.save_for_backward(x, factor, up, down, token, ends, rectified)
        out = F.grouped_mm(rectified * rectified, down, offs=ends).mul_(factor)
        return torch.zeros_like(x).index_add_(0, token, out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, factor, up, down, token, ends, rectified = ctx.saved_tensors
        grad = grad[token]
        slope = F.grouped_mm(grad, down.transpose(1, 2), offs=ends).mul_(rectified)
        grad_factor = (slope * rectified).sum(-1, keepdim=True)
        grad_down = F.grouped_mm((rectified * rectified).T, grad * factor, offs=ends)
        slope.mul_(2.0 * factor)
        grad_up = F.grouped_mm(slope.T, x[token], offs=ends)
        grad_x = torch.zeros_like(x).index_add_(0, token, F.grouped_mm(slope, up, offs=ends))
        return grad_x, grad_factor, grad_up, grad_down, None, None


class FeedForward(nn.Module):
    """`experts` feed-forward networks side by side; with one expert a dense block.

    Attributes:
        EAGER: methods that torch.compile does not trace; it knows no grouped_mm of fp32.
    """

    EAGER = ("compute_chosen",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.experts = config.experts
        self.top_k = min(config.top_k, config.experts)
        self.gated = config.feedforward == "swiglu"
        self.grouped = config.kernel == "auto"
        hidden = config.width * config.ff_multiple // (self.top_k if self.experts > 1 else 1)
        if self.gated:
            # Three matrices instead of two, with the same number of parameters.
            hidden = max(1, 2 * hidden // 3)
        self.up = nn.Parameter(torch.empty(self.experts, hidden, config.width))
        self.gate = (
            nn.Parameter(torch.empty(self.experts, hidden, config.width)) if self.gated else None
        )
        self.down = nn.Parameter(torch.empty(self.experts, hidden, config.width))
        self.router = (
            Router(config.experts, self.top_k, config.width, biased=config.balance_rate > 0)
            if config.experts > 1
            else None
        )

    def compute_hidden(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """Return the weighed hidden units of all experts, (batch, token, experts * hidden).

        Args:
            x: normalised input, (batch, token, width).
            weight: p of (1), (batch, token, expert); None: 1.
        """
        up = F.linear(x, self.up.flatten(0, 1)).unflatten(-1, (self.experts, -1))
        weight = None if weight is None else weight.to(up.dtype)[..., None]
        if self.gate is None:
            return SquaredRelu.apply(up, weight)[0].flatten(-2)  # type: ignore[index]
        gate = F.linear(x, self.gate.flatten(0, 1)).unflatten(-1, (self.experts, -1))
        hidden = F.silu(gate) * up
        return (hidden if weight is None else hidden * weight).flatten(-2)

    def forward(self, x: Tensor, params: SynapseTensors) -> FeedForwardOutput:
        """Run the block on normalised input x (batch, token, width)."""
        if self.router is None:
            return FeedForwardOutput(
                self.compute_hidden(x, None) @ self.down.flatten(0, 1),
                x.new_zeros(()),
                None,
            )
        weight, balance, routing = self.router(x, params)
        if self.training and self.grouped and _can_group(x, self.up):
            return FeedForwardOutput(self.compute_chosen(x, weight), balance, routing)
        return FeedForwardOutput(
            self.compute_hidden(x, weight) @ self.down.flatten(0, 1), balance, routing
        )

    def compute_chosen(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return y (1), (batch, token, width), from the chosen experts of each token alone.

        Args:
            x: normalised input, (batch, token, width).
            weight: p of (1), (batch, token, expert), 0 for the experts that are not chosen.
        """
        tokens, weight = x.flatten(0, 1), weight.flatten(0, 1)
        expert = weight.detach().topk(self.top_k, dim=-1).indices.flatten()
        order = expert.argsort(stable=True)
        token, expert = order // self.top_k, expert[order]
        ends = torch.bincount(expert, minlength=self.experts).cumsum(0).int()
        factor = weight[token, expert][:, None].to(x.dtype)
        if self.gate is None:
            y = ChosenExperts.apply(tokens, factor, self.up, self.down, token, ends)
            return y.view_as(x)  # type: ignore[union-attr]
        slots = tokens[token]
        up = F.grouped_mm(slots, self.up.transpose(1, 2), offs=ends)
        gate = F.grouped_mm(slots, self.gate.transpose(1, 2), offs=ends)
        out = F.grouped_mm(F.silu(gate) * up, self.down, offs=ends) * factor
        return torch.zeros_like(tokens).index_add(0, token, out).view_as(x)

    def get_mixing_matrices(self, plan: RemodelPlan) -> dict[str, Tensor]:
        """Return by name the matrix that mixes a weight and its optimizer moments at an event."""
        names = [name for name, _ in self.named_parameters() if name != "router.probe"]
        return {name: plan.mix if name.startswith("router") else plan.copy for name in names}

    def remodel_weights(self, plan: RemodelPlan) -> dict[str, Tensor]:
        """Return the weights after a structural event by name; does not change the module."""
        weights = dict(self.named_parameters())
        after = {
            name: mix_experts(mix, weights[name])
            for name, mix in self.get_mixing_matrices(plan).items()
        }
        after["router.bias"] = after["router.bias"] + plan.bias
        for name in ("up", "down"):
            # The copies get the same noise with opposite signs, so their mean is the parent.
            shape = after[name].shape[1:]
            noise = torch.randn(shape, generator=make_generator("twin", name, len(after))).to(
                after[name]
            )
            after[name] = (
                after[name]
                + plan.noise_sign.view(-1, 1, 1) * SPLIT_NOISE * after[name].std() * noise
            )
        return after


def _can_group(x: Tensor, up: Tensor) -> bool:
    """Return whether torch multiplies groups of rows for this input and these weights."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and hasattr(F, "grouped_mm")
        and all(size % 4 == 0 for size in up.shape[1:])  # strides in units of 16 bytes
    )


def mix_experts(mix: Tensor, value: Tensor) -> Tensor:
    """Multiply the leading axis of a weight, a moment or a bias by an (expert, expert) matrix."""
    return (mix @ value.flatten(1)).view_as(value) if value.ndim > 1 else mix @ value


class Router(nn.Module):
    """Top-k router with routing embeddings and a metabolism (synapse/experts.py)."""

    utilisation: Tensor
    fatigue: Tensor
    energy: Tensor
    embedding: Tensor
    selection: Tensor | None

    def __init__(self, experts: int, top_k: int, width: int, *, biased: bool = False) -> None:
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(experts, width))
        self.bias = nn.Parameter(torch.zeros(experts))
        self.probe = nn.Parameter(torch.empty(EMBED_MAX, width))
        self.register_buffer("utilisation", torch.full((experts,), 1.0 / experts))
        self.register_buffer("fatigue", torch.ones(experts))
        self.register_buffer("energy", torch.ones(experts))
        self.register_buffer("embedding", torch.zeros(experts, EMBED_MAX))
        self.register_buffer("selection", torch.zeros(experts) if biased else None)

    def init_state(self, params: SynapseTensors, generator: torch.Generator) -> None:
        """Set the initial energy and embeddings: a common direction plus one per expert."""
        common = torch.randn(1, EMBED_MAX, generator=generator)
        own = torch.randn(self.embedding.shape, generator=generator)
        self.embedding.copy_(
            F.normalize(common, dim=-1) + OWN_EMBEDDING_LENGTH * F.normalize(own, dim=-1)
        )
        self.embedding.copy_(F.normalize(self.embedding * self.make_mask(params), dim=-1))
        self.energy.fill_(float(params.energy.init_energy))

    def make_mask(self, params: SynapseTensors) -> Tensor:
        """Return a mask that is 1 on the first `router_embed_dim` dimensions."""
        return (
            torch.arange(EMBED_MAX, device=self.weight.device) < params.structural.router_embed_dim
        ).to(self.weight.dtype)

    def get_state(self) -> Metabolism:
        """Return the buffers as the state of synapse/experts.py."""
        return Metabolism(self.utilisation, self.fatigue, self.energy, self.embedding)

    def forward(self, x: Tensor, params: SynapseTensors) -> tuple[Tensor, Tensor, Routing]:
        """Route x (batch, token, width).

        Returns:
            The expert weights p of (1), (batch, token, expert), the balance loss (2), and the
            routing of the batch.
        """
        probe = F.normalize(upcast(F.linear(x, self.probe)) * self.make_mask(params), dim=-1)
        logits = router_logits(upcast(F.linear(x, self.weight, self.bias)), probe, self.get_state())
        probability = logits.softmax(-1)
        scores = probability if self.selection is None else probability + self.selection
        index = scores.topk(self.top_k, dim=-1).indices
        mask = torch.zeros_like(probability).scatter(-1, index, 1.0)
        total = probability.gather(-1, index).sum(-1, keepdim=True)
        weight = probability * mask / (total.detach() if self.top_k == 1 else total)
        share = mask.flatten(0, -2).mean(0) / self.top_k
        balance = logits.shape[-1] * (share * probability.flatten(0, -2).mean(0)).sum()
        with torch.no_grad():
            mean = F.normalize(mask.flatten(0, -2).T @ probe.flatten(0, -2), dim=-1)
        return weight, balance, Routing(share.detach(), mean)

    def step_metabolism(self, routing: Routing, params: SynapseTensors) -> Metabolism:
        """Return the metabolism after one optimizer step; does not change the module."""
        return metabolism_step(self.get_state(), routing, params.structural, params.energy)

    def step_selection(self, routing: Routing, rate: float) -> dict[str, Tensor]:
        """Return the selection bias by name after one optimizer step (3); empty without one."""
        if self.selection is None:
            return {}
        wanted = torch.sign(1.0 / len(routing.share) - routing.share)
        return {"selection": self.selection + rate * wanted}

    def plan_event(self, params: SynapseTensors) -> RemodelPlan:
        """Return the structural event for the current state."""
        return plan_remodel(self.get_state(), params.structural)
