"""Token-by-token decoding with cached synaptic state; the logits equal those of the full forward.

The cache of a layer has keys and values, the terminals of all keys, the memory of the sequence, and
the queries and activities of the current tick.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from synaptune.core.errors import user_error
from synaptune.model.attention import rms_norm, upcast
from synaptune.model.gpt import GPT, Block
from synaptune.synapse.bias import efficacy_bias
from synaptune.synapse.fast_weights import MemoryState, init_memory, memory_step
from synaptune.synapse.terminal import (
    TerminalState,
    efficacy,
    init_terminals,
    map_state,
    terminal_step,
)


@dataclass
class LayerCache:
    """Cached state of one layer.

    Attributes:
        k: keys, (batch, head, token, d).
        v: values, (batch, head, token, d).
        queries: queries of the current tick.
        terminals: terminals of all keys.
        efficacy: efficacy of all keys, (batch, head, key) [vesicle].
        pre: activities a of the current tick.
        post: activities b of the current tick.
        memory: memory of the sequence; None without one.
    """

    k: Tensor
    v: Tensor
    queries: list[Tensor]
    terminals: TerminalState
    efficacy: Tensor
    pre: list[Tensor]
    post: list[Tensor]
    memory: MemoryState | None


class Decoder:
    """A model with its cache, for a batch of sequences of equal length.

    A sequence has at most `model.config.context` tokens.
    """

    def __init__(self, model: GPT, batch: int) -> None:
        self.model, self.position = model, 0
        config, like = model.config, model.head.weight
        empty = like.new_zeros(batch, config.heads, 0, config.head_width)
        self.newborn = init_terminals(like.new_zeros(batch, config.heads, 1), model.synapse)
        no_terminals = map_state(self.newborn, lambda x: x[..., :0])
        self.layers = [
            LayerCache(
                empty,
                empty,
                [],
                no_terminals,
                like.new_zeros(batch, config.heads, 0),
                [],
                [],
                _init_memory(block, batch, like),
            )
            for block in model.blocks
        ]

    @torch.no_grad()
    def feed(self, tokens: Tensor) -> Tensor:
        """Append one token to each sequence and return the logits of the next one.

        Args:
            tokens: (batch,).

        Returns:
            The logits, (batch, vocabulary).

        Raises:
            UserError: the sequences already have the length of the context.
        """
        model, t = self.model, self.position
        if t >= model.config.context:
            raise user_error(
                got=f"{t + 1} tokens",
                expected=f"at most the model's context of {model.config.context}",
                do="shorten the prompt, or train with a larger model.context",
            )
        x = rms_norm(model.embedding(tokens[:, None]))
        rope = (
            (model.rope_cos[t : t + 1], model.rope_sin[t : t + 1])
            if model.config.position == "rope"
            else None
        )
        row = self._get_static_row(t)
        for block, cache in zip(model.blocks, self.layers, strict=True):
            x = self._run_layer(block, cache, x, rope, row)
        self.position += 1
        return model.compute_logits(x[:, -1])

    def _get_static_row(self, t: int) -> Tensor | None:
        size = t + 1 if self.model.release_off else self.model.config.tick
        tick = torch.tensor([t // size], device=self.model.head.weight.device)
        return self.model.make_static_rows(tick, t + 1, size)

    def _run_layer(
        self,
        block: Block,
        cache: LayerCache,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        row: Tensor | None,
    ) -> Tensor:
        model, params = self.model, self.model.synapse
        q, k, v = block.attention.project(rms_norm(x), rope)
        cache.k, cache.v = torch.cat([cache.k, k], 2), torch.cat([cache.v, v], 2)
        bias = row
        if block.presynapse is not None and not model.release_off:
            newborn = efficacy(self.newborn, params)
            cache.efficacy = torch.cat([cache.efficacy, newborn], -1)
            cache.terminals = map_state(
                cache.terminals, lambda old, new: torch.cat([old, new], -1), self.newborn
            )
            synaptic = efficacy_bias(
                cache.efficacy[:, :, None], newborn[:, :, None], params.attention
            )
            bias = synaptic if bias is None else bias + synaptic
            cache.queries.append(q)
            self._finish_tick(block, cache)
        scores = q @ cache.k.transpose(-1, -2) * q.shape[-1] ** -0.5
        weights = (scores if bias is None else scores + bias).softmax(-1)
        x = x + block.attention.merge(weights @ cache.v)
        return self._transform(block, cache, x)

    def _finish_tick(self, block: Block, cache: LayerCache) -> None:
        """Advance the terminals at the last token of a tick; its queries read the state before."""
        assert block.presynapse is not None
        tokens = self.model.config.tick
        if len(cache.queries) < tokens:
            return
        drive = block.presynapse.compute_drive(
            torch.cat(cache.queries, 2).mean(2, keepdim=True), cache.k
        )[:, :, 0]
        # The bias of the current token has been computed, so the efficacy can be replaced.
        cache.terminals, cache.efficacy = terminal_step(
            cache.terminals, drive, self.model.synapse, tokens
        )
        cache.queries = []

    def _transform(self, block: Block, cache: LayerCache, x: Tensor) -> Tensor:
        params, normed = self.model.synapse, rms_norm(x)
        y = block.feedforward(normed, params).out
        if block.memory is None or cache.memory is None:
            return x + y
        a, b = block.memory.compute_activities(normed, y, params)
        recalled = block.memory.read(a, cache.memory.weights)
        cache.pre.append(a)
        cache.post.append(b)
        if len(cache.pre) == self.model.config.tick:
            pre, post = torch.cat(cache.pre, 1), torch.cat(cache.post, 1)
            cache.memory = memory_step(
                cache.memory, pre, post, params.postsynaptic, params.bdnf, delta=block.memory.delta
            )
            cache.pre, cache.post = [], []
        return x + y + recalled


def _init_memory(block: Block, batch: int, like: Tensor) -> MemoryState | None:
    return (
        None
        if block.memory is None
        else init_memory(batch, block.memory.slow.shape[0], upcast(like))
    )


@torch.no_grad()
def generate(
    model: GPT,
    prompt: list[int],
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Continue a prompt and yield each new token.

    When the context is full, decoding starts again from the last half context of the text.

    Args:
        model: the model; it is put into evaluation mode.
        prompt: tokens to continue.
        count: number of new tokens.
        temperature: divisor of the logits; 0 selects the most probable token.
        top_k: sample from the `top_k` most probable tokens only; None for all.
        generator: source of the draws.

    Raises:
        UserError: the prompt is empty.
    """
    if not prompt:
        raise user_error(
            got="an empty prompt", expected="at least one token", do="pass --prompt with some text"
        )
    model.eval()
    context, device = model.config.context, model.head.weight.device
    text = list(prompt)
    decoder, logits = _feed_tokens(model, text[-(context - 1) or len(text) :], device)
    for _ in range(count):
        token = _sample_token(logits[0], temperature, top_k, generator)
        text.append(token)
        yield token
        if decoder.position >= context:
            decoder, logits = _feed_tokens(model, text[-max(1, context // 2) :], device)
        else:
            logits = decoder.feed(torch.tensor([token], device=device))


def _feed_tokens(model: GPT, tokens: list[int], device: torch.device) -> tuple[Decoder, Tensor]:
    decoder = Decoder(model, 1)
    for token in tokens:
        logits = decoder.feed(torch.tensor([token], device=device))
    return decoder, logits


def _sample_token(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> int:
    if temperature == 0.0:
        return int(logits.argmax())
    if top_k is not None:
        logits = torch.where(
            logits < logits.topk(min(top_k, len(logits))).values[-1], -torch.inf, logits
        )
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
