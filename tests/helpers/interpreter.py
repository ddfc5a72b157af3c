"""Triton's interpreter, which runs kernels on a CPU."""

from __future__ import annotations


def interpret_triton(monkeypatch) -> None:
    """Let kernels that are imported from now on run in the interpreter."""
    import triton
    from triton import language
    from triton.runtime.interpreter import InterpretedFunction

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    # The functions of Triton's own language, such as `sum`, were defined at its import. The
    # interpreter changes more of it and restores a part.
    for library in (language, language.standard, language.core, language.random):
        for name, value in list(vars(library).items()):
            is_function = isinstance(value, triton.JITFunction)
            monkeypatch.setattr(
                library, name, InterpretedFunction(value.fn) if is_function else value
            )
