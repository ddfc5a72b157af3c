"""Triton without a GPU: the interpreter, and what a compiled kernel needs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path


def use_interpreter(monkeypatch) -> None:
    """Let kernels that are defined from now on run in the interpreter, for one test.

    The functions of Triton's own language, such as `sum`, were defined at its import. The
    interpreter changes more of it and restores a part.
    """
    import triton
    from triton import language
    from triton.runtime.interpreter import InterpretedFunction

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for library in (language, language.standard, language.core, language.random):
        for name, value in list(vars(library).items()):
            is_function = isinstance(value, triton.JITFunction)
            monkeypatch.setattr(
                library, name, InterpretedFunction(value.fn) if is_function else value
            )
    # From Triton 3.9 a constant times a tensor would be a constant, which its functions refuse.
    for name in ("__add__", "__sub__", "__mul__", "__truediv__"):
        monkeypatch.setattr(
            language.constexpr, name, _leave_tensors(getattr(language.constexpr, name))
        )


def _leave_tensors(method: Callable[..., object]) -> Callable[..., object]:
    """Return an operator of constants that leaves the work to a tensor on its right."""
    from triton import language

    def call(self: object, other: object) -> object:
        return NotImplemented if isinstance(other, language.tensor) else method(self, other)

    return call


def count_stack_bytes(cubin: bytes, folder: Path) -> int:
    """Return the bytes of stack of a thread; registers that do not suffice spill there."""
    import triton

    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    tool = triton.knobs.nvidia.cuobjdump.path
    done = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True)
    found = re.search(r"STACK:(\d+)", done.stdout + done.stderr)
    assert found is not None
    return int(found[1])
