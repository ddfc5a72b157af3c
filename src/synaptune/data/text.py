"""Documents of the standard library, a file or a folder, and their split into train, val and test.

The hash of its name assigns a document to a split, so another document can be added or edited
without effect on it. A small number of documents is split inside each document instead, into
contiguous parts.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Set
from functools import partial
from pathlib import Path
from typing import NamedTuple

from synaptune.core.errors import user_error

TRAIN_SHARE, VAL_SHARE = 0.90, 0.05  # of the text; the rest is the test split
_MIN_DOCUMENTS = 20  # with fewer documents a split by document is too coarse for a share of 5 %
# Folders of the standard library that differ between distributions: some remove the tests.
_SKIPPED_FOLDERS = {"test", "tests", "site-packages", "dist-packages", "__pycache__"}
_PEEK = 8192  # bytes read first, to recognise a binary file
_BLOCK = 2**24  # bytes of a read

Reader = Callable[[], bytes | None]


class Document(NamedTuple):
    """A piece of text.

    Attributes:
        name: relative path with `/` as separator.
        content: text in UTF-8.
    """

    name: str
    content: bytes


class Splits(NamedTuple):
    """The three parts of a corpus, each a list of documents."""

    train: list[Document]
    val: list[Document]
    test: list[Document]


def read_standard_library(max_bytes: int) -> list[Document]:
    """Read documentation topics, text files and source files of the running interpreter.

    Raises:
        UserError: the interpreter has no readable library, such as a zipped or stripped one.
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
            got=f"a standard library without text at {root}",
            expected="a Python installation with its source files",
            do="use another interpreter, or data=text data.path=FILE_OR_FOLDER",
        )
    return documents


def read_file_or_folder(path: Path, max_bytes: int) -> list[Document]:
    """Read a text file, or every UTF-8 text file below a folder except hidden ones.

    Raises:
        UserError: the path is missing, empty, not text or not readable.
    """
    do = "correct data.path"
    if not path.exists():
        parent = "" if path.parent.is_dir() else f" (the folder {path.parent} does not exist)"
        raise user_error(
            got=f"data.path={path}, which does not exist{parent}",
            expected="a text file or a folder of text files",
            do=do,
        )
    try:
        documents = _read_folder(path, max_bytes) if path.is_dir() else _read_file(path, max_bytes)
    except OSError as error:
        raise user_error(
            got=f"data.path={path}, which is not readable: {error.strerror}",
            expected="a readable file or folder",
            do=do,
        ) from error
    if not documents:
        raise user_error(
            got=f"data.path={path}, which has no text",
            expected="some UTF-8 text",
            do=f"{do}, or add text to it",
        )
    return documents


def split_documents(documents: list[Document]) -> Splits:
    """Split documents into train, val and test.

    Each document goes to one split when there are at least 20 documents and every split receives at
    least 1 % of the text. Otherwise each document is cut into contiguous parts.
    """
    if len(documents) >= _MIN_DOCUMENTS:
        parts = Splits([], [], [])
        for document in documents:
            # Another hash than that of the reading order, which max_bytes cuts off.
            quantile = _hash_name(f"split {document.name}") / 2.0**64
            split = (quantile >= TRAIN_SHARE) + (quantile >= TRAIN_SHARE + VAL_SHARE)
            parts[split].append(document)
        total = sum(len(document.content) for document in documents)
        if all(sum(len(document.content) for document in part) >= total / 100 for part in parts):
            return parts
    cuts = [_cut_document(document) for document in documents]
    return Splits(*(list(part) for part in zip(*cuts, strict=True)))


def _cut_document(document: Document) -> tuple[Document, Document, Document]:
    """Cut a document between characters into three contiguous parts."""
    name, content = document
    first = find_boundary(content, round(len(content) * TRAIN_SHARE))
    second = find_boundary(content, round(len(content) * (TRAIN_SHARE + VAL_SHARE)))
    return (
        Document(name, content[:first]),
        Document(name, content[first:second]),
        Document(name, content[second:]),
    )


