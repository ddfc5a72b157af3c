"""Independent random streams by key, such as (seed, name of a weight)."""

from __future__ import annotations

import hashlib

import torch


def make_generator(*key: int | str) -> torch.Generator:
    """Return the CPU generator of a key.

    The seed is a hash of the key, because torch reads only 32 bits of a seed.
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
