"""Token-by-token decoding with cached synaptic state; the logits equal those of the full forward.

The cache of a layer has keys and values, the terminals of all keys, the memory of the sequence, and
the queries and activities of the current tick.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from synaptune.core.errors import user_error
from synaptune.model.attention import rms_norm, upcast
from synaptune.model.deltanet import DeltaNet, DeltaState
from synaptune.model.gpt import GPT, Block
from synaptune.synapse.bias import efficacy_bias
from synaptune.synapse.fast_weights import MemoryState, init_memory, memory_step, recall
from synaptune.synapse.tensors import SynapseTensors
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
        params: parameters of the synapse in the layer.
        newborn: a new terminal, one per head.
        k: keys, (batch, head, token, d).
        v: values, (batch, head, token, d).
        queries: queries of the current tick.
        terminals: terminals of all keys.
        efficacy: efficacy of all keys, (batch, head, key) [vesicle].
        time: time of the last key on the clock of each head, (batch or 1, head or 1, 1) [token].
        distance: distance bias of all keys, (batch, head, key) [nat]; None without one.
        last: input of the attention at the last token, (batch, 1, width); None before the first.
        memory: memory of the sequence; None without one.
        mixer: state of the gated DeltaNet; None with attention.
    """

    params: SynapseTensors
    newborn: TerminalState
    k: Tensor
    v: Tensor
    queries: list[Tensor]
    terminals: TerminalState
    efficacy: Tensor
    time: Tensor | None
    distance: Tensor | None
    last: Tensor | None
    memory: MemoryState | None
    mixer: DeltaState | None


class Decoder:
    """A model with its cache, for a batch of sequences of equal length.

    A sequence has at most `model.config.context` tokens.
    """

    @torch.no_grad()
    def __init__(self, model: GPT, batch: int) -> None:
        self.model, self.position = model, 0
        config, like = model.config, model.head.weight
        empty = like.new_zeros(batch, config.heads, 0, config.head_width)
        self.layers = []
        for number, block in enumerate(model.blocks):
            params = model.get_synapse(number)
            newborn = init_terminals(like.new_zeros(batch, config.heads, 1), params)
            self.layers.append(
                LayerCache(
                    params,
                    newborn,
                    empty,
                    empty,
                    [],
                    map_state(newborn, lambda x: x[..., :0]),
                    like.new_zeros(batch, config.heads, 0),
                    None,
                    None,
                    None,
                    _init_memory(block, batch, like),
                    block.attention.init_state(batch)
                    if isinstance(block.attention, DeltaNet)
                    else None,
                )
            )

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
        alibi = model.make_alibi(torch.tensor([t], device=tokens.device))
        for block, cache in zip(model.blocks, self.layers, strict=True):
            x = self._run_layer(block, cache, x, rope, alibi)
        self.position += 1
        return model.compute_logits(x[:, -1])

    def _run_layer(
        self,
        block: Block,
        cache: LayerCache,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        alibi: Tensor | None,
    ) -> Tensor:
        model, params, normed = self.model, cache.params, rms_norm(x)
        if isinstance(block.attention, DeltaNet):
            mixed, cache.mixer = block.attention(normed, cache.mixer)
            return self._transform(block, cache, x + mixed)
        q, k, v = block.attention.project(normed, rope, cache.last)
        cache.last = normed
        cache.k, cache.v = torch.cat([cache.k, k], 2), torch.cat([cache.v, v], 2)
        scores = q @ cache.k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if (distance := self._append_distance(block, cache, normed, alibi)) is not None:
            scores = scores + distance[:, :, None]
        if block.presynapse is not None and not model.release_off:
            newborn = efficacy(cache.newborn, params)
            cache.efficacy = torch.cat([cache.efficacy, newborn], -1)
            cache.terminals = map_state(
                cache.terminals, lambda old, new: torch.cat([old, new], -1), cache.newborn
            )
            synaptic = efficacy_bias(
                cache.efficacy[:, :, None], newborn[:, :, None], params.attention
            )
            scores = scores + synaptic
            cache.queries.append(q)
            self._finish_tick(block, cache)
        if model.config.window:
            scores[..., : -model.config.window] = -torch.inf
        x = x + block.attention.merge(scores.softmax(-1) @ cache.v)
        return self._transform(block, cache, x)

    def _append_distance(
        self, block: Block, cache: LayerCache, normed: Tensor, alibi: Tensor | None
    ) -> Tensor | None:
        """Add the new key to the distance bias and return it; None without a distance."""
        bias = alibi
        if block.distance is not None and not self.model.distance_off:
            distance, cache.time = block.distance(normed, cache.params, cache.time)
            bias = distance if bias is None else bias + distance
        if bias is None:
            return None
        bias = bias.expand(normed.shape[0], self.model.config.heads, 1)
        cache.distance = bias if cache.distance is None else torch.cat([cache.distance, bias], -1)
        return cache.distance

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
            cache.terminals, drive, cache.params, tokens
        )
        cache.queries = []

    def _transform(self, block: Block, cache: LayerCache, x: Tensor) -> Tensor:
        params, normed = cache.params, rms_norm(x)
        y = block.feedforward(normed, params).out
        if block.memory is None or cache.memory is None:
            return x + y
        tick = self.model.config.memory_tick
        activity = block.memory.compute_activity(normed, params)
        cache.memory = memory_step(
            cache.memory,
            activity,
            params.postsynaptic,
            params.bdnf,
            delta=block.memory.delta,
            tick=tick,
            ends_tick=self.position % tick == tick - 1,
        )
        recalled = recall(cache.memory.weights, activity.pre[:, 0])[:, None]
        return x + y + block.memory.read(activity.pre, recalled, params)


