"""`synaptune sample`: continue a text with a trained model."""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synaptune.cli.arguments import ArgumentTable, add_subcommand, check_values
from synaptune.core.errors import user_error

if TYPE_CHECKING:
    from synaptune.data.config import DataConfig
    from synaptune.data.tokenizer import Tokenizer


_LONGEST_CHARACTER = 4  # bytes of a character in UTF-8
_MIN_TEMPERATURE = 0.001  # besides 0; a smaller one selects the most probable token as 0 does
_MAX_FATIGUE = 1000.0  # no logit is that large: an emitted token is excluded [nat]
_ARGUMENTS: ArgumentTable = {
    "checkpoint": dict(type=Path, metavar="CHECKPOINT", help="a run folder, or its checkpoint.pt"),
    "--prompt": dict(required=True, help="text to continue"),
    "--tokens": dict(type=int, default=200, help="number of new tokens (default %(default)s)"),
    "--temperature": dict(
        type=float,
        default=0.8,
        help="temperature of the sampling; 0 selects the most probable token (default %(default)s)",
    ),
    "--top-k": dict(
        type=int, help="sample from the K most probable tokens only (default: from all)"
    ),
    "--fatigue": dict(
        type=float,
        default=0.0,
        help="how much the logit of a token falls with each emission, in nats; it recovers over "
        "the model's tau_rrp, and 0.5 to 1 ends loops (default %(default)s)",
    ),
    "--seed": dict(type=int, default=0, help="seed of the sampling (default %(default)s)"),
}


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    summary = "continue a text with a trained model"
    add_subcommand(commands, "sample", summary, _ARGUMENTS, _run_sample)


def _run_sample(options: argparse.Namespace) -> None:
    prompt, count, top_k = options.prompt, options.tokens, options.top_k
    # Python decodes the bytes of an argument that is not UTF-8 as surrogates.
    is_utf8 = not any("\ud800" <= letter <= "\udfff" for letter in prompt)
    is_temperature = (
        options.temperature == 0.0 or _MIN_TEMPERATURE <= options.temperature < math.inf
    )
    check_values(
        "values with which no text can be sampled",
        (
            (prompt != "", "--prompt: expected some text"),
            (is_utf8, "--prompt: expected text in UTF-8"),
            (count >= 1, f"--tokens {count}: expected at least 1"),
            (
                is_temperature,
                f"--temperature {options.temperature}: expected 0, or at least {_MIN_TEMPERATURE}",
            ),
            (top_k is None or top_k >= 1, f"--top-k {top_k}: expected at least 1"),
            (
                0.0 <= options.fatigue <= _MAX_FATIGUE,
                f"--fatigue {options.fatigue}: expected 0 to {_MAX_FATIGUE:g}",
            ),
        ),
    )
    from synaptune.core.seeds import make_generator
    from synaptune.model.decode import generate
    from synaptune.training.checkpoint import load_model

    path = (
        options.checkpoint / "checkpoint.pt" if options.checkpoint.is_dir() else options.checkpoint
    )
    model, config, data = load_model(path)
    tokenizer = _load_tokenizer(data, config.context, vocab=model.head.weight.shape[0])
    # The generator is the only source of randomness: a seed determines the text.
    tokens = generate(
        model,
        tokenizer.encode(prompt),
        count,
        temperature=options.temperature,
        top_k=top_k,
        fatigue=options.fatigue,
        generator=make_generator("sample", options.seed),
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # for a terminal without some characters
    print(prompt, end="", flush=True)
    for piece in stream_characters(tokens, tokenizer.decode):
        print(piece, end="", flush=True)
    print()


def stream_characters(tokens: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Yield the text of tokens; the last token of a character yields the character."""
    pending: list[int] = []
    for token in tokens:
        pending.append(token)
        text = decode(pending)
        if len(pending) == _LONGEST_CHARACTER or not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text
            pending = []
    if pending:
        yield decode(pending)


def _load_tokenizer(data: DataConfig, context: int, *, vocab: int) -> Tokenizer:
    """Return the tokenizer of a checkpoint; a trained one is trained again on its text."""
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
