"""`synaptune phase1|phase2|ablation|transfer`: protocols, whose arguments are overrides."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

_SUMMARIES = {
    "phase1": "tune the parameters of phase 1 and measure what they are worth",
    "phase2": "tune all parameters from the phase-1 optimum: groups, gates, joint search",
    "ablation": "measure what each parameter of a study's optimum is worth",
    "transfer": "run the best points of a study on another scale",
}


def add_commands(commands: Any) -> None:
    """Add one subcommand for each protocol."""
    for name, summary in _SUMMARIES.items():
        parser = commands.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.description = f"{summary[0].upper()}{summary[1:]}."
        parser.format_help = _make_help(parser, name)
        parser.add_argument(
            "overrides", nargs="*", metavar="NAME=VALUE", help="overrides, as of train.py"
        )
        parser.set_defaults(command=lambda options, name=name: _run_protocol(name, options))


def _make_help(parser: argparse.ArgumentParser, name: str) -> Any:
    """Return a `format_help` that reads the settings from conf/ only when they are printed."""
    format_help = parser.format_help

    def format_help_with_settings() -> str:
        from synaptune.config.conf import CONF_DIR

        settings = (CONF_DIR / "protocol" / f"{name}.yaml").read_text(encoding="utf-8")
        lines = "".join(f"  {line}\n" if line else "\n" for line in settings.splitlines())
        parser.epilog = (
            f"settings of the protocol, set as protocol.NAME=VALUE:\n\n{lines}\nEvery group and"
            " value of `python train.py --help` is set in the same way, for example\nscale=gpu"
            " data=text data.path=FILE study.name=mine workers.count=4."
        )
        return format_help()

    return format_help_with_settings


def _run_protocol(name: str, options: argparse.Namespace) -> None:
    module = importlib.import_module(f"synaptune.protocols.{name}")
    getattr(module, f"run_{name}")(options.overrides)
