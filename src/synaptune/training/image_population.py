"""Training of K small image networks as one program.

The networks have one architecture; their sizes, seeds, learning rates, decays and resampling may
differ. Each weight is padded with zeros to the largest network and stored in one row of a matrix,
(network, weight), so that clipping and AdamW are a few operations on that matrix. A mask keeps the
padding at zero: a padded unit gives zero and gets no gradient. Networks of one seed share their
batches. Sums run in another order than in a single run, so that the losses agree to rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synaptune.model.dendrites import DendriticLayer, ImageNetwork, activate
from synaptune.training.device import pick_device
from synaptune.training.image_job import ImageJob
from synaptune.training.optimizers import MOMENT_RATES
from synaptune.training.schedules import learning_rate

_EPS = 1e-8  # of AdamW
# Settings of training that may differ between the networks of a population.
_FREE = ("learning_rate", "weight_decay", "schedule", "warmup_fraction", "final_fraction")
_UNUSED = ("resume", "keep", "test", "eval_batches", "biostatis", "checkpoint_every")


def get_image_key(job: ImageJob) -> tuple[Any, ...] | None:
    """Return what the jobs of a population have in common; None for a job that cannot be in one."""
    training = job.training
    if job.model.config.architecture == "convolution" or training.accumulate != 1:
        return None
    if training.precision == "bf16" or pick_device(training.device).type != "cpu":
        return None
    shared = dataclasses.replace(
        training, **{name: getattr(type(training)(), name) for name in (*_FREE, *_UNUSED)}
    )
    return job.model.config.architecture, shared, id(job.images), job.logger.every


class ImagePopulation:
    """K networks that are trained together step by step, on the CPU.

    Args:
        jobs: runs of one `get_image_key`; `load` writes into their models.

    Attributes:
        rows: positions in `jobs` of the networks that still train.
    """

    def __init__(self, jobs: Sequence[ImageJob]) -> None:
        self.jobs, first = jobs, jobs[0]
        self.rows = list(range(len(jobs)))
        self.models = [job.model for job in jobs]
        named = [dict(model.named_parameters()) for model in self.models]
        self._shapes = {
            name: torch.Size(
                max(sizes) for sizes in zip(*(p[name].shape for p in named), strict=True)
            )
            for name in named[0]
        }
        self._sizes = [shape.numel() for shape in self._shapes.values()]
        self.weights = self._pad(named).requires_grad_()
        self._mask = self._pad([{n: torch.ones_like(p) for n, p in part.items()} for part in named])
        self._first, self._second = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        self._decays = self._pad(
            [
                {name: torch.full_like(p, not name.endswith("bias")) for name, p in part.items()}
                for part in named
            ]
        ).bool()
        self._inputs = self._pad_inputs()
        self._is_shared = len({job.seed for job in jobs}) == 1
        self._clip = first.training.clip
        self.number = 0

    def step(self) -> Tensor:
        """Run one optimizer step of all networks; return the losses of `rows` [nats/image]."""
        batches = [
            job.make_batch(self.number) for job in self.jobs[: 1 if self._is_shared else None]
        ]
        images = torch.stack([batch.images.flatten(1) for batch in batches])
        labels = torch.stack([batch.labels for batch in batches]).expand(len(self.jobs), -1)
        self.number += 1
        logits = self._compute_logits(images)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        losses = losses.view_as(labels).mean(1)
        (grad,) = torch.autograd.grad(losses.sum(), self.weights)
        with torch.no_grad():
            self._update(grad.mul_(self._mask))
            for row in self.rows:
                self._resample(row, self.models[row])
        return losses.detach()[self.rows]

    def load(self, row: int) -> ImageNetwork:
        """Return the model of a network with its present weights."""
        model = self.models[row]
        for name, value in self._cut(self.weights.data[row], model).items():
            model.get_parameter(name).data.copy_(value)
        return model

    def load_optimizer(self, row: int, optimizer: torch.optim.Optimizer) -> None:
        """Give the AdamW of a network's model the moments of the network."""
        model = self.models[row]
        mean, square = (self._cut(moment[row], model) for moment in (self._first, self._second))
        for name, weight in model.named_parameters():
            step = torch.tensor(float(self.number))
            state = {"step": step, "exp_avg": mean[name], "exp_avg_sq": square[name]}
            optimizer.state[weight] = state

    def drop(self, rows: Sequence[int]) -> None:
        """Leave networks out of what `step` returns; they stay in the matrix, which is small."""
        self.rows = [row for row in self.rows if row not in rows]

    def _update(self, grad: Tensor) -> None:
        """Clip and run AdamW, as torch does for a single network."""
        if self._clip > 0:
            grad *= (self._clip / (grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
        beta1, beta2 = MOMENT_RATES
        rates = torch.tensor(
            [[learning_rate(self.number, job.training)] for job in self.jobs], dtype=torch.float64
        )
        decays = torch.tensor([[job.training.weight_decay] for job in self.jobs])
        shrink = (1.0 - rates * decays.double()).float()
        self.weights.mul_(torch.where(self._decays, shrink, 1.0))
        self._first.lerp_(grad, 1.0 - beta1)
        self._second.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        root = math.sqrt(1.0 - beta2**self.number)
        scale = (rates / (1.0 - beta1**self.number)).float()
        self.weights.sub_(scale * self._first / (self._second.sqrt().div_(root).add_(_EPS)))

    def _compute_logits(self, images: Tensor) -> Tensor:
        """Return the logits, (K, image, class), of flat images, (K or 1, image, input)."""
        parts = torch.split(self.weights, self._sizes, dim=1)
        named = {
            name: part.unflatten(1, shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }
        hidden = images
        for index, layer in enumerate(self.models[0].layers):
            if isinstance(layer, DendriticLayer):
                hidden = self._apply_dendrites(hidden, named)
            elif isinstance(layer, nn.Linear):
                hidden = _apply_linear(
                    hidden, named[f"layers.{index}.weight"], named[f"layers.{index}.bias"]
                )
            else:
                hidden = activate(hidden)
        return _apply_linear(hidden, named["head.weight"], named["head.bias"])

    def _apply_dendrites(self, images: Tensor, named: dict[str, Tensor]) -> Tensor:
        weight, bias = named["dendrites.weight"], named["dendrites.bias"]
        rows = self._inputs.flatten(1, 2)
        matrix = images.new_zeros(*rows.shape[:2], images.shape[-1])
        # Padded synapses read input 0 with weight 0: they must add, not replace.
        matrix = matrix.scatter_add(2, rows, weight.flatten(1, 2))
        dendrites = activate(_apply_linear(images, matrix, bias.flatten(1)))
        soma = named.get("dendrites.soma_weight")
        if soma is None:
            return dendrites
        sums = (dendrites.unflatten(2, soma.shape[1:]) * soma[:, None]).sum(-1)
        return activate(sums + named["dendrites.soma_bias"][:, None])

    def _resample(self, index: int, model: Any) -> None:
        """Move the synapses of a network when that is due, in its own model."""
        config = model.config
        if (
            model.dendrites is None
            or not config.resamples
            or self.number % config.steps_to_resample
        ):
            return
        self.load(index)
        name = "dendrites.weight"
        moments = [self._cut(rows[index], model)[name] for rows in (self._first, self._second)]
        states = dict(enumerate(moments))
        optimizer: Any = SimpleNamespace(state={model.dendrites.weight: states})
        model.resample(self.number, self.jobs[index].seed, optimizer)
        for rows, value in (
            (self.weights.data, model.dendrites.weight.data),
            *zip((self._first, self._second), moments, strict=True),
        ):
            self._paste(rows[index], name, value)
        self._inputs[index] = _grow(model.dendrites.inputs, self._inputs.shape[1:])

    def _pad(self, parts: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Return tensors by name as rows, (network, weight)."""
        return torch.stack(
            [
                torch.cat(
                    [
                        _grow(part[name].data, shape).flatten()
                        for name, shape in self._shapes.items()
                    ]
                )
                for part in parts
            ]
        )

    def _cut(self, row: Tensor, model: nn.Module) -> dict[str, Tensor]:
        """Return the tensors of a network in a row, by name, without padding."""
        parts = row.split(self._sizes)
        padded = {
            name: part.view(shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }
        return {
            name: padded[name][tuple(map(slice, weight.shape))].clone()
            for name, weight in model.named_parameters()
        }

    def _paste(self, row: Tensor, name: str, value: Tensor) -> None:
        index = list(self._shapes).index(name)
        row.split(self._sizes)[index].copy_(_grow(value, self._shapes[name]).flatten())

    def _pad_inputs(self) -> Tensor:
        layers = [model.dendrites for model in self.models]
        if layers[0] is None:
            return torch.empty(0, dtype=torch.int64)
        shape = self._shapes["dendrites.weight"]
        return torch.stack([_grow(layer.inputs, shape) for layer in layers if layer is not None])


def _apply_linear(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a linear layer of each network to its own values, or to those that all share."""
    if values.shape[0] == 1 < weight.shape[0]:
        flat = F.linear(values[0], weight.flatten(0, 1), bias.flatten())
        return flat.unflatten(1, weight.shape[:2]).transpose(0, 1)
    return torch.baddbmm(bias[:, None], values, weight.transpose(1, 2))


def _grow(value: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor padded with zeros at the ends."""
    grown = value.new_zeros(tuple(shape))
    grown[tuple(map(slice, value.shape))] = value
    return grown
