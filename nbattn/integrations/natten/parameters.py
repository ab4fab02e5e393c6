"""Checks NATTEN's parameters, and makes their mask."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from nbattn.backends.families import BACKENDS
from nbattn.errors import InputError, counted, kind
from nbattn.mask import Mask
from nbattn.shapes import as_code

Sizes = int | Sequence[int]
Causal = bool | Sequence[bool] | None

# What None means; kernel_size has no such value.
_SHORT = re.compile(r"\b(?=Mask\b|Axis\b)")  # names that code for NATTEN has not imported
_UNSET = {"stride": 1, "dilation": 1, "is_causal": False}
# Arguments that only tune NATTEN's kernels; they have no effect, as nbattn plans by itself.
TUNING = (
    "q_tile_shape",
    "kv_tile_shape",
    "backward_q_tile_shape",
    "backward_kv_tile_shape",
    "q_tile_size",
    "kv_tile_size",
    "backward_q_tile_size",
    "backward_kv_tile_size",
    "backward_kv_splits",
    "backward_use_pt_reduction",
    "run_persistent_kernel",
    "kernel_schedule",
    "torch_compile",
    "try_fuse_additional_kv",
)


class KernelSchedule(Enum):
    """The schedules of NATTEN's Hopper kernels; it has no effect in nbattn."""

    NonPersistent = 0
    WarpSpecializedCooperative = 1
    WarpSpecializedPingpong = 2


def window(
    space: Sequence[int],
    kernel_size: Sizes,
    *,
    stride: Sizes | None = 1,
    dilation: Sizes | None = 1,
    is_causal: Causal = False,
    more: str = "",
) -> Mask:
    """Returns the mask of NATTEN's parameters for a space, checked by NATTEN's own rules; `more` is
    the code of the call's other options, for a fix.

    Raises:
        InputError, MaskError: a parameter is not legal, or a window is larger than its axis.

    >>> window((8, 9), 3, dilation=(2, 3))
    Mask(Axis(1, 1, dilation=2, border='shift'), Axis(1, 1, dilation=3, border='shift'))
    """
    rank = len(space)
    arguments = {
        "kernel_size": kernel_size,
        "stride": stride,
        "dilation": dilation,
        "is_causal": is_causal,
    }
    values: dict[str, Any] = {n: per_axis(n, value, rank) for n, value in arguments.items()}
    mask = Mask.neighborhood(**values)
    for axis, length in enumerate(space):
        kernel, step = values["kernel_size"][axis], values["dilation"][axis]
        if kernel < 2:
            raise InputError(f"axis {axis}: kernel_size={kernel} is less than 2.", "kernel_size=2.")
        if kernel * step > length:
            raise InputError(
                f"axis {axis}: kernel_size {kernel} x dilation {step} = {kernel * step} is more "
                f"than its {length} tokens.",
                f"{_smaller(kernel, length)} or less, or nbattn.attention(query, key, value, "
                f"{_SHORT.sub('nbattn.', as_code(mask.axes))}{more}), where such a window has all "
                "keys.",
            )
    return mask


def per_axis(name: str, value: Any, rank: int) -> tuple[Any, ...]:
    """Returns one value per axis, from one value for all, a sequence of values, or None.

    >>> per_axis("dilation", None, 2)
    (1, 1)
    """
    value = _UNSET.get(name) if value is None else value
    if not isinstance(value, (tuple, list)):
        return (value,) * rank
    if len(value) != rank:
        raise InputError(
            f"{name}={value!r} has {counted(len(value), 'value')} for "
            f"{counted(rank, 'axis', 'axes')}.",
            f"{name}={tuple((*value, *[value[-1] if value else 1] * rank)[:rank])}.",
        )
    return tuple(value)


def _smaller(kernel: int, length: int) -> str:
    return f"dilation={length // kernel}" if kernel <= length else f"kernel_size={length}"


def _fitting(name: str, tensor: object, rank: int, layout: str) -> str:
    """What makes a tensor fit a function of this many axes, or the function that it fits."""
    if not isinstance(tensor, Tensor):
        return f"{name}=torch.as_tensor({name})."
    if tensor.dim() == rank + 2:
        return f"{name}[None], a batch of one."
    if 4 <= tensor.dim() <= 6:
        unfused = "_qk" if layout.startswith("[B, H") else ""
        axes = counted(tensor.dim() - 3, "axis", "axes")
        return f"natten.functional.na{tensor.dim() - 3}d{unfused}, which has {axes}."
    return f"{name} = torch.randn(1, {'8, ' * rank}2, 16)."


def check_rank(name: str, tensor: Tensor, rank: int, layout: str) -> None:
    """Checks that a tensor has as many dimensions as its function needs."""
    if not isinstance(tensor, Tensor) or tensor.dim() != rank + 3:
        actual = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise InputError(f"{name} is {actual}, not {layout}.", _fitting(name, tensor, rank, layout))


