"""What Lightning costs: our fit against a bare PyTorch loop with the same work, alternately in one process.

    python benchmarks/bench_lightning.py [--rounds 9] [--steps 40] [overrides ...]

Prints the median time of a step of each, the median of the paired ratios, and the share of a whole run of the composed
scale that is spent outside training and validation.
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
from synaptune.training.adamw import make_adamw
from synaptune.training.evaluation import make_autocast, pick_device, to_device
from synaptune.training.job import Job
from synaptune.training.metrics import training_loss
from synaptune.training.schedules import learning_rate
from synaptune.training.trainer import fit, warm_up

CONF = Path(__file__).resolve().parent.parent / "conf"


def bare_seconds(job: Job, device: torch.device) -> float:
    """Seconds of a plain loop over the job's steps: data, forward, backward, clipping, schedule, AdamW, plasticity."""
    training, model = job.training, job.model.to(device).train()
    optimizer = make_adamw(model, training)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    noise = torch.Generator(device)
    began = time.perf_counter()
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
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("overrides", nargs="*", help="as for train.py, for instance scale=smoke")
    given = parser.parse_args()
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=given.overrides)
    built = read_settings(cfg)
    warm_up()
    corpus = load_corpus(built.data, built.model.context)
    device = pick_device(built.training.device)
    training = dataclasses.replace(
        built.training,
        steps=given.steps,
        evaluations=1,
        eval_batches=1,
        accumulate=1,
        checkpoint_every=0,
    )
    logger = dataclasses.replace(built.logger, progress="off", wandb="off", tensorboard=False)
    with tempfile.TemporaryDirectory() as folder:

        def job() -> Job:
            model = GPT(built.model, built.synapse, vocab=corpus.vocab, seed=built.seed)
            parts = dict(
                model=model,
                config=built.model,
                synapse=built.synapse,
                corpus=corpus,
                data=built.data,
                training=training,
            )
            parts |= dict(
                logger=logger,
                seed=built.seed,
                name="bench",
                run_dir=Path(folder),
                fingerprint="",
                flat_config={},
                in_search=True,
            )
            return Job(**parts)

        fit(job()), bare_seconds(job(), device)  # warm both roads up
        ours, bare = [], []
        for number in range(given.rounds):
            pair = {}
            for road in ("ours", "bare") if number % 2 else ("bare", "ours"):
                pair[road] = (
                    fit(job()).metrics["train_seconds"]
                    if road == "ours"
                    else bare_seconds(job(), device)
                )
            ours.append(pair["ours"])
            bare.append(pair["bare"])
        ratio = statistics.median(mine / plain for mine, plain in zip(ours, bare, strict=True))
        millis = [1000 * statistics.median(times) / given.steps for times in (ours, bare)]
        print(
            f"step, median of {given.rounds} rounds of {given.steps}: lightning {millis[0]:.2f} ms, bare loop {millis[1]:.2f} ms"
        )
        print(f"lightning/bare {ratio:.3f}")
        run(cfg, Path(folder) / "first")
        outcome = run(cfg, Path(folder) / "second")
        outside = outcome.metrics["setup_seconds"]
        whole = outside + outcome.metrics["train_seconds"] + outcome.metrics["evaluation_seconds"]
        print(
            f"a run of {whole:.1f} s, of which outside training and validation {outside:.3f} s ({outside / whole:.1%})"
        )


if __name__ == "__main__":
    main()
