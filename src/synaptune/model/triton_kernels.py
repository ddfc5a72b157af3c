"""The kernels of triton_attention.py.

A program owns a tile of queries or of keys and loops over the other; the logits stay on the chip,
as in FlashAttention. A tile of queries holds whole ticks, so its biases are (tick, key), a small
part of a tile of logits. The backward pass computes the logits again from the stored logarithm of
their sum: one kernel writes the gradient of the queries, another those of keys, values and biases.
No kernel uses atomic operations, so the results are deterministic.

Arguments of all kernels, beside the tensors:
    strides: of batch, head and token (or row) of each tensor that may be a view.
    heads: attention heads.
    pairs: batch times heads.
    tokens: tokens of a sequence.
    updates: rows of the bias.
    scale: factor of an inner product, log2(e) / sqrt(d).
    width: d, in `wide` columns of a tile.
    tick: tokens of a tick, in `padded` places of a tile.
    block: places of a tile of queries.
    keys: keys of a tile.
    has_rows, has_distance: whether there is a bias per tick and key, and per key.
    even: whether every place of every tile of queries holds a token.
    precision: of products in fp32.

Source: Dao, arXiv 2307.08691 (FlashAttention-2); the sums of the bias: derived.
"""

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _locate(tile, tokens, tick: tl.constexpr, padded: tl.constexpr, block: tl.constexpr):
    """Return the tokens of a tile of queries and which of its places hold one.

    A tick takes `padded` places, a power of two.
    """
    place = tl.arange(0, block)
    if padded == tick:
        token = tile * block + place
        exists = token < tokens
    else:
        token = (tile * (block // padded) + place // padded) * tick + place % padded
        exists = (place % padded < tick) & (token < tokens)
    return token, exists


@triton.jit
def _load(base, stride, token, exists, even: tl.constexpr, width: tl.constexpr, wide: tl.constexpr):
    """Load vectors (token, wide); zeros where no token exists and beyond the width."""
    column = tl.arange(0, wide)
    at = base + token[:, None] * stride + column[None, :]
    if even and width == wide:
        tile = tl.load(at)
    elif even:
        tile = tl.load(at, mask=column[None, :] < width, other=0.0)
    else:
        tile = tl.load(at, mask=exists[:, None] & (column[None, :] < width), other=0.0)
    return tile


@triton.jit
def _store(base, stride, token, exists, value, width: tl.constexpr, wide: tl.constexpr):
    column = tl.arange(0, wide)
    at = base + token[:, None] * stride + column[None, :]
    mask = exists[:, None] & (column[None, :] < width)
    tl.store(at, value.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _load_distance(distance, key, inside, even: tl.constexpr, has_distance: tl.constexpr):
    """Return the bias of keys, times log2(e)."""
    bias = tl.zeros(key.shape, tl.float32)
    if has_distance:
        if even:
            bias = tl.load(distance + key) * LOG2_E
        else:
            bias = tl.load(distance + key, mask=inside, other=0.0) * LOG2_E
    return bias


@triton.jit
def _load_rows(rows, stride, row, key, inside, updates, even: tl.constexpr):
    """Return the bias (row, key) or (key, row), as the arguments are shaped, times log2(e)."""
    at = rows + row * stride + key
    if even:
        bias = tl.load(at)
    else:
        bias = tl.load(at, mask=(row >= 0) & (row < updates) & inside, other=0.0)
    return bias.to(tl.float32) * LOG2_E


@triton.jit
def _load_bias(
    rows,
    distance,
    stride,
    tile,
    key,
    inside,
    updates,
    even: tl.constexpr,
    padded: tl.constexpr,
    block: tl.constexpr,
    keys: tl.constexpr,
    has_rows: tl.constexpr,
    has_distance: tl.constexpr,
):
    """Return the bias of a tile, (query, key) or (1, key), times log2(e)."""
    bias = _load_distance(distance, key, inside, even, has_distance)[None, :]
    if has_rows:
        ticks: tl.constexpr = block // padded
        row = (tile * ticks + tl.arange(0, ticks) - 1)[:, None]
        bias += _load_rows(rows, stride, row, key[None, :], inside[None, :], updates, even)
        bias = tl.reshape(tl.broadcast_to(bias[:, None, :], [ticks, padded, keys]), [block, keys])
    return bias


@triton.jit
def forward_kernel(
    q,
    k,
    v,
    rows,
    distance,
    out,
    norm,
    strides,
    heads,
    pairs,
    tokens,
    updates,
    scale,
    width: tl.constexpr,
    wide: tl.constexpr,
    tick: tl.constexpr,
    padded: tl.constexpr,
    block: tl.constexpr,
    keys: tl.constexpr,
    has_rows: tl.constexpr,
    has_distance: tl.constexpr,
    even: tl.constexpr,
    precision: tl.constexpr,
):
    """Write the output and the base-2 logarithm of the sum of the weights.

    Grid: tiles of queries times pairs of batch and head, the longest loops first.
    """
    of_q, of_k, of_v, of_rows, of_distance, of_out = strides
    pair = tl.program_id(0) % pairs
    tile = (tl.num_programs(0) - 1 - tl.program_id(0)) // pairs
    batch, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    q += batch * of_q[0] + head * of_q[1]
    k += batch * of_k[0] + head * of_k[1]
    v += batch * of_v[0] + head * of_v[1]
    rows += batch * of_rows[0] + head * of_rows[1]
    distance += batch * of_distance[0] + head * of_distance[1]
    token, exists = _locate(tile, tokens, tick, padded, block)
    query = _load(q, of_q[2], token, exists, even, width, wide)
    total = tl.zeros([block, wide], tl.float32)
    mass = tl.zeros([block], tl.float32)
    peak = tl.full([block], -float("inf"), tl.float32)
    span: tl.constexpr = block // padded * tick
    diagonal = tile * span // keys * keys
    for edge in tl.static_range(2):  # the keys before all queries, then those of the diagonal
        if edge:
            low, high = diagonal, tl.minimum((tile + 1) * span, tokens)
        else:
            low, high = 0, diagonal
        for start in range(low, high, keys):
            key = start + tl.arange(0, keys)
            inside = key < tokens
            own = _load(k, of_k[2], key, inside, not edge, width, wide)
            logit = tl.dot(query, tl.trans(own), input_precision=precision) * scale
            logit += _load_bias(
                rows,
                distance,
                of_rows[2],
                tile,
                key,
                inside,
                updates,
                not edge and even,
                padded,
                block,
                keys,
                has_rows,
                has_distance,
            )
            if edge:
                seen = (key[None, :] <= token[:, None]) & inside[None, :]
                logit = tl.where(seen, logit, -float("inf"))
            higher = tl.maximum(peak, tl.max(logit, 1))
            weight = tl.math.exp2(logit - higher[:, None])
            shrink = tl.math.exp2(peak - higher)
            mass = mass * shrink + tl.sum(weight, 1)
            value = _load(v, of_v[2], key, inside, not edge, width, wide)
            total = tl.dot(
                weight.to(value.dtype), value, total * shrink[:, None], input_precision=precision
            )
            peak = higher
    out += batch * of_out[0] + head * of_out[1]
    _store(out, of_out[2], token, exists, total / mass[:, None], width, wide)
    tl.store(norm + pair.to(tl.int64) * tokens + token, peak + tl.math.log2(mass), mask=exists)


@triton.jit
def query_gradient_kernel(
    q,
    k,
    v,
    rows,
    distance,
    out,
    norm,
    dout,
    delta,
    dq,
    strides,
    heads,
    pairs,
    tokens,
    updates,
    scale,
    width: tl.constexpr,
    wide: tl.constexpr,
    tick: tl.constexpr,
    padded: tl.constexpr,
    block: tl.constexpr,
    keys: tl.constexpr,
    has_rows: tl.constexpr,
    has_distance: tl.constexpr,
    even: tl.constexpr,
    precision: tl.constexpr,
):
    """Write the gradient of the queries and delta, the inner products of output and gradient.

    Grid: as of `forward_kernel`.
    """
    of_q, of_k, of_v, of_rows, of_distance, of_out, of_dout, of_dq = strides
    pair = tl.program_id(0) % pairs
    tile = (tl.num_programs(0) - 1 - tl.program_id(0)) // pairs
    batch, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    q += batch * of_q[0] + head * of_q[1]
    k += batch * of_k[0] + head * of_k[1]
    v += batch * of_v[0] + head * of_v[1]
    rows += batch * of_rows[0] + head * of_rows[1]
    distance += batch * of_distance[0] + head * of_distance[1]
    out += batch * of_out[0] + head * of_out[1]
    dout += batch * of_dout[0] + head * of_dout[1]
    token, exists = _locate(tile, tokens, tick, padded, block)
    query = _load(q, of_q[2], token, exists, even, width, wide)
    grad = _load(dout, of_dout[2], token, exists, even, width, wide)
    output = _load(out, of_out[2], token, exists, even, width, wide)
    along = tl.sum(grad.to(tl.float32) * output.to(tl.float32), 1)
    tl.store(delta + pair.to(tl.int64) * tokens + token, along, mask=exists)
    log_sum = tl.load(norm + pair.to(tl.int64) * tokens + token, mask=exists, other=float("inf"))
    total = tl.zeros([block, wide], tl.float32)
    span: tl.constexpr = block // padded * tick
    diagonal = tile * span // keys * keys
    for edge in tl.static_range(2):
        if edge:
            low, high = diagonal, tl.minimum((tile + 1) * span, tokens)
        else:
            low, high = 0, diagonal
        for start in range(low, high, keys):
            key = start + tl.arange(0, keys)
            inside = key < tokens
            own = _load(k, of_k[2], key, inside, not edge, width, wide)
            logit = tl.dot(query, tl.trans(own), input_precision=precision) * scale
            logit += _load_bias(
                rows,
                distance,
                of_rows[2],
                tile,
                key,
                inside,
                updates,
                not edge and even,
                padded,
                block,
                keys,
                has_rows,
                has_distance,
            )
            weight = tl.math.exp2(logit - log_sum[:, None])
            if edge:
                seen = (key[None, :] <= token[:, None]) & inside[None, :]
                weight = tl.where(seen, weight, 0.0)
            value = _load(v, of_v[2], key, inside, not edge, width, wide)
            by_weight = tl.dot(grad, tl.trans(value), input_precision=precision)
            by_logit = weight * (by_weight - along[:, None])
            total = tl.dot(by_logit.to(own.dtype), own, total, input_precision=precision)
    dq += batch * of_dq[0] + head * of_dq[1]
    _store(dq, of_dq[2], token, exists, total * (scale / LOG2_E), width, wide)


@triton.jit
def key_gradient_kernel(
    q,
    k,
    v,
    rows,
    distance,
    norm,
    dout,
    delta,
    dk,
    dv,
    drows,
    ddistance,
    strides,
    heads,
    pairs,
    tokens,
    updates,
    scale,
    width: tl.constexpr,
    wide: tl.constexpr,
    tick: tl.constexpr,
    padded: tl.constexpr,
    block: tl.constexpr,
    keys: tl.constexpr,
    has_rows: tl.constexpr,
    has_distance: tl.constexpr,
    learns_rows: tl.constexpr,
    learns_distance: tl.constexpr,
    even: tl.constexpr,
    precision: tl.constexpr,
):
    """Write the gradients of keys, values and biases, (batch, head, ...) without gaps.

    Grid: tiles of keys times pairs of batch and head, the longest loops first.
    """
    of_q, of_k, of_v, of_rows, of_distance, of_dout, of_dk, of_dv = strides
    pair = tl.program_id(0) % pairs
    first = tl.program_id(0) // pairs * keys
    batch, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    q += batch * of_q[0] + head * of_q[1]
    rows += batch * of_rows[0] + head * of_rows[1]
    distance += batch * of_distance[0] + head * of_distance[1]
    dout += batch * of_dout[0] + head * of_dout[1]
    norm += pair.to(tl.int64) * tokens
    delta += pair.to(tl.int64) * tokens
    drows += pair.to(tl.int64) * updates * tokens
    ticks: tl.constexpr = block // padded
    span: tl.constexpr = ticks * tick
    key = first + tl.arange(0, keys)
    inside = key < tokens
    own = _load(k + batch * of_k[0] + head * of_k[1], of_k[2], key, inside, False, width, wide)
    value = _load(v + batch * of_v[0] + head * of_v[1], of_v[2], key, inside, False, width, wide)
    far = _load_distance(distance, key, inside, False, has_distance)[:, None]
    to_key = tl.zeros([keys, wide], tl.float32)
    to_value = tl.zeros([keys, wide], tl.float32)
    to_distance = tl.zeros([keys], tl.float32)
    diagonal = first // span
    if learns_rows:
        for tile in range(0, diagonal):  # queries before the keys
            row = tile * ticks + tl.arange(0, ticks) - 1
            zeros = tl.zeros([ticks, keys], drows.dtype.element_ty)
            mask = (row >= 0)[:, None] & inside[None, :]
            tl.store(drows + row[:, None] * tokens + key[None, :], zeros, mask=mask)
    tiles = tl.cdiv(tokens, span)
    full = tl.minimum(tl.cdiv(first + keys - 1, span), tiles)
    for past in tl.static_range(2):  # the queries of the diagonal, then those after all keys
        if past:
            low, high = full, tiles
        else:
            low, high = diagonal, full
        for tile in range(low, high):
            token, exists = _locate(tile, tokens, tick, padded, block)
            query = _load(q, of_q[2], token, exists, even, width, wide)
            grad = _load(dout, of_dout[2], token, exists, even, width, wide)
            if even:
                log_sum = tl.load(norm + token)
                along = tl.load(delta + token)
            else:
                log_sum = tl.load(norm + token, mask=exists, other=float("inf"))
                along = tl.load(delta + token, mask=exists, other=0.0)
            logit = tl.dot(own, tl.trans(query), input_precision=precision) * scale
            row = tile * ticks + tl.arange(0, ticks) - 1
            bias = far
            if has_rows:
                bias += _load_rows(
                    rows,
                    of_rows[2],
                    row[None, :],
                    key[:, None],
                    inside[:, None],
                    updates,
                    past and even,
                )
                spread = tl.broadcast_to(bias[:, :, None], [keys, ticks, padded])
                bias = tl.reshape(spread, [keys, block])
            weight = tl.math.exp2(logit + bias - log_sum[None, :])
            if not past:
                weight = tl.where(key[:, None] <= token[None, :], weight, 0.0)
            to_value = tl.dot(weight.to(grad.dtype), grad, to_value, input_precision=precision)
            by_weight = tl.dot(value, tl.trans(grad), input_precision=precision)
            by_logit = weight * (by_weight - along[None, :])
            to_key = tl.dot(by_logit.to(query.dtype), query, to_key, input_precision=precision)
            if learns_rows:
                by_row = tl.sum(tl.reshape(by_logit, [keys, ticks, padded]), 2)
                if learns_distance:
                    to_distance += tl.sum(by_row, 1)
                mask = ((row >= 0) & (row < updates))[None, :] & inside[:, None]
                at = drows + row[None, :] * tokens + key[:, None]
                tl.store(at, by_row.to(drows.dtype.element_ty), mask=mask)
            elif learns_distance:
                to_distance += tl.sum(by_logit, 1)
    dk += batch * of_dk[0] + head * of_dk[1]
    dv += batch * of_dv[0] + head * of_dv[1]
    _store(dk, of_dk[2], key, inside, to_key * (scale / LOG2_E), width, wide)
    _store(dv, of_dv[2], key, inside, to_value, width, wide)
    if learns_distance:
        tl.store(ddistance + pair.to(tl.int64) * tokens + key, to_distance, mask=inside)
