"""File systems for tests: read-only ones, which root cannot write either, and small ones."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mount(*words: str | Path) -> Iterator[None]:
    """Run `mount WORDS`, whose last word is the folder; skips the test where that is refused."""
    command = ["mount", *map(str, words)]
    try:
        refusal = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    except FileNotFoundError as error:
        refusal = str(error)
    if refusal:
        pytest.skip(f"cannot mount a file system here: {refusal}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", command[-1]], check=True)


def mount_small(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Let `folder` be an empty file system of 12 MB inside the block."""
    return mount("-t", "tmpfs", "-o", "size=12m", "tmpfs", folder)


def mount_read_only(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Let `folder` be read-only inside the block."""
    return mount("--bind", "-o", "ro", folder, folder)
