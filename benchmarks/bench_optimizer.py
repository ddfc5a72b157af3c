"""BiostatisV6 against AdamW and SGD, each at its own best learning rate and weight decay.

    python benchmarks/bench_optimizer.py [--steps 200] [--seeds 5] [--only cost|text|images]
    ... --only images --images cifar10 --path FOLDER --network resnet18

Text is the plain transformer of `model=gpt` on the default data, images a small ResNet. The
learning rate and the decay of each optimizer are chosen on a seed of their own by the validation
loss, from the same grid; the test runs on fresh seeds. The grid of the text is wide, because SGD
needs rates a hundred times those of the others, and has no decay. `biostatis` is the optimizer at
its published constants, `auto` the variant with measured targets, `no gain` has both homeostatic
gains switched off (coherence_gain = energy_gain = 0), `sgd` has a momentum of 0.9. Intervals are
Student's, at 95 %.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptune import BiostatisV6
from synaptune.analysis.compare import compute_interval
from synaptune.config.compose import compose_config
from synaptune.config.run import run
from synaptune.config.settings import read_settings
from synaptune.data.config import DataConfig
from synaptune.data.images import ImageData, load_images, make_image_batch
from synaptune.model.gpt import GPT
from synaptune.training.representation import measure_last_layer

VARIANTS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "biostatis": {},
    "auto": {"targets": "auto"},
    "no gain": {"coherence_gain": 0.0, "energy_gain": 0.0},
    "sgd": {},
}
COMPARED = {
    "text": ("adamw", "biostatis", "sgd"),
    "images": ("adamw", "biostatis", "auto", "no gain"),
}
RATES = {
    "text": (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0),
    "images": (1e-3, 3e-3, 1e-2, 3e-2),
}
DECAYS = {"text": (0.0,), "images": (0.0, 0.1)}
TUNING_SEED, FIRST_SEED = 100, 200
Metrics = Mapping[str, float]


def list_shapes() -> dict[str, list[torch.Size]]:
    """Return the shapes of the weights on which a step is timed, by name."""

    def make(*overrides: str) -> list[torch.Size]:
        settings = read_settings(compose_config(["model=gpt", *overrides]).base)
        model = GPT(settings.model, settings.synapse, vocab=256, seed=0)
        return [weight.shape for weight in model.parameters()]

    return {
        "12 matrices of 512 x 512": [torch.Size((512, 512))] * 12,
        "4 layers of width 256": make("model.layers=4", "model.width=256"),
        "the laptop model": make(),
    }


def measure_cost(pairs: int) -> None:
    """Print the step times and the state of both optimizers, run in turns."""
    for label, shapes in list_shapes().items():
        print(f"{label}: {sum(map(torch.Size.numel, shapes)):,} parameters")
        _measure_cost(shapes, pairs)


def _measure_cost(shapes: Sequence[torch.Size], pairs: int) -> None:
    def make_weights() -> list[nn.Parameter]:
        weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        for weight in weights:
            weight.grad = 1e-2 * torch.randn_like(weight)
        return weights

    optimizers: dict[str, torch.optim.Optimizer] = {
        "AdamW fused": torch.optim.AdamW(make_weights(), fused=True),
        "AdamW foreach": torch.optim.AdamW(make_weights(), foreach=True),
        "BiostatisV6": BiostatisV6(make_weights()),
        "BiostatisV6 uncompiled": BiostatisV6(make_weights(), compiled=False),
    }
    seconds = {name: [] for name in optimizers}
    for _ in range(pairs):
        for name, optimizer in optimizers.items():
            started_at = time.process_time()
            optimizer.step()
            seconds[name].append(time.process_time() - started_at)
    for name, optimizer in optimizers.items():
        ratios = [new / old for new, old in zip(seconds[name], seconds["AdamW fused"], strict=True)]
        median = statistics.median(seconds[name])
        values = [v for state in optimizer.state.values() for v in state.values()]
        size = sum(v.numel() * v.element_size() for v in values if torch.is_tensor(v)) / 2**20
        ratio = statistics.median(ratios)
        print(f"  {name:23} {1e3 * median:7.2f} ms  {ratio:6.2f}  state {size:5.1f} MiB")


def train_text(name: str, rate: float, decay: float, seed: int, steps: int) -> Metrics:
    """Train the plain transformer; return loss, perplexities and the representation."""
    constants = [f"training.biostatis.{key}={value}" for key, value in VARIANTS[name].items()]
    overrides = [
        *("model=gpt", "logger=csv", "logger.progress=off", "training.representation=true"),
        *(f"training.steps={steps}", f"training.learning_rate={rate}", f"seed={seed}"),
        *(f"training.weight_decay={decay}", "training.evaluations=1", "training.test=true"),
        f"training.optimizer={name if name in ('adamw', 'sgd') else 'biostatis'}",
        *constants,
    ]
    with tempfile.TemporaryDirectory() as folder:
        metrics = run(compose_config(overrides).base, Path(folder), overrides=[]).metrics
    spread = {key: value for key, value in metrics.items() if key.startswith("representation")}
    return {
        "loss": metrics["val_loss"],
        "validation perplexity": metrics["val_perplexity"],
        "test perplexity": metrics["test_perplexity"],
        "seconds": metrics["train_seconds"],
        **spread,
    }


class ResNet(nn.Module):
    """A residual network of basic blocks: He et al. 2016, the variant for small images."""

    def __init__(self, channels: int, width: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False))
        layers, inputs = [], width
        for level, count in enumerate(blocks):
            for index in range(count):
                outputs, stride = width * 2**level, 2 if level and not index else 1
                layers.append(Block(inputs, outputs, stride))
                inputs = outputs
        self.blocks, self.head = nn.Sequential(*layers), nn.Linear(inputs, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)])
        is_same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if is_same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.norms[0](images))
        return self.shortcut(images) + self.second(F.relu(self.norms[1](self.first(hidden))))


NETWORKS = {"small": (8, (1, 1, 1)), "resnet18": (64, (2, 2, 2, 2))}


def train_images(
    data: ImageData, network: str, name: str, rate: float, decay: float, seed: int, steps: int
) -> Metrics:
    """Train a ResNet with a plain loop; return loss, accuracies and the representation."""
    torch.manual_seed(seed)
    model = ResNet(data.shape[0], *NETWORKS[network])
    if name == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            model.parameters(), rate, weight_decay=decay
        )
    else:
        optimizer = BiostatisV6(model.parameters(), rate, decay, **VARIANTS[name])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    started_at = time.process_time()
    for step in range(steps):
        batch = make_image_batch(data, seed=seed, step=step, size=64)
        optimizer.zero_grad()
        F.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()
        schedule.step()
    seconds = time.process_time() - started_at
    model.eval()
    with torch.no_grad():
        logits = {part: model(getattr(data, part).images) for part in ("val", "test")}
    scores = {part: (logits[part].argmax(1) == getattr(data, part).labels) for part in logits}
    return {
        "loss": float(F.cross_entropy(logits["val"], data.val.labels)),
        "validation accuracy": float(scores["val"].float().mean()),
        "test accuracy": float(scores["test"].float().mean()),
        "seconds": seconds,
        **measure_last_layer(model, model.head, data.val.images),
    }


def compare(kind: str, train: Callable[[str, float, float, int], Metrics], seeds: int) -> None:
    """Choose rate and decay for each variant, run the fresh seeds, and print both."""
    runs: dict[str, list[Metrics]] = {}
    for name in COMPARED[kind]:
        grid = {
            (rate, decay): train(name, rate, decay, TUNING_SEED)["loss"]
            for rate in RATES[kind]
            for decay in DECAYS[kind]
        }
        rate, decay = min(grid, key=lambda pair: grid[pair])
        losses = "  ".join(f"{r:g}/{d:g} {loss:.4f}" for (r, d), loss in grid.items())
        print(f"{kind} {name}: best rate {rate:g}, decay {decay:g}  ({losses})", flush=True)
        runs[name] = [train(name, rate, decay, FIRST_SEED + seed) for seed in range(seeds)]
    for metric in runs["adamw"][0]:
        for name, entries in runs.items():
            values = [entry[metric] for entry in entries]
            mean, low, high = compute_interval(values)
            line = f"{kind} {metric:29} {name:10} {mean:9.4f} ({low:.4f} to {high:.4f})"
            if name != "adamw":
                pairs = zip(values, runs["adamw"], strict=True)
                mean, low, high = compute_interval([new - old[metric] for new, old in pairs])
                line += f"  against adamw {mean:+.4f} ({low:+.4f} to {high:+.4f})"
            print(line, flush=True)


def main() -> None:
    """Run the parts of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", choices=("cost", "text", "images"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=30, help="alternating steps of the cost")
    parser.add_argument("--images", default="digits", help="digits, mnist, fashion-mnist, cifar10")
    parser.add_argument("--path", help="folder of the image files")
    parser.add_argument("--network", choices=list(NETWORKS), default="small")
    options = parser.parse_args()
    if options.only in (None, "cost"):
        measure_cost(options.pairs)
    if options.only in (None, "text"):
        compare("text", lambda *values: train_text(*values, options.steps), options.seeds)
    if options.only in (None, "images"):
        data = load_images(DataConfig(source=options.images, path=options.path))
        compare(
            "images",
            lambda *values: train_images(data, options.network, *values, options.steps),
            options.seeds,
        )


if __name__ == "__main__":
    main()
