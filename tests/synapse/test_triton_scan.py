"""The Triton kernels of the synaptic bias: their numbers in the interpreter and on a GPU, and that
they compile for GPUs that are not there.
"""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from torch.func import functional_call, grad, stack_module_state, vmap

from helpers.triton_tools import use_interpreter
from synaptune.model import presynapse
from synaptune.synapse import fused
from synaptune.synapse.bias import efficacy_bias
from synaptune.synapse.circuit import SPECS, SynapseParams
from synaptune.synapse.tensors import SynapseTensors
from synaptune.synapse.terminal import terminal_scan

triton = pytest.importorskip("triton", reason="Triton is not installed: synaptune[gpu]")

HERE = [spec for spec in SPECS if spec.subsystem in ("calcium", "vesicles", "energy")]
LAMBDA, EPSILON = "synapse.attention.lambda_loge", "synapse.attention.epsilon"
CORNERS = {
    "defaults": {},
    "low": {spec.name: spec.low for spec in HERE} | {LAMBDA: 0.1},
    "high": {spec.name: spec.high for spec in HERE} | {LAMBDA: 5.0},
}
# A draw empties some terminals. There the gradient is of the order of 1 / epsilon, and rounding in
# fp32 changes it by a share of 1e-7 / epsilon in any implementation.
NOISY = {"synapse.stochastic.stochastic_train_frac": 0.5, EPSILON: 1e-2}
ERROR = 1e-5  # norm of the error over the norm of the values


def import_kernels(monkeypatch):
    """Import the kernels anew: Triton decides at their definition who runs them."""
    for name in ("triton_rates", "triton_step", "triton_scan"):
        monkeypatch.delitem(sys.modules, f"synaptune.synapse.{name}", raising=False)
    return importlib.import_module("synaptune.synapse.triton_scan")


@pytest.fixture
def interpreted(monkeypatch):
    """The kernels in Triton's interpreter, in blocks of 16 keys and segments of 2 ticks."""
    use_interpreter(monkeypatch)
    module = import_kernels(monkeypatch)
    monkeypatch.setattr(module, "BLOCK", 16)
    monkeypatch.setattr(module, "SEGMENT", 2)
    return module


def make_params(values: dict[str, float]) -> SynapseTensors:
    return SynapseTensors(SynapseParams().with_values(values))


