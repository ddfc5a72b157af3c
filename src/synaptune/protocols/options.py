"""Options of the protocol commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from synaptune.core import errors
from synaptune.protocols.session import VALIDATION_SEEDS


def run_command(command: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Run a protocol command; its exit code: 2 after a mistake, 130 after Ctrl-C."""
    return errors.run_command(
        lambda: command(options),
        disk="make room (or set study.dir) and give the same command",
        interrupted="; the same command goes on, every finished run is kept",
    )


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options that every protocol has."""
    parser.add_argument(
        "--seeds",
        type=int,
        default=VALIDATION_SEEDS,
        help=f"fresh seeds of the validation (default {VALIDATION_SEEDS})",
    )
    parser.add_argument(
        "--study", default=None, help="name of the study (default: that of the search space)"
    )
    parser.add_argument(
        "--go-on", action="store_true", help="go on even when a check or a gate says stop"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        help="overrides of conf/train.yaml, e.g. scale=smoke data=text data.path=FILE",
    )


def add_report_option(parser: argparse.ArgumentParser) -> None:
    """The option of protocols that end in a report."""
    parser.add_argument(
        "--no-report",
        dest="report",
        action="store_false",
        help="end with the verdict: no portraits, no report",
    )
