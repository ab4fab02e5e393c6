"""Packed grids for kernels that take them all in one call: the arguments of the call, and the parts
that costs add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from nbattn.geometry import Axes, BoundAxis, Ints, bind
from nbattn.grids import PackedGrids
from nbattn.mask import Mask
from nbattn.program.packed import buckets
from nbattn.program.program import ByIdentity, Call, CallArguments, Program, whole
from nbattn.program.request import Request


class TiledArguments(CallArguments, Protocol):
    """The arguments of one call of a kernel with tiles."""

    def alone(self, axes: Axes) -> CallArguments:
        """Returns the arguments of a call on one grid, in the same tiles."""
        ...


Arguments = TypeVar("Arguments", bound=TiledArguments)


@dataclass(frozen=True)
class PackedCall(Generic[Arguments]):
    """The arguments of one call on all grids.

    Args:
        mask, grids: of the request.
        kernels: the arguments of a call on one grid; the axes are the longest of all grids, and all
            grids have its tiles.
    """

    mask: Mask
    grids: PackedGrids
    kernels: Arguments

    @cached_property
    def offsets(self) -> Ints:
        """The position of each grid's first query on the key axes, int64 `[G, rank]`."""
        corner = self.grids.key.array - self.grids.query.array
        end = [axis.align == "bottom-right" for axis in self.mask.axes]
        return corner * end + [axis.offset for axis in self.mask.axes]

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the costs of the call add up."""
        return _parts(self.mask, ByIdentity(self.grids))

    def of_size(self, number: int) -> Program:
        """The program of a grid of one of the sizes of `grids.sizes`."""
        sizes = self.grids.sizes
        query, key = tuple(sizes.query[number].tolist()), tuple(sizes.key[number].tolist())
        axes = bind(self.mask, query, key)
        return Program((Call(whole(query), whole(key), self.kernels.alone(axes)),))

    def describe(self) -> str:
        """The tiles of all grids."""
        return self.kernels.describe()


class Part(NamedTuple):
    """Grids whose costs are those of one.

    Args:
        axes: of that grid.
        times: how many such grids cost as much.
        sizes: how many sizes they have.
    """

    axes: Axes
    times: float
    sizes: int = 1


def parts_of(request: Request, axes: Axes) -> tuple[Part, ...]:
    """Returns what a request's costs add up: one part, or one for each bucket of packed grids."""
    if request.grids is None:
        return (Part(axes, 1),)
    return _parts(request.mask, ByIdentity(request.grids))


@lru_cache(16)  # every kernel asks
def _parts(mask: Mask, identity: ByIdentity[PackedGrids]) -> tuple[Part, ...]:
    sizes = identity.value.sizes
    return tuple(
        Part(
            bind(mask, sizes.query[one.number].tolist(), sizes.key[one.number].tolist()),
            one.grids * one.scale,
            one.sizes,
        )
        for one in buckets(identity.value)
    )


def longest(request: Request, axes: Axes) -> Axes:
    """Returns the axes; of packed grids, those with the most queries and with the most keys."""
    if request.grids is None:
        return axes
    sizes = request.grids.sizes
    query, key = (side.max(axis=0, initial=0).tolist() for side in (sizes.query, sizes.key))
    return tuple(map(BoundAxis, request.mask.axes, query, key))


def farthest(request: Request, axes: Axes) -> Axes:
    """Returns the axes; of packed grids, those with the greatest numbers."""
    if request.grids is None or not len(request.grids):
        return axes
    query, key = request.grids.sizes.query, request.grids.sizes.key
    offset = [axis.offset for axis in request.mask.axes]
    most = np.maximum(np.maximum(query, key), abs(key - query + offset)).argmax(axis=0)
    numbers = zip(request.mask.axes, most.tolist(), query.T, key.T, strict=True)
    return tuple(BoundAxis(axis, int(q[at]), int(k[at])) for axis, at, q, k in numbers)
