"""The `synaptune` command: what one does beside training and searching.

synaptune sample CHECKPOINT --prompt TEXT   continue a text with a trained model
synaptune census                            what every parameter does to the training loss
synaptune cost                              what a plan will take, before it runs
synaptune parameters                        the parameters with their ranges
synaptune export STUDY --out FILE           the trials of a study as CSV or Parquet
synaptune report STUDY                      one page with the evidence of a study
synaptune refine STUDY --out FILE           a narrower search space from its high performers
synaptune dashboard                         the studies in the browser, while they run
synaptune wandb sync|report STUDY           a study in Weights & Biases
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from synaptune.cli import cost, dashboard, refine, report, wandb
from synaptune.cli.export import _run_export
from synaptune.cli.parameters import _run_census, _run_parameters
from synaptune.cli.sample import _run_sample
from synaptune.core.errors import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 2 after a mistake, 130 after Ctrl-C."""
    options = _parse_options(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: options.command(options), disk="make room, or check the path")


def _parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line, whose overrides may stand on both sides of an option (argparse takes only the first group of them)."""
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
        description="Look at a synaptic transformer; train.py trains and searches.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    sample = commands.add_parser("sample", help="continue a text with a trained model")
    sample.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a run folder, or its checkpoint.pt"
    )
    sample.add_argument("--prompt", required=True, help="the text to continue")
    sample.add_argument(
        "--tokens", type=int, default=200, help="length of the continuation (default %(default)s)"
    )
    sample.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        help="0 takes the likeliest token (default %(default)s)",
    )
    sample.add_argument(
        "--top-k", type=int, default=None, help="choose among the K likeliest tokens (default: all)"
    )
    sample.add_argument("--seed", type=int, default=0, help="of the choices (default %(default)s)")
    sample.set_defaults(command=_run_sample)

    census = commands.add_parser(
        "census", help="what both ends of every parameter do to the training loss (minutes)"
    )
    census.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="runs that measure the spread over seeds (default %(default)s)",
    )
    census.set_defaults(command=_run_census)

    parameters = commands.add_parser("parameters", help="the parameters with their ranges")
    parameters.set_defaults(command=_run_parameters)

    export = commands.add_parser("export", help="the trials of a study as a table")
    export.add_argument(
        "study",
        metavar="STUDY",
        help="a name below outputs/studies, or a study's folder; with --storage, its name there",
    )
    export.add_argument(
        "--storage", metavar="URL", help="the database of the study, as in study.storage"
    )
    export.add_argument(
        "--format", choices=("csv", "parquet"), help="(default: by the name of FILE, else csv)"
    )
    export.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write it (default: the terminal; csv only)",
    )
    export.set_defaults(command=_run_export)
    for module in (cost, report, refine, dashboard, wandb):
        module.add_command(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
