"""Values under the short names of the plan's best_params.json.

{"tau_c": 6.5, "alpha_ca_log": -0.26}     a key that ends in _log holds the power of ten
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synaptune.core.errors import suggest, user_error

_LOG = "_log"


def expand_short_names(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return values of parameters by their full names.

    Args:
        values: by short or full name.
        source: of the values, for messages.

    Raises:
        UserError: names every key that is no parameter, or that holds no number.
    """
    from synaptune.synapse.circuit import SPECS

    specs = {spec.name: spec for spec in SPECS}
    full = {name.rsplit(".", 1)[-1]: name for name in specs} | {name: name for name in specs}
    expanded, faults = {}, []
    for key, value in values.items():
        is_power = key not in full and key.endswith(_LOG)
        name = full.get(key.removesuffix(_LOG) if is_power else key)
        if name is None:
            faults.append(f"{key}{suggest(key, list(full))}")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            faults.append(f"{key}={value!r}, which is no number")
        else:
            number = 10.0**value if is_power else value
            is_integer = specs[name].scale == "int" or specs[name].of_run
            expanded[name] = round(number) if is_integer else number
    if faults:
        raise user_error(
            got=f"{source} with {'; '.join(faults)}",
            expected="numbers by the names of docs/parameters.md, with or without `synapse.`",
            do="correct the names",
        )
    return expanded
