"""The text of `python train.py --help`, from conf/ alone.

Hydra would print the same text, but copies its whole configuration store for each question about a
group, which takes seconds with a schema of this size.
"""

from __future__ import annotations

import string
from pathlib import Path

from omegaconf import OmegaConf


def format_help(conf: Path, config_name: str) -> str:
    """Return the help text that `hydra.help` of the primary configuration describes.

    Protocols are left out: they are commands, not choices of a run.
    """
    primary = OmegaConf.load(conf / f"{config_name}.yaml")
    text, defaults = primary.hydra.help, {}
    for entry in primary.defaults:
        if not isinstance(entry, str):
            defaults |= dict(entry)
    groups = ""
    for group, names in list_choices(conf).items():
        if group != "protocol":
            chosen = defaults.get(group, "default" if group.startswith("synapse/") else None)
            ordered = sorted(names, key=lambda name: name != chosen)
            groups += f"{group}: {', '.join(ordered)}\n"
    return string.Template(text.template).substitute(APP_CONFIG_GROUPS=groups)


def list_choices(conf: Path) -> dict[str, list[str]]:
    """Return the choices of every group: the files of each folder below `conf`, without `.yaml`."""
    choices: dict[str, list[str]] = {}
    for path in conf.glob("*/**/*.yaml"):
        choices.setdefault(path.parent.relative_to(conf).as_posix(), []).append(path.stem)
    return {group: sorted(choices[group]) for group in sorted(choices)}
