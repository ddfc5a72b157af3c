"""Parameters of the synapse that are learned by gradient."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.nn import functional as F

from helpers.paths import ROOT
from synaptune.config.run import run
from synaptune.config.schema import register
from synaptune.config.settings import compute_fingerprint, read_settings
from synaptune.core.errors import UserError
from synaptune.model.config import ModelConfig
from synaptune.model.decode import Decoder
from synaptune.model.gpt import GPT
from synaptune.synapse.circuit import SPECS, SynapseParams
from synaptune.synapse.kernel import fast_scan, load_library
from synaptune.synapse.learned import find_learn_faults
from synaptune.synapse.tensors import SynapseTensors
from synaptune.synapse.terminal import terminal_scan
from synaptune.training.checkpoint import load_model
from synaptune.training.population import Population

CONFIG = ModelConfig(layers=2, width=32, heads=2, context=48, tick=8)
LEARNABLE = [
    spec
    for spec in SPECS
    if not find_learn_faults(dataclasses.replace(SynapseParams(), learn=(spec.name,)), {})
]
INSIDE = [spec for spec in LEARNABLE if spec.low < spec.default < spec.high]
PRESYNAPTIC = [s for s in LEARNABLE if s.subsystem in ("calcium", "vesicles", "energy")]


def make_model(*learn: str, config: ModelConfig = CONFIG, move: float = 0.0) -> GPT:
    """Build a model without zero weights, with its learned weights moved apart by `move`."""
    params = SynapseParams().with_values({"synapse.attention.lambda_loge": 3.0})
    model = GPT(config, dataclasses.replace(params, learn=learn), 64, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not weight.any():
                weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
            if name.startswith("learned"):
                weight += move * torch.arange(1.0, len(weight) + 1.0)
    return model


def draw_tokens(length: int = 40) -> torch.Tensor:
    return torch.randint(0, 64, (2, length), generator=torch.Generator().manual_seed(1))


def compute_loss(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(tokens[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def test_every_continuous_parameter_inside_the_gradient_can_be_learned():
    assert len(LEARNABLE) == 33
    assert {spec.subsystem for spec in LEARNABLE} == {
        "calcium",
        "vesicles",
        "energy",
        "postsynaptic",
        "attention",
    }


def test_a_learned_model_starts_as_the_unlearned_one():
    learned, plain = make_model(*(spec.name for spec in INSIDE)), make_model()
    tokens = draw_tokens()
    torch.testing.assert_close(learned(tokens).logits, plain(tokens).logits, atol=2e-4, rtol=1e-4)


def test_a_learned_value_never_leaves_its_range():
    model = make_model(*(spec.name for spec in LEARNABLE))
    for direction, end in ((-1e3, "low"), (1e3, "high")):
        for weight in model.learned.weights:
            weight.data.fill_(direction)
        for spec, values in zip(
            model.learned.specs, model.learned.compute_values().values(), strict=True
        ):
            low, high = torch.tensor([spec.low, spec.high])
            assert ((low <= values) & (values <= high)).all(), spec.name
            assert values.tolist() == pytest.approx([getattr(spec, end)] * 2, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize(
    "name",
    [
        "calcium.tau_c",
        "calcium.syt1_slope",
        "vesicles.tau_rrp",
        "energy.amp_load",
        "postsynaptic.post_fast_decay",
        "postsynaptic.camkii_up",
        "attention.lambda_loge",
        "attention.barrier_strength",
        "attention.epsilon",
    ],
)
def test_the_gradient_of_a_learned_weight_is_that_of_finite_differences(name, kernel):
    config = dataclasses.replace(CONFIG, experts=1, kernel=kernel)
    model, tokens = make_model(name, config=config).double(), draw_tokens()
    weight = model.learned.weights[0]
    compute_loss(model, tokens).backward()
    for layer in range(2):
        ends = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                weight[layer] += sign * 1e-5
                ends.append(float(compute_loss(model, tokens)))
                weight[layer] -= sign * 1e-5
        expected = (ends[0] - ends[1]) / 2e-5
        assert float(weight.grad[layer]) == pytest.approx(expected, rel=1e-3, abs=1e-9)


@pytest.mark.skipif(
    load_library("scan", torch.float64) is None, reason="no C compiler on this machine"
)
@pytest.mark.parametrize("stochastic", [False, True])
def test_the_compiled_scan_gives_the_parameter_gradients_of_the_reference(stochastic):
    generator = torch.Generator().manual_seed(3)
    drive = 4 * torch.randn(2, 2, 4, 48, generator=generator, dtype=torch.float64)
    noise = torch.randn(drive.shape, generator=generator).double() if stochastic else None
    grads = {}
    for scan in (terminal_scan, fast_scan):
        params = SynapseTensors(SynapseParams()).double()
        values = [getattr(getattr(params, s.subsystem), s.label) for s in PRESYNAPTIC]
        for value in values:
            value.requires_grad_()
        torch.log(scan(drive, params, 16, noise) + 1e-6).sum().backward()
        grads[scan] = torch.stack([value.grad for value in values])
    torch.testing.assert_close(grads[fast_scan], grads[terminal_scan], rtol=1e-5, atol=1e-6)


def test_decoding_uses_the_values_of_each_layer():
    model = make_model(
        "calcium.alpha_ca",
        "vesicles.init_rrp",
        "postsynaptic.post_fast_decay",
        "attention.barrier_strength",
        move=0.1,
    ).eval()
    values = model.get_learned_values()
    assert values["learned.calcium.alpha_ca.0"] != values["learned.calcium.alpha_ca.1"]
    tokens, decoder = draw_tokens(), Decoder(model, 2)
    steps = torch.stack([decoder.feed(tokens[:, t]) for t in range(tokens.shape[1])], 1)
    torch.testing.assert_close(steps, model(tokens).logits, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("calcium.tauc", "closest: synapse.calcium.tau_c"),
        ("postsynaptic.rank_eligibility", "this one is an integer"),
        ("structural.structural_interval", "this one is an integer"),
        ("postsynaptic.post_slow_lr", "acts outside of it"),
        ("stochastic.stochastic_train_frac", "acts outside of it"),
    ],
)
def test_what_cannot_be_learned_is_refused(entry, said):
    faults = find_learn_faults(SynapseParams(learn=(entry,)), {})
    assert len(faults) == 1
    assert faults[0].startswith(f"synapse.learn={entry}")
    assert said in faults[0]


def compose_settings(*overrides: str):
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return read_settings(compose("train", overrides=list(overrides)))


def test_a_parameter_that_the_model_does_not_use_or_that_is_off_is_refused():
    with pytest.raises(UserError, match=r"model\.release is off"):
        compose_settings("model=gpt", "synapse.learn=[calcium.tau_c]")
    with pytest.raises(UserError, match=r"lambda_loge=0 is off; expected 0\.1 to 5"):
        compose_settings("synapse.attention.lambda_loge=0", "synapse.learn=[attention.lambda_loge]")


def test_learning_is_part_of_the_fingerprint_and_its_absence_is_not():
    plain, learned = compose_settings(), compose_settings("synapse.learn=[calcium.tau_c]")
    assert compute_fingerprint(plain) != compute_fingerprint(learned)
    assert plain.synapse.learn == ()


def test_a_population_of_learned_parameters_is_refused():
    with pytest.raises(UserError, match=r"synapse\.learn"):
        Population([make_model("calcium.tau_c")], decays=[0.0], clips=[1.0])


def test_a_run_learns_reports_and_resumes_its_values(tmp_path):
    register()
    overrides = ["scale=smoke", "logger=csv", "logger.progress=off", "data.max_bytes=60_000"]
    overrides += ["synapse.learn=[calcium.alpha_ca,attention.barrier_strength]"]
    overrides += ["training.steps=8", "training.checkpoint_every=4", "training.evaluations=4"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=overrides)
    whole = run(cfg, tmp_path / "whole", overrides=[])
    name = "learned.attention.barrier_strength.0"
    assert whole.metrics[name] != pytest.approx(0.1, rel=1e-3)
    stored = json.loads((tmp_path / "whole" / "result.json").read_text())["metrics"]
    assert stored[name] == whole.metrics[name]

    def interrupt(step: int, loss: float) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cfg, tmp_path / "part", overrides=[], report=interrupt)
    cfg.training.resume = True
    resumed = run(cfg, tmp_path / "part", overrides=[])
    assert resumed.metrics[name] == whole.metrics[name]
    assert resumed.objective == whole.objective
    model, _, _ = load_model(tmp_path / "part" / "checkpoint.pt")
    assert model.get_learned_values()[name] == pytest.approx(resumed.metrics[name])
