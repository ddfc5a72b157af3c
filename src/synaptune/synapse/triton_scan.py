"""The synaptic bias of a layer in two Triton kernels for CUDA: from inner products to bias rows.

A program advances a block of keys of one row (batch, head) from their births to the last tick;
state and parameters stay in registers. Keys of a block step together by age, so that all of them
start as new terminals; a key that reaches the last tick early goes on without reading or writing.
The forward kernel stores the state every `segment` ticks. The backward kernel takes the segments
from the last to the first: it advances the block again from the stored state, keeps the states in a
scratch area of the program, and runs the adjoint back to the start of the segment.

The programs of the oldest keys, which run longest, come first. No kernel uses atomic operations, so
the results are deterministic. The file is imported only for tensors on a GPU. Its tests compare it
with terminal.py and bias.py, in Triton's interpreter on a CPU and, where there is one, on a GPU.

Arguments of the kernels, beside the tensors:
    packed: (set, parameter), the parameters; each set belongs to `per_set` rows, in order.
    seeds: (set,), seeds of the noise; a row draws by its number within the set.
    threshold: (set, head), subtracted from the products.
    rows: batch times heads.
    updates: ticks after the first.
    tokens: tokens of a tick, with `bits` binary digits below the first.
    has_noise: whether release is stochastic.
    block: keys of a program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from synaptune.synapse.triton_rates import Params, State, draw_noise, start
from synaptune.synapse.triton_step import adjoint, bias_of, step

BLOCK = 32  # keys of a program; chosen: one warp, so that early and late keys share a processor
WARPS = 1
# Ticks between two stored states, even; chosen: the states of a segment fit in the L2 cache.
SEGMENT = 16
SIZES = ("rows", "heads", "per_set", "updates", "keys")  # a new value compiles nothing anew
STATES: tl.constexpr = tl.constexpr(len(State._fields))
PARAMETERS: tl.constexpr = tl.constexpr(len(Params._fields))


@triton.jit
def _store(place, state, block: tl.constexpr):
    tl.store(place, state.c)
    tl.store(place + block, state.m)
    tl.store(place + 2 * block, state.r)
    tl.store(place + 3 * block, state.q)
    tl.store(place + 4 * block, state.w)
    tl.store(place + 5 * block, state.v)
    tl.store(place + 6 * block, state.s)
    tl.store(place + 7 * block, state.p)
    tl.store(place + 8 * block, state.a)
    tl.store(place + 9 * block, state.g)


@triton.jit
def _load(place, block: tl.constexpr):
    return State(
        tl.load(place),
        tl.load(place + block),
        tl.load(place + 2 * block),
        tl.load(place + 3 * block),
        tl.load(place + 4 * block),
        tl.load(place + 5 * block),
        tl.load(place + 6 * block),
        tl.load(place + 7 * block),
        tl.load(place + 8 * block),
        tl.load(place + 9 * block),
    )


@triton.jit
def _locate(rows, updates, keys, tokens: tl.constexpr, block: tl.constexpr):
    """Return row, keys, their ticks of birth, the last birth and the ticks of the oldest key."""
    number = tl.program_id(0) // rows
    key = number * block + tl.arange(0, block)
    birth = tl.where(key < keys, key // tokens, updates)
    last = tl.minimum((number * block + block - 1) // tokens, updates)
    count = tl.maximum(updates - number * block // tokens, 0)
    return tl.program_id(0) % rows, key, birth, last, count


@triton.jit
def _draw(seeds, row, per_set, age, key, fraction, spare, has_noise: tl.constexpr):
    """Return the noise of an age and that of the next one, which every second call draws."""
    eta = spare
    if has_noise and age % 2 == 0:
        seed = tl.load(seeds + row // per_set)
        eta, spare = draw_noise(seed, row % per_set, age // 2, key, fraction)
    return eta, spare


@triton.jit
def _fill(out, value, last, key, keys, birth):
    """Write a value for all ticks before the births; `out` is the place of the first tick."""
    for n in range(0, last):
        tl.store(out + n * keys.to(tl.int64) + key, value, mask=(n < birth) & (key < keys))


@triton.jit(do_not_specialize=SIZES)
def noise_kernel(
    seeds,
    packed,
    out,
    rows,
    per_set,
    updates,
    keys,
    tokens: tl.constexpr,
    block: tl.constexpr,
):
    """Write the noise that the other kernels draw, (row, tick, key). Grid: as of them."""
    row, key, birth, _, count = _locate(rows, updates, keys, tokens, block)
    spare = tl.zeros([block], tl.float32)
    at = (row.to(tl.int64) * updates + birth) * keys + key
    _, _, fraction = start(packed + row // per_set * PARAMETERS, spare, 1, 0)
    for age in range(0, count):
        eta, spare = _draw(seeds, row, per_set, age, key, fraction, spare, True)
        tl.store(out + at, eta, mask=birth + age < updates)
        at += keys


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    product,
    threshold,
    packed,
    seeds,
    bias,
    efficacy,
    stored,
    rows,
    heads,
    per_set,
    updates,
    keys,
    tokens: tl.constexpr,
    bits: tl.constexpr,
    segment: tl.constexpr,
    has_noise: tl.constexpr,
    stores: tl.constexpr,
    has_efficacy: tl.constexpr,
    block: tl.constexpr,
):
    """Write the bias (row, tick, key), and where asked the efficacy and the states.

    The efficacy is (row, tick + 1, key); it includes the first tick. The states are (program,
    segment - 1, state, key of the program). Grid: blocks of keys times rows.
    """
    row, key, birth, last, count = _locate(rows, updates, keys, tokens, block)
    zero = tl.zeros([block], tl.float32)
    rates, state, fraction = start(packed + row // per_set * PARAMETERS, zero, tokens, bits)
    shift = tl.load(threshold + row // per_set * heads + row % heads)
    wide = keys.to(tl.int64)
    first = row.to(tl.int64) * updates * wide
    _fill(bias + first, zero, last, key, keys, birth)
    if has_efficacy:
        efficacy += (row.to(tl.int64) * (updates + 1)) * wide
        _fill(efficacy, zero + rates.newborn, last + 1, key, keys, birth + 1)
    segments = tl.cdiv(updates, segment)
    place = stored + tl.program_id(0).to(tl.int64) * (segments - 1) * STATES * block
    place += tl.arange(0, block)
    at = first + birth * wide + key
    drive = tl.load(product + at, mask=birth < updates, other=0.0).to(tl.float32) - shift
    spare = zero
    for start_age in range(0, count, segment):
        if stores and start_age > 0:
            _store(place, state, block)
            place += STATES * block
        for age in range(start_age, tl.minimum(start_age + segment, count)):
            tick = birth + age
            # The next drive is on its way while this tick runs.
            following = tl.load(product + at + wide, mask=tick + 1 < updates, other=0.0)
            eta, spare = _draw(seeds, row, per_set, age, key, fraction, spare, has_noise)
            state, values = step(state, drive, eta, rates, tokens, bits, has_noise)
            tl.store(bias + at, bias_of(values.efficacy, rates), mask=tick < updates)
            if has_efficacy:
                out = efficacy + (tick + 1) * wide + key
                tl.store(out, values.efficacy, mask=tick < updates)
            drive = following.to(tl.float32) - shift
            at += wide


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    product,
    threshold,
    packed,
    seeds,
    dbias,
    stored,
    scratch,
    dproduct,
    dthreshold,
    rows,
    heads,
    per_set,
    updates,
    keys,
    tokens: tl.constexpr,
    bits: tl.constexpr,
    segment: tl.constexpr,
    has_noise: tl.constexpr,
    block: tl.constexpr,
):
    """Write the gradient of the products, and of the threshold the part of each program.

    Grid: as of `forward_kernel`. The scratch area is (program, tick of a segment, state and noise,
    key).
    """
    row, key, birth, last, count = _locate(rows, updates, keys, tokens, block)
    zero = tl.zeros([block], tl.float32)
    rates, newborn, fraction = start(packed + row // per_set * PARAMETERS, zero, tokens, bits)
    shift = tl.load(threshold + row // per_set * heads + row % heads)
    wide = keys.to(tl.int64)
    first = row.to(tl.int64) * updates * wide
    _fill(dproduct + first, zero.to(dproduct.dtype.element_ty), last, key, keys, birth)
    segments = tl.cdiv(updates, segment)
    lane = tl.arange(0, block)
    place = stored + tl.program_id(0).to(tl.int64) * (segments - 1) * STATES * block + lane
    width: tl.constexpr = (STATES + 1) * block
    tape = scratch + tl.program_id(0).to(tl.int64) * segment * width + lane
    grad = State(zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)
    total = zero
    for back in range(0, tl.cdiv(count, segment)):
        number = tl.cdiv(count, segment) - 1 - back
        state = newborn
        if number > 0:
            state = _load(place + (number - 1) * STATES * block, block)
        length = tl.minimum(count - number * segment, segment)
        age = number * segment
        tick = birth + age
        at = first + tick * wide + key
        eta, spare = _draw(seeds, row, per_set, age, key, fraction, zero, has_noise)
        drive = tl.load(product + at, mask=tick < updates, other=0.0).to(tl.float32) - shift
        for index in range(0, length - 1):
            _store(tape + index * width, state, block)
            if has_noise:
                tl.store(tape + index * width + STATES * block, eta)
            following = tl.load(product + at + wide, mask=tick + 1 < updates, other=0.0)
            state, _ = step(state, drive, eta, rates, tokens, bits, has_noise)
            tick += 1
            age += 1
            at += wide
            eta, spare = _draw(seeds, row, per_set, age, key, fraction, spare, has_noise)
            drive = following.to(tl.float32) - shift
        by_bias = tl.load(dbias + at, mask=tick < updates, other=0.0).to(tl.float32)
        for index in range(0, length):
            # The inputs of the tick before are on their way while this tick runs.
            before = tl.maximum(length - 2 - index, 0)
            older = _load(tape + before * width, block)
            older_eta = zero
            if has_noise:
                older_eta = tl.load(tape + before * width + STATES * block)
            # Of the shape of `tick`: a comparison of two numbers is no mask in the interpreter.
            inside = (tick - 1 < updates) & (tick * 0 + index + 1 < length)
            older_drive = tl.load(product + at - wide, mask=inside, other=0.0)
            older_bias = tl.load(dbias + at - wide, mask=inside, other=0.0)
            grad, by_drive = adjoint(
                state, drive, eta, grad, by_bias, rates, tokens, bits, has_noise
            )
            total += by_drive
            tl.store(dproduct + at, by_drive.to(dproduct.dtype.element_ty), mask=tick < updates)
            state, eta = older, older_eta
            drive = older_drive.to(tl.float32) - shift
            by_bias = older_bias.to(tl.float32)
            tick -= 1
            at -= wide
    tl.store(dthreshold + tl.program_id(0), -tl.sum(total, 0))


def run_forward(
    product: Tensor,
    threshold: Tensor,
    packed: Tensor,
    seeds: Tensor | None,
    tokens: int,
    *,
    stores: bool,
    needs_efficacy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bias, the stored states and the efficacy; a part that is not asked for is empty.

    Args:
        product: inner products, (batch, head, updates, key), contiguous, in fp32 or 16 bits.
        threshold: (set, head) in fp32.
        packed: (set, parameter) in fp32.
        seeds: (set,) in int64; None for the expected release.
        tokens: tokens of a tick.
        stores: whether a backward pass follows.
        needs_efficacy: whether to write the efficacy.
    """
    batch, heads, updates, keys = product.shape
    programs = batch * heads * triton.cdiv(keys, BLOCK)
    bias = product.new_empty(product.shape, dtype=torch.float32)
    size = programs * (triton.cdiv(updates, SEGMENT) - 1) * len(State._fields) * BLOCK
    stored = bias.new_empty(len(packed), size // len(packed) if stores else 0)
    efficacy = bias.new_empty(batch, heads, updates + 1 if needs_efficacy else 0, keys)
    forward_kernel[(programs,)](
        product,
        threshold,
        packed,
        packed if seeds is None else seeds,
        bias,
        efficacy,
        stored,
        **_measure(product, packed, tokens),
        has_noise=seeds is not None,
        stores=stores,
        has_efficacy=needs_efficacy,
    )
    return bias, stored, efficacy


def run_backward(
    product: Tensor,
    threshold: Tensor,
    packed: Tensor,
    seeds: Tensor | None,
    stored: Tensor,
    grad: Tensor,
    tokens: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of product and threshold.

    Args:
        product: as in `run_forward`; so are `threshold`, `packed`, `seeds` and `tokens`.
        stored: the states that `run_forward` stored.
        grad: gradient of the bias, contiguous.
    """
    batch, heads, _, keys = product.shape
    blocks = triton.cdiv(keys, BLOCK)
    dproduct = torch.empty_like(product)
    scratch = threshold.new_empty(batch * heads * blocks * SEGMENT * (STATES.value + 1) * BLOCK)
    parts = threshold.new_empty(blocks, len(packed), batch // len(packed), heads)
    backward_kernel[(batch * heads * blocks,)](
        product,
        threshold,
        packed,
        packed if seeds is None else seeds,
        grad,
        stored,
        scratch,
        dproduct,
        parts,
        **_measure(product, packed, tokens),
        has_noise=seeds is not None,
    )
    return dproduct, parts.sum((0, 2))


def write_noise(product: Tensor, packed: Tensor, seeds: Tensor, tokens: int) -> Tensor:
    """Return the noise that `run_forward` draws, shaped as `product`; arguments as there.

    It is 0 for keys that are not born.
    """
    batch, heads, updates, keys = product.shape
    noise = product.new_zeros(product.shape, dtype=torch.float32)
    sizes = (batch * heads, batch * heads // len(packed), updates, keys, tokens)
    grid = (batch * heads * triton.cdiv(keys, BLOCK),)
    noise_kernel[grid](seeds, packed, noise, *sizes, block=BLOCK, num_warps=WARPS)
    return noise


def _measure(product: Tensor, packed: Tensor, tokens: int) -> dict[str, int]:
    """Return the arguments that both kernels share."""
    batch, heads, updates, keys = product.shape
    return {
        "rows": batch * heads,
        "heads": heads,
        "per_set": batch * heads // len(packed),
        "updates": updates,
        "keys": keys,
        "tokens": tokens,
        "bits": tokens.bit_length() - 1,
        "segment": SEGMENT,
        "block": BLOCK,
        "num_warps": WARPS,
    }
