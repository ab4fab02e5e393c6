"""NATTEN 0.17's CPU kernels as peer, where that package can be imported (see README.md)."""

from __future__ import annotations

import importlib
import typing
from functools import cache
from importlib import metadata
from typing import Any

import torch
from peers import Prepared, RefusedError, passes
from torch import Tensor
from workloads import Workload


@cache
def functions() -> Any:
    """Return the module `natten.functional` of natten 0.17, or None."""
    if not (version() or "").startswith("0.17"):
        return None
    # its import needs two attributes that newer torch without CUDA does not have
    torch.cuda._device_t = typing.Union[torch.device, str, int, None]  # noqa: UP007
    torch.cuda.get_device_capability = lambda *_: (0, 0)
    return importlib.import_module("natten.functional")


def version() -> str | None:
    """Return the version of the installed natten; None without one."""
    try:
        return metadata.version("natten")
    except metadata.PackageNotFoundError:
        return None


def prepare(workload: Workload, dtype: torch.dtype, training: bool) -> Prepared:
    """Prepare scores, softmax and weighted sum, heads first, `[B, H, *space, D]`."""
    module = functions()
    if module is None:
        raise RefusedError("natten 0.17 is not installed")
    if dtype != torch.float32:  # a 16-bit dtype ends the process
        raise RefusedError("natten 0.17 has no 16-bit dtypes on a CPU")
    windows = [_window(workload, number) for number in range(len(workload.space))]
    size, dilation, causal = (tuple(values) for values in zip(*windows, strict=True))
    name = f"na{len(workload.space)}d"
    scores, sums = getattr(module, f"{name}_qk"), getattr(module, f"{name}_av")
    scale = workload.head_dim**-0.5
    options = {"kernel_size": size, "dilation": dilation, "is_causal": causal}

    def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return sums(scores(query * scale, key, **options).softmax(-1), value, **options)

    inputs = [t.movedim(-2, 1).contiguous() for t in workload.tensors(dtype)]
    for tensor in inputs[:3]:
        tensor.requires_grad_(training)
    run = passes(function, tuple(inputs), training)
    return Prepared(run, lambda t: t[0, 0].flatten(0, -2), f"natten {version()}")


def _window(workload: Workload, number: int) -> tuple[int, int, bool]:
    """Return kernel size, dilation and causality of an axis.

    Raises:
        RefusedError: natten 0.17 lacks such a window.
    """
    axis, length = workload.mask.axes[number], workload.space[number]
    if workload.keys != workload.space or axis.left is None or axis.right is None:
        raise RefusedError("natten 0.17 has windows only")
    size, causal = axis.left + axis.right + 1, axis.right == 0
    if size % 2 == 0 or size * axis.dilation > length:
        raise RefusedError("natten 0.17 has odd windows only, no longer than the axis")
    if not causal and (axis.left != axis.right or axis.border != "shift"):
        raise RefusedError("natten 0.17 has centred windows that shift at borders only")
    return size, axis.dilation, causal
