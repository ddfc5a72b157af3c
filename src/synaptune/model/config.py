"""What the host transformer is made of, and which synaptic mechanisms it carries."""

from __future__ import annotations

from dataclasses import dataclass

from synaptune.core.errors import UserError

MODEL_CHOICES = {
    "position": ("rope", "alibi"),
    "feedforward": ("relu2", "swiglu"),
    "distance": ("barrier", "off"),
    "release": ("dynamic", "off"),
    "fast_weights": ("hebbian", "delta", "off"),
    "kernel": ("auto", "torch"),
}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes in units of the model; mechanisms by name, `off` being the plain transformer's choice.

    context: T_max in tokens; tick: tokens per synaptic update; ff_multiple: hidden width over width of the experts that a token
    uses together (each expert has ff_multiple / top_k); kernel: `auto` uses the compiled scan where it can, `torch` never.
    """

    layers: int = 2
    width: int = 64
    heads: int = 4
    context: int = 128
    position: str = "rope"
    feedforward: str = "relu2"
    ff_multiple: int = 4
    tick: int = 16
    distance: str = "barrier"
    release: str = "dynamic"
    fast_weights: str = "hebbian"
    experts: int = 4
    top_k: int = 2
    balance_weight: float = 0.01
    kernel: str = "auto"

    @property
    def head_width(self) -> int:
        """d = D / H."""
        return self.width // self.heads


def find_model_faults(config: ModelConfig) -> list[str]:
    """Every value that no model can be built from, one line each."""
    found = [
        f"model.{name}={getattr(config, name)}: expected one of {', '.join(options)}"
        for name, options in MODEL_CHOICES.items()
        if getattr(config, name) not in options
    ]
    found += [
        f"model.{name}={getattr(config, name)}: expected an integer of at least 1"
        for name in (
            "layers",
            "width",
            "heads",
            "context",
            "ff_multiple",
            "tick",
            "experts",
            "top_k",
        )
        if getattr(config, name) < 1
    ]
    if config.heads >= 1 and config.width % (2 * config.heads):
        found.append(
            f"model.width={config.width}: expected a multiple of twice model.heads={config.heads}"
        )
    if config.top_k > config.experts > 1:
        found.append(f"model.top_k={config.top_k}: expected at most model.experts={config.experts}")
    elif config.experts > 1 and (config.width * config.ff_multiple) % config.top_k:
        found.append(
            f"model.top_k={config.top_k}: expected a divisor of width x ff_multiple = {config.width * config.ff_multiple}"
        )
    return found


def check_model(config: ModelConfig) -> None:
    """Raise UserError with every fault of a model configuration."""
    if found := find_model_faults(config):
        raise UserError("\n".join(found))


_PRESYNAPTIC = ("calcium", "vesicles", "energy", "stochastic")


def find_unused_parameters(config: ModelConfig) -> dict[str, str]:
    """Names of the registry that this model does not use, each with the setting that would make it used."""
    from synaptune.synapse.circuit import SPECS

    shared = {
        "synapse.energy.energy_fill",
        "synapse.energy.energy_max",
    }  # the experts' metabolism reads them too
    unused = {}
    for spec in SPECS:
        group, reason = spec.subsystem, None
        if (
            group in _PRESYNAPTIC
            and config.release == "off"
            and not (spec.name in shared and config.experts > 1)
        ):
            reason = "model.release is off; set model.release=dynamic"
        elif group in ("postsynaptic", "bdnf") and config.fast_weights == "off":
            reason = "model.fast_weights is off; set model.fast_weights=hebbian"
        elif group == "structural" and config.experts == 1:
            reason = "model.experts is 1; set model.experts to 2 or more"
        elif group == "attention":
            reason = _find_unused_attention(spec.label, config)
        if reason:
            unused[spec.name] = reason
    return unused


def _find_unused_attention(label: str, config: ModelConfig) -> str | None:
    if label == "barrier_strength":
        return (
            "model.distance is off; set model.distance=barrier"
            if config.distance == "off"
            else None
        )
    return "model.release is off; set model.release=dynamic" if config.release == "off" else None
