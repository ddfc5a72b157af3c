"""Documents: the standard library of the running interpreter, a file, or a folder; and their split into train, val and test.

A document belongs to a split by the hash of its name, so adding or editing one moves no other. Where there are too few
documents for that, each is cut into contiguous parts.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Set
from functools import partial
from pathlib import Path
from typing import NamedTuple

from synaptune.core.errors import user_error

TRAIN_SHARE, VAL_SHARE = 0.90, 0.05  # of the text; the rest is the test split
_MIN_DOCUMENTS = (
    20  # documents below which a split by document would be too coarse for shares of one in twenty
)
_SKIPPED_FOLDERS = {
    "test",
    "tests",
    "site-packages",
    "dist-packages",
    "__pycache__",
}  # distributions strip the tests, or add packages
_PEEK = 8192  # bytes read to tell text from a binary file

Reader = Callable[[], bytes | None]


class Document(NamedTuple):
    """A piece of text: its name (relative path, `/` separated) and its UTF-8 bytes."""

    name: str
    content: bytes


class Splits(NamedTuple):
    """The three parts of a corpus, each a list of documents."""

    train: list[Document]
    val: list[Document]
    test: list[Document]


def read_standard_library(max_bytes: int) -> list[Document]:
    """Documentation topics, text and source files of the running interpreter.

    Raises UserError when the interpreter has no readable library (a zipped or stripped one).
    """
    root = Path(sysconfig.get_path("stdlib"))
    readers: dict[str, Reader] = {
        path.relative_to(root).as_posix(): partial(_read_text, path, max_bytes)
        for path in _walk_library(root)
    }
    readers |= {name: partial(str.encode, text) for name, text in _load_topics().items()}
    documents = _gather(readers, max_bytes)
    if not documents:
        raise user_error(
            got=f"no text in the standard library at {root}",
            expected="a Python installation with its source files",
            do="use another interpreter, or data=text data.path=FILE_OR_FOLDER",
        )
    return documents


def read_file_or_folder(path: Path, max_bytes: int) -> list[Document]:
    """The text of a file, or of every UTF-8 text file below a folder (hidden ones excepted).

    Raises UserError: missing, empty, not text, not readable.
    """
    do = "correct data.path"
    if not path.exists():
        near = "" if path.parent.is_dir() else f" (nor is there a folder {path.parent})"
        raise user_error(
            got=f"data.path={path}, which does not exist{near}",
            expected="a text file or a folder of text files",
            do=do,
        )
    try:
        documents = _read_folder(path, max_bytes) if path.is_dir() else _read_file(path, max_bytes)
    except PermissionError as error:
        raise user_error(
            got=f"data.path={path}, which may not be read",
            expected="a readable file or folder",
            do=do,
        ) from error
    if not documents:
        raise user_error(
            got=f"data.path={path}, which holds no text",
            expected="some UTF-8 text",
            do=f"{do}, or fill it",
        )
    return documents


def split_documents(documents: list[Document]) -> Splits:
    """Split by document when there are enough and no part comes out empty, else cut each into contiguous parts."""
    if len(documents) >= _MIN_DOCUMENTS:
        parts = Splits([], [], [])
        for document in documents:
            place = (
                _hash_name(f"split {document.name}") / 2.0**64
            )  # apart from the order of reading, which a cap cuts
            parts[(place >= TRAIN_SHARE) + (place >= TRAIN_SHARE + VAL_SHARE)].append(document)
        total = sum(len(document.content) for document in documents)
        if all(sum(len(document.content) for document in part) >= total / 100 for part in parts):
            return parts
    cuts = [_cut_document(document) for document in documents]
    return Splits(*(list(part) for part in zip(*cuts, strict=True)))


def _cut_document(document: Document) -> tuple[Document, Document, Document]:
    """One document in three contiguous parts, cut between characters."""
    name, content = document
    first = _find_boundary(content, round(len(content) * TRAIN_SHARE))
    second = _find_boundary(content, round(len(content) * (TRAIN_SHARE + VAL_SHARE)))
    return (
        Document(name, content[:first]),
        Document(name, content[first:second]),
        Document(name, content[second:]),
    )


def _find_boundary(content: bytes, offset: int) -> int:
    """The first start of a character at or after `place` (continuation bytes of UTF-8 are 0b10xxxxxx)."""
    while offset < len(content) and content[offset] & 0xC0 == 0x80:
        offset += 1
    return offset


def _gather(readers: Mapping[str, Reader], max_bytes: int) -> list[Document]:
    """Read in the order of hashed names, which a cap does not bias, until `max_bytes`; copies of a text count once."""
    documents: list[Document] = []
    seen: set[bytes] = set()
    room = max_bytes
    for name in sorted(readers, key=_hash_name):
        content = readers[name]()
        if not content or (digest := hashlib.sha256(content).digest()) in seen:
            continue
        seen.add(digest)
        documents.append(Document(name, content[: _find_boundary(content, room)]))
        room -= len(content)
        if room <= 0:
            break
    return documents


def encode_name(name: str) -> bytes:
    """A document's name as the file system has it, which need not be UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def _hash_name(name: str) -> int:
    """64 bits of the name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(encode_name(name)).digest()[:8], "big")


def _read_text(path: Path, max_bytes: int) -> bytes | None:
    """The first `max_bytes` of a text file, whole characters; None when it is not UTF-8 text."""
    with path.open("rb") as file:
        head = file.read(min(_PEEK, max_bytes))
        if b"\0" in head:
            return None
        content = head + file.read(max_bytes - len(head))
    if len(content) == max_bytes:
        content = content[: _find_last_whole(content)]
    try:
        content.decode()
    except UnicodeDecodeError:
        return None
    return None if b"\0" in content else content


def _find_last_whole(content: bytes) -> int:
    """The length of `content` without a character cut off at its end."""
    for back in range(1, min(4, len(content)) + 1):
        byte = content[-back]
        if byte & 0xC0 != 0x80:
            width = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(content) - back if width > back else len(content)
    return len(content)


def _read_file(path: Path, max_bytes: int) -> list[Document]:
    """A single file as one document. Raises UserError: empty, or not UTF-8 text."""
    if path.stat().st_size == 0 and path.is_file():
        raise user_error(
            got=f"data.path={path}, an empty file",
            expected="some UTF-8 text",
            do="correct data.path, or fill the file",
        )
    content = _read_text(path, max_bytes)
    if content is None:
        raise user_error(
            got=f"data.path={path}, which is not UTF-8 text",
            expected="a plain text file in UTF-8",
            do="correct data.path, or convert the file (iconv -t UTF-8)",
        )
    return [Document(path.name, content)] if content else []


def _read_folder(path: Path, max_bytes: int) -> list[Document]:
    """Every text file below a folder; binary files are passed over."""
    return _gather(
        {
            file.relative_to(path).as_posix(): partial(_read_text, file, max_bytes)
            for file in _walk(path)
        },
        max_bytes,
    )


def _walk(root: Path, skipped: Set[str] = frozenset()) -> Iterator[Path]:
    """Regular files below `root` in sorted order, without hidden files and folders and those named in `skipped`."""
    for folder, names, files in os.walk(root):
        names[:] = sorted(
            name for name in names if not name.startswith(".") and name not in skipped
        )
        yield from (
            path
            for name in sorted(files)
            if not name.startswith(".") and (path := Path(folder, name)).is_file()
        )


def _walk_library(root: Path) -> Iterator[Path]:
    """Text and source files of the standard library, without what differs from one build of a version to another."""
    for path in _walk(root, _SKIPPED_FOLDERS):
        if path.suffix in {".py", ".txt", ".rst"} and not path.name.startswith("_sysconfig"):
            yield path


def _load_topics() -> dict[str, str]:
    """The language reference that `help()` shows, one document per topic; empty where a distribution leaves it out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return {f"topics/{name}.rst": text for name, text in topics.items()}
