"""Writing of YAML that PyYAML and OmegaConf read alike."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    pass


# OmegaConf reads 1e3 as a number, PyYAML as a text: with this rule, such a text gets quotes.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*\.?[0-9_]*[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def dump_yaml(content: Any, **options: Any) -> str:
    """Return YAML with the keys in their order.

    Args:
        content: None, bool, int, float, str, list, tuple and dict.
        options: options of yaml.dump.
    """
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **options)
