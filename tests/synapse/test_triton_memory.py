"""The Triton kernels of the memory: their numbers in the interpreter and on a GPU, and that they
compile for GPUs that are not there.
"""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import normalize

from helpers.triton_tools import count_stack_bytes, use_interpreter
from synaptune.synapse import memory_kernel
from synaptune.synapse.circuit import SPECS, SynapseParams
from synaptune.synapse.fast_weights import Activity, init_memory, memory_scan, memory_step, recall
from synaptune.synapse.kinase import gate
from synaptune.synapse.memory_kernel import fast_memory_scan
from synaptune.synapse.tensors import SynapseTensors

triton = pytest.importorskip("triton", reason="Triton is not installed: synaptune[gpu]")

HERE = [spec for spec in SPECS if spec.subsystem in ("postsynaptic", "bdnf")]
CORNERS = {
    "defaults": {},
    "low": {spec.name: spec.low for spec in HERE},
    "high": {spec.name: spec.high for spec in HERE},
}
CHUNK = 16


def import_kernels(monkeypatch):
    """Import the kernels anew: Triton decides at their definition who runs them."""
    for name in ("rates", "kinase", "chunk", "fast_weights", "memory"):
        monkeypatch.delitem(sys.modules, f"synaptune.synapse.triton_{name}", raising=False)
    return importlib.import_module("synaptune.synapse.triton_memory")


@pytest.fixture
def interpreted(monkeypatch):
    """The memory of CPU tensors in Triton's interpreter, in small blocks."""
    use_interpreter(monkeypatch)
    module = import_kernels(monkeypatch)
    monkeypatch.setattr(module, "CHUNK", CHUNK)
    monkeypatch.setattr(module, "TICKS", 4)
    monkeypatch.setattr(memory_kernel, "_runs_in_triton", lambda x: True)
    monkeypatch.setattr(memory_kernel, "has_triton", lambda: True)


def make_params(corner: str, used: int) -> SynapseTensors:
    values = CORNERS[corner] | {"synapse.postsynaptic.rank_eligibility": max(used, 4)}
    return SynapseTensors(SynapseParams().with_values(values))


def make_case(rows: int, tokens: int, rank: int, used: int) -> tuple[Activity, torch.Tensor]:
    """An activity that fills `used` coordinates, and a gradient of what it recalls."""
    stream = torch.Generator().manual_seed(tokens)
    pre, post, grad = (torch.randn(rows, tokens, rank, generator=stream) for _ in range(3))
    inside = torch.arange(rank) < used
    write = 2.0 * torch.rand(rows, tokens, generator=stream)
    return Activity(normalize(pre * inside, dim=-1), post * inside, write), grad


def run_scan(scan, activity, params, grad, *, tick, delta):
    """What the tokens recall, gate F, BDNF, and the gradients of the activity."""
    activity = Activity(*(x.detach().clone().requires_grad_() for x in activity))
    recalled, kept = scan(activity, params.postsynaptic, params.bdnf, tick=tick, delta=delta)
    gradients = torch.autograd.grad(recalled, list(activity), grad)
    return recalled.detach(), kept.gated, kept.bdnf, *gradients


def run_steps(activity, post_params, bdnf_params, *, tick, delta):
    """`memory_scan` as a loop over tokens."""
    rows, tokens, rank = activity.pre.shape
    state, recalled = init_memory(rows, rank, activity.pre), []
    for t in range(tokens):
        here = Activity(*(x[:, t : t + 1] for x in activity))
        ends = t % tick == tick - 1
        state = memory_step(
            state, here, post_params, bdnf_params, delta=delta, tick=tick, ends_tick=ends
        )
        recalled.append(recall(state.weights, here.pre[:, 0]))
    gated = gate(state.kinase)[..., None] * state.weights
    return torch.stack(recalled, 1), SimpleNamespace(gated=gated, bdnf=state.bdnf)


def run_reference(scan, activity, params, grad, **options):
    """`run_scan` in double precision."""
    wide = Activity(*(x.double() for x in activity))
    return run_scan(scan, wide, params.double(), grad.double(), **options)


def assert_close(ours, expected, tolerance=1e-5):
    names = ("recalled", "gated", "bdnf", "pre", "post", "write")
    for name, x, y in zip(names, ours, expected, strict=True):
        error = float((x.double() - y).detach().abs().max() / y.detach().abs().max())
        assert error <= tolerance, (name, error)


