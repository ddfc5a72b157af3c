"""Definition of subcommands by tables of their arguments, check of values, and their output."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from synaptune.core.errors import UserError

# name or flag of an argument -> keywords of `add_argument`
ArgumentTable = Mapping[str, Mapping[str, Any]]

STORAGE_ARGUMENT: ArgumentTable = {
    "--storage": dict(metavar="URL", help="database of the study, as in study.storage")
}
STUDY_ARGUMENTS: ArgumentTable = {
    "study": dict(
        metavar="STUDY",
        help="name of a study below outputs/studies, or its folder; with --storage, its name there",
    ),
    **STORAGE_ARGUMENT,
}
JSON_ARGUMENT: ArgumentTable = {
    "--json": dict(action="store_true", help="print the result as JSON; messages go to stderr")
}
QUIET_ARGUMENT: ArgumentTable = {"--quiet": dict(action="store_true", help="print errors only")}
YES_ARGUMENT: ArgumentTable = {"--yes": dict(action="store_true", help="do not ask first")}


def add_subcommand(
    commands: Any,
    name: str,
    summary: str,
    arguments: ArgumentTable,
    run: Callable[[argparse.Namespace], None],
) -> argparse.ArgumentParser:
    """Add a subcommand and return its parser.

    Args:
        commands: the subparsers of the command.
        name: name of the subcommand.
        summary: its help.
        arguments: its arguments.
        run: called with the parsed options.
    """
    description = f"{summary[0].upper()}{summary[1:]}."
    parser = commands.add_parser(name, help=summary, description=description)
    add_arguments(parser, arguments)
    parser.set_defaults(command=run)
    return parser


def add_arguments(parser: Any, arguments: ArgumentTable) -> None:
    """Add the arguments of a table to a parser or a group."""
    for name, keywords in arguments.items():
        parser.add_argument(name, **keywords)


def check_values(subject: str, checks: Iterable[tuple[bool, str]]) -> None:
    """Check the values of a command.

    Args:
        subject: what cannot be done with invalid values.
        checks: whether each value is valid, and the fault if it is not.

    Raises:
        UserError: some values are invalid; the message has all faults.
    """
    faults = [fault for is_valid, fault in checks if not is_valid]
    if faults:
        raise UserError("\n  ".join([f"got {subject}", *faults, "to do: correct these values"]))


@contextlib.contextmanager
def divert_output(options: argparse.Namespace) -> Iterator[None]:
    """Send what a command prints to stderr with --json, and nowhere with --quiet.

    `print_json` still prints to standard output.
    """
    options.stdout = sys.stdout
    with contextlib.ExitStack() as stack:
        if getattr(options, "quiet", False):
            sink = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(sink))
        elif getattr(options, "json", False):
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def print_json(options: argparse.Namespace, content: Any) -> None:
    """Print the result of a command as JSON to standard output."""
    print(json.dumps(content, indent=1, default=str), file=options.stdout)
