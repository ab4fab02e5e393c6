"""Packed grids: the sizes of grids that lie one after another, and which of them differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nbattn import alignment, biases, circles, mistaken_places
from nbattn.errors import InputError, MaskError, counted, kind
from nbattn.fixes import signatures
from nbattn.geometry import Ints, bind
from nbattn.mask import Mask

LONGEST = 2**31 - 1  # tokens of all grids: kernels count them in 32 bits


@dataclass(frozen=True, eq=False, repr=False)
class Grids:
    """The sizes of grids that are packed one after another: grid g has `array[g]` tokens per axis.

    An immutable value, which calls and plans take as `grids=`; made once, it saves them the
    conversion of a list of sizes.

    Args:
        array: the sizes: a sequence of tuples, an array or a tensor of whole numbers `[G, rank]`;
            for one axis also plain numbers. It is copied, to int64.

    Raises:
        InputError: they are no sizes.

    >>> grids = Grids([(14, 14), (20, 33)])
    >>> grids.tokens, grids.starts.tolist()
    (856, [0, 196, 856])
    """

    array: Ints

    def __post_init__(self) -> None:
        array = np.array(_sized(_as_array(self.array, "grids"), None, "grids"), dtype=np.int64)
        array.setflags(write=False)
        object.__setattr__(self, "array", array)

    def __len__(self) -> int:
        return len(self.array)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Grids) or self._hash != other._hash:
            return False
        return np.array_equal(self.array, other.array)

    def __repr__(self) -> str:
        shown = ", ".join("x".join(map(str, size)) for size in self.array[:4].tolist())
        more = f", … {len(self)} grids" if len(self) > 4 else ""
        return f"Grids({shown}{more})"

    def __reduce__(self) -> tuple[object, ...]:
        return Grids, (self.array,)

    @property
    def rank(self) -> int:
        """The number of axes."""
        return self.array.shape[1]

    @cached_property
    def _hash(self) -> int:
        return hash((self.array.shape, self.array.tobytes()))

    @cached_property
    def counts(self) -> Ints:
        """The number of tokens of each grid, int64 `[G]`."""
        return self.array.prod(axis=1, dtype=np.int64)

    @cached_property
    def starts(self) -> Ints:
        """The first token of each grid, and the number of all tokens: int64 `[G + 1]`."""
        return np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    @cached_property
    def tokens(self) -> int:
        """The number of tokens of all grids."""
        return int(self.starts[-1])

    def rows(self, at: Ints) -> Ints:
        """Returns the rows of the tokens of some grids of one size, one grid after another."""
        tokens = int(self.counts[at[0]])
        return (self.starts[at][:, None] + np.arange(tokens)).reshape(-1)

    @cached_property
    def _distinct(self) -> tuple[Ints, Ints]:
        first, which = _distinct_rows(self.array)
        return self.array[first], which

    def distinct(self) -> tuple[Ints, Ints]:
        """Returns the sizes that differ, `[S, rank]`, and which of them each grid has, `[G]`."""
        return self._distinct


Grids.__init__ = signatures.answering(mistaken_places.refusal, own=1)(Grids.__init__)


@dataclass(frozen=True, slots=True, eq=False)
class Sizes:
    """The pairs of sizes of queries and keys that differ among packed grids.

    Args:
        query, key: int64 `[S, rank]`.
        which: which of them each grid has, `[G]`.
        first: the first grid that has each of them, `[S]`.
        count: how many grids have each of them, `[S]`.
    """

    query: Ints
    key: Ints
    which: Ints
    first: Ints
    count: Ints


@dataclass(frozen=True)
class PackedGrids:
    """The grids of the queries and those of the keys, grid by grid.

    >>> packed = PackedGrids(*2 * [grids_of([(2, 3), (4, 4), (2, 3)])])
    >>> packed.sizes.query.tolist(), packed.sizes.which.tolist()
    ([[2, 3], [4, 4]], [0, 1, 0])
    """

    query: Grids
    key: Grids

    def __post_init__(self) -> None:
        if self.key == self.query:
            object.__setattr__(self, "key", self.query)  # compared by identity from now on

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((hash(self.query), hash(self.key)))

    def __len__(self) -> int:
        return len(self.query)

    @property
    def rank(self) -> int:
        """The number of axes."""
        return self.query.rank

    @property
    def is_self(self) -> bool:
        """Whether keys have the grids of the queries."""
        return self.key is self.query

    @cached_property
    def sizes(self) -> Sizes:
        """The pairs of sizes that differ, in the order of their first grids."""
        both = self.query.array if self.is_self else np.hstack([self.query.array, self.key.array])
        first, which = _distinct_rows(both)
        count = np.bincount(which, minlength=len(first))
        return Sizes(self.query.array[first], self.key.array[first], which, first, count)

    def flat(self) -> tuple[list[int], list[int]]:
        """Returns the lengths of all grids one after another, as operators take them."""
        return self.query.array.ravel().tolist(), self.key.array.ravel().tolist()

    def spaces(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Returns the lengths of the queries' and keys' axes, grid by grid."""
        both = self.query.array.tolist(), self.key.array.tolist()
        return [(tuple(query), tuple(key)) for query, key in zip(*both, strict=True)]

    def summary(self) -> str:
        """Describes the grids in a few words."""
        sizes = counted(len(self.sizes.first), "size")
        return f"{counted(len(self), 'grid')} of {sizes}"