def _init_memory(block: Block, batch: int, like: Tensor) -> MemoryState | None:
    if block.memory is None:
        return None
    return init_memory(batch * block.memory.heads, block.memory.rows, upcast(like))


@torch.no_grad()
def generate(
    model: GPT,
    prompt: list[int],
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    fatigue: float = 0.0,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Continue a prompt and yield each new token.

    When the context is full, decoding starts again from the last half context of the text. With
    `fatigue` f, a token's logit falls by f times its leaky count n, in which an emitted token
    counts 1 and which recovers as a pool of vesicles does: n' = exp(-1 / tau_rrp) n per token.

    Args:
        model: the model; it is put into evaluation mode.
        prompt: tokens to continue.
        count: number of new tokens.
        temperature: divisor of the logits; 0 selects the most probable token.
        top_k: sample from the `top_k` most probable tokens only; None for all.
        fatigue: loss of logit per emission of a token; 0 for none [nat].
        generator: source of the draws.

    Raises:
        UserError: the prompt is empty, or the model gives no finite logits.
    """
    if not prompt:
        raise user_error(
            got="an empty prompt", expected="at least one token", do="pass --prompt with some text"
        )
    model.eval()
    context, device = model.config.context, model.head.weight.device
    text = list(prompt)
    decoder, logits = _feed_tokens(model, text[-(context - 1) or len(text) :], device)
    recovery = math.exp(-1.0 / float(model.synapse.vesicles.tau_rrp))
    emitted = torch.zeros_like(logits[0])
    for _ in range(count):
        token = _sample_token(logits[0] - fatigue * emitted, temperature, top_k, generator)
        emitted *= recovery
        emitted[token] += 1.0
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
    if not torch.isfinite(logits).all():
        raise user_error(
            got="a model whose logits are not finite numbers",
            expected="a model whose training did not diverge",
            do="train again, with a lower training.lr",
        )
    if temperature == 0.0:
        return int(logits.argmax())
    if top_k is not None:
        logits = torch.where(
            logits < logits.topk(min(top_k, len(logits))).values[-1], -torch.inf, logits
        )
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