@pytest.mark.parametrize(
    ("corner", "rows", "tokens", "rank", "used", "tick", "delta"),
    [
        ("defaults", 1, 2 * CHUNK + 3, 8, 6, 4, True),
        ("low", 1, CHUNK + 5, 5, 4, 5, True),
        ("high", 1, CHUNK + 5, 8, 8, 4, True),
        ("high", 1, 2 * CHUNK, 1, 1, 4, True),
        ("high", 1, CHUNK + 1, 5, 5, 1, False),
        ("defaults", 1, 3, 32, 20, 4, True),
        ("defaults", 1, 1, 4, 4, 4, True),
    ],
)
@pytest.mark.usefixtures("interpreted")
def test_the_interpreted_kernels_give_the_numbers_of_the_loop_over_tokens(
    corner, rows, tokens, rank, used, tick, delta
):
    activity, grad = make_case(rows, tokens, rank, used)
    options = {"tick": tick, "delta": delta}
    ours = run_scan(fast_memory_scan, activity, make_params(corner, used), grad, **options)
    params = make_params(corner, used)
    if tokens == 1:
        assert not ours[0].any()
        assert not any(x.any() for x in ours[3:])
        return
    assert_close(ours, run_reference(run_steps, activity, params, grad, **options))


def stack_params(candidates: list[SynapseTensors]) -> dict[str, dict[str, torch.Tensor]]:
    """The parameters of a population by group and name, with the candidates first."""
    return {
        group: {
            name: torch.stack([dict(getattr(p, group).named_buffers())[name] for p in candidates])
            for name, _ in getattr(candidates[0], group).named_buffers()
        }
        for group in ("postsynaptic", "bdnf")
    }


@pytest.mark.usefixtures("interpreted")
def test_each_candidate_of_a_population_gives_the_numbers_of_its_own_run():
    options = {"tick": 4, "delta": True}
    activity, grad = make_case(3, CHUNK + 3, 4, 4)
    candidates = [make_params(corner, 4) for corner in CORNERS]

    def run(pre, post, write, grad, values):
        params = SimpleNamespace(**{key: SimpleNamespace(**x) for key, x in values.items()})

        def compute_total(activity):
            recalled, kept = fast_memory_scan(activity, params.postsynaptic, params.bdnf, **options)
            return (recalled * grad).sum(), (recalled, *kept)

        gradients, out = torch.func.grad(compute_total, has_aux=True)(Activity(pre, post, write))
        return *out, *gradients

    inputs = [x[:, None] for x in (*activity, grad)]  # one row for each candidate
    together = torch.func.vmap(run)(*inputs, stack_params(candidates))
    for n, params in enumerate(candidates):
        *own, own_grad = (x[n] for x in inputs)
        alone = run_reference(memory_scan, Activity(*own), params, own_grad, **options)
        assert_close([x[n] for x in together], alone)


CONSTANTS = {  # beside the rank and the chunk
    "open_gates_kernel": {"tick": 4, "bits": 2, "block": 512},
    "map_kernel": {"delta": True, "tick": 4, "digits": 4, "wide": 16},
    "pass_kernel": {"tick": 4, "reverse": True, "stages": 4},
    "recall_kernel": {"delta": True, "wide": 16},
    "reverse_map_kernel": {"delta": True, "wide": 16},
    "gradient_kernel": {"delta": True, "wide": 16},
    "reverse_gates_kernel": {"tick": 4, "bits": 2, "block": 512},
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_kernel_compiles_for_gpus_and_its_registers_suffice(name, monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(import_kernels(monkeypatch), name)
    given = CONSTANTS[name] | {"rank": 8, "half": 8, "chunk": CHUNK}
    constants = {key: value for key, value in given.items() if key in function.arg_names}
    types = dict.fromkeys(function.arg_names, "*fp32")
    types |= {key: "i32" for key in ("per_set", "tokens") if key in types}
    types |= dict.fromkeys(constants, "constexpr")
    places = {(function.arg_names.index(key),): value for key, value in constants.items()}
    source = ASTSource(function, types, constexprs=places)
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 4})
    # Triton 3.9 keeps 8 bytes of one kernel there, which is no array and no spilled tile.
    assert count_stack_bytes(compiled.asm["cubin"], tmp_path) <= 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize("rank", [8, 32])
@pytest.mark.parametrize("corner", CORNERS)
def test_a_gpu_gives_the_numbers_of_the_reference(corner, rank, delta, monkeypatch):
    import_kernels(monkeypatch)
    activity, grad = make_case(3, 301, rank, rank - 2)
    options = {"tick": 4, "delta": delta}
    expected = run_reference(memory_scan, activity, make_params(corner, rank - 2), grad, **options)
    on_gpu = Activity(*(x.cuda() for x in activity))
    params = make_params(corner, rank - 2).cuda()
    ours = run_scan(fast_memory_scan, on_gpu, params, grad.cuda(), **options)
    assert_close([x.cpu() for x in ours], expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_kernels_run_in_a_cuda_graph_and_give_the_same_bits_each_time(monkeypatch):
    import_kernels(monkeypatch)
    activity, grad = make_case(4, 300, 8, 8)
    activity, grad = Activity(*(x.cuda() for x in activity)), grad.cuda()
    params = make_params("defaults", 8).cuda()

    def run():
        return run_scan(fast_memory_scan, activity, params, grad, tick=4, delta=True)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(x, y) for x, y in zip(out, expected, strict=True))
