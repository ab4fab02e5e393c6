"""NATTEN's parameters: what it accepts, and the mask that they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from nbattn.backends.families import BACKENDS
from nbattn.errors import InputError, counted, kind
from nbattn.mask import Mask

Sizes = int | Sequence[int]
Causal = bool | Sequence[bool] | None

# What tunes NATTEN's kernels and cannot change a result. nbattn plans by itself: no effect.
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
)


class KernelSchedule(Enum):
    """How NATTEN's Hopper kernels are scheduled: no effect here."""

    NonPersistent = 0
    WarpSpecializedCooperative = 1
    WarpSpecializedPingpong = 2


def window(
    space: Sequence[int],
    kernel_size: Sizes,
    *,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Causal = False,
) -> Mask:
    """The mask of NATTEN's parameters for a space, by NATTEN's own rules of what is legal.

    Raises:
        InputError, MaskError: a parameter is not legal, or a window is larger than its axis.

    >>> window((8, 9), 3, dilation=(2, 3))
    Mask(Axis(1, 1, dilation=2, border='shift'), Axis(1, 1, dilation=3, border='shift'))
    """
    rank = len(space)
    given = {
        "kernel_size": kernel_size,
        "stride": stride,
        "dilation": dilation,
        "is_causal": False if is_causal is None else is_causal,
    }
    values = {name: per_axis(name, value, rank) for name, value in given.items()}
    mask = Mask.neighborhood(**values)
    for axis, length in enumerate(space):
        kernel, step = values["kernel_size"][axis], values["dilation"][axis]
        if kernel < 2:
            raise InputError(f"axis {axis}: kernel_size={kernel}.", "at least 2.")
        if kernel * step > length:
            raise InputError(
                f"axis {axis}: kernel_size {kernel} x dilation {step} = {kernel * step} is more "
                f"than its {length} tokens.",
                f"dilation={max(1, length // kernel)} or less, or "
                "nbattn.attention(query, key, value, mask), where such a window reads all.",
            )
    return mask


def per_axis(name: str, value: Any, rank: int) -> tuple[Any, ...]:
    """One value per axis, from one for all or a sequence of them."""
    if not isinstance(value, (tuple, list)):
        return (value,) * rank
    if len(value) != rank:
        raise InputError(
            f"{name}={value!r} has {counted(len(value), 'value')} for "
            f"{counted(rank, 'axis', 'axes')}.",
            f"{name}: one value, or {rank}.",
        )
    return tuple(value)


def check_rank(name: str, tensor: Tensor, rank: int, layout: str) -> None:
    """A tensor has the dimensions of its function."""
    if not isinstance(tensor, Tensor) or tensor.dim() != rank + 3:
        found = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise InputError(
            f"{name} is {found}, not of {rank + 3} dimensions.", f"{name} as {layout}."
        )


def check_tensors(**named: object) -> None:
    """What has to be a tensor is one."""
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name} is {kind(tensor)}, not a tensor.", f"{name}: a tensor.")


def check_additional(keys: object, values: object) -> None:
    """Additional keys come with values."""
    if (keys is None) != (values is None):
        missing = "additional_keys" if keys is None else "additional_values"
        raise InputError(
            f"{missing} is missing.", "additional_keys= and additional_values=, or neither."
        )


def check_fits(name: str, tensor: object, like: Tensor) -> None:
    """A tensor that is computed with another one, in float32 or float64: nothing is rounded."""
    check_tensors(**{name: tensor})
    assert isinstance(tensor, Tensor)
    exact = torch.promote_types(like.dtype, torch.float32)
    found, most = (str(t.dtype).removeprefix("torch.") for t in (tensor, like))
    if not tensor.is_floating_point():
        raise InputError(f"{name} is {found}, no floating dtype.", f"{name}.float().")
    if torch.promote_types(tensor.dtype, exact) != exact:
        raise InputError(
            f"{name} is {found}, and would be rounded beside {most}.", f"{name}.to({most})."
        )
    if tensor.device != like.device:
        raise InputError(
            f"{name} is on {tensor.device}, what it belongs to on {like.device}.",
            f"{name}.to({str(like.device)!r}).",
        )


def root(count: int, rank: int) -> int:
    """K, when count is K to the power of the rank.

    >>> root(49, 2)
    7
    """
    found = round(count ** (1 / rank))
    if found**rank != count:
        raise InputError(
            f"{count} slots are no window of one kernel_size on {counted(rank, 'axis', 'axes')}.",
            "give kernel_size and dilation.",
        )
    return found


def backend_name(backend: str | None) -> str:
    """None is "auto"; nbattn's own names stand; NATTEN's kernels cannot be asked for.

    >>> backend_name(None)
    'auto'
    """
    if backend is None:
        return "auto"
    if backend not in BACKENDS:
        names = ", ".join(map(repr, BACKENDS))
        raise InputError(
            f"backend={backend!r} is not one of nbattn's, and a kernel asked for by name is never "
            "replaced by another.",
            f"backend=None, or one of {names}.",
        )
    return backend


def check_tuning(attention_kwargs: Mapping[str, Any] | None) -> None:
    """`attention_kwargs` may tune the attention over additional keys, not change it."""
    for name, value in (attention_kwargs or {}).items():
        if name == "backend":
            backend_name(value)
        elif name not in TUNING:
            raise InputError(
                f"attention_kwargs has {name!r}, which would change the result.",
                f"only backend or what tunes: {', '.join(TUNING)}.",
            )


def slots(kernel_size: Sizes, rank: int) -> int:
    """Keys of a whole window."""
    return math.prod(per_axis("kernel_size", kernel_size, rank))


def types() -> dict[str, Any]:
    """The names of `natten.types`: what a parameter may be.

    >>> types()["Dimension2DTypeOrDed"]
    int | tuple[int, int]
    """
    made: dict[str, Any] = {}
    for name, one in (("Dimension", int), ("CausalArg", bool)):
        whole: Any = None
        for rank in (1, 2, 3):
            axes: Any = tuple[(one,) * rank]
            made |= {f"{name}{rank}DType": axes, f"{name}{rank}DTypeOrDed": one | axes}
            whole = axes if whole is None else whole | axes
        made |= {f"{name}Type": whole, f"{name}TypeOrDed": one | whole}
    return made | {"KernelSchedule": KernelSchedule}
