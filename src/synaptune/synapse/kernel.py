"""The presynaptic scan as compiled code: the equations of terminal.py and their adjoint.

On a CPU the C source scan.c is compiled once per machine into the cache folder; a GPU has the
function of fused.py. Under vmap, the candidates of a population are rows with their own parameters.
The gradient of a learned parameter p is a central difference in fp64,

    dL/dp = sum dL/de (e(p + h) - e(p - h)) / 2 h,   h = 1e-5 max(1, |p|)                        (1)

two forward scans for each parameter. The reference scan of terminal.py runs instead without a C
compiler, and on another device. It gives the same numbers more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from synaptune.core.native import load_native
from synaptune.synapse import energy, priming, release
from synaptune.synapse.terminal import terminal_scan

if TYPE_CHECKING:
    from synaptune.synapse.tensors import SynapseTensors

C_TYPES = {torch.float32: "float", torch.float64: "double"}
_ARGUMENTS = {"scan": (6, 5), "memory": (11, 6)}  # pointers and integers of the C functions
DIFFERENCE = 1e-5  # of (1): relative errors of 1e-10 by truncation and 1e-11 by rounding
MAX_TOKENS = 1023  # longest tick of the compiled scan; scan.c unrolls ten binary digits
# The order of the fields of Params in scan.c: first the parameters by group, then the constants.
PACKED = {
    "calcium": "tau_c alpha_ca syt1_slope syt7_slope cpx_thresh doc2_gain "
    "tau_buf alpha_buf_on alpha_buf_off",
    "vesicles": "tau_rrp rec_rate prime_rate unprime_per_release nsf_recover "
    "endo_delay init_rrp init_reserve",
    "energy": "energy_fill energy_use energy_max init_energy amp_load amp_leak",
}
_CONSTANTS = (
    release.SYT1_SHARE,
    release.SYT7_SHARE,
    release.SYT7_CLAMP,
    release.DOC2_SLOPE,
    release.DOC2_HALF,
    release.LEAK_SHARE,
    priming.INITIAL_PRIMED,
    energy.FILL_HALF,
    energy.AMPA_CEILING,
    release.NOISE_FLOOR,
    release.QUANTUM,
)

_log = logging.getLogger(__name__)


def fast_scan(
    drive: Tensor, params: SynapseTensors, tokens: int, noise: Tensor | None = None
) -> Tensor:
    """Run `terminal_scan`, compiled where possible; arguments and result are the same."""
    values = list_values(params, PACKED)
    learned = tuple(number for number, value in enumerate(values) if value.requires_grad)
    if tokens > MAX_TOKENS or not _has_kernel(drive, learns=bool(learned)):
        return terminal_scan(drive, params, tokens, noise)
    packed = pack_parameters(values, _CONSTANTS, drive)
    return _Scan.apply(drive, noise, packed, tokens, learned)  # type: ignore[return-value]


def list_values(params: SynapseTensors, names: dict[str, str]) -> list[Tensor]:
    """Return the values of parameters; `names` holds those of each group, as `PACKED`."""
    return [
        getattr(getattr(params, group), name)
        for group, of_group in names.items()
        for name in of_group.split()
    ]


def _has_kernel(drive: Tensor, *, learns: bool) -> bool:
    return (
        drive.device.type == "cpu"
        and drive.dtype in C_TYPES
        and load_library("scan", drive.dtype) is not None
        and (not learns or load_library("scan", torch.float64) is not None)
    )


@functools.cache
def has_triton() -> bool:
    """Return whether Triton is installed; where it is not, log one warning."""
    if importlib.util.find_spec("triton") is not None:
        return True
    _log.warning("no Triton found (pip install 'synaptune[gpu]'): the synapse runs slowly")
    return False


def pack_parameters(values: Sequence[Tensor], constants: tuple[float, ...], like: Tensor) -> Tensor:
    """Return parameters and constants as one set of a compiled function, (1, parameter).

    Args:
        values: 0-dim tensors.
        constants: the constants that follow them.
        like: gives device and dtype.
    """
    fixed = _make_constants(constants, like.dtype, like.device)
    return torch.cat([torch.stack(list(values)).to(fixed), fixed])[None]


@functools.cache
def _make_constants(
    constants: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the constants as a tensor, copied to the device once."""
    return torch.tensor(constants, dtype=dtype, device=device)


