"""Programs: a mask as kernel calls on affine views of q, k and v, and the only code that applies
views.

A view cuts every axis into groups of evenly spaced positions and moves the groups into batch or
heads. Proofs apply the same functions to grids of indices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

import numpy as np

from nbattn.geometry import Ints

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from nbattn.program.blocks import Block
    from nbattn.program.request import Request

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class AxisView:
    """Positions `start + group_step * g + step * t` of one axis, for g < groups and t < length.

    Positions are those of the tensors: 0 is the first one that they contain.

    >>> AxisView(0, 3, step=2, groups=2, group_step=1).positions().tolist()
    [[0, 2, 4], [1, 3, 5]]
    """

    start: int
    length: int
    step: int = 1
    groups: int = 1
    group_step: int = 0
    into: Literal["batch", "heads"] = "batch"

    def positions(self) -> Ints:
        """Returns the positions as `[groups, length]`."""
        group, t = np.arange(self.groups)[:, None], np.arange(self.length)
        return self.start + self.group_step * group + self.step * t

    def part(self, first: int, length: int) -> AxisView:
        """Returns the view with only `length` positions of every group, from `first` on."""
        start = self.start + self.step * first
        return AxisView(start, length, self.step, self.groups, self.group_step, self.into)

    def apart(self) -> int:
        """Returns a number n so that groups g and g + n, g + 2n, … share no position.

        >>> AxisView(0, 5, groups=4, group_step=2).apart()
        3
        """
        if self.groups == 1 or self.length <= 1 or not self.group_step:
            return 1
        unit = math.gcd(self.group_step, self.step)
        groups, positions = self.step // unit, self.group_step // unit
        return 1 if positions >= self.length else groups * ((self.length - 1) // positions) + 1


@dataclass(frozen=True, slots=True)
class View:
    """Views of every axis: `[B, *space, H, D]` becomes `[B', *lengths, H', D]`, where B' = B times
    the groups in batch, and H' = the groups in heads times H.
    """

    axes: tuple[AxisView, ...]
    _covered: tuple[int, ...] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        plain = all(
            a.groups == 1 and not a.start and (a.step == 1 or a.length <= 1) for a in self.axes
        )
        object.__setattr__(self, "_covered", self.lengths if plain else None)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The length of every axis in a group."""
        return tuple(axis.length for axis in self.axes)

    @property
    def count(self) -> int:
        """The number of positions per group."""
        return math.prod([axis.length for axis in self.axes])

    @property
    def groups(self) -> int:
        """The number of groups."""
        return math.prod([axis.groups for axis in self.axes])

    @property
    def is_whole(self) -> bool:
        """Whether the view is the tensor itself, up to trimmed ends."""
        return self.groups == 1 and all(axis.step == 1 for axis in self.axes)

    def covers(self, space: Sequence[int]) -> bool:
        """Whether the view covers every position of a space, in order."""
        return self._covered == tuple(space)  # computed once, since every call needs it

    def with_part(self, number: int, some: slice) -> View:
        """Returns the view with the positions `some` of one axis, which may exceed its length."""
        part = self.axes[number].part(some.start, some.stop - some.start)
        return View((*self.axes[:number], part, *self.axes[number + 1 :]))

    def batch_and_heads(self, batch: int, heads: int) -> tuple[int, int]:
        """Returns the numbers of samples and heads of a call, including the groups."""
        into_batch = math.prod(axis.groups for axis in self.axes if axis.into == "batch")
        return batch * into_batch, heads * (self.groups // max(into_batch, 1))

    def spread(self, tensor: Tensor) -> Tensor:
        """Returns a view of the tensor, `[B, *batch groups, *lengths, *head groups, H, D]`."""
        rank = len(self.axes)
        strides, sizes = tensor.stride(), tensor.shape
        size, stride, offset = [sizes[0]], [strides[0]], tensor.storage_offset()
        for number, axis in enumerate(self.axes):
            unit = strides[1 + number]
            size += [axis.groups, axis.length]
            stride += [unit * axis.group_step, unit * axis.step]
            offset += unit * axis.start
        whole = tensor.as_strided(
            [*size, *sizes[1 + rank :]], [*stride, *strides[1 + rank :]], offset
        )
        batch, heads = (
            [1 + 2 * n for n, a in enumerate(self.axes) if a.into == into]
            for into in ("batch", "heads")
        )
        tail = range(1 + 2 * rank, whole.dim())
        return whole.permute(0, *batch, *range(2, 2 + 2 * rank, 2), *heads, *tail)

    def add(self, total: Tensor, part: Tensor) -> None:
        """Adds `part`, of the shape that `folded` returns, to the positions of the view in `total`.

        Groups that overlap are added one after another.
        """
        for number, axis in enumerate(self.axes):
            runs = axis.apart()
            if runs > 1:
                self._add_in_runs(total, part, number, runs)
                return
        spread = self.spread(total)
        spread.add_(part.reshape(spread.shape))

    def _add_in_runs(self, total: Tensor, part: Tensor, number: int, runs: int) -> None:
        """Adds every `runs`-th group of one axis at a time, so that none of them overlap."""
        axis = self.axes[number]
        batch = [n for n, a in enumerate(self.axes) if a.into == "batch"]
        heads = [n for n, a in enumerate(self.axes) if a.into == "heads"]
        order = [-1, *batch, *heads]
        at = order.index(number) + (len(self.axes) if axis.into == "heads" else 0)
        whole = part.reshape(self.spread(total).shape)
        for first in range(min(runs, axis.groups)):
            subset = replace(
                axis,
                start=axis.start + first * axis.group_step,
                groups=-(-(axis.groups - first) // runs),
                group_step=axis.group_step * runs,
            )
            view = View((*self.axes[:number], subset, *self.axes[number + 1 :]))
            rows = [slice(None)] * at + [slice(first, None, runs)]
            view.add(total, whole[tuple(rows)])

    def folded(self, tensor: Tensor) -> Tensor:
        """Returns the tensor as `[B', *lengths, H', D]`, copied only if groups do not merge into
        batch or heads.
        """
        if self.covers(tensor.shape[1 : 1 + len(self.axes)]):
            return tensor
        batch, *tail = self._folded_sizes(tensor)
        return self.spread(tensor).reshape(batch, *self.lengths, *tail)

    def rows_of(self, tensor: Tensor) -> Tensor | None:
        """Returns the positions of the view as `[B', N, H', D]` in the tensor's memory, so that
        kernels can write there; None if groups or axes do not merge without a copy.
        """
        batch, *tail = self._folded_sizes(tensor)
        try:
            return self.spread(tensor).view(batch, self.count, *tail)
        except RuntimeError:  # torch raises it if strides do not merge
            return None

    def _folded_sizes(self, tensor: Tensor) -> tuple[int, ...]:
        """B', H', D."""
        batch = math.prod(axis.groups for axis in self.axes if axis.into == "batch")
        heads, *tail = tensor.shape[1 + len(self.axes) :]
        return tensor.shape[0] * batch, heads * (self.groups // batch), *tail


class ByIdentity(Generic[Value]):
    """Wraps a value that caches compare by identity, at a tenth of the cost of hashing it."""

    __slots__ = ("value",)

    def __init__(self, value: Value) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and other.value is self.value  # pyright: ignore


class CallArguments(Protocol):
    """The arguments of one kernel call, and the mask that the kernel computes with them."""

    def key_runs(self, number: int, queries: int, keys: int) -> tuple[Ints, Ints, int]:
        """Returns the keys that every query of one axis attends to, as two runs: starts
        `[queries, 2]`, counts `[queries, 2]`, step.
        """
        ...

    def allowed(self, queries: tuple[int, ...], keys: tuple[int, ...]) -> NDArray[np.bool_]:
        """Returns the call's mask at its own lengths, as a bool matrix."""
        ...

    def blocks(self, request: Request, call: Call, *, backward: bool) -> Iterator[Block]:
        """Yields the blocks that the kernel computes in this call."""
        ...

    def describe(self) -> str:
        """Describes the arguments in a few words."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel call: views of queries and keys, and the kernel's arguments.

    With `joins`, its rows are merged by logsumexp into those of earlier calls for the same queries.
    """

    query: View
    key: View
    arguments: CallArguments
    joins: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """Calls that write disjoint rows, or that join the rows of earlier calls with other keys.

    A query in no call has no keys. Extra keys and sinks are merged by logsumexp, too.
    """

    calls: tuple[Call, ...]

    def writes_all(self, space: Sequence[int]) -> bool:
        """Whether the calls without `joins` write every row of a space."""
        rows = (call.query.groups * call.query.count for call in self.calls if not call.joins)
        return sum(rows) == math.prod(space)

    def to_dict(self) -> list[dict[str, object]]:
        """Plain data for JSON."""
        return [
            {
                "arguments": call.arguments.describe(),
                "query": [_plain(axis) for axis in call.query.axes],
                "key": [_plain(axis) for axis in call.key.axes],
                **({"joins": True} if call.joins else {}),
            }
            for call in self.calls
        ]


@lru_cache(64)
def whole(space: tuple[int, ...]) -> View:
    """Returns the view of whole tensors."""
    return View(tuple(AxisView(0, length) for length in space))


def _plain(axis: AxisView) -> dict[str, object]:
    plain: dict[str, object] = {"start": axis.start, "length": axis.length, "step": axis.step}
    if axis.groups > 1:
        plain |= {"groups": axis.groups, "group_step": axis.group_step, "into": axis.into}
    return plain
