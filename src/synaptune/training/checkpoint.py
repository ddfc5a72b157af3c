"""Checkpoints: values that `torch.load(weights_only=True)` accepts, written atomically."""

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
from synaptune.synapse.circuit import SUBSYSTEMS, SynapseParams

FORMAT = 2
# format -> what wrote it; the mechanisms of its model were others
EARLIER_FORMATS = {1: "synaptune 0.1.0, whose memory, distance and routing were others"}


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; a crash or a full disk leaves the previous checkpoint intact.

    Raises:
        UserError: there is no free space, or the folder is not writable.
    """
    do = "free some space; training.resume=true continues from the previous checkpoint, if any"
    with as_disk_errors(path, do), replace_file(path) as draft:
        _write(draft, {"format": FORMAT, **content})


def _write(path: Path, content: dict[str, Any]) -> None:
    """Call torch.save and raise the OSError of a full disk, which its RuntimeError hides."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(path: Path, device: str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; raise UserError when it is missing, broken or of another format."""
    if not path.is_file():
        raise user_error(
            got=f"no checkpoint at {path}",
            expected="a file written by train.py (checkpoint.pt)",
            do="check the path",
        )
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise user_error(
            got=f"{path}, which cannot be read: {error.strerror}",
            expected="a readable checkpoint",
            do="correct its rights, or give another checkpoint",
        ) from error
    except Exception as error:  # a broken file raises pickle, zip or runtime errors
        raise user_error(
            got=f"unreadable checkpoint {path} ({type(error).__name__})",
            expected="a file written by train.py",
            do="train again",
        ) from error
    written = content.get("format") if isinstance(content, dict) else None
    if written in EARLIER_FORMATS:
        raise user_error(
            got=f"{path}, a checkpoint of {EARLIER_FORMATS[written]}",
            expected=f"checkpoint format {FORMAT}",
            do="train again, or use the version that wrote it",
        )
    if written != FORMAT:
        raise user_error(
            got=f"{path}, not a checkpoint of this version",
            expected=f"checkpoint format {FORMAT}",
            do="train again",
        )
    return content


def get_random_states() -> dict[str, Any]:
    """Return torch's random states; batches and release noise depend on (seed, step) only."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore the random states of a checkpoint; raise UserError when torch refuses them."""
    try:
        torch.set_rng_state(states["cpu"].cpu())
        if states["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    except (RuntimeError, TypeError, AttributeError) as error:  # another size or kind
        raise user_error(
            got=f"a checkpoint with random states that cannot be restored ({error})",
            expected="the states that this version of torch has",
            do="use the version of torch that wrote it, or train again",
        ) from error


def describe_model(
    model: ModelConfig, synapse: SynapseParams, data: DataConfig, *, vocab: int, seed: int
) -> dict[str, Any]:
    """Return the plain values from which `load_model` rebuilds a model."""
    plain = {
        "model": dataclasses.asdict(model),
        "synapse": dataclasses.asdict(synapse),
        "data": dataclasses.asdict(data),
    }
    return {**plain, "vocab": vocab, "seed": seed}


def build_synapse_params(values: dict[str, Any]) -> SynapseParams:
    """Build SynapseParams from plain values by subsystem."""
    groups = {name: SUBSYSTEMS[name](**values[name]) for name in values if name != "learn"}
    return SynapseParams(**groups, learn=tuple(values.get("learn", ())))


def load_model(path: str | Path) -> tuple[GPT, ModelConfig, DataConfig]:
    """Load the trained model of a checkpoint on the CPU, in evaluation mode.

    Returns:
        The model, its configuration and that of its data.

    Raises:
        UserError: the file is missing or not a checkpoint, or its model does not fit this version.
    """
    content = load(Path(path))
    facts: Any = content.get("about")
    if isinstance(facts, dict) and "network" in facts:
        raise user_error(
            got=f"{path}, an image network",
            expected="a checkpoint of the transformer",
            do="give a checkpoint of model=synaptic or model=gpt",
        )
    try:
        config, data = ModelConfig(**facts["model"]), DataConfig(**facts["data"])
        model = GPT(
            config, build_synapse_params(facts["synapse"]), vocab=facts["vocab"], seed=facts["seed"]
        )
        model.load_state_dict(content["weights"])
    # other names, fields, values or shapes
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise user_error(
            got=f"{path}, whose model does not fit this version of synaptune",
            expected="a checkpoint of this version",
            do="train again, or use the version that wrote it",
        ) from error
    return model.eval(), config, data
