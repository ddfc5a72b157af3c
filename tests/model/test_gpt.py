"""Invariants of the model: causality, decoding, the plain limit, purity and determinism."""

import random

import pytest
import torch
from torch.nn import functional as F

from helpers.steps import train_step
from synaptune.core.errors import UserError
from synaptune.model.attention import AttentionBias, biased_attention
from synaptune.model.config import ModelConfig, find_unused_parameters
from synaptune.model.decode import Decoder, generate
from synaptune.model.gpt import GPT
from synaptune.synapse.circuit import SPECS, SynapseParams
from synaptune.synapse.tensors import SynapseTensors
from synaptune.training.device import compile_model

STRONG = {
    "synapse.attention.barrier_strength": 10.0,
    "synapse.attention.lambda_loge": 3.0,
    "synapse.postsynaptic.post_fast_lr": 0.01,
    "synapse.postsynaptic.post_trace_decay": 0.3,
}
OFF = dict(distance="off", release="off", fast_weights="off", experts=1)
VARIANTS = {
    "default": {},
    "dense": dict(experts=1),
    "hebbian": dict(fast_weights="hebbian"),
    "coarse gate": dict(memory_tick=7),
    "memory of three heads": dict(memory_heads=3),
    "window": dict(window=6),
    "smeared keys": dict(smear=True),
    "window alone": OFF | dict(window=6, position="alibi"),
    "learned slope": OFF | dict(distance="learned"),
    "clock alone": OFF | dict(distance="clock"),
    "alibi": dict(position="alibi"),
    "swiglu": dict(feedforward="swiglu"),
    "selection bias": dict(balance_rate=0.05),
    "barrier": dict(distance="barrier"),
    "barrier alone": OFF | dict(distance="barrier"),
    "per token": dict(tick=1),
    "odd tick": dict(tick=7),
    "plain": OFF,
}


def make_active_model(seed: int = 0, values: dict[str, float] | None = None, **config) -> GPT:
    """Build a model in which every mechanism has an effect: no weight is zero."""
    sizes = dict(layers=2, width=32, heads=2, context=64, tick=8) | config
    model = GPT(
        ModelConfig(**sizes), SynapseParams().with_values(STRONG | (values or {})), 64, seed
    )
    generator = torch.Generator().manual_seed(99)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(0, 0.2, generator=generator)  # also the clocks and the learned writes
        for block in model.blocks:
            if block.memory is not None:
                block.memory.slow.normal_(0, 0.1, generator=generator)
            router = block.feedforward.router
            if router is not None and router.selection is not None:
                router.selection.normal_(0, 0.2, generator=generator)
    return model.eval()


