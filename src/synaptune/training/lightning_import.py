"""`lightning.pytorch`, imported without the packages that training never uses.

Lightning imports torchmetrics, and torchmetrics imports scipy.signal and matplotlib when they are
installed. Those two take about a quarter of the CPU time until the first training step, in every
worker process.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from typing import Any

from lightning_utilities.core import imports as _checks

_UNUSED_PACKAGES = ("matplotlib", "scipy")


@contextmanager
def _hide_packages(names: Collection[str]) -> Iterator[None]:
    """Make the checks of lightning_utilities, which torchmetrics uses, report packages as absent.

    A release with other checks is left as it is; the import then takes longer.
    """
    module: dict[str, Any] = _checks.__dict__
    replaced = ("_version", "package_available")
    if not module.keys() >= {*replaced, "module_available"}:
        yield
        return
    version, is_available = originals = [module[name] for name in replaced]

    def find_version(name: str) -> str:
        if name in names:
            raise PackageNotFoundError(name)
        return version(name)

    module["_version"] = find_version
    module["package_available"] = lambda name: name not in names and is_available(name)
    try:
        yield
    finally:
        module.update(zip(replaced, originals, strict=True))
        module["module_available"].cache_clear()  # it has cached the answers given above


if "torchmetrics" not in sys.modules:
    with _hide_packages(_UNUSED_PACKAGES):
        import torchmetrics  # noqa: F401

import lightning.pytorch as lightning  # noqa: E402

__all__ = ["lightning"]
