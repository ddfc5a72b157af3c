"""Small networks of dendrites for images, and the controls they are compared with.

    dendrite   u_j = L(sum_k w_jk x[s_jk] + b_j)                                              (1)
    soma       y_n = L(sum_j v_nj u_nj + c_n), over the dendrites of neuron n                 (2)
    counts     dendrites with soma    i d n + d n + d n + n                                   (3)
               dendrites without      i d + d                                                 (4)
               linear layer           in out + out                                            (5)

L is LeakyReLU of slope 0.1. Each of the n d dendrites (d in all without a soma) reads i distinct
inputs s_jk of the image. The weights are stored as (neuron, dendrite, input) beside the indices of
their inputs. The product is a matrix product with the weights scattered into it: on a CPU it is ten
times faster than gathering the inputs, and the gradient is that of the stored weights alone.

Resampling moves the weakest synapses of each dendrite, by |w|, to inputs that it does not read.
Source: (1) to (5) the specification of the dendritic system; initialisation: He et al. 2015, eq. 15
with the slope of L.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from synaptune.core.parameters import constant
from synaptune.core.seeds import make_generator
from synaptune.model.network import NetworkConfig

SLOPE = constant(
    "dendrites.slope",
    0.1,
    meaning="slope of LeakyReLU below zero",
    source="the specification of the dendritic system",
)


class DendriticLayer(nn.Module):
    """Dendrites that read a few inputs each, with somata or without, eqs. (1) and (2).

    Args:
        inputs: indices of the inputs, (neuron, dendrite, input) int64; without somata one neuron
            holds all dendrites.
        in_features: inputs of the layer.
        soma: whether the dendrites of a neuron are summed by a soma.
        fan_in: number of inputs by which the initial weights are scaled.
        generator: source of the initial weights.
    """

    inputs: Tensor

    def __init__(
        self,
        inputs: Tensor,
        in_features: int,
        *,
        soma: bool,
        fan_in: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.in_features, self.fan_in = in_features, fan_in
        self.register_buffer("inputs", inputs)
        self.weight = nn.Parameter(_draw_weights(inputs.shape, fan_in, generator))
        self.bias = nn.Parameter(torch.zeros(inputs.shape[:2]))
        dendrites = inputs.shape[1]
        self.soma_weight = (
            nn.Parameter(_draw_weights(inputs.shape[:2], dendrites, generator)) if soma else None
        )
        self.soma_bias = nn.Parameter(torch.zeros(inputs.shape[0])) if soma else None

    @property
    def out_features(self) -> int:
        """Outputs: a neuron each with somata, a dendrite each without."""
        return self.bias.shape[0] if self.soma_weight is not None else self.bias.numel()

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs, (image, out_features), of flat images (image, in_features)."""
        rows = self.inputs.flatten(0, 1)
        matrix = images.new_zeros(len(rows), self.in_features)
        matrix = matrix.scatter(1, rows, self.weight.flatten(0, 1).to(images.dtype))
        dendrites = activate(torch.addmm(self.bias.flatten(), images, matrix.T))  # eq. (1)
        if self.soma_weight is None or self.soma_bias is None:
            return dendrites
        sums = dendrites.unflatten(1, self.bias.shape) * self.soma_weight
        return activate(sums.sum(-1) + self.soma_bias)  # eq. (2)

    @torch.no_grad()
    def resample(
        self, fraction: float, generator: torch.Generator, moments: tuple[Tensor, ...] = ()
    ) -> int:
        """Move the weakest synapses of each dendrite to inputs that it does not read.

        Args:
            fraction: share of the synapses of a dendrite that move, at most the free inputs.
            generator: source of the new inputs and weights, on the CPU.
            moments: tensors of the shape of the weights, set to zero where a synapse moves.

        Returns:
            The number of synapses that moved.
        """
        rows = self.inputs.flatten(0, 1)
        held = rows.shape[1]
        count = min(round(fraction * held), self.in_features - held)
        if count < 1:
            return 0
        weakest = self.weight.flatten(0, 1).abs().topk(count, largest=False).indices
        keys = torch.rand(len(rows), self.in_features, generator=generator).to(rows.device)
        fresh = keys.scatter(1, rows, -1.0).topk(count).indices  # the inputs held come last
        rows.scatter_(1, weakest, fresh)
        drawn = _draw_weights(fresh.shape, self.fan_in, generator).to(self.weight.device)
        self.weight.flatten(0, 1).scatter_(1, weakest, drawn)
        for moment in moments:
            moment.flatten(0, 1).scatter_(1, weakest, 0.0)
        return count * len(rows)


