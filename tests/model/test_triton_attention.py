"""The Triton kernels of the attention: their numbers in the interpreter and on a GPU, and that they
compile for GPUs that are not there.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest
import torch
from torch.func import grad, vmap

from helpers.interpreter import interpret_triton
from synaptune.model.attention import AttentionBias, biased_attention

triton = pytest.importorskip("triton", reason="Triton is not installed: synaptune[gpu]")

NAMES = ("q", "k", "v", "rows", "distance")


def import_kernels(monkeypatch):
    """Import the kernels anew: Triton decides at their definition who runs them."""
    for name in ("triton_kernels", "triton_attention"):
        monkeypatch.delitem(sys.modules, f"synaptune.model.{name}", raising=False)
    return importlib.import_module("synaptune.model.triton_attention")


@pytest.fixture
def interpreted(monkeypatch):
    """The kernels in Triton's interpreter, in tiles of 16 queries and 32 keys."""
    interpret_triton(monkeypatch)
    module = import_kernels(monkeypatch)
    small = module.KernelTiles(*[module.Tiles(16, 32, 4, 1)] * 3)
    for name in ("NARROW", "SINGLE"):
        monkeypatch.setattr(module, name, small)
    return module


def make_case(shape, tick, rows=None, distance=None):
    """Return q, k, v, rows and distance, and the gradient of the output.

    Args:
        shape: of q, (batch, head, token, d).
        tick: length of a tick [token].
        rows: batch and head of the rows; None for no rows.
        distance: batch and head of the distance; None for none.
    """
    stream = torch.Generator().manual_seed(shape[2])
    updates, tokens = -(-shape[2] // tick) - 1, shape[2]

    def draw(*sizes):
        return torch.randn(*sizes, generator=stream)

    inputs = [
        draw(*shape),
        draw(*shape),
        # As from the projection of the heads: a view in another order of memory.
        draw(shape[0], tokens, 3, shape[1], shape[3]).permute(2, 0, 3, 1, 4)[2],
        None if rows is None else 2.0 * draw(*rows, updates, tokens),
        None if distance is None else 2.0 * draw(*distance, tokens),
    ]
    return inputs, draw(*shape)


def run_reference(inputs, gradient, tick):
    """Output and gradients by attention.py, in double precision."""
    q, k, v, rows, distance = leaves = make_leaves(inputs, torch.float64)
    out = biased_attention(q, k, v, AttentionBias(rows, distance, tick))
    out.backward(gradient.double())
    return collect(out, leaves)


def make_leaves(inputs, dtype, device="cpu"):
    return [None if x is None else x.detach().to(device, dtype).requires_grad_() for x in inputs]


def collect(out, leaves):
    grads = {f"d{n}": x.grad for n, x in zip(NAMES, leaves, strict=True) if x is not None}
    return {"out": out.detach()} | grads


def check(found, expected, tolerance):
    """Compare by the norm of the error over the norm of the expected values."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name].detach().cpu().double() - value).norm() / value.norm()
        assert float(error) < tolerance, (name, float(error))


CASES = {
    "both biases": ((1, 2, 64, 16), 8, (1, 2), (1, 2)),
    "rows alone, tokens that do not fill a tile": ((1, 2, 50, 32), 8, (1, 2), None),
    "distance alone, one for all batches": ((2, 2, 48, 16), 8, None, (1, 2)),
    "biases of one head, a tick and a width that are no powers of two": (
        *((2, 2, 37, 20), 5),
        *((2, 1), (1, 1)),
    ),
    "a tick longer than a tile": ((1, 1, 70, 16), 24, (1, 1), (1, 1)),
    "ticks of a token": ((1, 1, 33, 16), 1, (1, 1), None),
    "one tick": ((1, 1, 16, 16), 16, None, (1, 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_interpreted_kernels_give_the_numbers_of_the_reference(interpreted, case):
    shape, tick, rows, distance = CASES[case]
    inputs, gradient = make_case(shape, tick, rows, distance)
    leaves = make_leaves(inputs, torch.float32)
    out = interpreted.attend(*leaves, tick)
    out.backward(gradient)
    check(collect(out, leaves), run_reference(inputs, gradient, tick), 1e-5)


def test_numbers_of_16_bits_agree_with_the_reference(interpreted):
    inputs, gradient = make_case((1, 2, 40, 16), 8, (1, 2), (1, 2))
    leaves = [*make_leaves(inputs[:3], torch.float16), *make_leaves(inputs[3:], torch.float32)]
    out = interpreted.attend(*leaves, 8)
    out.backward(gradient.half())
    assert out.dtype == leaves[2].grad.dtype == torch.float16
    assert leaves[3].grad.dtype == torch.float32
    check(collect(out, leaves), run_reference(inputs, gradient, 8), 3e-3)


def test_biases_without_a_gradient_cost_none(interpreted):
    inputs, gradient = make_case((1, 2, 32, 16), 8, (1, 2), (1, 2))
    leaves = make_leaves(inputs, torch.float32)
    fixed = [x.detach() for x in leaves[3:]]
    out = interpreted.attend(*leaves[:3], *fixed, 8)
    out.backward(gradient)
    expected = run_reference(inputs, gradient, 8)
    found = collect(out, [*leaves[:3], None, None])
    check(found, {name: expected[name] for name in found}, 1e-5)


def test_autocast_decides_the_numbers_as_for_the_attention_of_torch(interpreted):
    inputs, _ = make_case((1, 1, 32, 16), 8, (1, 1), (1, 1))
    inputs = [*inputs[:2], inputs[2].half(), *inputs[3:]]  # rotary tables widen q and k
    expected = interpreted.attend(*(x.half() for x in inputs[:3]), *inputs[3:], 8)
    with torch.autocast("cpu", dtype=torch.float16):
        out = interpreted.attend(*inputs, 8)
    assert out.dtype == torch.float16
    assert torch.equal(out, expected)


def test_each_candidate_of_a_population_has_the_numbers_of_a_run_of_its_own(interpreted):
    cases = [make_case((2, 1, 24, 16), 8, (2, 1), (1, 1)) for _ in range(2)]
    inputs = [torch.stack([x, -0.5 * y]) for x, y in zip(*(case[0] for case in cases), strict=True)]
    weights = cases[0][1]

    def loss(*inputs):
        return (interpreted.attend(*inputs, 8) * weights).sum()

    compute = grad(loss, argnums=(0, 1, 2, 3, 4))
    together = vmap(compute)(*inputs)
    for candidate in range(2):
        alone = compute(*(x[candidate] for x in inputs))
        for mine, theirs in zip(alone, together, strict=True):
            assert float(mine.abs().max()) > 0.0
            assert torch.equal(mine, theirs[candidate])


# Kernels, and the tensors of which each has strides.
KERNELS = {
    "forward_kernel": 6,
    "query_gradient_kernel": 8,
    "key_gradient_kernel": 8,
}


def compile_kernel(module, name, dtype, width, tick, capability):
    """Compile a kernel for a GPU that is not there, with both biases and their gradients."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function, tensors = getattr(module, name), KERNELS[name]
    q = torch.empty(1, 1, 256, width, dtype=dtype)
    tiles = getattr(module.pick_tiles(q, tick), name.removesuffix("_kernel"))
    sizes = module._measure(q, q[0], q[0, 0], tick, tiles)
    sizes |= {"learns_rows": True, "learns_distance": True}
    element = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    wide = ("rows", "distance", "norm", "delta", "drows", "ddistance")
    types = dict.fromkeys(function.arg_names, element) | dict.fromkeys(wide, "*fp32")
    types |= dict.fromkeys(("heads", "pairs", "tokens", "updates"), "i32")
    types |= {"scale": "fp32", "strides": (("i32", "i32", "i32"),) * tensors}
    constants = {
        (position,): sizes[argument]
        for position, argument in enumerate(function.arg_names)
        if argument in sizes and types[argument] == element
    }
    types |= {function.arg_names[position]: "constexpr" for (position,) in constants}
    source = ASTSource(
        function,
        {argument: types[argument] for argument in function.arg_names},
        constexprs=constants,
        # The alignment that Triton finds in the tensors of a model.
        attrs={
            (position,): [["tt.divisibility", 16]]
            for position, argument in enumerate(function.arg_names)
            if str(types[argument]).startswith("*") or argument == "tokens"
        }
        | {
            (function.arg_names.index("strides"), tensor, axis): [["tt.divisibility", 16]]
            for tensor in range(tensors)
            for axis in range(3)
        },
    )
    return triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tiles.warps, "num_stages": tiles.stages},
    )


