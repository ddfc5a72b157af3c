"""The device of a run: its choice, precision, copies to it, and denormal numbers of the CPU."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from synaptune.core.errors import user_error
from synaptune.training.config import TrainingConfig


def pick_device(choice: str) -> torch.device:
    """Return the device for `training.device`; raise UserError when CUDA is not available."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise user_error(
            got="training.device=cuda",
            expected="a CUDA device that torch can use",
            do="training.device=auto, or install a CUDA build of torch",
        )
    return torch.device("cuda" if choice != "cpu" and torch.cuda.is_available() else "cpu")


def make_autocast(config: TrainingConfig, device: torch.device) -> AbstractContextManager:
    """Return the autocast context of forward passes.

    The precision `auto` is bf16 on a GPU that supports it, else fp32: a CPU emulates bf16 slowly.
    """
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(False)
    )
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


def compile_model(model: torch.nn.Module, device: torch.device, backend: str = "inductor") -> None:
    """Compile a model in place at its first step, for `training.compile`.

    Args:
        model: the model; the methods that a module names in `EAGER` run as they are.
        device: where it trains.
        backend: of torch.compile.

    Raises:
        UserError: torch.compile has no C++ compiler (on a CPU) or no Triton (on a GPU).
    """
    if device.type == "cuda":
        needed, is_there = "Triton", importlib.util.find_spec("triton") is not None
    else:
        needed = "a C++ compiler (g++, clang++ or $CXX)"
        names = (os.environ.get("CXX"), "g++", "clang++")
        is_there = any(name and shutil.which(name) for name in names)
    if not is_there:
        raise user_error(
            got=f"training.compile=true without {needed}",
            expected=f"{needed}, which torch.compile needs on this device",
            do="install it, or leave training.compile=false",
        )
    for module in model.modules():
        for name in getattr(module, "EAGER", ()):
            setattr(module, name, torch.compiler.disable(getattr(module, name)))
    model.compile(backend=backend)


@contextlib.contextmanager
def flush_denormals() -> Iterator[None]:
    """Let the CPU treat denormal numbers as 0 in this thread, and in threads that start meanwhile.

    The weights of far keys under a strong distance are denormal (below 1.2e-38), and arithmetic
    with them is so slow that a step takes up to 1.5 times as long (docs/results.md).
    """
    for name in ("float32", "float64"):
        np.finfo(np.dtype(name))  # computed once; it would warn that denormals are missing
    was_flushing = bool(torch.tensor(1e-40) == 0.0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_flushing)


def to_device(batch: Any, device: torch.device) -> Any:
    """Copy a batch, a NamedTuple of tensors, to a device."""
    return type(batch)(*(tensor.to(device, non_blocking=True) for tensor in batch))
