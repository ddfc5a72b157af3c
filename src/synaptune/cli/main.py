"""The `synaptune` command: the protocols, and the commands for models and studies."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from synaptune.cli import (
    additions,
    cost,
    dashboard,
    export,
    parameters,
    protocols,
    refine,
    report,
    sample,
    studies,
    wandb,
)
from synaptune.cli.arguments import divert_output
from synaptune.core.errors import run_command
from synaptune.core.files import make_absolute
from synaptune.core.terminal import escape_unknown_characters, repeat_lost_interrupts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 2 after a user error, 130 after Ctrl-C."""
    escape_unknown_characters()
    repeat_lost_interrupts()
    options = _parse_options(sys.argv[1:] if arguments is None else arguments)

    def run_checked() -> None:
        make_absolute(".")  # refuses a working folder that was removed
        with divert_output(options):
            options.command(options)

    return run_command(
        run_checked,
        disk="make room (or set study.dir), or check the path",
        interrupted="; every finished run is kept, and the same command continues a protocol",
    )


def _parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; overrides may stand on both sides of an option."""
    parser = _make_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="synaptune",
        description="Tune the synapses of a transformer, and measure the gain. "
        "`python train.py` trains one model, or searches with -m.",
        epilog="`synaptune COMMAND --help` explains a command. A STUDY is a name below"
        " outputs/studies or a folder; --storage URL names another database.",
    )
    parser.add_argument(
        "--version", action=_PrintVersion, nargs=0, help="print the version and exit"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    protocols.add_commands(commands)
    studies.add_commands(commands)
    additions.add_commands(commands)
    for module in (report, refine, export, dashboard, wandb, cost, sample, parameters):
        module.add_command(commands)
    return parser


class _PrintVersion(argparse.Action):
    """The option --version; the version is read only when it is printed."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        from synaptune.study.provenance import get_code_version

        print(f"synaptune {get_code_version()}, Python {sys.version.split()[0]}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
