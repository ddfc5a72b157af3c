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
import io
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from synaptune.cli import cost, dashboard, refine, report, wandb
from synaptune.core.errors import UserError, mistake, of_disk

if TYPE_CHECKING:
    from synaptune.data.config import DataConfig
    from synaptune.data.tokenizer import Tokenizer

_LONGEST_CHARACTER = 4  # bytes of a character in UTF-8


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 2 after a mistake, 130 after Ctrl-C."""
    options = _options(sys.argv[1:] if arguments is None else arguments)
    try:
        options.command(options)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, OSError) as error:
        found = of_disk(error, "make room, or check the path") if isinstance(error, OSError) else error
        if found is None:
            raise
        print(found, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line, whose overrides may stand on both sides of an option (argparse takes only the first group of them)."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="synaptune", description="Look at a synaptic transformer; train.py trains and searches.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    sample = commands.add_parser("sample", help="continue a text with a trained model")
    sample.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run folder, or its checkpoint.pt")
    sample.add_argument("--prompt", required=True, help="the text to continue")
    sample.add_argument("--tokens", type=int, default=200, help="length of the continuation (default %(default)s)")
    sample.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default %(default)s)")
    sample.add_argument("--top-k", type=int, default=None, help="choose among the K likeliest tokens (default: all)")
    sample.add_argument("--seed", type=int, default=0, help="of the choices (default %(default)s)")
    sample.set_defaults(command=_sample)

    census = commands.add_parser("census", help="what both ends of every parameter do to the training loss (minutes)")
    census.add_argument("--seeds", type=int, default=3, help="runs that measure the spread over seeds (default %(default)s)")
    census.set_defaults(command=_census)

    parameters = commands.add_parser("parameters", help="the parameters with their ranges")
    parameters.set_defaults(command=_parameters)

    export = commands.add_parser("export", help="the trials of a study as a table")
    export.add_argument("study", metavar="STUDY", help="a name below outputs/studies, or a study's folder; with --storage, its name there")
    export.add_argument("--storage", metavar="URL", help="the database of the study, as in study.storage")
    export.add_argument("--format", choices=("csv", "parquet"), help="(default: by the name of FILE, else csv)")
    export.add_argument("--out", type=Path, metavar="FILE", help="where to write it (default: the terminal; csv only)")
    export.set_defaults(command=_export)
    for module in (cost, report, refine, dashboard, wandb):
        module.add(commands)
    return parser


def _sample(options: argparse.Namespace) -> None:
    faults = [
        fault
        for good, fault in (
            (options.prompt != "", "--prompt: expected some text"),
            (_is_utf8(options.prompt), "--prompt: expected text in UTF-8"),
            (options.tokens >= 1, f"--tokens {options.tokens}: expected at least 1"),
            (0.0 <= options.temperature < math.inf, f"--temperature {options.temperature}: expected at least 0"),
            (options.top_k is None or options.top_k >= 1, f"--top-k {options.top_k}: expected at least 1"),
        )
        if not good
    ]
    if faults:
        raise UserError("got a sample that cannot be drawn\n  " + "\n  ".join(faults) + "\n  to do: correct these values")

    from synaptune.core.seeds import stream
    from synaptune.model.decode import generate
    from synaptune.training.checkpoint import load_model

    path = options.checkpoint / "checkpoint.pt" if options.checkpoint.is_dir() else options.checkpoint
    model, config, data = load_model(path)
    tokenizer = _tokenizer(data, config.context, vocab=model.head.weight.shape[0])
    prompt = tokenizer.encode(options.prompt)
    # The generator of the choices is the only randomness: one seed gives one text.
    tokens = generate(
        model, prompt, options.tokens, temperature=options.temperature, top_k=options.top_k, generator=stream("sample", options.seed)
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show every character
    print(options.prompt, end="", flush=True)
    for piece in characters(tokens, tokenizer.decode):
        print(piece, end="", flush=True)
    print()


def _is_utf8(text: str) -> bool:
    """Whether an argument was text; Python passes other bytes on as surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def characters(tokens: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Text as soon as it is whole: the tokens of a character that takes several wait for the last."""
    waiting: list[int] = []
    for token in tokens:
        waiting.append(token)
        text = decode(waiting)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(waiting) < _LONGEST_CHARACTER:
            continue
        yield text
        waiting = []
    if waiting:
        yield decode(waiting)


def _tokenizer(data: DataConfig, context: int, *, vocab: int) -> Tokenizer:
    """The code of a checkpoint's text; only a trained one needs the text it was trained on."""
    from synaptune.data.tokenizer import Tokenizer

    if data.tokenizer == "byte":
        return Tokenizer()
    from synaptune.data.corpus import load_corpus

    corpus = load_corpus(data, context)
    if corpus.vocab != vocab:
        raise mistake(
            got=f"a text that gives {corpus.vocab} tokens, for a model of {vocab}",
            expected="the text the model was trained on",
            do=f"restore {data.path or data.name or data.source}",
        )
    return corpus.tokenizer


def _census(options: argparse.Namespace) -> None:
    if options.seeds < 2:
        raise mistake(got=f"--seeds {options.seeds}", expected="at least 2, for a spread", do="correct it")
    from synaptune.analysis import sensitivity as census

    print(census.header())
    effects, dust = census.census(census.Trial(seeds=options.seeds), on_effect=lambda effect: print(census.row(effect), flush=True))
    print(census.verdict(effects, dust))


def _parameters(_: argparse.Namespace) -> None:
    from synaptune.synapse.circuit import SPECS

    rows = [("parameter", "default", "low", "high", "scale", "unit")]
    for spec in SPECS:
        low, high = (f"{bound:g} x steps" if spec.of_run else f"{bound:g}" for bound in (spec.low, spec.high))
        rows.append((spec.name + (" *" if spec.phase == 1 else ""), f"{spec.default:g}", low, high, spec.scale, spec.unit))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{len(SPECS)} parameters; * is searched in phase 1; docs/parameters.md tells what each means")


def _export(options: argparse.Namespace) -> None:
    kind = options.format or ("parquet" if options.out is not None and options.out.suffix == ".parquet" else "csv")
    if options.out is None and kind == "parquet":
        raise mistake(got="--format parquet without a file", expected="--out FILE.parquet", do="add it")
    from synaptune.core.files import write_atomic
    from synaptune.study.reader import find_study
    from synaptune.study.table import as_csv, as_parquet, columns

    trials = find_study(options.study, options.storage).trials
    table = columns(trials)
    content = as_parquet(table) if kind == "parquet" else as_csv(table).encode()
    if options.out is None:
        sys.stdout.write(content.decode())
        return
    write_atomic(options.out, content)
    print(f"wrote {options.out}: {len(trials)} trials, {len(table)} columns")


if __name__ == "__main__":
    sys.exit(main())
