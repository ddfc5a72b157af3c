"""Triton without a GPU: the interpreter, and what a compiled kernel needs."""

from __future__ import annotations

import re
import subprocess
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
