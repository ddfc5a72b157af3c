"""Step time of the synaptic model against the plain one.

    python benchmarks/bench_step.py [--pairs 30] [--parts]

Both have the same dimensions and no experts, and run alternately in one process. A step is forward,
backward, clipping, AdamW and the plasticity. The last lines are one per size, such as
`2x64 synaptic/vanilla 1.93`: the median of the pairwise ratios. `--parts` adds each mechanism
alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from synaptune.model.config import ModelConfig
from synaptune.model.gpt import GPT
from synaptune.synapse.circuit import SynapseParams

OFF = dict(distance="off", release="off", fast_weights="off", experts=1)
PARTS = {
    "distance": OFF | dict(distance="clock"),
    "release": OFF | dict(release="dynamic"),
    "fast weights": OFF | dict(fast_weights="delta"),
    "experts": OFF | dict(experts=4),
    "everything": dict(),
}


@dataclass(frozen=True)
class Size:
    """Dimensions of the compared models and their batch."""

    layers: int
    width: int
    heads: int
    context: int
    batch: int


SIZES = (Size(2, 64, 4, 128, 16), Size(4, 256, 4, 256, 8))


class Runner:
    """A model with its optimizer that trains step by step on fixed tokens."""

    def __init__(self, size: Size, **mechanisms: object) -> None:
        config = ModelConfig(
            layers=size.layers,
            width=size.width,
            heads=size.heads,
            context=size.context,
            **mechanisms,
        )  # type: ignore[arg-type]
        self.model = GPT(config, SynapseParams(), 256, seed=0)
        self.optimizer = torch.optim.AdamW(self.model.make_decay_groups(0.1), lr=3e-3, fused=True)
        self.tokens = torch.randint(
            0, 256, (size.batch, size.context + 1), generator=torch.Generator().manual_seed(0)
        )
        self.noise, self.step = torch.Generator(), 0

    def __call__(self) -> float:
        """Run one step and return its time [s]."""
        start, self.step = time.perf_counter(), self.step + 1
        out = self.model(self.tokens[:, :-1], self.noise)
        loss = F.cross_entropy(out.logits.flatten(0, 1), self.tokens[:, 1:].flatten()) + out.balance
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.model.apply_plasticity([out.activity], self.step, self.optimizer)
        return time.perf_counter() - start


def compare_models(
    size: Size, pairs: int, mechanisms: dict[str, object]
) -> tuple[float, float, float]:
    """Compare a model with the given mechanisms to the plain one.

    Returns:
        Median time of a plain step [s], of the other [s], and the median of the pairwise ratios.
    """
    plain, other = Runner(size, **OFF), Runner(size, **mechanisms)
    for _ in range(3):
        plain(), other()
    times = [(plain(), other()) for _ in range(pairs)]
    first, second = (statistics.median(side) for side in zip(*times, strict=True))
    return first, second, statistics.median(b / a for a, b in times)


def main() -> None:
    """Run the comparisons and print their results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=30, help="counted pairs of steps per size")
    parser.add_argument("--parts", action="store_true", help="also each mechanism alone")
    options = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    summary = []
    for size in SIZES:
        name = f"{size.layers}x{size.width}"
        for part, mechanisms in PARTS.items() if options.parts else ():
            a, b, ratio = compare_models(size, options.pairs, mechanisms)
            print(
                f"{name} {part}: {1e3 * b:.1f} ms against {1e3 * a:.1f} ms, ratio {ratio:.2f}",
                flush=True,
            )
        a, b, ratio = compare_models(size, options.pairs, dict(experts=1))
        print(f"{name} synaptic {1e3 * b:.1f} ms, vanilla {1e3 * a:.1f} ms", flush=True)
        summary.append(f"{name} synaptic/vanilla {ratio:.2f}")
    print("\n".join(summary))


if __name__ == "__main__":
    main()
