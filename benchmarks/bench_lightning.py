"""Overhead of Lightning: `fit` against a plain PyTorch loop with the same work.

    python benchmarks/bench_lightning.py [--rounds 9] [--steps 40] [overrides ...]

Both run alternately in one process. The benchmark prints the median time of a step of each, the
median of the paired ratios, and the share of a run that is spent outside training and validation.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from synaptune.config.run import run
from synaptune.config.schema import register
from synaptune.config.settings import read_settings
from synaptune.data.batches import make_train_batch
from synaptune.data.corpus import load_corpus
from synaptune.model.gpt import GPT
from synaptune.training.device import make_autocast, pick_device, to_device
from synaptune.training.job import LanguageJob
from synaptune.training.metrics import training_loss
from synaptune.training.optimizers import make_adamw
from synaptune.training.schedules import learning_rate
from synaptune.training.trainer import fit, warm_up

CONF = Path(__file__).resolve().parent.parent / "conf"


def time_plain_loop(job: LanguageJob, device: torch.device) -> float:
    """Time a plain loop over the steps of a job [s].

    A step is data, forward, backward, clipping, schedule, AdamW and plasticity.
    """
    training, model = job.training, job.model.to(device).train()
    optimizer = make_adamw(model, training)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    noise = torch.Generator(device)
    started_at = time.perf_counter()
    for step in range(training.steps):
        batch = make_train_batch(
            job.corpus,
            job.data,
            seed=job.seed,
            step=step,
            size=training.batch,
            context=job.config.context,
        )
        batch = to_device(batch, device)
        noise.manual_seed(step)
        with make_autocast(training, device):
            output = model(batch.tokens, noise=noise)
            loss = training_loss(output.logits, batch.targets) + output.balance
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step + 1, training)
        torch.nn.utils.clip_grad_norm_(weights, training.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.apply_plasticity([output.activity], step + 1, optimizer)
    loss.item()
    return time.perf_counter() - started_at


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("overrides", nargs="*", help="as for train.py, for instance scale=smoke")
    options = parser.parse_args()
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=options.overrides)
    settings = read_settings(cfg)
    warm_up()
    corpus = load_corpus(settings.data, settings.model.context)
    device = pick_device(settings.training.device)
    training = dataclasses.replace(
        settings.training,
        steps=options.steps,
        evaluations=1,
        eval_batches=1,
        accumulate=1,
        checkpoint_every=0,
    )
    logger = dataclasses.replace(settings.logger, progress="off", wandb="off", tensorboard=False)
    with tempfile.TemporaryDirectory() as folder:

        def make_job() -> LanguageJob:
            model = GPT(settings.model, settings.synapse, vocab=corpus.vocab, seed=settings.seed)
            parts = dict(
                model=model,
                config=settings.model,
                synapse=settings.synapse,
                corpus=corpus,
                data=settings.data,
                training=training,
            )
            parts |= dict(
                logger=logger,
                seed=settings.seed,
                name="bench",
                run_dir=Path(folder),
                fingerprint="",
                flat_config={},
                in_search=True,
            )
            return LanguageJob(**parts)

        fit(make_job()), time_plain_loop(make_job(), device)  # warm-up of both
        lightning, plain = [], []
        for number in range(options.rounds):
            seconds = {}
            for loop in ("lightning", "plain") if number % 2 else ("plain", "lightning"):
                seconds[loop] = (
                    fit(make_job()).metrics["train_seconds"]
                    if loop == "lightning"
                    else time_plain_loop(make_job(), device)
                )
            lightning.append(seconds["lightning"])
            plain.append(seconds["plain"])
        ratio = statistics.median(a / b for a, b in zip(lightning, plain, strict=True))
        millis = [1000 * statistics.median(times) / options.steps for times in (lightning, plain)]
        print(
            f"step, median of {options.rounds} rounds of {options.steps}: "
            f"lightning {millis[0]:.2f} ms, plain loop {millis[1]:.2f} ms"
        )
        print(f"lightning/plain {ratio:.3f}")
        run(cfg, Path(folder) / "first")
        metrics = run(cfg, Path(folder) / "second").metrics
        outside = metrics["setup_seconds"]
        total = outside + metrics["train_seconds"] + metrics["evaluation_seconds"]
        print(
            f"a run of {total:.1f} s, of which outside training and validation "
            f"{outside:.3f} s ({outside / total:.1%})"
        )


if __name__ == "__main__":
    main()
