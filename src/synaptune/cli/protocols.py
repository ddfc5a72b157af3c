"""`synaptune phase1|...|transfer|dendritic`: protocols, whose arguments are overrides."""

from __future__ import annotations

import argparse
import importlib
from typing import Any, NamedTuple

from synaptune.cli.arguments import (
    JSON_ARGUMENT,
    QUIET_ARGUMENT,
    ArgumentTable,
    add_arguments,
    print_json,
)

_ARGUMENTS: ArgumentTable = {
    "overrides": dict(nargs="*", metavar="NAME=VALUE", help="overrides, as of train.py"),
    "--dry-run": dict(
        action="store_true",
        help="print the runs, the minutes and the disk, and start nothing (protocol.dry_run=true)",
    ),
    **JSON_ARGUMENT,
    **QUIET_ARGUMENT,
}


class _Help(NamedTuple):
    """The help of a protocol: its summary, and which overrides it takes besides its settings."""

    summary: str
    overrides: str


_EVERY_OVERRIDE = (
    "Every group and value of `python train.py --help` is set in the same way, for example\n"
    "scale=gpu data=text data.path=FILE study.name=mine workers.count=4."
)
_HELP = {
    "phase1": _Help(
        "tune the parameters of phase 1 and measure what they are worth", _EVERY_OVERRIDE
    ),
    "screen": _Help(
        "find out which of all parameters matter: phase 1 up to its screening",
        _EVERY_OVERRIDE,
    ),
    "phase2": _Help(
        "tune all parameters from the phase-1 optimum: groups, gates, joint search",
        _EVERY_OVERRIDE,
    ),
    "ablation": _Help(
        "measure what each parameter of a study's optimum is worth",
        "study.name=STUDY names the study (default: phase1). Its own configuration holds; only\n"
        "workers.*, trial.*, logger.* and notify.* are set here.",
    ),
    "dendritic": _Help(
        "compare dendritic networks with controls under one parameter budget", _EVERY_OVERRIDE
    ),
    "focused": _Help(
        "sweep policy training twice, the second time in narrower ranges", _EVERY_OVERRIDE
    ),
    "transfer": _Help("run the best points of a study on another scale", _EVERY_OVERRIDE),
}
_SETTINGS = {"screen": "phase1"}  # protocols that have the settings of another
_FUNCTIONS = {"screen": "run_screening"}


def add_commands(commands: Any) -> None:
    """Add one subcommand for each protocol."""
    for name, (summary, _) in _HELP.items():
        parser = commands.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.description = (
            f"{summary[0].upper()}{summary[1:]}. The same command continues an interrupted one."
        )
        parser.format_help = _make_help(parser, name, _SETTINGS.get(name, name))
        add_arguments(parser, _ARGUMENTS)
        parser.set_defaults(command=lambda options, name=name: _run_protocol(name, options))


def _make_help(parser: argparse.ArgumentParser, name: str, settings_name: str) -> Any:
    """Return a `format_help` that reads the settings from conf/ only when they are printed."""
    format_help = parser.format_help

    def format_help_with_settings() -> str:
        from synaptune.config.conf import CONF_DIR

        settings = (CONF_DIR / "protocol" / f"{settings_name}.yaml").read_text(encoding="utf-8")
        lines = "".join(f"  {line}\n" if line else "\n" for line in settings.splitlines())
        parser.epilog = (
            f"settings of the protocol, set as protocol.NAME=VALUE:\n\n{lines}\n"
            + _HELP[name].overrides
        )
        return format_help()

    return format_help_with_settings


def _run_protocol(name: str, options: argparse.Namespace) -> None:
    module = importlib.import_module(f"synaptune.protocols.{name}")
    overrides = options.overrides + (["protocol.dry_run=true"] if options.dry_run else [])
    result = getattr(module, _FUNCTIONS.get(name, f"run_{name}"))(overrides)
    if options.json:
        print_json(options, result)
