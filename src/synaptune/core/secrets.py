"""Passwords in URLs: find them in what a user gives, and keep them out of logs."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

# scheme://user:password@host; the password may contain @ and /, and be a reference
_PASSWORD = re.compile(r"(\w[\w+.-]*://[^\s:/@'\"]*:)(?!\$\{[^}]*\}@)([^\s'\"]+)(?=@)")
_QUERY_SECRET = re.compile(r"([?&][\w-]*(?:pass|pwd|secret|token|key)[\w-]*=)([^&\s'\"]+)", re.I)


def mask_passwords(value: Any) -> Any:
    """Return a value with the passwords of the URLs in its texts replaced by ***."""
    if isinstance(value, str) and "://" in value:
        return _QUERY_SECRET.sub(r"\1***", _PASSWORD.sub(r"\1***", value))
    if isinstance(value, dict):
        return {key: mask_passwords(entry) for key, entry in value.items()}
    return [mask_passwords(entry) for entry in value] if isinstance(value, list) else value


def protect_passwords(words: Sequence[str]) -> None:
    """Warn of passwords on a command line, and make new files readable by the user only.

    Other users of the machine see the command line, and Hydra writes it to the run folders.
    """
    for word in words:
        if mask_passwords(word) != word:
            _warn(word)
            os.umask(0o077)


@functools.cache  # train.py and its sweeper see the same words
def _warn(word: str) -> None:
    name = word.lstrip("+~").partition("=")[0]
    print(
        f"warning: got {mask_passwords(word)} with its password in clear text\n"
        "  expected: a reference to an environment variable, which no file and no process list"
        " shows\n"
        f"  to do: export DATABASE_URL=..., then give \"{name}='${{oc.env:DATABASE_URL}}'\"",
        file=sys.stderr,
    )
