"""The presynaptic scan as one Triton kernel for CUDA, forward and backward.

One program advances a block of keys of one row over all ticks. State and parameters stay in
registers; the drive is read once and the efficacy is written once. The backward kernel first
advances the block again and keeps its states in a scratch area of the program, then runs the
adjoint from the last tick to the first. The number of programs is bounded, so the scratch area does
not grow with the batch.

The file is imported only for tensors on a GPU. Its tests compare it with terminal.py, in Triton's
interpreter on a CPU and, where there is one, on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from synaptune.synapse.triton_step import (
    Params,
    State,
    adjoint,
    birth_efficacy,
    init_state,
    load_params,
    step,
)

BLOCK = 128  # keys of a program; chosen: one warp group, and 10 states stay in registers
WARPS = 4
PROGRAMS_PER_PROCESSOR = 4  # chosen: programs of the backward pass, which share the scratch area
STATES: tl.constexpr = tl.constexpr(len(State._fields))
PARAMETERS: tl.constexpr = tl.constexpr(len(Params._fields))


@triton.jit
def _where(condition, new, old):
    return State(
        tl.where(condition, new.c, old.c),
        tl.where(condition, new.m, old.m),
        tl.where(condition, new.r, old.r),
        tl.where(condition, new.q, old.q),
        tl.where(condition, new.w, old.w),
        tl.where(condition, new.v, old.v),
        tl.where(condition, new.s, old.s),
        tl.where(condition, new.p, old.p),
        tl.where(condition, new.a, old.a),
        tl.where(condition, new.g, old.g),
    )


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
def _read_noise(noise, at, born, zero, has_noise: tl.constexpr):
    eta = zero
    if has_noise:
        eta = tl.load(noise + at, mask=born, other=0.0)
    return eta


@triton.jit
def forward_kernel(
    drive,
    noise,
    out,
    packed,
    per_set,
    updates,
    keys,
    tokens: tl.constexpr,
    bits: tl.constexpr,
    has_noise: tl.constexpr,
    block: tl.constexpr,
):
    """Write the efficacy (row, updates + 1, key). Grid: rows times blocks of keys."""
    blocks = (keys + block - 1) // block
    row = (tl.program_id(0) // blocks).to(tl.int64)
    offsets = (tl.program_id(0) % blocks) * block + tl.arange(0, block)
    first_tick = tl.minimum((tl.program_id(0) % blocks) * block // tokens, updates)
    inside = offsets < keys
    params = load_params(packed + row // per_set * PARAMETERS)
    zero = tl.full([block], 0.0, tl.float32)
    newborn = zero + birth_efficacy(params)
    state = init_state(params, zero)
    out_row = out + row * (updates + 1) * keys
    for n in range(0, first_tick + 1):
        tl.store(out_row + n * keys + offsets, newborn, mask=inside)
    for n in range(first_tick, updates):
        born = inside & (offsets < (n + 1) * tokens)
        at = (row * updates + n) * keys + offsets
        eta = _read_noise(noise, at, born, zero, has_noise)
        new, tick = step(
            state, tl.load(drive + at, mask=born, other=0.0), eta, params, tokens, bits
        )
        state = _where(born, new, state)
        efficacy = tl.where(born, tick.efficacy, newborn)
        tl.store(out_row + (n + 1) * keys + offsets, efficacy, mask=inside)


@triton.jit
def backward_kernel(
    drive,
    noise,
    dout,
    ddrive,
    packed,
    per_set,
    scratch,
    rows,
    updates,
    keys,
    tokens: tl.constexpr,
    bits: tl.constexpr,
    has_noise: tl.constexpr,
    block: tl.constexpr,
):
    """Write the gradient of the drive. Grid: any number of programs; each takes every n-th task."""
    blocks = (keys + block - 1) // block
    lanes = tl.arange(0, block)
    zero = tl.full([block], 0.0, tl.float32)
    tape = scratch + tl.program_id(0).to(tl.int64) * updates * STATES * block + lanes
    for task in range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        row = (task // blocks).to(tl.int64)
        params = load_params(packed + row // per_set * PARAMETERS)
        offsets = (task % blocks) * block + lanes
        first_tick = tl.minimum((task % blocks) * block // tokens, updates)
        inside = offsets < keys
        for n in range(0, first_tick):
            tl.store(ddrive + (row * updates + n) * keys + offsets, zero, mask=inside)
        state = init_state(params, zero)
        for n in range(first_tick, updates):
            born = inside & (offsets < (n + 1) * tokens)
            at = (row * updates + n) * keys + offsets
            _store(tape + n * STATES * block, state, block)
            eta = _read_noise(noise, at, born, zero, has_noise)
            new, _ = step(
                state, tl.load(drive + at, mask=born, other=0.0), eta, params, tokens, bits
            )
            state = _where(born, new, state)
        grad = State(zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)
        for back in range(0, updates - first_tick):
            n = updates - 1 - back
            born = inside & (offsets < (n + 1) * tokens)
            at = (row * updates + n) * keys + offsets
            de = tl.load(
                dout + (row * (updates + 1) + n + 1) * keys + offsets, mask=born, other=0.0
            )
            eta = _read_noise(noise, at, born, zero, has_noise)
            earlier, dl = adjoint(
                _load(tape + n * STATES * block, block),
                tl.load(drive + at, mask=born, other=0.0),
                eta,
                grad,
                de,
                params,
                tokens,
                bits,
            )
            grad = _where(born, earlier, grad)
            tl.store(ddrive + at, tl.where(born, dl, zero), mask=inside)


def run_forward(drive: Tensor, noise: Tensor | None, packed: Tensor, tokens: int) -> Tensor:
    """Return the efficacy, (batch, head, updates + 1, key) in fp32.

    Args:
        drive: (batch, head, updates, key), contiguous, fp32.
        noise: as `drive`; None for the expected release.
        packed: (set, parameter), parameters and constants of kernel.py in fp32 on the same device;
            each set belongs to an equal share of the batch, in order.
        tokens: tokens of a tick.
    """
    batch, heads, updates, keys = drive.shape
    out = drive.new_empty(batch, heads, updates + 1, keys)
    grid = (batch * heads * triton.cdiv(keys, BLOCK),)
    forward_kernel[grid](
        drive,
        drive if noise is None else noise,
        out,
        packed,
        batch * heads // len(packed),
        updates,
        keys,
        tokens=tokens,
        bits=tokens.bit_length() - 1,
        has_noise=noise is not None,
        block=BLOCK,
        num_warps=WARPS,
    )
    return out


def run_backward(
    drive: Tensor, noise: Tensor | None, grad: Tensor, packed: Tensor, tokens: int
) -> Tensor:
    """Return the gradient of the drive from that of the efficacy; arguments of `run_forward`."""
    batch, heads, updates, keys = drive.shape
    ddrive = torch.empty_like(drive)
    programs = min(batch * heads * triton.cdiv(keys, BLOCK), _count_programs(drive.device))
    scratch = drive.new_empty(programs * updates * len(State._fields) * BLOCK)
    backward_kernel[(programs,)](
        drive,
        drive if noise is None else noise,
        grad.contiguous(),
        ddrive,
        packed,
        batch * heads // len(packed),
        scratch,
        batch * heads,
        updates,
        keys,
        tokens=tokens,
        bits=tokens.bit_length() - 1,
        has_noise=noise is not None,
        block=BLOCK,
        num_warps=WARPS,
    )
    return ddrive


def _count_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return PROGRAMS_PER_PROCESSOR
    return PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
