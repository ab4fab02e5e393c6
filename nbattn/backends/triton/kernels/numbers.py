"""What kernels are compiled for, what they take besides pointers, and what functions return."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

# Parameters of kernels whose values shall not make further variants of them.
RUN_TIME = (
    "axes",
    "query_strides",
    "key_strides",
    "value_strides",
    "grad_out_strides",
    "counts",
    "samples",
    "space",
)


def unlike_others(value: Any) -> Any:
    """A number as `4 n + 3`, or all numbers of a tuple.

    Triton compiles a kernel again for a 1 and for a multiple of 16, and in tuples cannot be told
    not to. These are neither; kernels read them by `place.axes_of`, `counts_of` and `strides_from`.

    >>> unlike_others((0, (1, 16)))
    (3, (7, 67))
    """
    if not isinstance(value, tuple):
        return 4 * value + 3
    parts = [unlike_others(one) for one in value]  # pyright: ignore[reportUnknownVariableType]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)  # pyright: ignore


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True, slots=True)
class Variant:
    """What a kernel is compiled for.

    Args:
        rank: axes of the mask.
        rows, columns: extents of a tile on three axes, powers of two.
        head_dim, value_dim: channels.
        two_runs: whether a prefix may stand apart from the windows of some axis.
        circle: whether some axis wraps.
        softcap: whether there is one.
        packed: whether the tensors hold grids one after another.
        step: elements of which all strides are multiples where channels are neighbours; 1 for any
            strides.
        wide: whether offsets inside of a sample need 64 bits.
        precision: of products of float32, "ieee" or "tf32".
        double: whether sums are float64, for float64 tensors.
    """

    rank: int
    rows: tuple[int, int, int]
    columns: tuple[int, int, int]
    head_dim: int
    value_dim: int
    two_runs: bool = False
    circle: bool = False
    softcap: bool = False
    packed: bool = False
    step: int = 1
    wide: bool = False
    precision: str = "ieee"
    double: bool = False

    @property
    def row_count(self) -> int:
        """Rows of a tile."""
        return math.prod(self.rows)

    @property
    def column_count(self) -> int:
        """Columns of a tile."""
        return math.prod(self.columns)

    @property
    def head_size(self) -> int:
        """Channels of queries and keys as a power of two, of at least 16."""
        return _power(max(self.head_dim, 16))

    @property
    def value_size(self) -> int:
        """Channels of values as a power of two, of at least 16."""
        return _power(max(self.value_dim, 16))

    @property
    def neighbours(self) -> bool:
        """Whether the channels of a vector are known to be neighbours."""
        return self.step > 1

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps from a row to a column on each axis, as powers of two."""
        return tuple(
            _power(row + column - 1) for row, column in zip(self.rows, self.columns, strict=True)
        )


class Axis(NamedTuple):
    """One axis of a mask at its lengths, and the part of it that the tensors hold.

    Args:
        keys: length of the key axis.
        left, right: keys on each side, in steps of the dilation.
        dilation, stride: at least 1.
        offset: position of the first query of the tensors on the key axis.
        prefix: number of first keys that every query attends to.
        border: 0 clip, 1 shift, 2 wrap.
        causal: 0 or 1.
        queries, held_keys: lengths of the tensors.
        first_key: position of their first key.
    """

    keys: Any
    left: Any
    right: Any
    dilation: Any
    stride: Any
    offset: Any
    prefix: Any
    border: Any
    causal: Any
    queries: Any
    first_key: Any
    held_keys: Any


class Strides(NamedTuple):
    """Strides of a `[B, a0, a1, a2, H, D]` tensor, in units of `Variant.step` elements."""

    batch: Any
    axis0: Any
    axis1: Any
    axis2: Any
    head: Any
    channel: Any


class Counts(NamedTuple):
    """Numbers of a launch.

    Args:
        tiles: tiles of rows of one head of one sample; of all packed grids.
        blocks: heads of the rows: of queries, or of keys.
        heads: query heads.
        group: query heads of each key head.
        extra: extra keys.
        slope_step: from one sample's slopes to the next.
        grids: packed grids.
    """

    tiles: Any
    blocks: Any
    heads: Any
    group: Any
    extra: Any
    slope_step: Any
    grids: Any


class Place(NamedTuple):
    """Of one program: its tile of rows, head and sample, and what packed grids change."""

    tile: Any
    head: Any
    sample: Any
    first_query: Any
    first_key: Any
    axes: Any


class Part(NamedTuple):
    """One axis of a tile of rows, in class coordinates.

    Args:
        first, rows: the tile's rows are `[first, first + rows)`.
        row_origin, column_origin, step: coordinate x is at position origin + step * x.
        head_lo, head_hi: the prefix's run of columns.
        lo, hi: the other run of columns.
        full_head, full_lo, full_hi: the columns of every row: `[0, full_head)` and the interval.
        column_lo, column_hi: columns that the tensors hold and that are in range.
        valid_lo, valid_hi: rows that are in range.
        lap: keys of a circle; 0 of a line.
        keys: keys of the class on the whole axis.
        tiles: tiles of columns.
    """

    first: Any
    rows: Any
    row_origin: Any
    column_origin: Any
    step: Any
    head_lo: Any
    head_hi: Any
    lo: Any
    hi: Any
    full_head: Any
    full_lo: Any
    full_hi: Any
    column_lo: Any
    column_hi: Any
    valid_lo: Any
    valid_hi: Any
    lap: Any
    keys: Any
    tiles: Any


class Rows(NamedTuple):
    """The rows of a tile on one axis, as vectors: coordinates, windows `[lo, hi)` and `[0, head)`,
    positions in the tensors, whether they are there, and in range.
    """

    at: Any
    lo: Any
    hi: Any
    head: Any
    position: Any
    inside: Any
    valid: Any


class Columns(NamedTuple):
    """The columns of a visit on one axis, as vectors: coordinates, positions in the tensors, and
    whether they are there; and whether every row attends to all of them.
    """

    at: Any
    position: Any
    inside: Any
    full: Any
