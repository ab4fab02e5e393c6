"""What programs of packed grids say of single grids, and which sizes stand for many in costs."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from nbattn.grids import PackedGrids
from nbattn.program.program import Program

BUCKETS = 2  # sizes that a plan looks at: all of them, or one for those of a like size


@runtime_checkable
class PackedArguments(Protocol):
    """The arguments of one call on packed grids, `[T, H, D]`; its program has no other call, and
    its views are of all tokens.
    """

    def of_size(self, number: int) -> Program:
        """Returns the program of a grid of one of the sizes of `request.grids.sizes`, on tensors of
        its own. Proofs look at it for every size.
        """
        ...

    def describe(self) -> str:
        """Describes the arguments in a few words."""
        ...


class Bucket(NamedTuple):
    """Sizes that one of them stands for in costs.

    Args:
        number: of that size, in `PackedGrids.sizes`.
        grids: how many grids the bucket has.
        sizes: how many sizes it has.
        scale: the tokens of its grids, in those of as many grids of that size.
    """

    number: int
    grids: int
    sizes: int
    scale: float


def buckets(packed: PackedGrids, most: int = BUCKETS) -> list[Bucket]:
    """Returns the sizes by which costs are estimated: all of up to `most`, else `BUCKETS` and one.
    Empty grids cost nothing.

    Where more sizes differ, they are divided by their tokens, in equal steps of the logarithm, and
    the one nearest to its bucket's mean stands for it; grids without keys have a bucket of their
    own.
    """
    sizes = packed.sizes
    tokens = sizes.query.prod(axis=1, dtype=np.float64) + sizes.key.prod(axis=1, dtype=np.float64)
    some = np.flatnonzero(sizes.query.prod(axis=1, dtype=np.float64))
    if len(some) <= most:
        return [Bucket(int(n), int(sizes.count[n]), 1, 1.0) for n in some]
    found: list[Bucket] = []
    has_keys = (sizes.key[some] > 0).all(axis=1)
    bare, some = some[~has_keys], some[has_keys]
    if len(bare):
        found.append(Bucket(int(bare[0]), int(sizes.count[bare].sum()), len(bare), 1.0))
    if not len(some):
        return found
    height = np.log(tokens[some])
    step = max(float(np.ptp(height)), 1e-9) / BUCKETS
    level = np.minimum((height - height.min()) // step, BUCKETS - 1)
    for number in np.unique(level):
        inside = some[level == number]
        count = sizes.count[inside]
        mean = float(np.average(tokens[inside], weights=count))
        nearest = int(inside[np.abs(tokens[inside] - mean).argmin()])
        scale = mean / float(tokens[nearest])
        found.append(Bucket(nearest, int(count.sum()), len(inside), scale))
    return found
