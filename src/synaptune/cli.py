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

from synaptune.commands import dashboard, refine, report, wandb
from synaptune.errors import UserError, mistake, of_disk

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from synaptune.analysis.cost import Spread, Stage
    from synaptune.data.config import DataConfig
    from synaptune.data.tokenizer import Tokenizer
    from synaptune.search.config import Home

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

    cost = commands.add_parser("cost", help="device hours, money and days of a plan, from a step time measured here")
    cost.add_argument("--plan", choices=("phase1", "all48"), default="phase1", help="the protocol over ten parameters, or over all")
    cost.add_argument("--budget", type=int, default=None, help="evaluations of the search (default: the protocol's; needed for all48)")
    cost.add_argument("--seeds", type=int, default=None, help="fresh seeds of the validation (default: the protocol's)")
    cost.add_argument("--devices", type=int, default=1, help="devices that run at the same time (default %(default)s)")
    cost.add_argument("--price", type=float, default=None, help="of a device hour, in any currency")
    cost.add_argument("--study", default=None, help="take the seconds of this study's runs instead of measuring")
    cost.add_argument("--steps", type=int, default=20, help="steps that are timed (default %(default)s)")
    cost.add_argument("--warmup", type=int, default=5, help="steps before them (default %(default)s)")
    cost.add_argument("--json", action="store_true", help="for machines")
    cost.add_argument("overrides", nargs="*", help="overrides of conf/train.yaml, e.g. scale=gpu data=text data.path=FILE")
    cost.set_defaults(command=_cost)

    parameters = commands.add_parser("parameters", help="the parameters with their ranges")
    parameters.set_defaults(command=_parameters)

    export = commands.add_parser("export", help="the trials of a study as a table")
    export.add_argument("study", metavar="STUDY", help="a name below outputs/studies, or a study's folder; with --storage, its name there")
    export.add_argument("--storage", metavar="URL", help="the database of the study, as in study.storage")
    export.add_argument("--format", choices=("csv", "parquet"), help="(default: by the name of FILE, else csv)")
    export.add_argument("--out", type=Path, metavar="FILE", help="where to write it (default: the terminal; csv only)")
    export.set_defaults(command=_export)
    for module in (report, refine, dashboard, wandb):
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

    from synaptune.model.decode import generate
    from synaptune.seeds import stream
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
    from synaptune.analysis import census

    print(census.header())
    effects, dust = census.census(census.Trial(seeds=options.seeds), on_effect=lambda effect: print(census.row(effect), flush=True))
    print(census.verdict(effects, dust))


def _cost(options: argparse.Namespace) -> None:
    from synaptune import opening, phase1

    budget = options.budget if options.budget is not None or options.plan == "all48" else phase1.BUDGET
    seeds = opening.VALIDATION_SEEDS if options.seeds is None else options.seeds
    faults = [
        fault
        for good, fault in (
            (budget is not None, "--plan all48 without --budget: expected the evaluations you would give it"),
            (budget is None or budget >= 1, f"--budget {budget}: expected at least 1 evaluation"),
            (seeds >= 2, f"--seeds {seeds}: expected at least 2"),
            (options.devices >= 1, f"--devices {options.devices}: expected at least 1"),
            (options.price is None or 0.0 < options.price < math.inf, f"--price {options.price}: expected a number above 0"),
            (options.steps >= 1, f"--steps {options.steps}: expected at least 1"),
            (options.warmup >= 1, f"--warmup {options.warmup}: expected at least 1"),
        )
        if not good
    ]
    if faults:
        raise UserError("got a plan that cannot be priced\n  " + "\n  ".join(faults) + "\n  to do: correct these values")
    assert budget is not None
    begun = opening.composed([*(["search_space=all"] if options.plan == "all48" else []), *options.overrides], options.study)
    base, place, space = begun.base, begun.place, phase1.searched_space(begun)
    plan = phase1.stages(budget, seeds, space, workers=options.devices)

    from synaptune.analysis.cost import bill

    seconds, start, notes = _seconds_of_study(place) if options.study else _measured_seconds(base, options)
    notes += [
        f"a generation of {plan[1].at_once} ends before the next begins; one run at a time on each of {options.devices} like devices",
        "no run fails or ends early; the optimizer's own time is left out",
    ]
    priced = bill(plan, seconds, devices=options.devices, start=start, price=options.price)
    if options.json:
        import json

        stages = [row._asdict() | {"seconds": row.seconds._asdict()} for row in priced.rows]
        asked = {"plan": options.plan, "budget": budget, "parameters": len(space.names), "devices": options.devices, "price": options.price}
        print(json.dumps(asked | priced._asdict() | {"rows": stages, "notes": notes}, indent=1))
        return
    from rich.console import Console

    from synaptune.report.bill import show_bill

    show_bill(priced, Console(), title=f"{options.plan}: {budget} evaluations of {len(space.names)} parameters", notes=notes)


def _seconds_of_study(place: Home) -> tuple[Callable[[Stage], Spread], None, list[str]]:
    """Seconds of a run by stage as a study measured them, of a worker's start (null: within its first run), and where they are from."""
    from synaptune.analysis.cost import study_seconds

    return (
        study_seconds(place.name, place.url),
        None,
        [f"seconds of a run: median and 10 to 90 % of the complete runs of study {place.name}"],
    )


def _measured_seconds(base: DictConfig, options: argparse.Namespace) -> tuple[Callable[[Stage], Spread], float, list[str]]:
    """Seconds of a run by stage from one measured here, of a worker's start, and how they were measured."""
    import tempfile
    from collections.abc import Mapping

    from omegaconf import OmegaConf

    from synaptune.analysis.cost import Spread, measure, run_seconds
    from synaptune.build import run, settings
    from synaptune.storage.environment import device_name

    def train(changes: Mapping[str, object], folder: Path) -> float:
        cfg = base.copy()
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value)
        return run(cfg, folder, overrides=[]).metrics["evaluation_seconds"]

    training = settings(base).training
    with tempfile.TemporaryDirectory() as folder:
        speed = measure(train, Path(folder), steps=options.steps, warmup=options.warmup)
    counted = f"over {options.steps} steps after {options.warmup} warm ones on {device_name()}"
    once = f"evaluation {speed.evaluation:.3g} s, checkpoint {speed.save:.3g} s, once per run {speed.fixed:.3g} s"
    notes = [
        f"measured: step {1000 * speed.step:.4g} ms {counted}; {once}",
        f"a run: {training.steps} steps, {training.evaluations} evaluations; validation scores the test split too",
    ]
    return lambda stage: Spread(run_seconds(speed, training, tested=stage.tested)), speed.start, notes


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
    from synaptune.cache import write_atomic
    from synaptune.storage.reading import find_study
    from synaptune.storage.table import as_csv, as_parquet, columns

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
