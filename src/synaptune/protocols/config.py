"""The settings of the protocols, conf/protocol/*.yaml as typed values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from synaptune.core.errors import UserError, user_error

# Distance of the seeds of each stage from the seed of the search. No seed serves two stages.
SEED_OFFSETS = {
    "phase1": 1000,  # validation of phase 1
    "gates": 2000,
    "phase2": 3000,  # validation of phase 2
    "transfer": 4000,
    "dendritic": 5000,
    "screen": 6000,
}


@dataclass
class SanityConfig:
    """Runs of the sanity check; conf/protocol/phase1.yaml explains the keys."""

    seeds: int = MISSING
    candidates: int = MISSING
    repeats: int = MISSING


@dataclass
class Phase1Config:
    """Settings of `synaptune phase1`; conf/protocol/phase1.yaml explains the keys."""

    optimizer: str = MISSING
    budget: int = MISSING
    seeds: int = MISSING
    go_on: bool | None = MISSING
    dry_run: bool = MISSING
    report: bool = MISSING
    final_steps: int | None = MISSING
    repeats: int = MISSING
    screen: bool = MISSING
    screen_runs: int | None = MISSING
    screen_fraction: float = MISSING
    ablation: bool = MISSING
    ablation_runs: int | None = MISSING
    sanity: SanityConfig = MISSING


@dataclass
class Phase2Config:
    """Settings of `synaptune phase2`; conf/protocol/phase2.yaml explains the keys."""

    optimizer: str = MISSING
    start: str = MISSING
    group_budget: int = MISSING
    gate_seeds: int = MISSING
    budget: int = MISSING
    seeds: int = MISSING
    go_on: bool = MISSING
    dry_run: bool = MISSING
    report: bool = MISSING
    final_steps: int | None = MISSING
    groups: dict[str, list[str]] = MISSING


@dataclass
class AblationConfig:
    """Settings of `synaptune ablation`; conf/protocol/ablation.yaml explains the keys."""

    seeds: int | None = MISSING
    dry_run: bool = MISSING
    report: bool = MISSING


@dataclass
class TransferConfig:
    """Settings of `synaptune transfer`; conf/protocol/transfer.yaml explains the keys."""

    start: str = MISSING
    top: int = MISSING
    seeds: int = MISSING
    dry_run: bool = MISSING


@dataclass
class DendriticConfig:
    """Settings of `synaptune dendritic`; conf/protocol/dendritic.yaml explains the keys."""

    optimizer: str = MISSING
    architectures: list[str] = MISSING
    budget: int = MISSING
    refine: int = MISSING
    seeds: int = MISSING
    dry_run: bool = MISSING


@dataclass
class FocusedConfig:
    """Settings of `synaptune focused`; conf/protocol/focused.yaml explains the keys."""

    budget: int = MISSING
    focused_budget: int = MISSING
    threshold: float = MISSING
    dry_run: bool = MISSING


ProtocolConfigT = TypeVar("ProtocolConfigT")

# The smallest value of each key, and what a smaller one could not give.
_MINIMA = {
    "budget": (1, "1 evaluation"),
    "focused_budget": (1, "1 evaluation"),
    "refine": (0, "0 evaluations"),
    "group_budget": (1, "1 evaluation"),
    "seeds": (2, "2, for an interval"),
    "gate_seeds": (2, "2, for an interval"),
    "repeats": (1, "1 search"),
    "final_steps": (1, "1 step"),
    "screen_runs": (4, "4 runs"),
    "ablation_runs": (2, "2 runs: one parameter on two seeds"),
    "top": (3, "3: fewer points have no rank correlation"),
    "sanity.seeds": (2, "2, for a spread over seeds"),
    "sanity.candidates": (2, "2, for a spread over candidates"),
    "sanity.repeats": (1, "1 candidate"),
}


def read_protocol_config(kind: type[ProtocolConfigT], node: DictConfig) -> ProtocolConfigT:
    """Return the settings of a protocol as typed values.

    Args:
        kind: dataclass of the settings.
        node: the composed `protocol` group.

    Raises:
        UserError: a value has the wrong type or is too small; every fault is named.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), node)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = f"protocol.{error.full_key}" if error.full_key else "protocol"
        raise user_error(
            got=f"{key}: {str(error).splitlines()[0]}",
            expected="a value of the right type",
            do="correct it; the comments of conf/protocol explain the keys",
        ) from error
    faults = []
    for key, (least, expected) in _MINIMA.items():
        value = OmegaConf.select(merged, key)
        if value is not None and value < least:
            faults.append(f"protocol.{key}={value}: expected at least {expected}")
    if isinstance(config, Phase1Config) and config.sanity.repeats > config.sanity.candidates:
        faults.append(
            f"protocol.sanity.repeats={config.sanity.repeats}: expected at most"
            f" protocol.sanity.candidates={config.sanity.candidates}"
        )
    if isinstance(config, Phase1Config) and not 0.0 < config.screen_fraction <= 1.0:
        faults.append(
            f"protocol.screen_fraction={config.screen_fraction:g}: expected above 0, at most 1"
        )
    if faults:
        raise UserError(
            "got a protocol that cannot run\n  "
            + "\n  ".join(faults)
            + "\n  to do: correct these values"
        )
    assert isinstance(config, kind)
    return config