def draw_tokens(rows: int = 2, length: int = 45) -> torch.Tensor:
    return torch.randint(0, 64, (rows, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_token_never_changes_an_earlier_logit(variant):
    model, tokens = make_active_model(**VARIANTS[variant]), draw_tokens()
    with torch.no_grad():
        before = model(tokens).logits
        for t in (7, 8, 23, 44):
            changed = tokens.clone()
            changed[:, t] = (changed[:, t] + 1) % 64
            assert torch.equal(model(changed).logits[:, :t], before[:, :t])
            assert not torch.equal(model(changed).logits[:, t:], before[:, t:])


def test_appending_tokens_leaves_earlier_logits():
    model, tokens = make_active_model(), draw_tokens()
    with torch.no_grad():
        assert torch.allclose(model(tokens[:, :30]).logits, model(tokens).logits[:, :30], atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_token_by_token_gives_the_logits_of_the_full_forward(variant):
    model, tokens = make_active_model(**VARIANTS[variant]), draw_tokens()
    decoder = Decoder(model, len(tokens))
    steps = torch.stack([decoder.feed(tokens[:, t]) for t in range(tokens.shape[1])], 1)
    with torch.no_grad():
        assert torch.allclose(steps, model(tokens).logits, atol=3e-5)


def test_generation_continues_past_the_context_and_is_reproducible():
    model = make_active_model(context=16)
    runs = [
        list(generate(model, [1, 2, 3], 40, generator=torch.Generator().manual_seed(3)))
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert len(runs[0]) == 40
    with pytest.raises(UserError, match="empty prompt"):
        next(generate(model, [], 1))


def test_fatigue_ends_the_loops_of_greedy_decoding():
    """A model that cannot tell tokens apart repeats one; a tired token gives way and recovers."""
    model = make_active_model(context=256, **OFF)
    with torch.no_grad():
        model.embedding.weight.copy_(model.embedding.weight[:1].expand(64, -1))
    kwargs = dict(prompt=[1, 2, 3], count=120, temperature=0.0)
    usual, tired, slow = (
        list(generate(model, **kwargs, fatigue=fatigue)) for fatigue in (0.0, 1.0, 0.01)
    )
    assert list(generate(model, **kwargs)) == usual
    assert len(set(usual)) == 1
    assert len(set(tired)) > len(set(slow)) >= 1
    assert tired.index(usual[0]) == 0
    assert usual[0] in tired[60:]  # it has recovered


def test_shorter_ticks_converge_to_the_per_token_model():
    tokens = draw_tokens(length=64)
    with torch.no_grad():
        out = {tick: make_active_model(tick=tick)(tokens).logits for tick in (1, 2, 4, 8)}
    gap = [(out[tick] - out[1]).abs().mean().item() for tick in (2, 4, 8)]
    assert gap[0] < gap[1] < gap[2]


def test_with_biology_at_zero_the_model_is_the_plain_transformer_bit_for_bit():
    plain = make_active_model(**OFF)
    neutral = {"synapse.attention.lambda_loge": 0.0, "synapse.attention.barrier_strength": 0.0}
    synaptic = make_active_model(values=neutral, fast_weights="off", experts=1)
    synaptic.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(synaptic(draw_tokens()).logits, plain(draw_tokens()).logits)


@pytest.mark.parametrize("biology", [{}, OFF], ids=["synaptic", "plain"])
def test_a_clock_that_has_learned_nothing_is_the_barrier_bit_for_bit(biology):
    """So is a slope; the first weights of both are zero."""
    barrier, logits = make_active_model(**biology | dict(distance="barrier")), []
    for distance in ("barrier", "learned", "clock"):
        model = make_active_model(**biology | dict(distance=distance))
        model.load_state_dict(barrier.state_dict(), strict=False)
        with torch.no_grad():
            for block in model.blocks:
                for weight in block.distance.parameters():
                    weight.zero_()
            logits.append(model(draw_tokens()).logits)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_the_distance_stores_no_token_by_token_tensor():
    """The fused attention keeps one number per query; the clock adds one per key."""
    model = make_active_model(**OFF | dict(distance="clock"), context=256)
    tokens, sizes = draw_tokens(1, 256), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: sizes.append(tuple(x.shape)) or x, lambda x: x
    ):
        model(tokens)
    assert all(shape[-2:] != (256, 256) for shape in sizes)


def test_autocast_keeps_the_digits_of_the_distance():
    """A bias of hundreds of nats, of which neighbours differ by less than bf16 resolves."""
    length = 512
    q, k, v = (
        torch.randn(1, 1, length, 16, generator=torch.Generator().manual_seed(n)) for n in range(3)
    )
    bias = AttentionBias(distance=torch.arange(1.0, length + 1)[None, None])
    expected = biased_attention(q, k, v, bias)
    with torch.autocast("cpu", torch.bfloat16):
        ours = biased_attention(q, k, v, bias)
    assert (ours - expected).abs().max() < 0.05


def test_a_head_forgets_at_a_token_that_makes_its_clock_run():
    """A burst of the clock between a key and its query takes the key out of the attention."""
    model = make_active_model(**OFF | dict(distance="clock", layers=1))
    tokens = draw_tokens(1, 20)
    block = model.blocks[0]
    with torch.no_grad():
        block.distance.weight.zero_()
        before = model(tokens).logits
        burst = torch.nn.functional.rms_norm(model.embedding.weight[tokens[0, 10]], (32,))
        block.distance.weight.copy_(0.25 * burst.expand(2, -1))
        after = model(tokens).logits
        changed = tokens.clone()
        changed[:, :10] = (changed[:, :10] + 1) % 64  # the past before the burst
        gap = (model(changed).logits - after)[:, 12:].abs().max()
        block.distance.weight.zero_()
        usual = (model(changed).logits - before)[:, 12:].abs().max()
    assert gap < 0.1 * usual


def test_a_window_hides_what_lies_before_it():
    model, tokens = make_active_model(**OFF | dict(window=6, layers=1)), draw_tokens()
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 64
    with torch.no_grad():
        difference = (model(changed).logits - model(tokens).logits).abs().amax((0, 2))
    assert (difference[3:9] > 0.0).all()
    assert (difference[9:] < 1e-6).all()


@pytest.mark.parametrize("release", ["dynamic", "off"])
@pytest.mark.parametrize(
    "noise", [dict(noise="event"), dict(dropout=0.3)], ids=["event", "dropout"]
)
def test_noise_on_the_attention_weights_is_drawn_while_training_and_keeps_their_mean(
    noise, release
):
    values = {"synapse.stochastic.stochastic_train_frac": 1.0}
    if "dropout" in noise:
        values = {"synapse.stochastic.stochastic_train_frac": 0.0}
    model = make_active_model(values=values, release=release, layers=1, **noise)
    tokens, draws = draw_tokens(), []
    with torch.no_grad():
        expected = model(tokens).logits
        for seed in range(2):
            first, second = (
                model(tokens, torch.Generator().manual_seed(seed)).logits for _ in range(2)
            )
            assert torch.equal(first, second)
            draws.append(first)
        assert torch.equal(model(tokens).logits, expected)
    assert not torch.equal(draws[0], draws[1])
    assert (draws[0] - expected).abs().mean() < 1.5


def test_the_resting_release_probability_is_that_of_a_new_terminal_at_the_defaults():
    from synaptune.model.noise import RESTING_PROBABILITY
    from synaptune.synapse.terminal import efficacy, init_terminals

    params = SynapseTensors(SynapseParams())
    e = efficacy(init_terminals(torch.zeros(()), params), params)
    assert float(e / params.vesicles.init_rrp) == pytest.approx(RESTING_PROBABILITY, abs=1e-3)


def test_a_synapse_at_neutral_values_equals_the_plain_transformer():
    """The bias is computed with lambda and barrier as tensors of 0, not skipped."""
    plain, synaptic = make_active_model(**OFF), make_active_model(fast_weights="off", experts=1)
    synaptic.load_state_dict(plain.state_dict(), strict=False)
    synaptic.synapse.attention.lambda_loge.zero_()
    synaptic.synapse.attention.barrier_strength.zero_()
    with torch.no_grad():
        assert torch.allclose(
            synaptic(draw_tokens()).logits, plain(draw_tokens()).logits, atol=1e-5
        )


def test_a_forward_pass_changes_no_state_and_rows_are_independent():
    model, tokens = make_active_model(), draw_tokens(rows=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        first, second = model(tokens).logits, model(tokens).logits
        single = torch.cat([model(row[None]).logits for row in tokens])
    assert torch.equal(first, second)
    assert torch.allclose(first, single, atol=2e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def train(model: GPT, steps: int, *, rate: float = 3e-3, length: int = 48) -> list[float]:
    optimizer, losses = torch.optim.AdamW(model.make_decay_groups(0.1), lr=rate), []
    generator, noise = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    for step in range(1, steps + 1):
        tokens = torch.randint(0, 64, (4, length + 1), generator=generator)
        losses.append(train_step(model, optimizer, tokens, noise, step))
    return losses


def test_the_same_seed_gives_the_same_losses_bit_for_bit_and_another_seed_does_not():
    runs = [
        train(
            GPT(ModelConfig(layers=1, width=32, heads=2, context=64), SynapseParams(), 64, seed), 8
        )
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    weights = [
        GPT(ModelConfig(width=32, heads=2), SynapseParams(), 64, seed).embedding.weight
        for seed in (0, 1)
    ]
    assert not torch.equal(*weights)


def test_gradients_are_finite_for_every_weight_at_random_corners_of_the_space():
    rng = random.Random(0)
    for trial in range(40):
        values = {
            s.name: int(v) if s.scale == "int" else v
            for s in SPECS
            if not s.of_run
            for v in [rng.choice((s.low, s.high))]
        }
        model = make_active_model(values=values, layers=1)
        out = model(draw_tokens(), torch.Generator().manual_seed(trial))
        (
            F.cross_entropy(out.logits.flatten(0, 1), draw_tokens().flatten()) + out.balance
        ).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None, name
            assert torch.isfinite(p.grad).all(), (name, values)


@pytest.mark.slow
def test_structural_events_occur_at_the_defaults_and_move_the_moments_of_the_optimizer():
    params = SynapseParams().with_values({"synapse.structural.structural_interval": 20})
    model = GPT(ModelConfig(layers=2, width=32, heads=2, context=64), params, 64, 0)
    optimizer = torch.optim.AdamW(model.make_decay_groups(0.1), lr=1e-2)
    merges = splits = 0
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 201):
        tokens = torch.randint(0, 8, (4, 49), generator=generator)
        out = model(tokens[:, :-1])
        optimizer.zero_grad()
        (
            F.cross_entropy(out.logits.flatten(0, 1), tokens[:, 1:].flatten()) + out.balance
        ).backward()
        optimizer.step()
        events = model.apply_plasticity([out.activity], step, optimizer)
        merges += sum(merged for merged, _ in events)
        splits += sum(split for _, split in events)
    assert merges > 0
    assert splits > 0


def test_a_split_makes_two_experts_whose_mean_is_their_parent():
    model = make_active_model(experts=4)
    router = model.blocks[0].feedforward.router
    router.utilisation.copy_(torch.tensor([0.02, 0.22, 0.26, 0.5]))
    router.energy.copy_(torch.tensor([0.3, 0.3, 0.3, 0.6]))
    parent = model.blocks[0].feedforward.up[3].clone()
    after, mixes, counts = model.remodel_experts()
    twins = after["blocks.0.feedforward.up"][[0, 3]]
    assert counts[0, 1] == 1
    assert torch.allclose(twins.mean(0), parent, atol=1e-6)
    assert not torch.equal(twins[0], twins[1])
    assert mixes["blocks.0.feedforward.up"][0].tolist() == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("feedforward", ["relu2", "swiglu"])
def test_training_with_the_chosen_experts_alone_equals_all_of_them_weighed(feedforward, top_k):
    """In values and in the gradients of all weights."""
    results = []
    for kernel in ("auto", "torch"):
        model = make_active_model(
            feedforward=feedforward, top_k=top_k, ff_multiple=3, kernel=kernel
        ).train()
        logits = model(draw_tokens()).logits
        logits.square().sum().backward()
        results.append((logits, {name: p.grad for name, p in model.named_parameters()}))
    (chosen, gradients), (every, reference) = results
    assert torch.allclose(chosen, every, atol=1e-4)
    for name, gradient in gradients.items():
        scale = reference[name].abs().max()
        assert torch.allclose(gradient, reference[name], atol=2e-3 * float(scale)), name


def test_the_chosen_experts_keep_less_for_the_backward_pass_than_a_dense_block():
    """Rectified hidden units alone, where autograd keeps their squares and outputs as well."""
    kept = {}
    for experts in (1, 4):
        model = make_active_model(**OFF | dict(experts=experts), ff_multiple=16).train()
        sizes = {weight.data_ptr(): 0 for weight in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: (sizes.setdefault(x.data_ptr(), x.nbytes), x)[1], lambda x: x
        ):
            model(draw_tokens()).logits.sum().backward()
        kept[experts] = sum(sizes.values())
    assert kept[4] < kept[1]


@pytest.mark.slow
def test_a_model_that_torch_compile_traces_is_the_same_model():
    """Of torch.compile only the tracing runs here; the code that it writes takes minutes."""
    results = []
    for backend in (None, "eager"):
        model = make_active_model().train()
        if backend:
            compile_model(model, torch.device("cpu"), backend)
        logits = model(draw_tokens()).logits
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    for ours, reference in zip(*results, strict=True):
        assert torch.allclose(ours, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_no_nan_on_associative_recall_at_the_defaults_and_at_random_corners_over_a_thousand_steps():
    from synaptune.data.batches import make_train_batch
    from synaptune.data.config import DataConfig
    from synaptune.data.corpus import load_corpus

    data, rng = DataConfig(recall_fraction=1.0), random.Random(3)
    corpus = load_corpus(data, 32)
    for trial in range(2):
        corner = {
            s.name: int(v) if s.scale == "int" else v
            for s in SPECS
            if not s.of_run
            for v in [rng.choice((s.low, s.high))]
        }
        values = {"synapse.structural.structural_interval": 50} | (corner if trial else {})
        model = GPT(
            ModelConfig(layers=1, width=32, heads=2, context=32, tick=8),
            SynapseParams().with_values(values),
            corpus.vocab,
            0,
        )
        optimizer = torch.optim.AdamW(model.make_decay_groups(0.1), lr=3e-3)
        for step in range(1, 1001):
            batch = make_train_batch(corpus, data, seed=0, step=step, size=4, context=32)
            out = model(batch.tokens, torch.Generator().manual_seed(step))
            loss = F.cross_entropy(
                out.logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100
            )
            optimizer.zero_grad()
            (loss + out.balance).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            model.apply_plasticity([out.activity], step, optimizer)
            assert torch.isfinite(loss), (step, values)


def test_unused_parameters_are_named_with_the_setting_that_uses_them():
    dense = find_unused_parameters(ModelConfig(experts=1))
    assert {name.split(".")[1] for name in dense} == {"structural"}
    assert "model.experts" in dense["synapse.structural.energy_cost_rel"]
    assert find_unused_parameters(ModelConfig()) == {}
    assert set(find_unused_parameters(ModelConfig(**OFF))) == {s.name for s in SPECS}


def test_every_fault_of_an_impossible_configuration_is_named():
    with pytest.raises(UserError) as raised:
        GPT(ModelConfig(width=30, heads=4, position="absolute", top_k=5), SynapseParams(), 64, 0)
    assert all(
        word in str(raised.value)
        for word in ("model.width=30", "model.position=absolute", "model.top_k=5")
    )
