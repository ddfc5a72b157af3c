"""The gated DeltaNet: its chunks are the token loop, and the model keeps its invariants."""

from __future__ import annotations

import pytest
import torch

from synaptune.core.errors import UserError
from synaptune.model.config import ModelConfig, check_model
from synaptune.model.decode import Decoder
from synaptune.model.deltanet import CHUNK, delta_scan
from synaptune.model.gpt import GPT
from synaptune.synapse.circuit import SynapseParams

PLAIN = dict(distance="off", release="off", fast_weights="off", experts=1, mixer="deltanet")


def make_model() -> GPT:
    config = ModelConfig(layers=2, width=32, heads=2, context=80, **PLAIN)
    model = GPT(config, SynapseParams(), 64, seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():
                weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    return model.eval()


def draw_tokens(length: int) -> torch.Tensor:
    return torch.randint(0, 64, (2, length), generator=torch.Generator().manual_seed(2))


def test_the_chunks_are_the_gated_delta_rule_of_each_token():
    generator = torch.Generator().manual_seed(0)
    length = 2 * CHUNK + 5

    def draw(*shape):
        return torch.randn(2, 3, length, *shape, generator=generator, dtype=torch.float64)

    q, k, v = draw(4), torch.nn.functional.normalize(draw(4), dim=-1), draw(4)
    log_alpha, beta = -draw().exp() * 0.1, draw().sigmoid()
    start = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    reads, end = delta_scan((q, k, v), log_alpha, beta, start)
    state = start
    for t in range(length):
        state = log_alpha[:, :, t, None, None].exp() * state
        recalled = (state @ k[:, :, t, :, None])[..., 0]
        write = beta[:, :, t, None] * (v[:, :, t] - recalled)
        state = state + write[..., None] * k[:, :, t, None]
        torch.testing.assert_close(reads[:, :, t], (state @ q[:, :, t, :, None])[..., 0])
    torch.testing.assert_close(end, state)


def test_decoding_gives_the_logits_of_the_full_forward():
    model, tokens = make_model(), draw_tokens(70)
    decoder = Decoder(model, 2)
    steps = torch.stack([decoder.feed(tokens[:, t]) for t in range(tokens.shape[1])], 1)
    torch.testing.assert_close(steps, model(tokens).logits, atol=1e-4, rtol=1e-3)


def test_a_later_token_changes_no_earlier_logit():
    model, tokens = make_model(), draw_tokens(60)
    before = model(tokens).logits
    tokens[:, 40] = (tokens[:, 40] + 1) % 64
    after = model(tokens).logits
    assert torch.equal(before[:, :40], after[:, :40])
    assert not torch.equal(before[:, 40:], after[:, 40:])


@pytest.mark.parametrize(
    "settings",
    [
        dict(distance="clock"),
        dict(window=6),
        dict(smear=True),
        dict(release="dynamic"),
        dict(dropout=0.1),
    ],
)
def test_a_mechanism_of_attention_is_refused(settings):
    with pytest.raises(UserError, match=f"deltanet with model.{next(iter(settings))}: expected"):
        check_model(ModelConfig(**PLAIN | settings))
