"""Associative recall: training speed of the synaptic and the plain model on key-value rows.

    python benchmarks/recall.py [--seeds 3] [--steps 1000] [--batch 32]
        [overrides of conf/train.yaml ...]

Every row is a recall row of 64 tokens (synaptune/data/recall.py). The accuracy is that of the
validation rows, which are the same for every run. A run ends when its accuracy exceeds --enough.
The learning rate is 2e-3 over a cosine of --steps, unless training.learning_rate is given: at 8e-3,
which suits text in 200 steps, the model only guesses among the values of a row.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from synaptune.config.schema import register
from synaptune.config.settings import Settings, read_settings
from synaptune.core.errors import UserError, user_error
from synaptune.data.batches import make_eval_batches, make_train_batch
from synaptune.data.corpus import load_corpus
from synaptune.model.gpt import GPT
from synaptune.training.device import make_autocast
from synaptune.training.evaluation import evaluate
from synaptune.training.metrics import training_loss
from synaptune.training.optimizers import make_optimizer
from synaptune.training.schedules import learning_rate

CONF = Path(__file__).resolve().parent.parent / "conf"
MODELS = {"synaptic": "model=synaptic", "plain": "model=gpt"}


class TrainingResult(NamedTuple):
    """The end of a run.

    Attributes:
        accuracy: accuracy on the validation rows [1].
        steps: number of trained steps.
        seconds: duration [s].
        not_finite: number of losses that were not finite.
    """

    accuracy: float
    steps: int
    seconds: float
    not_finite: int


def read_overrides(overrides: list[str]) -> Settings:
    """Compose the settings of a run.

    Raises:
        UserError: an override is invalid.
    """
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return read_settings(compose("train", overrides=overrides))
        except HydraException as error:
            raise user_error(
                got=str(error), expected="overrides of conf/train.yaml", do="correct them"
            ) from error


def train_to_accuracy(
    settings: Settings, name: str, *, every: int, enough: float
) -> TrainingResult:
    """Train until the accuracy exceeds `enough` or all steps are done.

    The accuracy is measured and printed every `every` steps.
    """
    training, context, device = settings.training, settings.model.context, torch.device("cpu")
    corpus = load_corpus(settings.data, context)
    model = GPT(settings.model, settings.synapse, vocab=corpus.vocab, seed=settings.seed).train()
    held_out = make_eval_batches(
        corpus,
        settings.data,
        "val",
        size=training.batch,
        context=context,
        limit=training.eval_batches,
    )
    optimizer, noise = make_optimizer(model, training), torch.Generator()
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    started_at, not_finite, accuracy = time.perf_counter(), 0, 0.0
    for step in range(1, training.steps + 1):
        batch = make_train_batch(
            corpus,
            settings.data,
            seed=settings.seed,
            step=step,
            size=training.batch,
            context=context,
        )
        noise.manual_seed(step)
        with make_autocast(training, device):
            output = model(batch.tokens, noise=noise)
            loss = training_loss(output.logits, batch.targets)
        (loss + output.balance).backward()
        not_finite += not math.isfinite(loss.item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, training)
        torch.nn.utils.clip_grad_norm_(weights, training.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.apply_plasticity([output.activity], step, optimizer)
        if step % every == 0 or step == training.steps:
            scores = evaluate(
                model,
                held_out,
                precision=make_autocast(training, device),
                bytes_per_token=1.0,
                prefix="",
            )
            accuracy = scores["recall_accuracy"]
            print(
                f"{name} seed {settings.seed} step {step}: accuracy {accuracy:.2%}, "
                f"loss {scores['loss']:.4f}",
                flush=True,
            )
            if accuracy > enough:
                return TrainingResult(accuracy, step, time.perf_counter() - started_at, not_finite)
    return TrainingResult(accuracy, training.steps, time.perf_counter() - started_at, not_finite)


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        default=list(MODELS),
        help="models to train (default: both)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="model seeds, from 0 (default 3)")
    parser.add_argument(
        "--steps", type=int, default=1000, help="maximum steps of a run (default 1000)"
    )
    parser.add_argument("--batch", type=int, default=32, help="rows of a step (default 32)")
    parser.add_argument(
        "--every", type=int, default=200, help="steps between printed accuracies (default 200)"
    )
    parser.add_argument(
        "--enough", type=float, default=0.99, help="accuracy that ends a run (default 0.99)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("overrides", nargs="*", help="as for train.py")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(max(1, options.threads))
    task = [
        "data.recall_fraction=1",
        "model.layers=2",
        "model.width=64",
        "model.context=64",
        "training.device=cpu",
    ]
    task += [
        f"training.steps={options.steps}",
        f"training.batch={options.batch}",
        "training.learning_rate=2e-3",
    ]
    lines = [
        "| model | seed | accuracy | steps | seconds | losses not finite |",
        "|---|---|---|---|---|---|",
    ]
    try:
        for seed in range(options.seeds):
            for name in options.models:
                settings = read_overrides([MODELS[name], *task, f"seed={seed}", *options.overrides])
                result = train_to_accuracy(
                    settings, name, every=max(1, options.every), enough=options.enough
                )
                lines.append(
                    f"| {name} | {seed} | {result.accuracy:.2%} | {result.steps} "
                    f"| {result.seconds:.0f} | {result.not_finite} |"
                )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n" + "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
