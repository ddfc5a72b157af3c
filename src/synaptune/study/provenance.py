"""Code version and device of a result."""

from __future__ import annotations

import functools
import hashlib
from importlib.metadata import version
from pathlib import Path

import synaptune


@functools.cache
def get_code_version() -> str:
    """Return the package version and the first digits of the SHA-256 of the source files.

    Example: `0.1.0+3f2a91c07b1e`.
    """
    root = Path(synaptune.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.c")]):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return f"{version('synaptune')}+{digest.hexdigest()[:12]}"


def get_device_name() -> str:
    """Return the name of the accelerator, or of the processor without one."""
    import platform

    import torch

    return (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine()
    )
