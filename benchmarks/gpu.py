"""What a GPU is worth: correctness of the kernels, step time, memory, populations and decoding.

    python benchmarks/gpu.py [--minutes 8] [--folder gpu-results]      on a machine with CUDA
    python benchmarks/gpu.py --device cpu --quick                      tries the script on a CPU

The parts run in the order of their value, each within its share of the minutes, and a part that
fails is reported and skipped. The results are written after each part to gpu.json and gpu.md, with
machine and versions. Compared programs run alternately; the figures are medians.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_step import OFF, Size
from gpu_attention import check_attention, make_attention, run_attention
from gpu_memory import check_memory
from gpu_release import check_release
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from synaptune.model.config import ModelConfig
from synaptune.model.decode import Decoder
from synaptune.model.gpt import GPT
from synaptune.study.provenance import get_code_version
from synaptune.synapse.circuit import SynapseParams
from synaptune.training.cuda_graph import GraphedFunction
from synaptune.training.population import Population

PROXY_EVALUATIONS = 1000  # of phase 1, for the extrapolation
PROXY_STEPS = 200
SYNAPTIC = dict(experts=1)


def make_config(size: Size, **mechanisms: Any) -> ModelConfig:
    """Return the model of a size."""
    return ModelConfig(
        layers=size.layers,
        width=size.width,
        heads=size.heads,
        context=size.context,
        **mechanisms,
    )


FULL = dict(
    step=(Size(4, 256, 4, 2048, 4), Size(12, 1280, 20, 2048, 2)),
    population=Size(2, 64, 4, 128, 16),
    counts=(1, 4, 16, 32, 64),
    decode=Size(4, 256, 4, 1024, 8),
    pairs=20,
)
QUICK = dict(
    step=(Size(1, 32, 2, 64, 2),),
    population=Size(1, 32, 2, 32, 2),
    counts=(1, 2),
    decode=Size(1, 32, 2, 32, 2),
    pairs=2,
)


class Bench:
    """The parts of the benchmark on one device."""

    def __init__(self, device: torch.device, sizes: dict[str, Any], seconds: float) -> None:
        self.device, self.sizes, self.seconds = device, sizes, seconds

    def time_attention(self) -> list[dict[str, Any]]:
        """Forward and backward of attention: plain, extended by the biases, and in the kernels."""
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        rows = []
        for size in self.sizes["step"]:
            inputs = make_attention(self.device, make_config(size), size.batch, dtype)
            row: dict[str, Any] = {"attention of": f"{size.layers}x{size.width}"}
            plain = functools.partial(run_attention, inputs[:3])
            for kernel in ("torch", "auto"):
                biased = functools.partial(run_attention, inputs, kernel)
                biased(), plain()  # loads the kernels
                first, second, ratio = self.compare(plain, biased)
                row |= {
                    "plain [ms]": 1e3 * first,
                    f"kernel={kernel} [ms]": 1e3 * second,
                    f"ratio, {kernel}": ratio,
                }
            rows.append(row)
        return rows

    def profile_steps(self) -> list[dict[str, Any]]:
        """Where the time of a step goes on the GPU, and whether the host waits for it."""
        if self.device.type != "cuda":
            return [{"profile": "on a GPU only"}]
        rows = []
        for size in self.sizes["step"]:
            for name, mechanisms in (("plain", OFF), ("synaptic", SYNAPTIC)):
                model = self.make_model(size, mechanisms)
                step, _ = self.make_stepper(size, model, graphs=False)
                torch.cuda.set_sync_debug_mode("warn")
                with warnings.catch_warnings(record=True) as waits:
                    warnings.simplefilter("always")
                    step()
                torch.cuda.set_sync_debug_mode("default")
                places = {f"{Path(w.filename).name}:{w.lineno}" for w in waits}
                with profile(activities=[ProfilerActivity.CUDA]) as record:
                    step()
                    self.synchronize()
                events = [e for e in record.key_averages() if e.self_device_time_total > 0]
                events.sort(key=lambda event: -event.self_device_time_total)
                busy = sum(event.self_device_time_total for event in events) / 1e3
                top = "; ".join(
                    f"{e.self_device_time_total / 1e3:.2f} ms {e.count} {e.key[:60]}"
                    for e in events[:12]
                )
                rows.append(
                    {
                        "step": f"{size.layers}x{size.width} {name}",
                        "wall [ms]": 1e3 * self.measure(step),
                        "GPU busy [ms]": busy,
                        "kernels": sum(event.count for event in events),
                        "host waits at": ", ".join(sorted(places)) or "never",
                        "longest kernels": top.replace("|", "/"),
                    }
                )
        return rows

    def time_steps(self) -> list[dict[str, Any]]:
        """Step of the synaptic model against the plain one, and the memory of both."""
        rows = []
        for size in self.sizes["step"]:
            name = f"{size.layers}x{size.width}, {size.batch} x {size.context} tokens"
            models = [self.make_model(size, mechanisms) for mechanisms in (OFF, SYNAPTIC)]
            for graphs in (True, False):
                (plain, memory), (synaptic, more) = (
                    self.make_stepper(size, model, graphs=graphs) for model in models
                )
                first, second, ratio = self.compare(plain, synaptic)
                rows.append(
                    {
                        "size": name + (", CUDA graphs" if graphs else ", kernel by kernel"),
                        "plain [ms]": 1e3 * first,
                        "synaptic [ms]": 1e3 * second,
                        "ratio": ratio,
                        "plain [MiB]": memory,
                        "synaptic [MiB]": more,
                        "memory ratio": more / memory if memory else None,
                    }
                )
                del plain, synaptic  # before the memory of the next ones is counted
        return rows

    def make_model(self, size: Size, mechanisms: dict[str, Any]) -> GPT:
        """Return a model on the device."""
        config = make_config(size, **mechanisms)
        return GPT(config, SynapseParams(), 256, seed=0).to(self.device)

    def make_stepper(
        self, size: Size, model: GPT, *, graphs: bool = True
    ) -> tuple[Callable[[], None], float]:
        """Return a function that trains one step, and its peak memory [MiB]; 0 on a CPU.

        The memory is that of weights, optimizer and activations.
        """
        self.reset_peak()
        on_gpu, weights = self.device.type == "cuda", list(model.parameters())
        groups = model.make_decay_groups(0.1)
        optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True, capturable=on_gpu)
        stream = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, 256, (size.batch, size.context + 1), generator=stream)
        tokens, noise = tokens.to(self.device), torch.Generator(self.device)

        def compute(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[Any, list[Any]]:
            with torch.autocast(self.device.type, torch.bfloat16):
                out = model(inputs, noise)
                loss = F.cross_entropy(out.logits.flatten(0, 1), targets.flatten())
            (loss + out.balance).backward()
            return out.activity, [weight.grad for weight in weights]

        def update(activity: Any) -> None:
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            model.update_buffers([activity])

        calls: list[Callable[..., Any]] = [compute, update]
        if graphs and on_gpu:
            calls = [GraphedFunction(compute, [noise]), GraphedFunction(update)]
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

        def step() -> None:
            activity, gradients = calls[0](inputs, targets)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            calls[1](activity)

        for _ in range(4):
            step()
        self.synchronize()
        of_weights = sum(weight.nbytes for weight in weights) / 2**20
        return step, self.read_peak() + of_weights if on_gpu else 0.0

    def time_populations(self) -> list[dict[str, Any]]:
        """A step of K candidates as one program against K single steps."""
        size: Size = self.sizes["population"]
        single, _ = self.make_stepper(size, self.make_model(size, SYNAPTIC))
        stream = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, 256, (size.batch, size.context + 1), generator=stream)
        tokens = tokens.to(self.device)
        rows = []
        for count in self.sizes["counts"]:
            self.reset_peak()
            config = make_config(size, **SYNAPTIC)
            # The initial weights are drawn on the CPU, the same on every device.
            models = [GPT(config, SynapseParams(), 256, seed=0).to(self.device)] * count
            population = Population(
                models,
                decays=[0.1] * count,
                clips=[1.0] * count,
                make_precision=lambda: torch.autocast(self.device.type, torch.bfloat16),
                graphs=self.device.type == "cuda",
            )
            number, rates = [0], [1e-3] * count

            def together(
                population: Population = population,
                number: list[int] = number,
                rates: list[float] = rates,
            ) -> None:
                number[0] += 1
                population.step(tokens[:, :-1], tokens[:, 1:], number[0], rates)

            for _ in range(4):
                together()
            peak = self.read_peak()
            alone, batched, _ = self.compare(single, together)
            seconds = batched / count * PROXY_STEPS * PROXY_EVALUATIONS
            rows.append(
                {
                    "candidates": count,
                    "single step [ms]": 1e3 * alone,
                    "population step [ms]": 1e3 * batched,
                    "speed-up": count * alone / batched,
                    "memory [MiB]": peak,
                    f"{PROXY_EVALUATIONS} evaluations [h]": seconds / 3600,
                }
            )
            del models, population, together  # before the memory of the next one is counted
        return rows

    @torch.no_grad()
    def time_decoding(self) -> list[dict[str, Any]]:
        """Tokens per second of greedy decoding with the cached state."""
        size: Size = self.sizes["decode"]
        rows = []
        for name, mechanisms in (("plain", OFF), ("synaptic", SYNAPTIC)):
            model = GPT(make_config(size, **mechanisms), SynapseParams(), 256, seed=0)
            model = model.to(self.device).eval()
            token = torch.zeros(size.batch, dtype=torch.long, device=self.device)
            Decoder(model, size.batch).feed(token)  # loads the kernels
            self.synchronize()
            decoder = Decoder(model, size.batch)
            started_at, count = time.perf_counter(), 0
            while count < size.context and time.perf_counter() - started_at < self.seconds / 4:
                token = decoder.feed(token).argmax(-1)
                count += 1
            self.synchronize()
            seconds = time.perf_counter() - started_at
            rows.append({"decoding": name, "tokens per second": size.batch * count / seconds})
        return rows

    def compare(
        self, first: Callable[[], None], second: Callable[[], None]
    ) -> tuple[float, float, float]:
        """Median times of two programs [s], run alternately, and the median of their ratios."""
        times: list[tuple[float, float]] = []
        started_at = time.perf_counter()
        while len(times) < self.sizes["pairs"] and (
            len(times) < 2 or time.perf_counter() - started_at < self.seconds / 4
        ):
            times.append((self.measure(first), self.measure(second)))
        one, two = (statistics.median(side) for side in zip(*times, strict=True))
        return one, two, statistics.median(b / a for a, b in times)

    def measure(self, program: Callable[[], None]) -> float:
        """Time of one call [s], the device included."""
        self.synchronize()
        started_at = time.perf_counter()
        program()
        self.synchronize()
        return time.perf_counter() - started_at

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def reset_peak(self) -> None:
        """Begin to count the peak memory."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)

    def read_peak(self) -> float:
        """Peak memory since `reset_peak` [MiB]; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0.0
        return (torch.cuda.max_memory_allocated(self.device) - self._before) / 2**20


def describe_machine(device: torch.device) -> dict[str, str]:
    """Names and versions that a figure needs beside it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = "not installed"
    return {
        "device": name or device.type,
        "Python": platform.python_version(),
        "synaptune": get_code_version(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "Triton": version,
    }


def format_markdown(results: dict[str, Any]) -> str:
    """Format the results as tables."""
    lines = ["# GPU benchmark", ""]
    lines += [f"- {name}: {value}" for name, value in results["machine"].items()]
    for title, rows in results["parts"].items():
        lines += ["", f"## {title}", ""]
        if isinstance(rows, str):
            lines += [f"failed: {rows}"]
            continue
        lines += ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
        for row in rows:
            cells = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()]
            lines += ["| " + " | ".join(cells) + " |"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the parts and write their results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="limit of the whole script")
    parser.add_argument("--folder", type=Path, default=Path("gpu-results"), help="of the results")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "got no CUDA device\n  expected: a GPU and a CUDA build of torch\n"
            "  to do: run it on a machine with a GPU, or try it with --device cpu --quick",
            file=sys.stderr,
        )
        return 2
    if device.index is not None:
        torch.cuda.set_device(device)  # Triton launches its kernels on the current device
    bench = Bench(device, QUICK if options.quick else FULL, 60.0 * options.minutes / 4)
    parts = {
        "Release against the reference": functools.partial(check_release, device),
        "Attention against the reference": functools.partial(check_attention, device),
        "Memory against the reference": functools.partial(
            check_memory, device, bench.sizes["step"][0].context
        ),
        "Training step": bench.time_steps,
        "Population": bench.time_populations,
        "Attention": bench.time_attention,
        "Profile of a step": bench.profile_steps,
        "Decoding": bench.time_decoding,
    }
    results: dict[str, Any] = {"machine": describe_machine(device), "parts": {}}
    options.folder.mkdir(parents=True, exist_ok=True)
    for title, part in parts.items():
        try:
            results["parts"][title] = part()
        except Exception as error:  # the other parts are still worth their minutes
            traceback.print_exc()
            results["parts"][title] = f"{type(error).__name__}: {error}"
        (options.folder / "gpu.json").write_text(json.dumps(results, indent=1))
        (options.folder / "gpu.md").write_text(format_markdown(results))
    print((options.folder / "gpu.md").read_text())
    return int(any(isinstance(rows, str) for rows in results["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
