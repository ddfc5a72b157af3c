"""Signatures of files that only the user who wrote them may read back, such as pickles.

A pickle runs code when it is read, and study folders are copied and shared. The key of the
signatures is a file of the cache folder that only its owner can read. A file without a valid
signature is not read.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from synaptune.core.files import cache_dir

_KEY_SIZE = 32  # bytes, of the key and of a signature
_OTHERS = 0o077  # permissions of group and others


def sign(content: bytes) -> bytes | None:
    """Return the signature followed by the content, or None if the user has no key."""
    key = _read_key()
    return None if key is None else _compute_signature(key, content) + content


def verify(signed: bytes) -> bytes | None:
    """Return the content of what `sign` returned, or None without a valid signature."""
    key, signature, content = _read_key(), signed[:_KEY_SIZE], signed[_KEY_SIZE:]
    if key is None or not hmac.compare_digest(signature, _compute_signature(key, content)):
        return None
    return content


def _compute_signature(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, content, hashlib.sha256)


def _read_key() -> bytes | None:
    """Return the key of this user, made at the first use; None if it cannot be kept secret."""
    try:
        path = cache_dir() / "signing.key"
        if not path.exists():
            _make_key(path)
        with path.open("rb") as file:
            status, key = os.fstat(file.fileno()), file.read()
    except OSError:
        return None
    is_private = status.st_uid == os.geteuid() and not status.st_mode & _OTHERS
    return key if is_private and len(key) == _KEY_SIZE else None


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # another process made it
        return
    with open(descriptor, "wb") as file:
        file.write(secrets.token_bytes(_KEY_SIZE))