def _distinct_rows(rows: Ints) -> tuple[Ints, Ints]:
    """Returns the first row of each kind, in order, and the kind of each row. Rows become single
    numbers where these fit 64 bits, which sorts 20 times as fast as rows.
    """
    most = rows.max(axis=0, initial=0) + 1
    if math.prod(most.tolist()) < 2**62:
        codes = np.zeros(len(rows), dtype=np.int64)
        for column, base in zip(rows.T, most, strict=True):
            codes = codes * base + column
        _, first, which = np.unique(codes, return_index=True, return_inverse=True)
    else:
        _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[which.reshape(-1)]


def grids_of(sizes: Any, rank: int | None = None, name: str = "grids") -> Grids:
    """Returns the grids of sizes: a sequence of tuples, an array or a tensor of whole numbers
    `[G, rank]`; numbers for one axis; or `Grids`.

    Raises:
        InputError: they are not the sizes of grids of so many axes.
    """
    if isinstance(sizes, Grids) and rank in (None, sizes.rank):
        return sizes
    return Grids(_sized(_as_array(sizes, name), rank, name))


def _sized(array: Ints, rank: int | None, name: str) -> Ints:
    """Returns sizes as `[G, rank]`, and checks them."""
    if array.ndim == 1 and not array.size:
        array = np.zeros((0, rank or 1), dtype=np.int64)
    if array.ndim == 1 and rank in (None, 1):
        array = array[:, None]
    if array.ndim != 2 or (rank is not None and array.shape[1] != rank):
        raise InputError(
            f"{name} has shape {list(array.shape)}, not [G, {rank or 'rank'}]: one length per "
            "axis of the mask for each grid.",
            f"{name}=[{tuple(array.tolist())}], for one grid."
            if array.ndim == 1 and len(array) == rank
            else "",
        )
    if array.size and (array.min() < 0 or float(np.prod(array, 1, dtype=float).sum()) > LONGEST):
        wrong = np.flatnonzero((array < 0).any(axis=1))
        raise InputError(
            f"{name}: grid {wrong[0]} has lengths {tuple(array[wrong[0]].tolist())}."
            if wrong.size
            else f"{name} have more than {LONGEST} tokens.",
        )
    return array


def _as_array(sizes: Any, name: str) -> Ints:
    """Returns whole numbers as an array."""
    if isinstance(sizes, Grids):
        return sizes.array
    if getattr(sizes, "is_nested", False):
        ends = f"{'grids=' * (name == 'grids')}nbattn.grids_from({name}.offsets())"
        raise InputError(
            f"{name} is a nested tensor, not sizes: it has their boundaries.",
            f"{ends}." if hasattr(sizes, "offsets") and name != "key_grids" else "",
        )
    if hasattr(sizes, "detach"):  # a tensor
        sizes = sizes.detach().cpu()
    is_known = isinstance(sizes, Sequence) or hasattr(sizes, "__array__")
    if not is_known or isinstance(sizes, str):
        raise InputError(
            f"{name} is {kind(sizes)}, not a list of sizes.",
            f"{name}=None, for tensors [B, *space, H, D]." if sizes is False else "",
        )
    try:
        array = np.asarray(sizes)
    except ValueError:  # rows of several lengths
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "iu" and array.size + (array.dtype == object):
        raise InputError(
            f"{name}: every grid has one whole number per axis.",
            f"{name}=torch.as_tensor({name}).long()."
            if array.dtype.kind == "f" and bool((array == np.trunc(array)).all())
            else "",
        )
    return array


