"""Settings of a small image network, its parameter count as a formula, and its largest size."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

Shape = tuple[int, int, int]  # channels, height and width of an image

DENDRITIC = ("dendritic_simple", "soma_disabled", "dendritic_with_hidden")
CONTROLS = ("dense", "local", "convolution")
ARCHITECTURES = (*DENDRITIC, *CONTROLS)
_FAN_INS = ("dendrite", "image")


@dataclass(frozen=True)
class NetworkConfig:
    """Settings of the `network` group, the classifier of model.kind=dendritic.

    Attributes:
        architecture: an entry of ARCHITECTURES; the last three are controls.
        n_neurons: neurons with a soma; fields of `local`; channels of `convolution`.
        n_dendrites: dendrites of a neuron; of the layer in `soma_disabled`.
        n_dendrite_inputs: inputs of a dendrite.
        n_hidden: width of the hidden layer of `soma_disabled`, `dendritic_with_hidden`, `dense`.
        steps_to_resample: optimizer steps between two resamplings of synapses; 0 for none.
        percentage_resample: share of the synapses of a dendrite that a resampling moves [0..1].
        keep_moments: whether a moved synapse keeps the moments of the optimizer.
        fan_in: what scales the initial weights: inputs of a dendrite, or those of the whole image.
        field: side of the square fields of `local`, or of the first kernel of `convolution`.
    """

    architecture: str = "dendritic_simple"
    n_neurons: int = 12
    n_dendrites: int = 6
    n_dendrite_inputs: int = 16
    n_hidden: int = 32
    steps_to_resample: int = 128
    percentage_resample: float = 0.25
    keep_moments: bool = False
    fan_in: str = "dendrite"
    field: int = 5

    @property
    def has_soma(self) -> bool:
        """Whether the dendrites of a neuron are summed by a soma."""
        return self.architecture in ("dendritic_simple", "dendritic_with_hidden")

    @property
    def resamples(self) -> bool:
        """Whether synapses move."""
        return (
            self.architecture in DENDRITIC
            and self.steps_to_resample > 0
            and self.percentage_resample > 0.0
        )

    def count_positions(self, shape: Shape) -> int:
        """Return the positions of the second convolution's output."""
        sides = [(side + 2 * (self.field // 2) - self.field) // 2 + 1 for side in shape[1:]]
        return math.prod((side - 1) // 2 + 1 for side in sides)


def list_used_settings(config: NetworkConfig, *, fit: bool = False) -> set[str]:
    """Return the settings on which a network depends.

    Args:
        config: the network.
        fit: whether its size follows from the parameter budget.
    """
    name = config.architecture
    if name in DENDRITIC:
        used = {"n_dendrites", "n_dendrite_inputs", "steps_to_resample", "percentage_resample"}
        used |= {"keep_moments", "fan_in"} | ({"n_neurons"} if config.has_soma else set())
        used |= {"n_hidden"} if name != "dendritic_simple" else set()
    else:
        used = {"n_hidden"} if name == "dense" else {"n_neurons", "field"}
    return used - ({_get_size_name(config)} if fit else set())


def _get_size_name(config: NetworkConfig) -> str:
    """Return the setting that `fit_budget` chooses."""
    sizes = {"dense": "n_hidden", "soma_disabled": "n_dendrites"}
    return sizes.get(config.architecture, "n_neurons")


def count_parameters(config: NetworkConfig, shape: Shape, classes: int) -> int:
    """Return the trainable parameters, eqs. (3) to (5) of dendrites.py.

    Args:
        config: the network.
        shape: channels, height and width of an image.
        classes: number of classes.
    """
    n, d, i, h = config.n_neurons, config.n_dendrites, config.n_dendrite_inputs, config.n_hidden
    size, side = math.prod(shape), config.field

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    soma = i * d * n + d * n + d * n + n
    counts = {
        "dendritic_simple": soma + linear(n, classes),
        "soma_disabled": i * d + d + linear(d, h) + linear(h, classes),
        "dendritic_with_hidden": soma + linear(n, h) + linear(h, classes),
        "dense": linear(size, h) + linear(h, classes),
        "local": n * (shape[0] * side**2 + 1) + linear(n, classes),
        "convolution": linear(shape[0] * side**2, n)
        + linear(9 * n, 2 * n)
        + linear(2 * n * config.count_positions(shape), classes),
    }
    return counts[config.architecture]


def fit_budget(config: NetworkConfig, shape: Shape, classes: int, budget: int) -> NetworkConfig:
    """Return the network with the largest size whose parameter count fits a budget.

    The size is the hidden width of `dense`, the dendrites of `soma_disabled` and the neurons of
    all others. A network of size 1 is returned if none fits.
    """
    name = _get_size_name(config)

    def fits(size: int) -> bool:
        grown = dataclasses.replace(config, **{name: size})
        return count_parameters(grown, shape, classes) <= budget

    size = 1
    while fits(2 * size):
        size *= 2
    step = size
    while step := step // 2:
        size += step if fits(size + step) else 0
    return dataclasses.replace(config, **{name: size})


def find_network_faults(config: NetworkConfig) -> list[str]:
    """Return one line for each value with which no network can be built."""
    faults = [
        f"network.{name}={getattr(config, name)}: expected one of {', '.join(options)}"
        for name, options in {"architecture": ARCHITECTURES, "fan_in": _FAN_INS}.items()
        if getattr(config, name) not in options
    ]
    faults += [
        f"network.{name}={getattr(config, name)}: expected an integer of at least {least}"
        for name, least in {
            **dict.fromkeys(("n_neurons", "n_dendrites", "n_dendrite_inputs", "n_hidden"), 1),
            "field": 1,
            "steps_to_resample": 0,
        }.items()
        if getattr(config, name) < least
    ]
    if not 0.0 <= config.percentage_resample <= 1.0:
        faults.append(
            f"network.percentage_resample={config.percentage_resample:g}: expected 0 to 1"
        )
    return faults


def find_shape_faults(config: NetworkConfig, shape: Shape) -> list[str]:
    """Return one line for each value that does not fit the images."""
    size = math.prod(shape)
    if config.architecture in DENDRITIC and config.n_dendrite_inputs > size:
        return [
            f"network.n_dendrite_inputs={config.n_dendrite_inputs}: expected at most {size}, "
            f"the inputs of an image of {shape[0]} x {shape[1]} x {shape[2]}"
        ]
    if config.architecture in ("local", "convolution") and config.field > min(shape[1:]):
        return [
            f"network.field={config.field}: expected at most {min(shape[1:])}, the side of an image"
        ]
    return []
