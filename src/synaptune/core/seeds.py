"""Independent random streams from a key, such as (seed, name of a weight)."""

from __future__ import annotations

import hashlib

import torch


def make_generator(*key: int | str) -> torch.Generator:
    """A CPU generator of its own for every key. torch reads 32 bits of a seed, so the key is hashed, not shifted."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
