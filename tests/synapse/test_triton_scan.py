"""The Triton kernel of the presynaptic scan: its numbers in the interpreter and on a GPU, and that
it compiles for GPUs that are not there.
"""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from synaptune.synapse import kernel
from synaptune.synapse.circuit import SPECS, SynapseParams
from synaptune.synapse.tensors import SynapseTensors
from synaptune.synapse.terminal import terminal_scan

triton = pytest.importorskip("triton", reason="Triton is not installed: synaptune[gpu]")

HERE = [spec for spec in SPECS if spec.subsystem in ("calcium", "vesicles", "energy")]
CORNERS = {
    "defaults": {},
    "low": {spec.name: spec.low for spec in HERE},
    "high": {spec.name: spec.high for spec in HERE},
}


def import_kernels(monkeypatch):
    """Import the kernels anew: Triton decides at their definition who runs them."""
    for name in ("triton_step", "triton_scan"):
        monkeypatch.delitem(sys.modules, f"synaptune.synapse.{name}", raising=False)
    return importlib.import_module("synaptune.synapse.triton_scan")


@pytest.fixture
def interpreted(monkeypatch):
    """The kernels in Triton's interpreter, in blocks of 16 keys."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    module = import_kernels(monkeypatch)
    monkeypatch.setattr(module, "BLOCK", 16)
    return module


def pack(values: dict[str, float]) -> torch.Tensor:
    params = SynapseTensors(SynapseParams().with_values(values))
    numbers = [
        getattr(getattr(params, group), name)
        for group, names in kernel._PACKED.items()
        for name in names.split()
    ]
    return kernel.pack_parameters(numbers, kernel._CONSTANTS, numbers[0])


def run_reference(drive, values, tokens, noise, grad):
    """Efficacy and gradient of the drive by the reference, in double precision."""
    drive = drive.double().requires_grad_()
    params = SynapseTensors(SynapseParams().with_values(values)).double()
    out = terminal_scan(drive, params, tokens, None if noise is None else noise.double())
    out.backward(grad.double())
    return out.detach(), drive.grad


def make_case(rows: int, keys: int, tokens: int, noisy: bool):
    stream = torch.Generator().manual_seed(keys)
    updates = -(-keys // tokens) - 1
    drive = 3.0 * torch.randn(1, rows, updates, keys, generator=stream)
    noise = torch.randn(drive.shape, generator=stream) if noisy else None
    grad = torch.randn(1, rows, updates + 1, keys, generator=stream)
    return drive, noise, grad


@pytest.mark.parametrize(
    ("corner", "rows", "keys", "tokens", "noisy"),
    [
        ("defaults", 3, 24, 8, False),
        ("defaults", 1, 3, 1, True),
        ("low", 1, 20, 5, True),
        ("high", 1, 20, 5, True),
    ],
)
def test_the_interpreted_kernel_gives_the_numbers_of_the_reference(
    interpreted, corner, rows, keys, tokens, noisy
):
    drive, noise, grad = make_case(rows, keys, tokens, noisy)
    values = CORNERS[corner]
    expected, expected_grad = run_reference(drive, values, tokens, noise, grad)
    packed = pack(values)
    out = interpreted.run_forward(drive, noise, packed, tokens)
    ddrive = interpreted.run_backward(drive, noise, grad, packed, tokens)
    scale = expected.abs().max(), expected_grad.abs().max()
    assert torch.allclose(out.double(), expected, rtol=1e-4, atol=1e-5 * float(scale[0]))
    assert torch.allclose(ddrive.double(), expected_grad, rtol=1e-4, atol=1e-5 * float(scale[1]))
    assert float(scale[1]) > 0.0


def test_each_row_of_a_population_has_its_own_parameters(interpreted):
    drive, _, grad = make_case(3, 20, 5, noisy=False)
    drive, grad = drive.movedim(1, 0).contiguous(), grad.movedim(1, 0).contiguous()
    packed = torch.cat([pack(values) for values in CORNERS.values()])
    out = interpreted.run_forward(drive, None, packed, 5)
    ddrive = interpreted.run_backward(drive, None, grad, packed, 5)
    for index, values in enumerate(CORNERS.values()):
        row = slice(index, index + 1)
        expected, expected_grad = run_reference(drive[row], values, 5, None, grad[row])
        assert torch.allclose(out[row].double(), expected, rtol=1e-4, atol=1e-5)
        assert torch.allclose(ddrive[row].double(), expected_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["forward_kernel", "backward_kernel"])
def test_a_kernel_compiles_for_gpus_without_spilling_to_memory(name, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(import_kernels(monkeypatch), name)
    constants = {"tokens": 16, "bits": 4, "has_noise": True, "block": 128}
    types = dict.fromkeys(function.arg_names, "*fp32")
    types |= dict.fromkeys(("per_set", "rows", "updates", "keys"), "i32") | dict.fromkeys(
        constants, "constexpr"
    )
    source = ASTSource(
        function,
        {argument: types[argument] for argument in function.arg_names},
        constexprs={(function.arg_names.index(key),): value for key, value in constants.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 4})
    assert compiled.asm["cubin"]
    assert ".local" not in compiled.asm["ptx"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("corner", CORNERS)
def test_a_gpu_gives_the_numbers_of_the_reference(corner, monkeypatch):
    import_kernels(monkeypatch)
    values = CORNERS[corner]
    drive, noise, grad = make_case(6, 300, 16, noisy=True)
    expected, expected_grad = run_reference(drive, values, 16, noise, grad)
    on_gpu = drive.cuda().requires_grad_()
    params = SynapseTensors(SynapseParams().with_values(values)).cuda()
    out = kernel.fast_scan(on_gpu, params, 16, noise.cuda())
    out.backward(grad.cuda())
    assert torch.allclose(out.cpu().double(), expected, rtol=1e-3, atol=1e-4)
    assert torch.allclose(on_gpu.grad.cpu().double(), expected_grad, rtol=1e-3, atol=1e-4)
