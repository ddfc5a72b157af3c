"""Settings of the host transformer and its synaptic mechanisms."""

from __future__ import annotations

from dataclasses import dataclass

from synaptune.core.errors import UserError

MODEL_CHOICES = {
    "kind": ("transformer", "dendritic"),
    "mixer": ("attention", "deltanet"),
    "position": ("rope", "alibi"),
    "feedforward": ("relu2", "swiglu"),
    "distance": ("clock", "learned", "barrier", "off"),
    "release": ("dynamic", "off"),
    "noise": ("terminal", "event"),
    "fast_weights": ("delta", "hebbian", "off"),
    "kernel": ("auto", "torch"),
}


@dataclass(frozen=True)
class ModelConfig:
    """Settings of the `model` group; the value `off` of a mechanism gives the plain transformer.

    Attributes:
        kind: transformer, or dendritic for the image network of the group `network`.
        layers: number of layers.
        width: width D of the residual stream.
        heads: number of attention heads H.
        context: T_max, longest sequence [token].
        mixer: what mixes the tokens, attention or deltanet (deltanet.py), which has no positions.
        position: position encoding, rope or alibi.
        feedforward: activation of the feed-forward blocks, relu2 or swiglu.
        ff_multiple: hidden width over width, summed over the experts of a token; each expert has
            ff_multiple / top_k.
        tick: tokens of a presynaptic update [token].
        window: last tokens that a query attends to; 0 for all of them [token].
        smear: mix each key with that of the token before (attention.py).
        distance: distance bias of the attention: barrier (one slope), learned (a slope per layer
            and head), clock (a slope that follows the content) or off.
        release: presynaptic terminals, dynamic or off.
        noise: stochastic release while training: terminal (per tick and terminal) or event (per
            query and key).
        dropout: dropout of the attention weights while training.
        fast_weights: postsynaptic memory, delta, hebbian or off.
        memory_heads: memories side by side, each with its own rank.
        memory_tick: tokens of an update of the memory's gate [token].
        experts: experts of a layer; 1 for a dense block.
        top_k: experts of a token.
        balance_weight: weight of the load-balancing loss.
        balance_rate: step of the selection bias of the experts (feedforward.py) [1/step]; 0: none.
        kernel: `auto` uses the compiled scan where possible, `torch` never.
    """

    kind: str = "transformer"
    layers: int = 2
    width: int = 64
    heads: int = 4
    context: int = 128
    mixer: str = "attention"
    position: str = "rope"
    feedforward: str = "relu2"
    ff_multiple: int = 4
    tick: int = 16
    window: int = 0
    smear: bool = False
    distance: str = "clock"
    release: str = "dynamic"
    noise: str = "terminal"
    dropout: float = 0.0
    fast_weights: str = "delta"
    memory_heads: int = 1
    memory_tick: int = 4
    experts: int = 4
    top_k: int = 2
    balance_weight: float = 0.01
    balance_rate: float = 0.0
    kernel: str = "auto"

    @property
    def head_width(self) -> int:
        """Width of a head, d = D / H."""
        return self.width // self.heads


def find_model_faults(config: ModelConfig) -> list[str]:
    """Return one line for each value with which a model cannot be built."""
    faults = [
        f"model.{name}={getattr(config, name)}: expected one of {', '.join(options)}"
        for name, options in MODEL_CHOICES.items()
        if getattr(config, name) not in options
    ]
    faults += [
        f"model.{name}={getattr(config, name)}: expected an integer of at least 1"
        for name in (
            "layers",
            "width",
            "heads",
            "context",
            "ff_multiple",
            "tick",
            "memory_heads",
            "memory_tick",
            "experts",
            "top_k",
        )
        if getattr(config, name) < 1
    ]
    hidden = config.width * config.ff_multiple
    needs_attention = {
        "distance": config.distance != "off",
        "release": config.release != "off",
        "window": config.window != 0,
        "smear": config.smear,
        "dropout": config.dropout != 0.0,
        "noise": config.noise != "terminal",
    }
    if config.mixer == "deltanet" and any(needs_attention.values()):
        used = ", ".join(f"model.{name}" for name, is_used in needs_attention.items() if is_used)
        faults.append(f"model.mixer=deltanet with {used}: expected them off, or mixer=attention")
    is_top_k = config.experts <= 1 or config.top_k <= config.experts
    checks = (
        (config.window >= 0, f"model.window={config.window}: expected at least 0 (no window)"),
        (
            config.balance_rate >= 0.0,
            f"model.balance_rate={config.balance_rate}: expected at least 0 (0: no selection bias)",
        ),
        (
            0.0 <= config.dropout < 1.0,
            f"model.dropout={config.dropout}: expected at least 0 and less than 1",
        ),
        (
            config.heads < 1 or config.width % (2 * config.heads) == 0,
            f"model.width={config.width}: expected a multiple of twice model.heads={config.heads}",
        ),
        (
            is_top_k,
            f"model.top_k={config.top_k}: expected at most model.experts={config.experts}",
        ),
        (
            config.experts <= 1 or not is_top_k or config.top_k < 1 or hidden % config.top_k == 0,
            f"model.top_k={config.top_k}: expected a divisor of width x ff_multiple = {hidden}",
        ),
    )
    return faults + [fault for is_valid, fault in checks if not is_valid]


def check_model(config: ModelConfig) -> None:
    """Raise UserError with every fault of a model configuration."""
    if faults := find_model_faults(config):
        raise UserError("\n".join(faults))


# subsystem -> the setting that uses its parameters
_SETTINGS = {
    **dict.fromkeys(("calcium", "vesicles", "energy", "stochastic", "attention"), "release"),
    **dict.fromkeys(("postsynaptic", "bdnf"), "fast_weights"),
    "structural": "experts",
}
_REASONS = {
    "release": "model.release is off; set model.release=dynamic",
    "distance": "model.distance is off; set model.distance=clock",
    "fast_weights": "model.fast_weights is off; set model.fast_weights=delta",
    "experts": "model.experts is 1; set model.experts to 2 or more",
}


def find_unused_parameters(config: ModelConfig) -> dict[str, str]:
    """Return the parameters that this model does not use, each with the setting that uses it."""
    from synaptune.synapse.circuit import SPECS

    if config.kind == "dendritic":
        return {spec.name: "model.kind is dendritic; set model=synaptic" for spec in SPECS}
    # The metabolism of the experts reads the first two; the noise of an event the others.
    shared = {
        "synapse.energy.energy_fill": config.experts > 1,
        "synapse.energy.energy_max": config.experts > 1,
        "synapse.vesicles.init_rrp": config.noise == "event",
        "synapse.stochastic.stochastic_train_frac": config.noise == "event",
    }
    is_off = {
        "release": config.release == "off",
        "distance": config.distance == "off",
        "fast_weights": config.fast_weights == "off",
        "experts": config.experts == 1,
    }
    unused = {}
    for spec in SPECS:
        setting = _SETTINGS[spec.subsystem]
        if spec.label == "barrier_strength":
            setting = "distance"
        if is_off[setting] and not shared.get(spec.name, False):
            unused[spec.name] = _REASONS[setting]
    return unused