def make_case(heads: int, keys: int, tokens: int, dtype=torch.float32, batch: int = 1):
    """Return product and threshold, which have gradients, and the gradient of the bias."""
    stream = torch.Generator().manual_seed(keys)
    updates = -(-keys // tokens) - 1
    product = 3.0 * torch.randn(batch, heads, updates, keys, generator=stream)
    threshold = 2.0 - torch.arange(heads)
    weights = torch.randn(product.shape, generator=stream)
    return product.to(dtype).requires_grad_(), threshold.requires_grad_(), weights


def run_reference(product, threshold, params, tokens, noise, weights):
    """Bias, efficacy and gradients by the reference, in double precision."""
    product, threshold = (x.detach().cpu().double().requires_grad_() for x in (product, threshold))
    drive = product - threshold[:, None, None]
    params = params.cpu().double()
    e = terminal_scan(drive, params, tokens, None if noise is None else noise.cpu().double())
    bias = efficacy_bias(e[:, :, 1:], e[:, :, :1, :1], params.attention)
    bias.backward(weights.cpu().double())
    params.float()
    return bias, e, product.grad, threshold.grad


def check(found, expected, error=ERROR):
    for mine, right in zip(found, expected, strict=True):
        off = (mine.detach().cpu().double() - right.detach()).norm() / right.detach().norm()
        assert float(off) < error, float(off)


def seeded(seed: int = 1, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


@pytest.mark.parametrize(
    ("corner", "heads", "keys", "tokens", "noisy"),
    [
        ("defaults", 2, 21, 8, False),
        ("low", 1, 27, 5, True),
        ("high", 1, 27, 5, True),
        ("defaults", 1, 4, 1, True),
        ("high", 1, 50, 24, False),
    ],
)
def test_the_interpreted_kernels_give_the_numbers_of_the_reference(
    interpreted, corner, heads, keys, tokens, noisy
):
    product, threshold, weights = make_case(heads, keys, tokens, batch=3 - heads)
    params = make_params(CORNERS[corner] | (NOISY if noisy else {}))
    noise = fused.draw_fused_noise(product, params, tokens, seeded()) if noisy else None
    bias, e = fused.fused_bias(
        *(product, threshold, params, tokens, seeded() if noisy else None), needs_efficacy=True
    )
    bias.backward(weights)
    expected = run_reference(product, threshold, params, tokens, noise, weights)
    check((bias, e, product.grad, threshold.grad), expected)
    assert not e.requires_grad
    unborn = torch.arange(keys) // tokens > torch.arange(bias.shape[2])[:, None]
    assert not bias[:, :, unborn].any()
    assert not product.grad[:, :, unborn].any()


def test_products_of_16_bits_have_a_bias_of_32_bits(interpreted):
    product, threshold, weights = make_case(1, 21, 8, torch.bfloat16)
    bias, e = fused.fused_bias(product, threshold, make_params({}), 8)
    bias.backward(weights)
    expected = run_reference(product, threshold, make_params({}), 8, None, weights)
    assert e is None
    assert (bias.dtype, product.grad.dtype) == (torch.float32, torch.bfloat16)
    check((bias, threshold.grad), (expected[0], expected[3]))
    check((product.grad,), expected[2:3], 6e-3)  # the interpreter cuts digits off
    with torch.no_grad():  # stores no states
        assert torch.equal(fused.fused_bias(product, threshold, make_params({}), 8)[0], bias)


def test_noise_is_normal_on_its_share_of_the_pairs_and_a_matter_of_the_seed(
    interpreted, monkeypatch
):
    tokens = 16384
    monkeypatch.setattr(interpreted, "BLOCK", tokens)
    params = make_params({"synapse.stochastic.stochastic_train_frac": 0.25})
    product = torch.zeros(1, 2, 4, tokens)
    noise = fused.draw_fused_noise(product, params, tokens, seeded())
    drawn = noise[noise != 0.0]
    assert len(drawn) / noise.numel() == pytest.approx(0.25, abs=0.01)
    moments = [float((drawn**power).mean()) for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0.0, 1.0, 0.0, 3.0], abs=0.2)
    assert torch.equal(noise, fused.draw_fused_noise(product, params, tokens, seeded()))
    other = fused.draw_fused_noise(product, params, tokens, seeded(2))
    pairs = [(noise, other), (noise[:, 0], noise[:, 1])]  # of two seeds, and of two heads
    pairs += [(noise[:, :, tick], noise[:, :, tick + 1]) for tick in (0, 1)]
    for first, second in pairs:
        both = (first != 0.0) & (second != 0.0)
        assert float(both.float().mean()) == pytest.approx(0.25**2, abs=0.01)
        assert abs(float((first * second)[both].mean())) < 0.1


def test_each_candidate_of_a_population_has_the_numbers_of_a_run_of_its_own(interpreted):
    candidates = [make_params(CORNERS[name] | NOISY) for name in ("defaults", "high")]
    _, buffers = stack_module_state(candidates)
    product, threshold, weights = make_case(1, 11, 5)
    products = torch.stack([product.detach(), -0.5 * product.detach()])
    thresholds = torch.stack([threshold.detach(), threshold.detach() + 1.0])

    class Bias(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.params = candidates[0]

        def forward(self, product, threshold):
            return fused.fused_bias(product, threshold, self.params, 5, seeded())[0]

    def loss(product, threshold, buffers):
        bias = functional_call(Bias(), buffers, (product, threshold))
        return (bias * weights).sum(), bias

    compute = grad(loss, argnums=(0, 1), has_aux=True)
    named = {f"params.{name}": value for name, value in buffers.items()}
    grads, biases = vmap(compute, randomness="same")(products, thresholds, named)
    for index, params in enumerate(candidates):
        alone = {f"params.{name}": value for name, value in params.named_buffers()}
        mine, bias = compute(products[index], thresholds[index], alone)
        assert torch.equal(bias, biases[index])
        for one, other in zip(mine, grads, strict=True):
            assert float(one.abs().max()) > 0.0
            assert torch.allclose(one, other[index], rtol=1e-6)


@pytest.mark.parametrize("length", [13, 16])
def test_a_layer_has_the_bias_and_gradients_of_its_reference(interpreted, monkeypatch, length):
    monkeypatch.setattr(presynapse, "can_fuse", lambda *_: True)
    stream = torch.Generator().manual_seed(0)
    q, k = (2.0 * torch.randn(1, 1, length, 8, generator=stream) for _ in "qk")
    results = []
    for kernel in ("auto", "torch"):
        layer = presynapse.Presynapse(1, 8, kernel)
        leaves = [x.clone().requires_grad_() for x in (q, k)]
        bias, e = layer(*leaves, make_params({}), None)
        bias.square().sum().backward()
        results.append([bias, e, *(x.grad for x in (*leaves, layer.gain, layer.threshold))])
    check(*results)


@pytest.mark.parametrize("name", ["forward_kernel", "backward_kernel"])
def test_a_kernel_compiles_for_gpus_without_spilling_to_memory(name, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module = import_kernels(monkeypatch)
    function = getattr(module, name)
    constants = {"tokens": 16, "bits": 4, "segment": module.SEGMENT, "block": module.BLOCK}
    constants |= {"has_noise": True, "stores": True, "has_efficacy": False}
    types = dict.fromkeys(function.arg_names, "*fp32")
    types |= {"product": "*bf16", "dproduct": "*bf16", "seeds": "*i64"}
    types |= dict.fromkeys(("rows", "heads", "per_set", "updates", "keys"), "i32")
    types |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        function,
        {argument: types[argument] for argument in function.arg_names},
        constexprs={
            (function.arg_names.index(key),): value
            for key, value in constants.items()
            if key in function.arg_names
        },
    )
    target = GPUTarget("cuda", 80, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": module.WARPS})
    assert compiled.asm["cubin"]
    assert ".local" not in compiled.asm["ptx"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("corner", CORNERS)
def test_a_gpu_gives_the_numbers_of_the_reference(corner, monkeypatch):
    import_kernels(monkeypatch)
    product, threshold, weights = (x.detach().cuda() for x in make_case(3, 300, 16))
    product.requires_grad_(), threshold.requires_grad_()
    params = make_params(CORNERS[corner] | NOISY).cuda()
    drawn = fused.draw_fused_noise(product.detach(), params, 16, seeded(device="cuda"))
    bias, e = fused.fused_bias(
        *(product, threshold, params, 16, seeded(device="cuda")), needs_efficacy=True
    )
    bias.backward(weights)
    expected = run_reference(product, threshold, params, 16, drawn, weights)
    check((bias, e, product.grad, threshold.grad), expected, 1e-4)
