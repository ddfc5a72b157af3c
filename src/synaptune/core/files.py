"""Where computed files are kept between runs, and how they are written: whole or not at all, by any number of processes."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from synaptune.core.errors import NO_SPACE, REFUSED, user_error


def cache_dir() -> Path:
    """The folder of cached files: $SYNAPTUNE_CACHE, else $XDG_CACHE_HOME/synaptune, else ~/.cache/synaptune."""
    if chosen := os.environ.get("SYNAPTUNE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "synaptune"


@contextmanager
def as_disk_errors(path: Path, remedy: str = "free some space there") -> Iterator[None]:
    """Turn a full or read-only disk under `path` into a UserError; every other error passes unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise user_error(
                got=f"no space to write {path} ({error.strerror})",
                expected="room on that disk",
                do=remedy,
            ) from error
        if error.errno in REFUSED:
            raise user_error(
                got=f"{path}: {error.strerror}", expected="a folder that can be written", do=remedy
            ) from error
        raise


@contextmanager
def replace_file(path: Path, draft: Path | None = None) -> Iterator[Path]:
    """Give a draft to write; it replaces the file at the end, and is removed after an error.

    Args:
        path: the file; its folder is made.
        draft: None is FILE.tmp beside it, for a file that only one process writes.
    """
    draft = draft or path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Several processes may write it. Raises UserError: no space.
    """
    with as_disk_errors(path), replace_file(path, _make_draft_path(path)) as draft:
        draft.write_bytes(content)


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, filled by `build(empty folder)` unless it is there already.

    The folder appears under its name by one rename, so it is always complete. Processes that build it at the same time
    do the work twice and keep the first result. Raises UserError when there is no space or no right to write.
    """
    if folder.is_dir():
        return folder
    with as_disk_errors(
        folder, "free some space there, or set SYNAPTUNE_CACHE to a folder with room"
    ):
        draft = _make_draft_path(folder)
        draft.mkdir(parents=True)
        try:
            build(draft)
            _publish(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _make_draft_path(path: Path) -> Path:
    """A name beside `path` that no other process uses (not tempfile's, whose files only their owner may read)."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _publish(draft: Path, folder: Path) -> None:
    """Rename `draft` to `folder`, or leave it when another process was first."""
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