def check_tensors(**named: object) -> None:
    """Checks that arguments are tensors."""
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"{name} is {kind(tensor)}, not a tensor.", f"{name}=torch.as_tensor({name})."
            )


def check_not_nested(fix: str, *tensors: object) -> None:
    """Checks that no tensor is nested: of torch's functions for shapes, few support these."""
    if any(isinstance(tensor, Tensor) and tensor.is_nested for tensor in tensors):
        raise InputError("nested tensors are not supported here.", fix)


def check_additional(keys: object, values: object) -> None:
    """Checks that additional keys have values."""
    names = ("additional_keys", "additional_values")
    if (keys is None) != (values is None):
        missing, other = names if keys is None else reversed(names)
        raise InputError(f"{missing} is missing.", f"{other}=None, or {missing}= as well.")


def check_fits(name: str, tensor: object, like: Tensor) -> None:
    """Checks that a tensor can be used with `like` without rounding: device and dtype."""
    check_tensors(**{name: tensor})
    assert isinstance(tensor, Tensor)
    exact = torch.promote_types(like.dtype, torch.float32)
    actual, expected = (str(t.dtype).removeprefix("torch.") for t in (tensor, like))
    if not tensor.is_floating_point():
        raise InputError(f"{name} is {actual}, not a floating dtype.", f"{name}.float().")
    if torch.promote_types(tensor.dtype, exact) != exact:
        raise InputError(
            f"{name} is {actual} and would be rounded for use with {expected}.",
            f"{name}.to(torch.{expected}).",
        )
    if tensor.device != like.device:
        raise InputError(
            f"{name} is on {tensor.device}, the tensor that it is used with on {like.device}.",
            f"{name}.to({str(like.device)!r}).",
        )


def check_table(rpb: object, query: Tensor, heads: int, kernel_size: Sizes) -> None:
    """Checks that a table of relative positions fits a query `[…, D]` of one to three axes."""
    check_fits("rpb", rpb, query)
    assert isinstance(rpb, Tensor)
    sizes = per_axis("kernel_size", kernel_size, query.dim() - 3)
    expected = (heads, *(2 * size - 1 for size in sizes))
    if tuple(rpb.shape) != expected:
        raise InputError(
            f"rpb is {list(rpb.shape)}, not [H, 2 K - 1].", f"rpb = torch.zeros{expected}."
        )


def root(count: int, rank: int) -> int:
    """Returns K for a count of K to the power of the rank.

    >>> root(49, 2)
    7
    """
    size = round(count ** (1 / rank))
    if size**rank != count:
        raise InputError(
            f"{count} slots do not fit one kernel_size on {counted(rank, 'axis', 'axes')}.",
            f"kernel_size={size}, dilation=1, and attn of {size**rank} slots.",
        )
    return size


def backend_name(backend: str | None) -> str:
    """Returns nbattn's backend: "auto" for None; the names of NATTEN's kernels are an error.

    >>> backend_name(None)
    'auto'
    """
    if backend is None:
        return "auto"
    if backend not in BACKENDS:
        names = ", ".join(map(repr, BACKENDS))
        raise InputError(
            f"backend={backend!r} is not one of nbattn's, and nbattn never replaces a named kernel "
            "by another.",
            f"backend=None, or one of {names}.",
        )
    return backend


def check_tuning(attention_kwargs: Mapping[str, Any] | None) -> None:
    """Checks that `attention_kwargs` only tunes the attention over additional keys."""
    for name, value in (attention_kwargs or {}).items():
        if name == "backend":
            backend_name(value)
        elif name not in TUNING:
            raise InputError(
                f"attention_kwargs has {name!r}, which would change the result.",
                f"attention_kwargs=None, or only backend and what tunes: {', '.join(TUNING)}.",
            )


def slots(kernel_size: Sizes, rank: int) -> int:
    """Returns the number of keys of a window that no border cuts."""
    return math.prod(per_axis("kernel_size", kernel_size, rank))


def types() -> dict[str, Any]:
    """Returns the names of `natten.types`: the types of parameters.

    >>> types()["Dimension2DTypeOrDed"]
    int | tuple[int, int]
    """
    named: dict[str, Any] = {}
    for name, single in (("Dimension", int), ("CausalArg", bool)):
        whole: Any = None
        for rank in (1, 2, 3):
            axes: Any = tuple[(single,) * rank]
            named |= {f"{name}{rank}DType": axes, f"{name}{rank}DTypeOrDed": single | axes}
            whole = axes if whole is None else whole | axes
        named |= {f"{name}Type": whole, f"{name}TypeOrDed": single | whole}
    return named | {"KernelSchedule": KernelSchedule}
