"""The folder conf/ and its groups."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import synaptune


def find_conf() -> Path:
    """Return the folder conf/: inside an installed package, or at the top of a checkout.

    Raises:
        FileNotFoundError: there is no conf/train.yaml.
    """
    package = Path(synaptune.__file__).parent
    for parent in (package, *package.parents):
        if (parent / "conf" / "train.yaml").is_file():
            return parent / "conf"
    raise FileNotFoundError(f"no conf/train.yaml in {package} or above it; install synaptune again")


CONF_DIR = find_conf()


def is_choice(group: str, value: Any) -> bool:
    """Return whether `group=value` chooses a file of conf/, as `synapse/calcium=slow` does."""
    if not (isinstance(value, str) and re.fullmatch(r"\w+(/\w+)*=[\w-]+", f"{group}={value}")):
        return False
    return (CONF_DIR / group / f"{value}.yaml").is_file()
