"""The cache folder, and atomic writing of files and folders by any number of processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from synaptune.core.errors import NO_SPACE, NOT_WRITABLE, user_error


def cache_dir() -> Path:
    """Return the folder of cached files.

    It is $SYNAPTUNE_CACHE, else $XDG_CACHE_HOME/synaptune, else ~/.cache/synaptune. For a user
    without a home it is a private folder of the folder for temporary files.

    Raises:
        UserError: the user has no home, and the private folder belongs to another user.
    """
    if folder := os.environ.get("SYNAPTUNE_CACHE"):
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser() / "synaptune"
    except RuntimeError:  # HOME is not set, and the system does not know the user
        return _make_private_folder(Path(tempfile.gettempdir(), f"synaptune-{os.geteuid()}"))


def _make_private_folder(folder: Path) -> Path:
    """Make a folder that only this user can write: programs are loaded from the cache."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o022:
        raise user_error(
            got=f"the cache folder {folder}, which other users can change",
            expected="a folder of this user alone",
            do="set HOME or SYNAPTUNE_CACHE to a folder of yours",
        )
    return folder


def make_absolute(path: str | Path) -> Path:
    """Return a path that does not depend on the working folder; `~` is the home of the user.

    Raises:
        UserError: no file can have this path, or it is relative and the working folder is gone.
    """
    try:
        absolute = Path(os.path.expanduser(path)).absolute()
        if b"\0" in os.fsencode(absolute) + str(absolute).encode():
            raise UnicodeError("a NUL character")
        return absolute
    except UnicodeError as error:
        raise user_error(
            got=f"the path {str(path)!a}: {error}",
            expected="characters that the file system has in this locale",
            do="choose another path, or set LC_ALL=C.UTF-8",
        ) from error
    except FileNotFoundError as error:
        raise user_error(
            got=f"the path {path} in a working folder that no longer exists",
            expected="a working folder",
            do="change to a folder that exists",
        ) from error


@contextmanager
def as_disk_errors(
    path: Path, remedy: str = "make room there, or choose another folder"
) -> Iterator[None]:
    """Raise a full or read-only disk under `path` as a UserError; other errors pass unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise user_error(
                got=f"no space to write {path} ({error.strerror})",
                expected="free space on that disk",
                do=remedy,
            ) from error
        if error.errno in NOT_WRITABLE:
            raise user_error(
                got=f"{path}: {error.strerror}", expected="a writable folder", do=remedy
            ) from error
        raise


def make_folder(
    folder: Path,
    do: str = "make room, correct the rights, or choose another folder"
    " (hydra.run.dir; of a search study.dir)",
) -> None:
    """Make a folder and its parents; `do` says what to do if it cannot be made.

    Raises:
        UserError: it cannot be made; the errors differ between file systems.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise user_error(
            got=f"the folder {folder}: {error.strerror}",
            expected="a writable folder",
            do=do,
        ) from error


def measure_folder(folder: Path) -> int:
    """Return the size of all files below a folder [byte]; links are not followed."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # removed by a running search
                total += os.lstat(os.path.join(root, name)).st_size
    return total


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
    """Write a file atomically: a reader sees the old content or the new, also after a crash.

    Raises:
        UserError: there is no free space, or the folder is not writable.
    """
    with as_disk_errors(path), replace_file(path, _make_draft_path(path)) as draft:
        draft.write_bytes(content)


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`; call `build` first when it does not exist.

    `build` fills a temporary folder, and one rename gives it its name, so `folder` is always
    complete. Processes that build it at the same time do the work twice and keep the first result.

    Args:
        folder: the folder to return.
        build: writes the content into the empty folder that it receives.

    Raises:
        UserError: there is no free space, or the folder is not writable.
    """
    if folder.is_dir():
        return folder
    do = "make room there, or set SYNAPTUNE_CACHE to another folder"
    make_folder(folder.parent, do)
    with as_disk_errors(folder, do):
        draft = _make_draft_path(folder)
        draft.mkdir()
        try:
            build(draft)
            _publish(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _make_draft_path(path: Path) -> Path:
    """Return a unique path beside `path`; tempfile would make files that only their owner reads."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _publish(draft: Path, folder: Path) -> None:
    """Rename `draft` to `folder` unless another process has created `folder`."""
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