def find_boundary(content: bytes, offset: int) -> int:
    """Return the start of the first character at or after `offset`.

    Continuation bytes of UTF-8 are 0b10xxxxxx.
    """
    while offset < len(content) and content[offset] & 0xC0 == 0x80:
        offset += 1
    return offset


def _gather(readers: Mapping[str, Reader], max_bytes: int) -> list[Document]:
    """Read documents in the order of their hashed names until `max_bytes`; skip copies of a text.

    The order is unrelated to the content, so the limit selects an unbiased sample.
    """
    documents: list[Document] = []
    digests: set[bytes] = set()
    room = max_bytes
    for name in sorted(readers, key=_hash_name):
        content = readers[name]()
        if not content or (digest := hashlib.sha256(content).digest()) in digests:
            continue
        digests.add(digest)
        documents.append(Document(name, content[: find_boundary(content, room)]))
        room -= len(content)
        if room <= 0:
            break
    return documents


def encode_name(name: str) -> bytes:
    """Return a document's name in the bytes of the file system, which can be other than UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def _hash_name(name: str) -> int:
    """Return a 64-bit hash of the name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(encode_name(name)).digest()[:8], "big")


def _read_text(path: Path, max_bytes: int) -> bytes | None:
    """Read complete characters of at most `max_bytes`; None when the file is not UTF-8 text."""
    with path.open("rb") as file:
        head = file.read(min(_PEEK, max_bytes))
        if b"\0" in head:
            return None
        # In blocks: a read allocates all it may return, and max_bytes can exceed the memory.
        content = bytearray(head)
        while (room := max_bytes - len(content)) and (block := file.read(min(_BLOCK, room))):
            content += block
    try:
        # At the limit the last character can be incomplete; the decoder leaves it out.
        decoder = codecs.getincrementaldecoder("utf-8")()
        text = decoder.decode(content, final=len(content) < max_bytes)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text.encode()


def _read_file(path: Path, max_bytes: int) -> list[Document]:
    """Read a file as one document; raise UserError when it is empty or not UTF-8 text."""
    if not path.is_file() and not path.absolute().is_relative_to("/dev"):
        raise user_error(
            got=f"data.path={path}, a pipe or another special file",
            expected="a text file, a folder of text files, or /dev/stdin",
            do="write the text to a file, or give <(COMMAND) of the shell",
        )
    if path.stat().st_size == 0 and path.is_file():
        raise user_error(
            got=f"data.path={path}, an empty file",
            expected="some UTF-8 text",
            do="correct data.path, or add text to the file",
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
    """Read every text file below a folder; skip binary files."""
    readers: dict[str, Reader] = {
        file.relative_to(path).as_posix(): partial(_read_text, file, max_bytes)
        for file in _walk(path)
    }
    return _gather(readers, max_bytes)


def measure_text(path: Path) -> int:
    """Return the size of a text file, or of all text files below a folder [byte]."""
    files = _walk(path) if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if _read_text(file, _PEEK) is not None)


def _walk(root: Path, skipped: Set[str] = frozenset()) -> Iterator[Path]:
    """Yield regular files below `root` in sorted order.

    Hidden files, hidden folders and folders named in `skipped` are left out.
    """
    for folder, names, files in os.walk(root):
        names[:] = sorted(
            name for name in names if not name.startswith(".") and name not in skipped
        )
        paths = [Path(folder, name) for name in sorted(files) if not name.startswith(".")]
        yield from (path for path in paths if path.is_file())


def _walk_library(root: Path) -> Iterator[Path]:
    """Yield text and source files of the standard library that all builds of a version share."""
    for path in _walk(root, _SKIPPED_FOLDERS):
        if path.suffix in {".py", ".txt", ".rst"} and not path.name.startswith("_sysconfig"):
            yield path


def _load_topics() -> dict[str, str]:
    """Return the topics of `help()` by name; empty when the distribution does not ship them."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return {f"topics/{name}.rst": text for name, text in topics.items()}
