"""What a portrait holds of a trained model, made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def portrait(draw: np.random.Generator, scale: float) -> Mapping[str, Any]:
    """A portrait; scale: of its release."""
    return {}
