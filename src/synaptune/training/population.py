"""Training of K models that differ in numbers only, as one program under vmap.

All candidates share the batches and the draws of stochastic release (common random numbers), so
each candidate has the losses of a separate run. Weights, optimizer moments and plastic buffers
have a leading candidate axis; learning rate, decay, clipping and the interval of structural events
are per candidate.

    g <- g min(1, clip / |g|)                                                                   (1)
    m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2                                           (2)
    p <- (1 - eta lambda) p - eta m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)                 (3)

Source: (2), (3) Loshchilov and Hutter 2019, algorithm 2, as in torch.optim.AdamW.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from synaptune.core.errors import user_error
from synaptune.model.feedforward import mix_experts
from synaptune.model.gpt import GPT, Activity, LayerActivity, average_activity
from synaptune.training.cuda_graph import GraphedFunction, copy_tensors
from synaptune.training.metrics import training_loss
from synaptune.training.optimizers import MOMENT_RATES

_FLOOR = 1e-8  # eps of eq. (3), the default of torch.optim.AdamW
_CLIP_FLOOR = 1e-6  # of the norm in (1), as in torch.nn.utils.clip_grad_norm_


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
    """K models of one configuration, trained together step by step.

    Args:
        models: the models, on the device where they train; `load` writes into them.
        decays: weight decay of each.
        clips: largest gradient norm of each; 0 for no clipping.
        noise: generator of stochastic release; None for the expected release.
        make_precision: returns the autocast context of forward passes.
        graphs: record the steps as CUDA graphs.

    Attributes:
        rows: positions in `models` of the candidates that still train.

    Raises:
        UserError: a candidate learns parameters; or a neutral value switches a term off in some
            candidates only, while the term is part of the program for all of them or for none.
    """

    def __init__(
        self,
        models: Sequence[GPT],
        *,
        decays: Sequence[float],
        clips: Sequence[float],
        noise: torch.Generator | None = None,
        make_precision: Callable[[], AbstractContextManager] = nullcontext,
        graphs: bool = False,
    ) -> None:
        if any(model.learned is not None for model in models):
            raise user_error(
                got="a population with synapse.learn",
                expected="fixed parameters, which are the candidates",
                do="train a model with learned parameters in a run of its own",
            )
        if len({(model.release_off, model.distance_off) for model in models}) > 1:
            raise user_error(
                got="lambda_loge or barrier_strength at 0 in some candidates only",
                expected="a term that is on in all candidates, or off in all of them",
                do="run those candidates separately",
            )
        self.models, self.rows = list(models), list(range(len(models)))
        self.model = copy.deepcopy(models[0])
        for blocks in zip(self.model.blocks, *(model.blocks for model in models), strict=True):
            blocks[0].feedforward.grouped = False  # vmap would multiply group by group
            if blocks[0].memory is not None:
                blocks[0].memory.rows = max(block.memory.rows for block in blocks)
        self.params, self.buffers = stack_module_state(self.models)  # type: ignore[arg-type]
        self.params = {name: p.detach() for name, p in self.params.items()}
        device = next(iter(self.params.values())).device
        self._decays = torch.tensor(decays, device=device)
        self._clips = torch.tensor([clip or math.inf for clip in clips], device=device)
        names = {id(p): name for name, p in self.models[0].named_parameters()}
        decayed = self.models[0].make_decay_groups(1.0)[0]["params"]
        self._decayed = {names[id(p)] for p in decayed}
        self._moments = {
            name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.params.items()
        }
        self._steps = 0
        self._grads: dict[str, Tensor] = {}
        self._activities: list[Activity] = []
        self._noise, self._make_precision, self._graphs = noise, make_precision, graphs
        self._prepare_functions()

    def _prepare_functions(self) -> None:
        """Forget the recorded steps, which are those of the present rows."""
        self._differentiate, self._update = self._compute_gradients, self._update_weights
        if self._graphs:
            generators = [] if self._noise is None else [self._noise]
            self._differentiate = GraphedFunction(self._compute_gradients, generators)
            self._update = GraphedFunction(self._update_weights)

    def add_gradients(self, tokens: Tensor, targets: Tensor, *, is_last: bool = True) -> Tensor:
        """Add the gradients of a micro-batch to those of the step.

        Args:
            tokens: inputs, (batch, token).
            targets: next tokens, (batch, token).
            is_last: whether it is the last micro-batch of the step.

        Returns:
            The loss of each candidate, (K,) [nat/token].
        """
        result = self._differentiate(tokens, targets)
        # The next micro-batch may overwrite the tensors of a recorded step.
        grads, losses, activity = result if is_last else copy_tensors(result)
        for name, grad in grads.items():
            self._grads[name] = self._grads[name] + grad if name in self._grads else grad
        self._activities.append(activity)
        return losses

    def _compute_gradients(
        self, tokens: Tensor, targets: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Activity]:
        """Return the gradients of a micro-batch, the losses and the activity."""

        def loss(
            params: dict[str, Tensor], buffers: dict[str, Tensor]
        ) -> tuple[Tensor, tuple[Tensor, list[dict[str, Any]]]]:
            out = functional_call(self.model, (params, buffers), (tokens, self._noise))
            value = training_loss(out.logits, targets)
            return value + out.balance, (value, _get_tensors(out.activity))

        # The fused attention of the CPU has no batching rule: vmap would run it per candidate.
        with sdpa_kernel(SDPBackend.MATH), self._make_precision():
            grads, (_, (losses, parts)) = vmap(
                grad_and_value(loss, has_aux=True), randomness="same"
            )(self.params, self.buffers)
        return grads, losses.detach(), tuple(_make_activity(part) for part in parts)

    @torch.no_grad()
    def update(self, number: int, rates: Sequence[float]) -> list[list[tuple[int, int]]]:
        """Run the optimizer and the plasticity with the gradients of the step.

        Args:
            number: number of the optimizer step, from 1.
            rates: learning rate of each candidate.

        Returns:
            For each candidate the merges and splits of each layer; empty when no event was due.
        """
        self._steps += 1
        first, second = (1.0 - beta**self._steps for beta in MOMENT_RATES)
        # One copy to the device: the learning rates, then the two corrections of eq. (3).
        numbers = torch.tensor([*rates, first, second], device=self._clips.device)
        self._update(self._grads, self._activities, numbers)
        self._grads, self._activities = {}, []
        return self._apply_events(number)

    def _update_weights(
        self, grads: dict[str, Tensor], activities: list[Activity], numbers: Tensor
    ) -> None:
        """Update weights, moments and buffers; `numbers` are the rates and the corrections."""
        rate, first, root = numbers[:-2], numbers[-2], numbers[-1].sqrt()
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads.values()]).norm(dim=0)
        count = len(activities)
        shrink = (self._clips / (norms / count + _CLIP_FLOOR)).clamp(max=1.0) / count  # eq. (1)
        beta1, beta2 = MOMENT_RATES
        for name, p in self.params.items():
            shape = (-1, *[1] * (p.ndim - 1))
            grad = grads[name] * shrink.view(shape)
            mean, square = self._moments[name]
            mean.lerp_(grad, 1.0 - beta1)  # eq. (2)
            square.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
            if name in self._decayed:
                p.mul_(1.0 - (rate * self._decays).view(shape))  # eq. (3)
            scale = square.sqrt().div_(root).add_(_FLOOR)
            p.sub_(mean / scale * (rate / first).view(shape))
        parts = _get_tensors(average_activity(activities))
        for name, value in vmap(self._call_plasticity)(self.params, self.buffers, parts).items():
            self.buffers[name].copy_(value)

    def step(self, tokens: Tensor, targets: Tensor, number: int, rates: Sequence[float]) -> Tensor:
        """Run one optimizer step of one micro-batch; return the loss of each candidate, (K,)."""
        losses = self.add_gradients(tokens, targets)
        self.update(number, rates)
        return losses

    def _call_plasticity(
        self,
        params: dict[str, Tensor],
        buffers: dict[str, Tensor],
        parts: list[dict[str, Any]] | None,
    ) -> Any:
        """Run `_PlasticityModule` with the state of one candidate."""
        given = None if parts is None else tuple(_make_activity(part) for part in parts)
        state = {f"model.{name}": value for name, value in (params | buffers).items()}
        return functional_call(_PlasticityModule(self.model), state, (given,))

    def _apply_events(self, number: int) -> list[list[tuple[int, int]]]:
        """Apply the structural events; each candidate has its own interval."""
        intervals = [self.models[row].interval for row in self.rows]
        due = [number % interval == interval // 2 for interval in intervals]
        if self.model.config.experts == 1 or not any(due):
            return [[] for _ in due]
        after, mixes, counts = vmap(
            lambda params, buffers: self._call_plasticity(params, buffers, None),
            randomness="same",
        )(self.params, self.buffers)
        chosen = torch.tensor(due, device=counts.device)
        eye = torch.eye(self.model.config.experts, device=counts.device)
        for name, value in after.items():
            target = self.params[name] if name in self.params else self.buffers[name]
            target.copy_(torch.where(chosen.view(-1, *[1] * (value.ndim - 1)), value, target))
        for name, mix in mixes.items():
            matrix = torch.where(chosen.view(-1, 1, 1), mix, eye)
            for moment in self._moments[name]:
                moment.copy_(vmap(mix_experts)(matrix, moment))
        return [
            [(int(merges), int(splits)) for merges, splits in of_row] if is_due else []
            for of_row, is_due in zip(counts.tolist(), due, strict=True)
        ]

    @torch.no_grad()
    def load(self, row: int) -> GPT:
        """Return the model of a candidate with its present weights and buffers."""
        model, index = self.models[row], self.rows.index(row)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            source = self.params[name] if name in self.params else self.buffers[name]
            tensor.copy_(source[index])
        return model

    def load_optimizer(self, row: int, optimizer: torch.optim.Optimizer) -> None:
        """Give the AdamW of a candidate's model the moments of the candidate."""
        index = self.rows.index(row)
        for name, p in self.models[row].named_parameters():
            mean, square = (moment[index].clone() for moment in self._moments[name])
            step = torch.tensor(float(self._steps))
            optimizer.state[p] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}

    def restore_optimizers(self, optimizers: Sequence[torch.optim.Optimizer], steps: int) -> None:
        """Take the moments of the AdamW of each model, which has done so many steps."""
        self._steps = steps
        for name, (means, squares) in self._moments.items():
            parts = zip(self.models, optimizers, means, squares, strict=True)
            for model, optimizer, mean, square in parts:
                state = optimizer.state[model.get_parameter(name)]
                mean.copy_(state["exp_avg"])
                square.copy_(state["exp_avg_sq"])

    def drop(self, rows: Sequence[int]) -> None:
        """Remove candidates that do not train on, between two steps."""
        if not rows:
            return  # the tensors stay in their places
        kept = [index for index, row in enumerate(self.rows) if row not in rows]
        self.rows = [self.rows[index] for index in kept]
        self.params = {name: value[kept] for name, value in self.params.items()}
        self.buffers = {name: value[kept] for name, value in self.buffers.items()}
        self._moments = {
            name: (mean[kept], square[kept]) for name, (mean, square) in self._moments.items()
        }
        self._decays, self._clips = self._decays[kept], self._clips[kept]
        self._prepare_functions()


def _get_tensors(activity: Activity) -> list[dict[str, Any]]:
    """Return the tensors of each layer: only tensors pass vmap, and a part may be missing."""
    return [
        {name: part for name, part in layer._asdict().items() if part is not None}
        for layer in activity
    ]


def _make_activity(parts: dict[str, Any]) -> LayerActivity:
    return LayerActivity(**(dict.fromkeys(LayerActivity._fields) | parts))