def count_stack_bytes(cubin, folder):
    """Return the bytes of stack of a thread; registers that do not suffice spill there."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    tool = triton.knobs.nvidia.cuobjdump.path
    done = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True)
    return int(re.search(r"STACK:(\d+)", done.stdout + done.stderr)[1])


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("dtype", "width", "tick", "capability"),
    [
        (torch.bfloat16, 64, 16, 90),
        pytest.param(torch.bfloat16, 128, 24, 90, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, 64, 64, 80, marks=pytest.mark.slow),
        pytest.param(torch.float32, 64, 16, 80, marks=pytest.mark.slow),
    ],
)
def test_a_kernel_compiles_for_gpus_and_its_tiles_fit_on_them(
    name, dtype, width, tick, capability, monkeypatch, tmp_path
):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    compiled = compile_kernel(import_kernels(monkeypatch), name, dtype, width, tick, capability)
    assert count_stack_bytes(compiled.asm["cubin"], tmp_path) <= 128
    assert compiled.metadata.shared <= 99 * 1024  # of the smallest GPUs of capability 8
    if capability == 90:
        assert "wgmma" in compiled.asm["ptx"]
    # The biases reach the registers of the logits without a detour through shared memory.
    assert "convert_layout" not in "".join(
        line for line in compiled.asm["ttgir"].splitlines() if "xf32" in line and "128x64" in line
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("dtype", "tolerance", "shape", "tick"),
    [
        (torch.bfloat16, 2e-2, (2, 3, 512, 64), 16),
        (torch.bfloat16, 2e-2, (1, 2, 300, 80), 24),
        (torch.bfloat16, 2e-2, (1, 2, 200, 128), 64),
        (torch.bfloat16, 2e-2, (1, 2, 200, 64), 1),
        (torch.float16, 4e-3, (2, 3, 512, 64), 16),
        (torch.float32, 1e-5, (1, 2, 300, 48), 24),
    ],
)
def test_a_gpu_gives_the_numbers_of_the_reference(dtype, tolerance, shape, tick, monkeypatch):
    import_kernels(monkeypatch)
    inputs, gradient = make_case(shape, tick, shape[:2], (1, shape[1]))
    inputs = [*(x.to(dtype) for x in inputs[:3]), *inputs[3:]]
    gradient = gradient.to(dtype)
    q, k, v = make_leaves(inputs[:3], dtype, "cuda")
    rows, distance = make_leaves(inputs[3:], torch.float32, "cuda")
    out = biased_attention(q, k, v, AttentionBias(rows, distance, tick))
    out.backward(gradient.cuda())
    found = collect(out, [q, k, v, rows, distance])
    check(found, run_reference(inputs, gradient, tick), tolerance)