class _Scan(torch.autograd.Function):
    """Autograd function of the compiled scan.

    The drive and the learned parameters have a gradient. The backward pass recomputes the state
    instead of storing it. The parameters are (set, parameter); each set belongs to an equal share
    of the batch, in order. `learned` holds the indices of the learned parameters, which one set
    alone may have.
    """

    @staticmethod
    def forward(
        drive: Tensor,
        noise: Tensor | None,
        packed: Tensor,
        tokens: int,
        learned: tuple[int, ...],
    ) -> Tensor:
        drive, noise = drive.contiguous(), None if noise is None else noise.contiguous()
        batch, heads, updates, keys = drive.shape
        out = drive.new_empty(batch, heads, updates + 1, keys)
        _call(drive, noise, out, None, None, packed.contiguous(), tokens)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.tokens, ctx.learned = inputs[3:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None, None, None]:  # type: ignore[override]
        drive, noise, packed = ctx.saved_tensors
        by_drive = _ScanGradient.apply(drive, noise, packed, ctx.tokens, grad)
        by_parameter = None
        if ctx.learned:
            by_parameter = torch.zeros_like(packed)
            wide = [None if x is None else x.double() for x in (drive, noise, packed, grad)]
            for index in ctx.learned:
                by_parameter[0, index] = _differentiate(*wide, ctx.tokens, index)  # type: ignore[arg-type]
        return by_drive, None, by_parameter, None, None  # type: ignore[return-value]

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        drive: Tensor,
        noise: Tensor | None,
        packed: Tensor,
        tokens: int,
        learned: tuple[int, ...],
    ) -> tuple[Tensor, int]:
        drive, noise, packed = fold_candidates(info.batch_size, in_dims, drive, noise, packed)  # type: ignore[misc]
        out = _Scan.apply(drive, noise, packed, tokens, learned)
        return out.unflatten(0, (info.batch_size, -1)), 0  # type: ignore[union-attr]


def _differentiate(
    drive: Tensor, noise: Tensor | None, packed: Tensor, grad: Tensor, tokens: int, index: int
) -> Tensor:
    """Return dL/dp (1) of the parameter at an index; all tensors are fp64."""
    step = DIFFERENCE * packed[0, index].abs().clamp(min=1.0)
    ends = []
    for sign in (1.0, -1.0):
        moved = packed.clone()
        moved[0, index] += sign * step
        ends.append(_Scan.forward(drive, noise, moved, tokens, ()))
    return (grad * (ends[0] - ends[1])).sum() / (2.0 * step)


class _ScanGradient(torch.autograd.Function):
    """Gradient of the drive from that of the efficacy; a function, so that vmap can batch it."""

    @staticmethod
    def forward(
        drive: Tensor, noise: Tensor | None, packed: Tensor, tokens: int, grad: Tensor
    ) -> Tensor:
        drive, noise = drive.contiguous(), None if noise is None else noise.contiguous()
        grad, packed = grad.contiguous(), packed.contiguous()
        out = torch.empty_like(drive)
        _call(drive, noise, None, grad, out, packed, tokens)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Store nothing: there is no second derivative."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        drive: Tensor,
        noise: Tensor | None,
        packed: Tensor,
        tokens: int,
        grad: Tensor,
    ) -> tuple[Tensor, int]:
        dims = (*in_dims[:3], in_dims[4])
        drive, noise, packed, grad = fold_candidates(
            info.batch_size, dims, drive, noise, packed, grad
        )  # type: ignore[misc]
        out = _ScanGradient.apply(drive, noise, packed, tokens, grad)
        return out.unflatten(0, (info.batch_size, -1)), 0  # type: ignore[union-attr]


def fold_candidates(
    size: int, dims: Sequence[int | None], *tensors: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Merge the candidates of vmap into the first dimension of each tensor."""
    folded: list[Tensor | None] = []
    for dim, tensor in zip(dims, tensors, strict=False):
        if tensor is not None:
            tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            tensor = tensor.flatten(0, 1)
        folded.append(tensor)
    return tuple(folded)


def unfold_candidates(
    size: int, outputs: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Return the result of a vmap rule: outputs with the candidates first, and that dimension."""
    return tuple(x.unflatten(0, (size, -1)) for x in outputs), (0,) * len(outputs)


def _call(
    drive: Tensor,
    noise: Tensor | None,
    out: Tensor | None,
    grad: Tensor | None,
    ddrive: Tensor | None,
    packed: Tensor,
    tokens: int,
) -> None:
    batch, heads, updates, keys = drive.shape
    pointers = [
        None if x is None else x.data_ptr() for x in (drive, noise, out, grad, ddrive, packed)
    ]
    scan = load_library("scan", drive.dtype)
    assert scan is not None
    if scan(*pointers, len(packed), batch * heads, updates, keys, tokens):
        raise MemoryError(
            f"not enough memory for a presynaptic scan of {updates} ticks: "
            "lower training.batch or model.context"
        )


@functools.cache
def load_library(name: str, dtype: torch.dtype) -> Any | None:
    """Return the function `synapse_NAME` of NAME.c for a dtype and build it on first use.

    Where it cannot be built, log one warning and return None.
    """
    try:
        library = load_native(Path(__file__).with_name(f"{name}.c"), [f"REAL={C_TYPES[dtype]}"])
    except OSError as error:
        _warn(str(error))
        return None
    function = getattr(library, f"synapse_{name}")
    pointers, integers = _ARGUMENTS[name]
    function.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_int] * integers
    function.restype = ctypes.c_int
    return function


@functools.cache
def _warn(reason: str) -> None:
    """Log the warning once for all sources."""
    _log.warning("the synapse runs uncompiled, about ten times slower: %s", reason)
