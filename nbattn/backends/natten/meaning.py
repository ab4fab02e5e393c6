"""The masks that NATTEN supports: kernel size, stride, dilation and causality per axis, with the
limits of the kernels that natten 0.21 selects on CUDA devices, taken from its sources.

This module's masks have not been run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbattn.errors import counted
from nbattn.geometry import Axes, BoundAxis, Ints
from nbattn.program.blocks import Block, blocks_of_groups
from nbattn.program.limits import READS_ALL_EXTRAS, Limits, Reason
from nbattn.program.program import Call
from nbattn.program.request import Needs, Request

NATTEN = Limits(
    name="natten",
    kinds=("cuda",),
    vendors=("nvidia",),
    dtypes=("float16", "bfloat16", "float32"),
    softcap=False,
    key_range=False,
    lse_gradient=False,
    deterministic=False,
    why=(
        READS_ALL_EXTRAS,
        ("relative_bias", "its fused kernels add nothing to scores"),
        ("alibi_slopes", "its fused kernels add nothing to scores"),
    ),
)
HEAD_DIM_STEP = 8  # of cutlass-fna, which runs what the newer kernels do not support
PACKAGE = "natten"


class NattenAxis(NamedTuple):
    """NATTEN's parameters of one axis."""

    kernel_size: int
    stride: int
    dilation: int
    is_causal: bool


def reasons(needs: Needs) -> list[Reason]:
    """Returns a reason for every limit that a request exceeds, or that the package is absent."""
    exceeded = NATTEN.reasons(needs)
    if PACKAGE not in needs.device.providers and needs.device.vendor in ("", *NATTEN.vendors):
        return [Reason("provider", "needs the package natten, which is not installed")]
    for name, size in (("head_dim", needs.head_dim), ("value_dim", needs.value_dim)):
        if size % HEAD_DIM_STEP:
            text = f"needs a {name} that {HEAD_DIM_STEP} divides, not {size}"
            exceeded.append(Reason(name, text))
    if needs.sink:
        exceeded.append(Reason("sink", "has no sink"))
    if needs.extra_keys:
        exceeded.append(Reason("extra_keys", "does not support extra keys"))
    return exceeded


def window(axis: BoundAxis) -> NattenAxis | str:
    """Returns NATTEN's parameters of an axis, or why NATTEN does not support it.

    >>> from nbattn.geometry import bind
    >>> from nbattn.mask import Mask
    >>> window(bind(Mask.neighborhood(8, dilation=2), 17)[0])
    NattenAxis(kernel_size=8, stride=1, dilation=2, is_causal=False)
    """
    spec, length = axis.spec, axis.keys
    if axis.queries != length:
        both = counted(axis.queries, "query", "queries"), counted(length, "key")
        return f"{' and '.join(both)}; it needs equal numbers"
    if spec.offset or spec.prefix:
        name = "offset" if spec.offset else "prefix"
        return f"{name}={getattr(spec, name)}; it has no {name}"
    if spec.is_full and length >= 2:
        return NattenAxis(length, 1, 1, False)
    if spec.left is None or spec.right is None:
        return "an unlimited side; it supports only finite windows"
    kernel = spec.left + spec.right + 1
    if not spec.causal and spec.border != "shift":
        return f'border="{spec.border}"; it supports border="shift"'
    if not spec.causal and spec.left != kernel // 2:
        sides = f"{kernel // 2} and {(kernel - 1) // 2}"
        return f"left={spec.left}, right={spec.right}; it supports {sides}"
    if spec.causal and spec.border != "clip":
        return f'a causal axis with border="{spec.border}"; it supports border="clip"'
    if kernel < 2 or spec.stride > kernel:
        return f"a window of {kernel} with stride={spec.stride}; it needs at least 2 and the stride"
    if kernel * spec.dilation > length:
        return f"{kernel} keys x dilation {spec.dilation} exceed the axis length {length}"
    return NattenAxis(kernel, spec.stride, spec.dilation, spec.causal)


@dataclass(frozen=True, slots=True)
class NattenArguments:
    """A call of NATTEN's generic function: one window per axis."""

    windows: tuple[NattenAxis, ...]

    def key_runs(self, number: int, queries: int, keys: int) -> tuple[Ints, Ints, int]:
        """Applies the published rule: the leader's window, in coordinates of the residue class."""
        kernel, stride, step, causal = self.windows[number]
        u, residue = np.divmod(np.arange(queries, dtype=np.int64), step)
        members = -((residue - keys) // step)
        base = u // stride * stride
        if causal:
            leader = np.minimum(base + stride - 1, members - 1)
            start, stop = np.maximum(leader - kernel + 1, 0), u + 1
        else:
            leader = np.minimum(base + stride // 2, members - 1)
            start = np.minimum(np.maximum(leader - kernel // 2, 0), members - kernel)
            stop = start + kernel
        none = np.zeros_like(u)
        starts = np.stack([none, residue + step * start], axis=1)
        return starts, np.stack([none, stop - start], axis=1), step

    def allowed(self, queries: tuple[int, ...], keys: tuple[int, ...]) -> NDArray[np.bool_]:
        """Returns the rule's pairs, as a bool matrix."""
        matrix = np.ones((1, 1), dtype=np.bool_)
        for number, (rows, columns) in enumerate(zip(queries, keys, strict=True)):
            starts, counts, step = self.key_runs(number, rows, columns)
            distance = np.arange(columns) - starts[:, 1:]
            inside = (distance >= 0) & (distance < step * counts[:, 1:]) & (distance % step == 0)
            matrix = np.kron(matrix, inside)
        return matrix

    def named(self) -> dict[str, tuple[int, ...]]:
        """Returns the call's arguments by name."""
        return {
            name: tuple(getattr(window, name) for window in self.windows)
            for name in NattenAxis._fields
        }

    def blocks(self, request: Request, call: Call, *, backward: bool) -> Iterator[Block]:
        """Yields one block of all pairs, without what the kernel skips."""
        return blocks_of_groups(call.query, call.key, full=False)

    def describe(self) -> str:
        """Describes the arguments in words."""
        return f"kernel {'x'.join(str(window.kernel_size) for window in self.windows)}"


def windows(axes: Axes) -> NattenArguments | Reason:
    """Returns the call for a mask, or the reason against the first axis that is not supported."""
    per_axis = [window(axis) for axis in axes]
    for number, answer in enumerate(per_axis):
        if isinstance(answer, str):
            return Reason("mask", f"axis {number}: {answer}")
    return NattenArguments(tuple(answer for answer in per_axis if not isinstance(answer, str)))