class ImageNetwork(nn.Module):
    """A small classifier of images: a dendritic architecture, or a control.

    Args:
        config: the network.
        shape: channels, height and width of an image.
        classes: number of classes.
        seed: seed of the inputs of the dendrites and of the weights.
    """

    def __init__(
        self, config: NetworkConfig, shape: tuple[int, int, int], classes: int, seed: int
    ) -> None:
        super().__init__()
        generator = make_generator("network", config.architecture, seed)
        self.config, self.shape = config, shape
        size, hidden, features = math.prod(shape), config.n_hidden, config.n_neurons
        name = config.architecture
        layers: list[nn.Module] = []
        self.dendrites: DendriticLayer | None = None
        if name == "convolution":
            layers += _make_convolutions(config, shape[0])
            features = 2 * features * config.count_positions(shape)
        elif name == "dense":
            layers += [nn.Linear(size, hidden), nn.LeakyReLU(SLOPE)]
            features = hidden
        else:
            self.dendrites = _make_dendrites(config, shape, generator)
            layers.append(self.dendrites)
            features = self.dendrites.out_features
        if name in ("dendritic_with_hidden", "soma_disabled"):
            if name == "dendritic_with_hidden":
                layers.append(nn.LeakyReLU(SLOPE))
            layers += [nn.Linear(features, hidden), nn.LeakyReLU(SLOPE)]
            features = hidden
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(features, classes)
        for layer in [*self.layers, self.head]:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                fan_in = layer.weight[0].numel()
                layer.weight.data = _draw_weights(layer.weight.shape, fan_in, generator)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (image, class), of images (image, channel, height, width)."""
        is_flat = self.config.architecture != "convolution"
        return self.head(self.layers(images.flatten(1) if is_flat else images).flatten(1))

    def make_decay_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Return the parameter groups of an optimizer; every weight decays, no bias does."""
        named = dict(self.named_parameters())
        decays = {name: value for name, value in named.items() if not name.endswith("bias")}
        others = [value for name, value in named.items() if name not in decays]
        return [
            {"params": list(decays.values()), "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]

    def resample(self, step: int, seed: int, optimizer: torch.optim.Optimizer) -> int:
        """Move the weakest synapses when that is due at a step; return how many moved."""
        config = self.config
        if self.dendrites is None or not config.resamples or step % config.steps_to_resample:
            return 0
        state = optimizer.state[self.dendrites.weight]
        shape = self.dendrites.weight.shape
        moments = (
            ()
            if config.keep_moments
            else tuple(
                value for value in state.values() if torch.is_tensor(value) and value.shape == shape
            )
        )
        generator = make_generator("resample", seed, step)
        return self.dendrites.resample(config.percentage_resample, generator, moments)


def activate(values: Tensor) -> Tensor:
    """Apply LeakyReLU of slope SLOPE."""
    return nn.functional.leaky_relu(values, SLOPE)


def _draw_weights(shape: torch.Size, fan_in: int, generator: torch.Generator) -> Tensor:
    """Draw normal weights whose sum over `fan_in` inputs keeps the variance under L."""
    deviation = math.sqrt(2.0 / ((1.0 + SLOPE**2) * fan_in))
    return torch.randn(shape, generator=generator) * deviation


def _make_dendrites(
    config: NetworkConfig, shape: tuple[int, int, int], generator: torch.Generator
) -> DendriticLayer:
    size, soma = math.prod(shape), config.has_soma
    if config.architecture == "local":
        inputs = _draw_fields(config, shape, generator)
    else:
        groups = (config.n_neurons if soma else 1, config.n_dendrites)
        keys = torch.rand(*groups, size, generator=generator)
        inputs = keys.topk(config.n_dendrite_inputs).indices
    fan_in = size if config.fan_in == "image" else inputs.shape[-1]
    return DendriticLayer(inputs, size, soma=soma, fan_in=fan_in, generator=generator)


def _draw_fields(
    config: NetworkConfig, shape: tuple[int, int, int], generator: torch.Generator
) -> Tensor:
    """Draw square fields over all channels, (1, field, input), at random places of the image."""
    channels, height, width = shape
    side = config.field
    tops = torch.randint(height - side + 1, (config.n_neurons,), generator=generator)
    lefts = torch.randint(width - side + 1, (config.n_neurons,), generator=generator)
    rows, columns = (start[:, None] + torch.arange(side) for start in (tops, lefts))
    plane = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    planes = torch.arange(channels) * height * width
    return (planes[None, :, None] + plane[:, None, :]).flatten(1)[None]


def _make_convolutions(config: NetworkConfig, channels: int) -> list[nn.Module]:
    """Return two strided convolutions of n and 2 n channels."""
    count, side = config.n_neurons, config.field
    return [
        nn.Conv2d(channels, count, side, stride=2, padding=side // 2),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(count, 2 * count, 3, stride=2, padding=1),
        nn.LeakyReLU(SLOPE),
    ]
