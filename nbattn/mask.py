"""Masks of one to three axes, and converters from other libraries' windows.

A mask is plain frozen data: it holds no shape and no tensor, and needs no torch. `geometry`
computes which keys it allows.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbattn import windows
from nbattn.axis import (
    CODE_FIELDS,
    MAX_RANK,
    Align,
    Axis,
    decode,
    describe,
    encode,
    nearest,
    truth,
    whole,
    written,
)
from nbattn.errors import MaskError, counted, described, kind
from nbattn.fixes import mask_names
from nbattn.fixes import masks as repairs
from nbattn.fixes.signatures import answering

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.axes import Axes as MatplotlibAxes
    from numpy.typing import NDArray
    from torch.nn.attention.flex_attention import BlockMask

Space = int | Sequence[int]


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Mask(metaclass=mask_names.Answering):
    """The AND of one to three axes: query i attends to key j when every axis allows it.

    Args:
        *axes: one `Axis` per axis of the space, slowest first, as in `[B, *space, H, D]`.

    Raises:
        MaskError: no axis, more than three, or an argument that is not an `Axis`.

    Causal on two axes limits each axis separately; it is not raster order.

    >>> mask = Mask(Axis(8, causal=True), Axis(3, 3, border="shift"))
    >>> mask.rank
    2
    >>> print(mask)
    Mask of 2 axes
      axis 0  8 left, itself; causal
      axis 1  3 left, itself, 3 right; shift
    """

    axes: tuple[Axis, ...]

    def __new__(cls, *axes: Any, **unknown: Any) -> Mask:
        """Refuses arguments by name, which `__init__` would refuse without a fix."""
        if unknown:
            raise mask_names.of_the_class(axes, unknown)
        return object.__new__(cls)

    def __init__(self, *axes: Axis) -> None:
        object.__setattr__(self, "axes", axes)
        self.__post_init__()

    def __post_init__(self) -> None:
        _check_rank(len(self.axes), [axis for axis in self.axes if isinstance(axis, Axis)])
        for number, axis in enumerate(self.axes):
            if not isinstance(axis, Axis):
                problem = f"axis {number} is {described(axis, ',')}, not an Axis."
                raise MaskError(problem, repairs.instead_of_axes(self.axes))

    @property
    def rank(self) -> int:
        """The number of axes: the length of the space in `[B, *space, H, D]`."""
        return len(self.axes)

    def __repr__(self) -> str:
        text = written(self.axes)
        gaps = [
            f"axis {n}: stride {a.stride} > left + 1 = {a.left + 1}"
            for n, a in enumerate(self.axes)
            if a.has_causal_gaps and a.left is not None
        ]
        return f"{text}  # rows without keys: {'; '.join(gaps)}" if gaps else text

    def __str__(self) -> str:
        axes = [f"  axis {number}  {describe(axis)}" for number, axis in enumerate(self.axes)]
        return "\n".join([f"Mask of {counted(self.rank, 'axis', 'axes')}", *axes])

    def _repr_html_(self) -> str:
        """The axes as a table with a picture each, for notebooks."""
        from nbattn.pictures import notebook

        return notebook.of_mask(self)

    def _repr_svg_(self) -> str:
        """The axes as pictures side by side, for notebooks."""
        from nbattn.pictures import small_svg

        return small_svg.of_mask(self)

    # Constructors: each counts window sizes as the library it is named after does.

    @classmethod
    @answering(mask_names.refusal, own=1)
    def full(cls, rank: int = 1) -> Mask:
        """Every query attends to every key.

        >>> Mask.full(rank=2)
        Mask(Axis(), Axis())
        """
        _check_rank(whole("rank", rank, 1))
        return cls(*[Axis()] * rank)

    @classmethod
    @answering(mask_names.refusal, own=1)
    def causal(cls, align: Align | int | None = None, *, rank: int = 1) -> Mask:
        """Query i attends to keys up to its own position (torch SDPA's `is_causal` is top-left).

        Args:
            align: "top-left", "bottom-right", or an int: top-left with that offset. None needs
                as many queries as keys.
            rank: the number of axes. On several, a query attends to a key that is not after it on
                any axis: a product of half-lines, which is not raster order. For raster order,
                flatten the space to one axis.

        >>> Mask.causal("bottom-right")
        Mask(Axis(None, 0, causal=True, align='bottom-right'))
        >>> Mask.causal(rank=2).dense((2, 2))[2].tolist()  # (1, 0) does not attend to (0, 1)
        [True, False, True, False]
        """
        return cls(*[Axis(causal=True, align=align)] * windows.checked_rank(rank))

    @classmethod
    @answering(mask_names.refusal, own=1)
    def sliding_window(
        cls,
        left: int | None,
        right: int | None = 0,
        *,
        align: Align | int | None = None,
        dilation: int = 1,
        rank: int = 1,
    ) -> Mask:
        """`left` neighbours, the query's own position, `right` neighbours; cut at the ends.

        Args:
            left: keys before the query; None is unlimited.
            right: keys after the query; None is unlimited.
            align: "top-left", "bottom-right", or an int: top-left with that offset. None needs
                as many queries as keys.
            dilation: distance between neighbours.
            rank: the number of axes, all alike.

        >>> Mask.sliding_window(511)
        Mask(Axis(511, 0))
        """
        axis = Axis(left, right, dilation=dilation, align=align)
        return cls(*[axis] * windows.checked_rank(rank))

    @classmethod
    @answering(mask_names.refusal, own=1)
    def neighborhood(
        cls,
        kernel_size: int | Sequence[int],
        *,
        dilation: int | Sequence[int] = 1,
        stride: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] = False,
        rank: int | None = None,
    ) -> Mask:
        """NATTEN's windows: exactly `kernel_size` keys, shifted inward at the borders.

        An even kernel has one more key on the left; a causal axis is cut at its start instead.
        Tests compare this with NATTEN 0.21's own mask. It needs as many queries as keys.

        Args:
            kernel_size: keys per axis; an int, or one int per axis.
            dilation: distance between keys, per axis.
            stride: every `stride` neighbouring queries share one window (GNA); at most
                `kernel_size`, which is Swin's window attention where it divides the grid.
            is_causal: whether the axis is causal; a bool, or one bool per axis.
            rank: the number of axes; None is as many as an argument has values, else one.

        >>> Mask.neighborhood(7, rank=2) == Mask.neighborhood((7, 7))
        True
        >>> Mask.neighborhood((7, 7), dilation=2)
        Mask(Axis(3, 3, dilation=2, border='shift'), Axis(3, 3, dilation=2, border='shift'))
        """
        arguments = {
            "kernel_size": kernel_size,
            "dilation": dilation,
            "stride": stride,
            "is_causal": is_causal,
        }
        return cls(*windows.natten_axes(arguments, rank))

    @classmethod
    @answering(mask_names.refusal, own=1)
    def from_flash(
        cls,
        window_size: Sequence[int | None] = (-1, -1),
        causal: bool = False,
        *,
        align: Align | int | None = "bottom-right",
    ) -> Mask:
        """Flash Attention's documented window: keys `[i + Nk - Nq - left, i + Nk - Nq + right]`,
        bottom-right.

        Args:
            window_size: (left, right), without the query itself; negative or None is unlimited.
            causal: right becomes 0, as in Flash.
            align: an int is a top-left offset.

        >>> Mask.from_flash((512, 0))
        Mask(Axis(512, 0, align='bottom-right'))
        """
        if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
            raise MaskError(
                f"window_size={window_size!r} is not a pair.", repairs.pair(window_size, causal)
            )
        left, right = (
            windows.flash_side(name, side)
            for name, side in zip(("left", "right"), window_size, strict=True)
        )
        return cls(Axis(left, 0 if causal else right, causal=causal, align=align))

    @classmethod
    @answering(mask_names.refusal, own=1)
    def from_cudnn(
        cls,
        left_bound: int | None = None,
        right_bound: int | None = None,
        *,
        align: Align | int | None = "top-left",
    ) -> Mask:
        """The diagonal band of cuDNN: keys `(p - left_bound, p + right_bound]`, left exclusive.

        Args:
            left_bound: keys up to and including the query's own position, 1 or more; None is
                unlimited.
            right_bound: keys after the query; None is unlimited.
            align: `diagonal_alignment`; an int is a top-left offset.

        >>> Mask.from_cudnn(512, 0)
        Mask(Axis(511, 0, align='top-left'))
        """
        left, right = (
            None if bound is None else whole(name, bound, low, f"{name}=None for all")
            for name, bound, low in (("left_bound", left_bound, 1), ("right_bound", right_bound, 0))
        )
        return cls(Axis(None if left is None else left - 1, right, align=align))

    @classmethod
    @answering(mask_names.refusal, own=1)
    def from_transformers(
        cls, sliding_window: int | None = None, causal: bool = True, offset: int | None = None
    ) -> Mask:
        """Transformers' `sliding_window=W`: W keys including the own one if causal, else 2W + 1.

        Args:
            sliding_window: W; None is unlimited.
            causal: True for a decoder layer.
            offset: position of query 0 on the key axis (static caches), aligned top-left; None
                aligns bottom-right.

        >>> Mask.from_transformers(512)
        Mask(Axis(511, 0, causal=True, align='bottom-right'))
        >>> Mask.from_transformers(512, causal=False, offset=0)
        Mask(Axis(512, 512, align='top-left'))
        """
        window = None if sliding_window is None else whole("sliding_window", sliding_window, 1)
        align = "bottom-right" if offset is None else whole("offset", offset, None)
        if truth("causal", causal):
            return cls(Axis(None if window is None else window - 1, causal=True, align=align))
        return cls(Axis(window, window, align=align))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Mask:
        """The mask of plain data, as `to_dict` returns it, and as configuration files have it.

        Args:
            data: `{"axes": [...]}`, a mapping of fields per axis; or the name of a constructor with
                its arguments: `{"neighborhood": {"kernel_size": [7, 7]}}`.

        Raises:
            ConfigError: lists every mistake: where, what is legal, and what was probably meant.

        >>> Mask.from_dict({"neighborhood": {"kernel_size": 3, "rank": 2}})
        Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
        """
        from nbattn import mask_tables

        return cls(*mask_tables.mask_of(data).axes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the mask as plain data that JSON, TOML and YAML take: its axes, without what is a
        default. `Mask.from_dict` reads it, and files have it under `[masks.NAME]`.

        >>> Mask(Axis(8, causal=True), Axis(3, 3, border="shift")).to_dict()["axes"][1]
        {'left': 3, 'right': 3, 'border': 'shift'}
        """
        from nbattn import mask_tables

        return mask_tables.table_of(self)

    def to_flash(self) -> tuple[int, int]:
        """Returns Flash's `window_size` for this mask, by Flash's documentation; -1 is unlimited.

        Raises:
            MaskError: Flash has no such window; the message has the reason.

        >>> Mask.sliding_window(511, align="bottom-right").to_flash()
        (511, 0)
        """
        axis, reason = self.axes[0], windows.why_not_flash(self.axes)
        if reason:
            raise MaskError(
                f"Flash has no window_size for this mask: {reason}",
                windows.instead_of_flash(self.axes),
                repr(self),
            )
        shift = 0 if axis.is_full else axis.offset
        left, right = axis.left, axis.right
        return (-1 if left is None else left - shift, -1 if right is None else right + shift)

    def decodes(self) -> str | None:
        """Returns None if prefill and decode, axis 0 growing, equal one pass; else the reason.

        A decode step has the newest queries and all keys so far, aligned bottom-right.

        >>> Mask.from_transformers(512).decodes() is None
        True
        >>> Mask.sliding_window(8, 8, align="bottom-right").decodes()
        'right=8 attends to keys that come later; right=0 does not'
        """
        return windows.why_not_decoded(self.axes[0])

    # These methods need arrays, which they import when they are called.

    def dense(self, query_space: Space, key_space: Space | None = None) -> NDArray[np.bool_]:
        """The mask as a boolean matrix `[Nq, Nk]`, row-major over the spaces; True where the query
        attends to the key.

        Args:
            query_space: length of every query axis; an int for one axis.
            key_space: length of every key axis; default: that of the queries.

        Raises:
            MaskError: the mask does not fit the shape.

        >>> Mask.causal("top-left").dense(2, 3).tolist()
        [[True, False, False], [True, True, False]]
        """
        from nbattn import geometry

        return geometry.dense(self, query_space, key_space)

    def draw(self, query_space: Space, key_space: Space | None = None) -> str:
        """A text picture: one matrix per axis, with the effect of borders and alignment. Long axes
        are drawn by tiles.

        Args:
            query_space: length of every query axis; an int for one axis.
            key_space: length of every key axis; default: that of the queries.

        Raises:
            MaskError: the mask does not fit the shape, or an axis is longer than 2^21.

        >>> print(Mask.sliding_window(1).draw(3))
        axis 0: 3 queries, 3 keys, 5 of 9 pairs
        1 left, itself
        1–2 keys per query
          0 1 2
        0‹◆ ⬚ ⬚
        1 ■ ◆ ⬚
        2 ⬚ ■ ◆
        <BLANKLINE>
        ■ attended   ◆ attended, own position   ⬚ not attended   ‹ › window cut
        """
        from nbattn.pictures import text

        return text.picture(self, query_space, key_space)

    def plot(
        self,
        query_space: Space,
        key_space: Space | None = None,
        *,
        query: int | Sequence[int] | None = None,
        kind: str = "matrix",
        weights: Any = None,
        ax: MatplotlibAxes | None = None,
    ) -> MatplotlibAxes:
        """A figure for papers and notebooks: one panel, as wide as a column (3.35 inches), in
        vectors. Long axes are shown at both ends and around the query's window, with marks between.

        Args:
            query_space, key_space: as in `Mask.draw`.
            query: a number per axis, negative from the end; default: middle. Matrices mark its row.
            kind: "matrix" draws queries down and keys across, flat and row-major as `Mask.dense`;
                "neighborhood" the keys of one query on their grid, on three axes as slices of the
                first; "axes" a lane per axis with what its window, border and prefix do.
            weights: attention weights that colour the attended keys, an array or a tensor:
                `[*key_space]` for a neighborhood with `query`, `[Nq, Nk]` for a matrix.
            ax: matplotlib's Axes to draw into, of any size; default: a new figure of pyplot.

        Returns:
            The Axes; `ax.figure.savefig("mask.pdf")` writes the figure.

        Raises:
            MaskError: the mask does not fit the shape.
            InputError: an unknown kind, query or weights that do not fit, no matplotlib.

        >>> ax = Mask.neighborhood((3, 3)).plot((6, 8), query=(2, 4), kind="neighborhood")
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['attended', 'not attended', 'own position']
        """
        from nbattn.pictures import plot

        return plot.picture(
            self, query_space, key_space, query=query, kind=kind, weights=weights, ax=ax
        )

    def to_flex(
        self,
        query_space: Space,
        key_space: Space | None = None,
        *,
        device: torch.device | str = "cpu",
        block: int | Sequence[int] = 128,
    ) -> BlockMask:
        """The mask as FlexAttention's `BlockMask` on flat row-major tokens, with its `mask_mod`.

        It is built from intervals, without a dense matrix: every full block is listed as full, and
        no empty block is listed. Needs torch. There, torch gives queries without keys NaN or 0.

        Args:
            query_space: length of every query axis; an int for one axis.
            key_space: length of every key axis; default: that of the queries.
            device: the device of its tensors.
            block: tokens per block, one number or (queries, keys).

        Raises:
            MaskError: the mask does not fit the shape, or there are no queries or no keys.

        >>> blocks = Mask.sliding_window(100).to_flex(1000)
        >>> blocks.kv_num_blocks[0, 0].tolist(), blocks.shape
        ([1, 2, 2, 2, 2, 2, 2, 2], (1, 1, 1000, 1000))
        """
        from nbattn.backends.flex import run as flex

        return flex.block_mask(self, query_space, key_space, device, block)

    def code(self) -> list[int]:
        """The mask as a flat list of integers, nine per axis, for operators and kernels."""
        return [number for axis in self.axes for number in encode(axis)]


def as_space(space: Space, name: str = "space") -> tuple[int, ...]:
    """Returns a space as a tuple of lengths; an integer means one axis."""
    if shape := getattr(space, "shape", ()):
        code = f"{name}.tolist()" if len(shape) == 1 else tuple(shape)[1:-2]
        raise MaskError(f"{name} is {kind(space)}, not lengths.", f"{name}={code}.")
    lengths: tuple[Any, ...] = tuple(space) if isinstance(space, Iterable) else (space,)
    for length in lengths:
        is_whole = hasattr(length, "__index__") and not isinstance(length, bool)
        if not is_whole or operator.index(length) < 0:
            legal = tuple(nearest(length, 0) for length in lengths)
            shown = legal if len(legal) > 1 else ", ".join(map(str, legal))
            raise MaskError(f"{name}={space!r}: {length!r} is not a length.", f"{name}={shown}.")
    return tuple(map(operator.index, lengths))


def from_code(code: Sequence[int]) -> Mask:
    """Returns the mask whose `code()` gave these integers.

    >>> from_code(Mask.causal().code())
    Mask(Axis(None, 0, causal=True))
    """
    starts = range(0, len(code), CODE_FIELDS)
    return Mask(*[decode(code[start : start + CODE_FIELDS]) for start in starts])


def _check_rank(rank: int, axes: Sequence[Axis] = ()) -> None:
    if not 1 <= rank <= MAX_RANK:
        raise MaskError(
            f"a mask has 1 to {MAX_RANK} axes, not {rank}.", repairs.fewer_axes(rank, axes)
        )
