"""Training of K models that differ in their synapse parameters, as one program under vmap.

All candidates share the initial weights, the batches and the draws of stochastic release (common
random numbers), so each candidate has the losses of a separate run. Weights, optimizer moments and
plastic buffers have a leading candidate axis. AdamW is elementwise, and clipping is per candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from synaptune.core.errors import user_error
from synaptune.data.recall import IGNORE_INDEX
from synaptune.model.config import ModelConfig
from synaptune.model.feedforward import mix_experts
from synaptune.model.gpt import GPT, Activity, LayerActivity
from synaptune.synapse.circuit import SynapseParams
from synaptune.training.optimizers import MOMENT_RATES


class _PlasticityModule(nn.Module):
    """`GPT.step_buffers` and `GPT.remodel_experts` as a forward method, for functional_call."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, activity: Activity | None) -> object:
        return (
            self.model.step_buffers(activity)
            if activity is not None
            else self.model.remodel_experts()
        )


class Population:
    """K candidates of one model configuration, trained together step by step.

    Args:
        config: configuration of all models.
        candidates: synapse parameters of each model.
        vocab: size of the vocabulary.
        seed: seed of the weights.
        learning_rate: learning rate of AdamW.
        weight_decay: weight decay of AdamW.

    Raises:
        UserError: a candidate learns parameters; or a neutral value switches a term off in some
            candidates only, while the term is part of the program for all of them or for none.
    """

    def __init__(
        self,
        config: ModelConfig,
        candidates: Sequence[SynapseParams],
        vocab: int,
        *,
        seed: int,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        if any(params.learn for params in candidates):
            raise user_error(
                got="a population with synapse.learn",
                expected="fixed parameters, which are the candidates",
                do="train a model with learned parameters in a run of its own",
            )
        models = [GPT(config, params, vocab, seed) for params in candidates]
        if len({(model.release_off, model.distance_off) for model in models}) > 1:
            raise user_error(
                got="lambda_loge or barrier_strength at 0 in some candidates only",
                expected="a term that is on in all candidates, or off in all of them",
                do="run those candidates separately",
            )
        self.model, self.intervals = models[0], [model.interval for model in models]
        for blocks in zip(*(model.blocks for model in models), strict=True):
            blocks[0].feedforward.grouped = False  # vmap would multiply group by group
            if blocks[0].memory is not None:
                blocks[0].memory.rows = max(block.memory.rows for block in blocks)
        self.params, self.buffers = stack_module_state(models)  # type: ignore[arg-type]
        names = {id(p): name for name, p in self.model.named_parameters()}
        groups = self.model.make_decay_groups(weight_decay)
        stacked = [
            group | {"params": [self.params[names[id(p)]] for p in group["params"]]}
            for group in groups
        ]
        self.optimizer = torch.optim.AdamW(stacked, lr=learning_rate, betas=MOMENT_RATES)

    def step(
        self,
        tokens: Tensor,
        targets: Tensor,
        number: int,
        noise: torch.Generator | None = None,
        clip: float = 1.0,
    ) -> Tensor:
        """Run one optimizer step of all candidates.

        Args:
            tokens: inputs, (batch, token).
            targets: next tokens, (batch, token).
            number: number of the optimizer step, from 1.
            noise: generator of stochastic release; None for the expected release.
            clip: largest gradient norm of a candidate.

        Returns:
            The loss of each candidate, (K,) [nat/token].
        """

        def loss(
            params: dict[str, Tensor], buffers: dict[str, Tensor]
        ) -> tuple[Tensor, tuple[Tensor, list[dict[str, Any]]]]:
            out = functional_call(self.model, (params, buffers), (tokens, noise))
            value = F.cross_entropy(
                out.logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX
            )
            # Only tensors leave vmap, and a layer without experts has no routing.
            parts = [
                {name: part for name, part in layer._asdict().items() if part is not None}
                for layer in out.activity
            ]
            return value + out.balance, (value, parts)

        leaves = {name: p.detach() for name, p in self.params.items()}
        # The fused attention of the CPU has no batching rule: vmap would run it per candidate.
        with sdpa_kernel(SDPBackend.MATH):
            grads, (_, (losses, parts)) = vmap(
                grad_and_value(loss, has_aux=True), randomness="same"
            )(leaves, self.buffers)
        norm = torch.stack([g.flatten(1).norm(dim=1) for g in grads.values()]).norm(dim=0)
        shrink = (clip / (norm + 1e-6)).clamp(max=1.0)
        for name, p in self.params.items():
            p.grad = grads[name] * shrink.view(-1, *[1] * (p.ndim - 1))
        self.optimizer.step()
        self._apply_plasticity(parts, number)
        return losses.detach()

    @torch.no_grad()
    def _apply_plasticity(self, parts: list[dict[str, Any]], number: int) -> None:
        """Apply the plasticity outside the gradient; each candidate has its own interval."""
        plasticity = _PlasticityModule(self.model)

        def call(
            params: dict[str, Tensor],
            buffers: dict[str, Tensor],
            parts: list[dict[str, Any]] | None,
        ) -> object:
            empty = dict.fromkeys(LayerActivity._fields)
            activity = (
                None if parts is None else tuple(LayerActivity(**(empty | part)) for part in parts)
            )
            state = {f"model.{name}": value for name, value in (params | buffers).items()}
            return functional_call(plasticity, state, (activity,))

        leaves = {name: p.detach() for name, p in self.params.items()}
        for name, value in vmap(call)(leaves, self.buffers, parts).items():  # type: ignore[attr-defined]
            self.buffers[name].copy_(value)
        due = torch.tensor([number % interval == interval // 2 for interval in self.intervals])
        if self.model.config.experts == 1 or not due.any():
            return
        after, mixes, _ = vmap(
            lambda params, buffers: call(params, buffers, None), randomness="same"
        )(leaves, self.buffers)  # type: ignore[misc]
        eye = torch.eye(self.model.config.experts)
        for name, value in after.items():
            target = self.params[name] if name in self.params else self.buffers[name]
            target.data.copy_(torch.where(due.view(-1, *[1] * (value.ndim - 1)), value, target))
        for name, mix in mixes.items():
            matrix = torch.where(due.view(-1, 1, 1), mix, eye)
            for moment in self.optimizer.state[self.params[name]].values():
                if moment.shape == self.params[name].shape:
                    moment.copy_(vmap(mix_experts)(matrix, moment))
