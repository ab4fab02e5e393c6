"""NATTEN's dialect: neighborhoods of kernel size, stride, dilation and causality per axis, of the
kernels that natten 0.21 selects on CUDA devices; limits as its sources have them.

Nothing here has run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbattn.geometry import Axes, BoundAxis, Ints
from nbattn.program.blocks import Block, blocks_of_groups
from nbattn.program.limits import Limits, Reason
from nbattn.program.program import Call
from nbattn.program.request import Needs, Request

NATTEN = Limits(
    name="natten",
    kinds=("cuda",),
    dtypes=("float16", "bfloat16", "float32"),
    softcap=False,
    key_range=False,
    lse_gradient=False,
    deterministic=False,
)
HEAD_DIM_STEP = 8  # cutlass-fna, which takes what the newer kernels do not
PACKAGE = "natten"


class NattenAxis(NamedTuple):
    """NATTEN's parameters of one axis."""

    kernel_size: int
    stride: int
    dilation: int
    is_causal: bool


def reasons(needs: Needs) -> list[Reason]:
    """Every limit that a request breaks; of an absent package, that it is absent."""
    if PACKAGE not in needs.device.providers:
        return [Reason("provider", "natten is not installed on this device")]
    found = NATTEN.reasons(needs)
    for name, size in (("head_dim", needs.head_dim), ("value_dim", needs.value_dim)):
        if size % HEAD_DIM_STEP:
            text = f"needs a {name} that {HEAD_DIM_STEP} divides, not {size}"
            found.append(Reason(name, text))
    if needs.sink:
        found.append(Reason("sink", "has no sink"))
    if needs.extra_keys:
        found.append(Reason("extra_keys", "extra keys are not merged with its logsumexp here"))
    return found


def window(axis: BoundAxis) -> NattenAxis | str:
    """An axis in NATTEN's words, or why it has none.

    >>> from nbattn.geometry import bind
    >>> from nbattn.mask import Mask
    >>> window(bind(Mask.neighborhood(8, dilation=2), 17)[0])
    NattenAxis(kernel_size=8, stride=1, dilation=2, is_causal=False)
    """
    spec, length = axis.spec, axis.keys
    if axis.queries != length:
        return f"{axis.queries} queries and {length} keys; it has one length"
    if spec.offset or spec.prefix:
        name = "offset" if spec.offset else "prefix"
        return f"{name}={getattr(spec, name)}; it has none"
    if spec.is_full and length >= 2:
        return NattenAxis(length, 1, 1, False)
    if spec.left is None or spec.right is None:
        return "an unlimited side; its windows are finite"
    kernel = spec.left + spec.right + 1
    if not spec.causal and spec.border != "shift":
        return f'border="{spec.border}"; it moves windows inward'
    if not spec.causal and spec.left != kernel // 2:
        return f"left={spec.left}, right={spec.right}; it has {kernel // 2} and {(kernel - 1) // 2}"
    if spec.causal and spec.border != "clip":
        return f'a causal axis with border="{spec.border}"; it cuts windows'
    if kernel < 2 or spec.stride > kernel:
        return f"a window of {kernel} with stride={spec.stride}; it needs 2 and at least the stride"
    if kernel * spec.dilation > length:
        return f"{kernel} keys x dilation {spec.dilation} are more than {length}; it refuses that"
    return NattenAxis(kernel, spec.stride, spec.dilation, spec.causal)


@dataclass(frozen=True, slots=True)
class NattenArguments:
    """A call of NATTEN's generic function: one window per axis."""

    windows: tuple[NattenAxis, ...]

    def rows(self, number: int, queries: int, keys: int) -> tuple[Ints, Ints, int]:
        """The published rule: the leader's window, in the coordinates of the residue class."""
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
        """The rule's pairs, as a bool matrix."""
        matrix = np.ones((1, 1), dtype=np.bool_)
        for number, (rows, columns) in enumerate(zip(queries, keys, strict=True)):
            starts, counts, step = self.rows(number, rows, columns)
            distance = np.arange(columns) - starts[:, 1:]
            inside = (distance >= 0) & (distance < step * counts[:, 1:]) & (distance % step == 0)
            matrix = np.kron(matrix, inside)
        return matrix

    def named(self) -> dict[str, tuple[int, ...]]:
        """The call's arguments."""
        return {
            name: tuple(getattr(window, name) for window in self.windows)
            for name in NattenAxis._fields
        }

    def blocks(self, request: Request, call: Call, *, backward: bool) -> Iterator[Block]:
        """One block: what its kernel skips is its own."""
        return blocks_of_groups(call.query, call.key, full=False)

    def describe(self) -> str:
        """Describes the arguments in words."""
        return f"kernel {'x'.join(str(window.kernel_size) for window in self.windows)}"


def windows(axes: Axes) -> NattenArguments | Reason:
    """The call for a mask, or the first axis that has no words."""
    found = [window(axis) for axis in axes]
    for number, one in enumerate(found):
        if isinstance(one, str):
            return Reason("mask", f"axis {number}: {one}")
    return NattenArguments(tuple(one for one in found if not isinstance(one, str)))
