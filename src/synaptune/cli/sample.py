"""`synaptune sample`: continue a text with a trained model."""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synaptune.core.errors import UserError, user_error

if TYPE_CHECKING:
    from synaptune.data.config import DataConfig
    from synaptune.data.tokenizer import Tokenizer


_LONGEST_CHARACTER = 4  # bytes of a character in UTF-8


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("sample", help="continue a text with a trained model")
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a run folder, or its checkpoint.pt"
    )
    parser.add_argument("--prompt", required=True, help="the text to continue")
    parser.add_argument(
        "--tokens", type=int, default=200, help="length of the continuation (default %(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        help="of the sampling; 0 takes the likeliest token (default %(default)s)",
    )
    parser.add_argument(
        "--top-k", type=int, default=None, help="choose among the K likeliest tokens (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default %(default)s)")
    parser.set_defaults(command=_run_sample)


def _run_sample(options: argparse.Namespace) -> None:
    faults = [
        fault
        for good, fault in (
            (options.prompt != "", "--prompt: expected some text"),
            (_is_utf8(options.prompt), "--prompt: expected text in UTF-8"),
            (options.tokens >= 1, f"--tokens {options.tokens}: expected at least 1"),
            (
                0.0 <= options.temperature < math.inf,
                f"--temperature {options.temperature}: expected at least 0",
            ),
            (
                options.top_k is None or options.top_k >= 1,
                f"--top-k {options.top_k}: expected at least 1",
            ),
        )
        if not good
    ]
    if faults:
        raise UserError(
            "got a sample that cannot be drawn\n  "
            + "\n  ".join(faults)
            + "\n  to do: correct these values"
        )

    from synaptune.core.seeds import make_generator
    from synaptune.model.decode import generate
    from synaptune.training.checkpoint import load_model

    path = (
        options.checkpoint / "checkpoint.pt" if options.checkpoint.is_dir() else options.checkpoint
    )
    model, config, data = load_model(path)
    tokenizer = _load_tokenizer(data, config.context, vocab=model.head.weight.shape[0])
    prompt = tokenizer.encode(options.prompt)
    # The generator of the choices is the only randomness: one seed gives one text.
    tokens = generate(
        model,
        prompt,
        options.tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        generator=make_generator("sample", options.seed),
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show every character
    print(options.prompt, end="", flush=True)
    for piece in stream_characters(tokens, tokenizer.decode):
        print(piece, end="", flush=True)
    print()


def _is_utf8(text: str) -> bool:
    """Whether an argument was text; Python passes other bytes on as surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def stream_characters(tokens: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Yield the text of tokens; a character of several tokens comes with the last of them."""
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


def _load_tokenizer(data: DataConfig, context: int, *, vocab: int) -> Tokenizer:
    """The code of a checkpoint's text; only a trained one needs the text it was trained on."""
    from synaptune.data.tokenizer import Tokenizer

    if data.tokenizer == "byte":
        return Tokenizer()
    from synaptune.data.corpus import load_corpus

    corpus = load_corpus(data, context)
    if corpus.vocab != vocab:
        raise user_error(
            got=f"a text that gives {corpus.vocab} tokens, for a model of {vocab}",
            expected="the text the model was trained on",
            do=f"restore {data.path or data.name or data.source}",
        )
    return corpus.tokenizer
