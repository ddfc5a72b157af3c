"""Tasks of the regimes that need more than one training run and its test metrics.

A task trains and measures one variant. It takes the settings of the run and the options of the task
(words such as `task.replay=4`), and returns numbers by name: `val_loss`, which tuning minimises,
the columns of the table with the prefix `test_`, `steps` and `train_seconds`.

The first text of `drift` and `continual` is the prose of the standard library: the topics of
`help()` and its text files. The second is the text of the configuration.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from loop import Loop, Text, load_text
from runs import ROOT
from torch import Tensor
from torch.nn import functional as F

from synaptune.config.settings import Settings
from synaptune.core.files import build_once
from synaptune.core.seeds import make_generator
from synaptune.data.corpus import Corpus
from synaptune.data.text import read_standard_library
from synaptune.model.decode import Decoder
from synaptune.model.gpt import GPT
from synaptune.training.evaluation import compute_expert_metrics

Options = Mapping[str, float]
Numbers = dict[str, float]

TEXTS = ROOT / "outputs" / "regimes" / "texts"
PROSE, CODE = TEXTS / "prose", TEXTS / "code"
_LIBRARY_BYTES = 30_000_000  # more than the whole standard library
BAD_START = 3.0  # head start of the favoured experts [nat]
SOON = 0.1  # part of the second run after which the loss is measured
PROMPT, PROMPTS = 32, 64  # tokens of a prompt, and prompts
LONGEST_PERIOD, LOOPED = 16, 48  # tokens: longest period, and length of the end that repeats it
GRAM = 4  # tokens of the n-grams
JUDGE_SEED = 500_000  # distance of the seed of the judge to that of the run
FISHER_ROWS = 64
FEW_PIECES, FEW_LENGTH = 20, 1000  # pieces of the training text, and tokens of a piece
DAMPING = 1e-4  # of the path integral, relative to the mean squared change of the weights


def write_texts() -> None:
    """Write the prose and the code of the standard library, unless they are there."""
    build_once(TEXTS, _write_library)


def _write_library(folder: Path) -> None:
    for document in read_standard_library(_LIBRARY_BYTES):
        kind = CODE if document.name.endswith(".py") else PROSE
        path = folder / kind.name / document.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(document.content)


def read_longer(settings: Settings, options: Options) -> Numbers:
    """Train in rows of the context; read the test text in rows of 1, 4 and 8 contexts."""
    text = load_text(settings)
    loop = Loop(settings, text.corpus.vocab)
    loop.train(text)
    numbers = {"val_loss": loop.score(text, "val", multiple=8)["loss"]}
    for multiple in (1, 4, 8):
        numbers[f"test_perplexity_{multiple}x"] = loop.score(text, multiple=multiple)["perplexity"]
    return numbers | _count(loop)


def train_on_few(settings: Settings, options: Options) -> Numbers:
    """Train on small pieces of the training text; validation and test have their whole splits."""
    text = load_text(settings)
    loop = Loop(settings, text.corpus.vocab)
    loop.train(text._replace(corpus=take_pieces(text.corpus)))
    test = loop.score(text)
    return {
        "val_loss": loop.score(text, "val")["loss"],
        "test_perplexity": test["perplexity"],
        "test_calibration_error": test["calibration_error"],
    } | _count(loop)


def take_pieces(corpus: Corpus) -> Corpus:
    """Return a corpus whose training text is pieces of the corpus at equal distances."""
    starts = np.linspace(0, len(corpus.train) - FEW_LENGTH, FEW_PIECES).astype(int)
    pieces = [corpus.train[start : start + FEW_LENGTH] for start in starts]
    return dataclasses.replace(corpus, train=np.concatenate(pieces))


def start_badly(settings: Settings, options: Options) -> Numbers:
    """Train from a router that prefers `top_k` experts for every token.

    Options:
        metabolism: 0 keeps energy and fatigue of the experts constant.
    """
    text = load_text(settings)
    loop = Loop(settings, text.corpus.vocab)
    routers = [block.feedforward.router for block in loop.model.blocks]
    fixed = [(r, r.energy.clone(), r.fatigue.clone()) for r in routers if r is not None]
    with torch.no_grad():
        for router, _, _ in fixed:
            router.bias[: router.top_k] += BAD_START

    def keep_metabolism() -> None:
        for router, energy, fatigue in fixed:
            router.energy.copy_(energy)
            router.fatigue.copy_(fatigue)

    is_constant = options.get("metabolism", 1.0) == 0.0
    loop.train(text, after_step=keep_metabolism if is_constant else None)
    use = compute_expert_metrics(loop.model)
    return {
        "val_loss": loop.score(text, "val")["loss"],
        "test_perplexity": loop.score(text)["perplexity"],
        "test_dead_experts": 100.0 * use["expert_dead_fraction"],
        "test_gini": use["expert_gini"],
    } | _count(loop)


def drift(settings: Settings, options: Options) -> Numbers:
    """Train on prose and then on the text of the settings, with as many steps each.

    Structural events, where the variant has them, begin with the second text.
    """
    prose, text = load_text(settings, str(PROSE)), load_text(settings)
    loop = Loop(settings, text.corpus.vocab)
    _train_without_events(loop, prose)
    return _recover(loop, text)


def kill_expert(settings: Settings, options: Options) -> Numbers:
    """Train, set the weights of the most used expert of each layer to 0, and train again.

    Structural events, where the variant has them, begin with the second run.
    """
    text = load_text(settings)
    loop = Loop(settings, text.corpus.vocab)
    _train_without_events(loop, text)
    use = loop.model.get_utilisation()
    assert use is not None
    with torch.no_grad():
        for block, expert in zip(loop.model.blocks, use.argmax(-1).tolist(), strict=True):
            block.feedforward.up[expert] = 0.0
            block.feedforward.down[expert] = 0.0
    return _recover(loop, text)


def _train_without_events(loop: Loop, text: Text) -> None:
    """Train a run without structural events, so that all variants are equal at its end."""
    interval, loop.model.interval = loop.model.interval, 4 * loop.settings.training.steps
    loop.train(text)
    loop.model.interval = interval


def _recover(loop: Loop, text: Text) -> Numbers:
    """Train another run on a text; measure before it, soon after its start, and at its end."""
    first = loop.score(text)["perplexity"]
    loop.train(text, span=(0.0, SOON))
    soon = loop.score(text)["perplexity"]
    loop.train(text, span=(SOON, 1.0))
    return {
        "val_loss": loop.score(text, "val")["loss"],
        "test_perplexity": loop.score(text)["perplexity"],
        "test_at_first": first,
        "test_soon": soon,
    } | _count(loop)


def continual(settings: Settings, options: Options) -> Numbers:
    """Train on prose, then on the text of the settings, then shortly on the prose again.

    Options:
        replay: rows of prose in a batch of the second run.
        fisher: strength of elastic weight consolidation (Kirkpatrick et al. 2017, eq. 3).
        path: strength of the same with the path integral as importance (Zenke et al. 2017, eq. 5).
    """
    prose, text = load_text(settings, str(PROSE)), load_text(settings)
    loop = Loop(settings, text.corpus.vocab)
    path = PathIntegral(loop.model) if options.get("path") else None
    loop.train(prose, after_step=path)
    known = loop.score(prose)["loss"]
    anchor = None
    if path is not None:
        anchor = Anchor(loop.model, path.compute_importance(), options["path"])
    elif options.get("fisher"):
        anchor = Anchor(loop.model, measure_fisher(loop, prose), options["fisher"])
    loop.train(text, replay=(prose, int(options.get("replay", 0))), add_loss=anchor)
    kept, learned = loop.score(prose)["loss"], loop.score(text)["loss"]
    validated = [loop.score(each, "val")["loss"] for each in (prose, text)]
    loop.train(prose, span=(0.0, SOON))
    return {
        "val_loss": sum(validated) / 2,
        "test_loss": (kept + learned) / 2,
        "test_forgetting": kept - known,
        "test_second_text": learned,
        "test_relearned": loop.score(prose)["loss"],
    } | _count(loop)


class Anchor:
    """strength / 2 * sum of importance * (weight - its value now)^2, as a term of the loss.

    The importance is divided by its mean, so that strengths of different measures compare.
    """

    def __init__(self, model: GPT, importance: list[Tensor], strength: float) -> None:
        mean = torch.cat([x.flatten() for x in importance]).mean()
        self._terms = [
            (weight, weight.detach().clone(), 0.5 * strength * each / mean)
            for weight, each in zip(model.parameters(), importance, strict=True)
        ]

    def __call__(self) -> Tensor:
        """Return the term."""
        return torch.stack([(f * (w - old).square()).sum() for w, old, f in self._terms]).sum()


class PathIntegral:
    """Sums up how much the change of each weight has lowered the loss; called after each step."""

    def __init__(self, model: GPT) -> None:
        self._weights = list(model.parameters())
        self._first = [weight.detach().clone() for weight in self._weights]
        self._last = [weight.detach().clone() for weight in self._weights]
        self._sums = [torch.zeros_like(weight) for weight in self._weights]

    @torch.no_grad()
    def __call__(self) -> None:
        """Add a step."""
        for weight, last, total in zip(self._weights, self._last, self._sums, strict=True):
            if weight.grad is not None:
                total -= weight.grad * (weight - last)
            last.copy_(weight)

    @torch.no_grad()
    def compute_importance(self) -> list[Tensor]:
        """Return the sums over the squared change of each weight since the start."""
        changes = [
            (w - first).square() for w, first in zip(self._weights, self._first, strict=True)
        ]
        damping = DAMPING * torch.cat([x.flatten() for x in changes]).mean()
        return [
            total.clamp(min=0.0) / (change + damping)
            for total, change in zip(self._sums, changes, strict=True)
        ]


def measure_fisher(loop: Loop, text: Text) -> list[Tensor]:
    """Return the mean squared gradient of each weight over rows of a text."""
    rows = dataclasses.replace(loop.settings.training, batch=1, accumulate=1)
    single = Loop(loop.settings._replace(training=rows), text.corpus.vocab)
    single.model.load_state_dict(loop.model.state_dict())
    weights = list(single.model.parameters())
    sums = [torch.zeros_like(weight) for weight in weights]
    for _ in range(FISHER_ROWS):
        single.optimizer.zero_grad(set_to_none=True)
        single.add_gradients(text)
        single.step += 1  # the next batch, without a change of the weights
        for total, weight in zip(sums, weights, strict=True):
            if weight.grad is not None:
                total += weight.grad.square() / FISHER_ROWS
    return sums


def continue_freely(settings: Settings, options: Options) -> Numbers:
    """Train, and continue prompts of the test text to the end of the context.

    A second model, plain and of another seed, judges the perplexity of what is generated. Tuning
    makes the share of distinct n-grams that of the text.

    Options:
        fatigue: loss of logit per emission of a token, as `synaptune sample --fatigue` [nat].
        penalty: repetition penalty of emitted tokens (Keskar et al. 2019, section 4.1).
        temperature: of sampling; without it the most probable token follows.
    """
    text = load_text(settings)
    loop = Loop(settings, text.corpus.vocab)
    loop.train(text)
    plain = dataclasses.replace(
        settings.model, release="off", distance="off", fast_weights="off", experts=1
    )
    judge = Loop(settings._replace(model=plain, seed=settings.seed + JUDGE_SEED), text.corpus.vocab)
    judge.train(text)
    numbers: Numbers = {}
    for split, tokens in (("val", text.corpus.val), ("test", text.corpus.test)):
        rows = _draw_rows(tokens, settings.model.context)
        written = continue_rows(loop.model, rows, options, settings.seed)
        ratio = count_distinct(written) / count_distinct(rows[:, PROMPT:])
        if split == "val":
            numbers["val_loss"] = abs(math.log(ratio))
            continue
        numbers["test_looping"] = 100.0 * find_loops(written).double().mean().item()
        numbers["test_distinct"] = 100.0 * count_distinct(written)
        whole = torch.cat([rows[:, :PROMPT], written], 1)
        numbers["test_judge_perplexity"] = _judge(judge.model, whole)
        numbers["text_looping"] = 100.0 * find_loops(rows[:, PROMPT:]).double().mean().item()
        numbers["text_distinct"] = 100.0 * count_distinct(rows[:, PROMPT:])
        numbers["text_judge_perplexity"] = _judge(judge.model, rows)
    return numbers | _count(loop)


def _draw_rows(tokens: np.ndarray, context: int) -> Tensor:
    starts = np.linspace(0, len(tokens) - context, PROMPTS).round().astype(np.int64)
    return torch.from_numpy(tokens[starts[:, None] + np.arange(context)].astype(np.int64))


@torch.no_grad()
def continue_rows(model: GPT, rows: Tensor, options: Options, seed: int) -> Tensor:
    """Return what a model writes after the prompts of rows, up to their length, (row, token)."""
    model.eval()
    decoder, generator = Decoder(model, len(rows)), make_generator("continue", seed)
    for column in rows[:, :PROMPT].T:
        logits = decoder.feed(column)
    fatigue, penalty = options.get("fatigue", 0.0), options.get("penalty", 1.0)
    temperature = options.get("temperature", 0.0)
    recovery = math.exp(-1.0 / float(model.synapse.vesicles.tau_rrp))
    count, emitted, written = torch.zeros_like(logits), torch.zeros_like(logits), []
    while True:
        scaled = torch.where(logits > 0, logits / penalty, logits * penalty)
        scores = torch.where(emitted > 0, scaled, logits) - fatigue * count
        if temperature:
            chances = (scores / temperature).softmax(-1)
            token = torch.multinomial(chances, 1, generator=generator)[:, 0]
        else:
            token = scores.argmax(-1)
        one = F.one_hot(token, logits.shape[-1])
        count, emitted = recovery * count + one, emitted + one
        written.append(token)
        if len(written) == rows.shape[1] - PROMPT:
            return torch.stack(written, 1)
        logits = decoder.feed(token)


def find_loops(rows: Tensor) -> Tensor:
    """Return for each row whether its end repeats itself with a short period."""
    end = rows[:, -LOOPED:]
    periodic = [
        (end[:, period:] == end[:, :-period]).all(1) for period in range(1, LONGEST_PERIOD + 1)
    ]
    return torch.stack(periodic).any(0)


def count_distinct(rows: Tensor) -> float:
    """Return the distinct n-grams of a row over all of its n-grams, the mean over the rows."""
    grams = rows.unfold(1, GRAM, 1)
    return sum(len(row.unique(dim=0)) / len(row) for row in grams) / len(grams)


@torch.no_grad()
def _judge(model: GPT, rows: Tensor) -> float:
    """Return the perplexity of the rows after their prompts."""
    logits = model.eval()(rows[:, :-1]).logits[:, PROMPT - 1 :]
    return math.exp(F.cross_entropy(logits.flatten(0, 1), rows[:, PROMPT:].flatten()))


def _count(loop: Loop) -> Numbers:
    return {"steps": loop.step, "train_seconds": loop.seconds}
