"""Checkpoints as plain values: what `torch.load(weights_only=True)` admits, written in one atomic move."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from synaptune.core.errors import user_error
from synaptune.core.files import as_disk_errors, replace_file
from synaptune.data.config import DataConfig
from synaptune.model.config import ModelConfig
from synaptune.model.gpt import GPT
from synaptune.synapse.circuit import SynapseParams

FORMAT = 1


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; a crash or a full disk leaves the one before whole. Raises UserError when there is no space."""
    do = "make room; training.resume=true goes on from the checkpoint before, where there is one"
    with as_disk_errors(path, do), replace_file(path) as draft:
        _write(draft, {"format": FORMAT, **content})


def _write(path: Path, content: dict[str, Any]) -> None:
    """torch.save, whose RuntimeError for a full disk hides the OSError that says so."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(path: Path, device: str = "cpu") -> dict[str, Any]:
    """Read a checkpoint. Raises UserError when it is missing, broken or of another format."""
    if not path.is_file():
        raise user_error(
            got=f"no checkpoint at {path}",
            expected="a file written by train.py (checkpoint.pt)",
            do="check the path",
        )
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file: pickle, zip, runtime
        raise user_error(
            got=f"unreadable checkpoint {path} ({type(error).__name__})",
            expected="a file written by train.py",
            do="train again",
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise user_error(
            got=f"{path}, not a checkpoint of this version",
            expected=f"checkpoint format {FORMAT}",
            do="train again",
        )
    return content


def get_random_states() -> dict[str, Any]:
    """The random states a step may draw from; data and release noise need none, they follow from (seed, step)."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put the random states of a checkpoint back."""
    torch.set_rng_state(states["cpu"].cpu())
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


def describe_model(
    model: ModelConfig, synapse: SynapseParams, data: DataConfig, *, vocab: int, seed: int
) -> dict[str, Any]:
    """What a checkpoint needs to build its model again, as plain values."""
    plain = {
        "model": dataclasses.asdict(model),
        "synapse": dataclasses.asdict(synapse),
        "data": dataclasses.asdict(data),
    }
    return {**plain, "vocab": vocab, "seed": seed}


def build_synapse_params(values: dict[str, dict[str, float]]) -> SynapseParams:
    """SynapseParams from plain values by subsystem."""
    kinds = {field.name: field.default_factory for field in dataclasses.fields(SynapseParams)}
    return SynapseParams(**{name: kinds[name](**values[name]) for name in values})  # type: ignore[operator]


def load_model(path: str | Path) -> tuple[GPT, ModelConfig, DataConfig]:
    """The trained model of a checkpoint, in evaluation mode on the CPU, and what it was made for.

    Raises UserError when the file is missing, no checkpoint, or of a model that this version builds otherwise.
    """
    content = load(Path(path))
    try:
        about = content["about"]
        config, data = ModelConfig(**about["model"]), DataConfig(**about["data"])
        model = GPT(
            config, build_synapse_params(about["synapse"]), vocab=about["vocab"], seed=about["seed"]
        )
        model.load_state_dict(content["weights"])
    except (KeyError, TypeError, RuntimeError) as error:  # names, fields and shapes that do not fit
        raise user_error(
            got=f"{path}, whose model does not fit this version of synaptune",
            expected="a checkpoint of this version",
            do="train again, or use the version that made it",
        ) from error
    return model.eval(), config, data