@signatures.answering(mistaken_places.refusal)
def grids_from(cu_seqlens: Any) -> Grids:
    """Returns the grids of one axis whose boundaries are `cu_seqlens`, as flash-attn takes them.

    Args:
        cu_seqlens: whole numbers `[G + 1]` that start at 0 and never decrease.

    Raises:
        InputError: they are not such numbers.

    >>> grids_from([0, 513, 600])
    Grids(513, 87)
    """
    ends = _as_array(cu_seqlens, "cu_seqlens")
    lengths = np.diff(ends.astype(np.int64)) if ends.ndim == 1 else ends
    if ends.ndim != 1 or not len(ends) or ends[0] != 0 or (lengths < 0).any():
        is_lengths = ends.ndim == 1 and len(ends) and ends[0] > 0 and (ends >= 0).all()
        fixes = {
            "grids=cu_seqlens, for lengths.": is_lengths,
            "nbattn.grids_from(cu_seqlens[0]).": ends.ndim == 2 and len(ends) and not ends[0, 0],
            "grids=cu_seqlens, for sizes.": ends.ndim == 2 and ends.shape[1] in (2, 3),
        }
        where = ""
        if ends.ndim == 1 and (lengths < 0).any():
            at = int((lengths < 0).argmax()) + 1
            where = f": entry {at} is {ends[at]}, after {ends[at - 1]}"
        raise InputError(
            f"cu_seqlens={_shown(ends)} are not boundaries, [0, n, n + m, …]{where}.",
            next((fix for fix, is_meant in fixes.items() if is_meant), ""),
        )
    return Grids(lengths[:, None])


def _shown(array: Ints) -> str:
    numbers = array.tolist()
    return str(numbers) if array.size <= 6 else f"[{', '.join(map(str, array.ravel()[:4]))}, …]"


def check(mask: Mask, packed: PackedGrids, *, table: bool = False, slopes: bool = False) -> None:
    """Checks that a mask, and what is added to its scores, fit each grid.

    Raises:
        MaskError: with the first grid that breaks a rule.
    """
    sizes = packed.sizes
    wrong = np.zeros(len(sizes.first), dtype=np.bool_)
    for number, axis in enumerate(mask.axes):
        queries, keys = sizes.query[:, number], sizes.key[:, number]
        if alignment.is_missing(axis, 0, 1):
            wrong |= queries != keys
        moved = axis.border == "wrap" or (table and (axis.border == "shift" or axis.stride > 1))
        if moved or table or slopes:
            pairs = np.stack([queries, keys], axis=1)
            first, which = _distinct_rows(pairs)
            tried = pairs[first] if moved else pairs[first][:1]
            broken = [not _fits(Mask(axis), *pair, table=table) for pair in tried.tolist()]
            if any(broken):
                wrong |= np.array(broken if moved else broken * len(first))[which]
    if slopes and len(sizes.first):
        biases.check_slopes(mask, bind(mask, [0] * mask.rank))
    if not wrong.any():
        return
    grid = int(sizes.first[wrong].min())
    at = tuple(packed.query.array[grid].tolist()), tuple(packed.key.array[grid].tolist())
    try:
        axes = bind(mask, *at)
        biases.check(mask, axes, table=table, slopes=slopes)
    except MaskError as error:
        # Other fixes change tensors, or fit the lengths of this grid only.
        missing = (alignment.is_missing(axis, *n) for axis, *n in zip(mask.axes, *at, strict=True))
        aligns = any(missing) and all(axis.border != "wrap" for axis in mask.axes)
        fix = error.fix if aligns else ""
        raise MaskError(f"grid {grid}: {error.problem}", fix, error.where) from None


def _fits(mask: Mask, queries: int, keys: int, *, table: bool) -> bool:
    """Whether a mask of one axis, and its table, have these lengths."""
    if alignment.is_missing(mask.axes[0], queries, keys):
        return True  # which the caller knows
    try:
        circles.check_lengths(mask, 0, mask.axes[0], queries, keys)
        biases.check(mask, bind(mask, queries, keys), table=table, slopes=False)
    except MaskError:
        return False
    return True
