"""Step time and memory of the synaptic model against the plain one.

    python benchmarks/bench_step.py [--pairs 30] [--parts]

Both have the same dimensions, and run alternately in one process. A step is forward, backward,
clipping, AdamW and the plasticity; its time is the CPU time of the process, which other load
changes little. The memory is that of the tensors that autograd saves for the backward pass, without
the weights. The last lines are two per size, without experts and with all mechanisms, such as
`2x64 without experts/vanilla: time 1.60, memory 1.40`: time is the median of the pairwise ratios.
`--parts` adds each mechanism alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F

from synaptune.model.config import ModelConfig
from synaptune.model.gpt import GPT, Activity
from synaptune.synapse.circuit import SynapseParams
from synaptune.training.device import flush_denormals

OFF = dict(distance="off", release="off", fast_weights="off", experts=1)
PARTS = {
    "distance": OFF | dict(distance="clock"),
    "release": OFF | dict(release="dynamic"),
    "fast weights": OFF | dict(fast_weights="delta"),
    "experts": OFF | dict(experts=4),
}
WHOLE = {"without experts": dict(experts=1), "everything": dict()}


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

    def compute_loss(self) -> tuple[torch.Tensor, Activity]:
        """Return the loss and the activity of a forward pass."""
        out = self.model(self.tokens[:, :-1], self.noise)
        loss = F.cross_entropy(out.logits.flatten(0, 1), self.tokens[:, 1:].flatten())
        return loss + out.balance, out.activity

    def measure_saved(self) -> int:
        """Return the memory of the tensors that a forward pass saves [byte]."""
        weights = {weight.untyped_storage().data_ptr() for weight in self.model.parameters()}
        sizes = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept = self.compute_loss()  # keeps the graph, so that no address is used twice
        del kept
        return sum(sizes.values())

    def __call__(self) -> float:
        """Run one step and return its CPU time [s]."""
        start, self.step = time.process_time(), self.step + 1
        loss, activity = self.compute_loss()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.model.apply_plasticity([activity], self.step, self.optimizer)
        return time.process_time() - start


class Comparison(NamedTuple):
    """A model against the plain one.

    Attributes:
        plain: median time of a plain step [s].
        other: that of the other model [s].
        time: median of the pairwise ratios of the times.
        memory: ratio of the memory of saved tensors.
        saved: memory of the saved tensors of the other model [byte].
    """

    plain: float
    other: float
    time: float
    memory: float
    saved: int


def compare_models(size: Size, pairs: int, mechanisms: dict[str, object]) -> Comparison:
    """Compare a model with the given mechanisms to the plain one."""
    plain, other = Runner(size, **OFF), Runner(size, **mechanisms)
    with flush_denormals():  # as in training
        for _ in range(3):
            plain(), other()
        times = [(plain(), other()) for _ in range(pairs)]
    first, second = (statistics.median(side) for side in zip(*times, strict=True))
    before, saved = plain.measure_saved(), other.measure_saved()
    ratio = statistics.median(b / a for a, b in times)
    return Comparison(first, second, ratio, saved / before, saved)


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
        for part, mechanisms in (PARTS | WHOLE if options.parts else WHOLE).items():
            found = compare_models(size, options.pairs, mechanisms)
            ratios = f"time {found.time:.2f}, memory {found.memory:.2f}"
            print(
                f"{name} {part}: {1e3 * found.other:.1f} ms against {1e3 * found.plain:.1f} ms, "
                f"{found.saved / 2**20:.1f} MiB; {ratios}",
                flush=True,
            )
            if part in WHOLE:
                summary.append(f"{name} {part}/vanilla: {ratios}")
    print("\n".join(summary))


if __name__ == "__main__":
    main()
