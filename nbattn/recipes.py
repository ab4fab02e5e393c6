"""Masks of published sparse attention by name, for the tokens of images and videos."""

from __future__ import annotations

from collections.abc import Sequence

from nbattn.axis import whole
from nbattn.errors import MaskError
from nbattn.fixes import masks as repairs
from nbattn.mask import Mask


def sliding_tile(
    window: int | Sequence[int] = (3, 3, 3),
    tile: int | Sequence[int] = (6, 8, 8),
    *,
    grid: int | Sequence[int] | None = None,
) -> Mask:
    """FastVideo's sliding tile attention (STA, arXiv 2502.04507) as a mask.

    Tokens are cut into tiles, and all queries of a tile share their keys: the tiles at most
    `window // 2` away from a centre on every axis. The centre is the queries' own tile, moved
    inward at the borders so that the window stays on the grid.

    So a window has `2 * (window // 2) + 1` tiles, and an even one means the odd one above it. This
    is what FastVideo's kernels compute. Its even windows are those of a whole axis, 6 of 6 tiles
    and 10 of 10, where both are the same. A window wider than the grid is the whole grid.

    STA exists only where tiles divide the grid: its kernels are compiled for three grids, and users
    choose sizes of videos that give them. The mask also takes other grids. There the last tile is
    shorter and its window, moved inward, does not begin on a tile's border, as with NATTEN's
    strides. Give `grid` to refuse that.

    Text that all tokens attend to is not part of the mask: see `nbattn.joint_attention`.
    FastVideo's searched strategies give each head and step a window of its own. A mask is for all
    heads of a call, so heads with different windows are different calls.

    Args:
        window: tiles per axis that a query attends to; an int, or one int per axis.
        tile: tokens of a tile per axis; an int, or one int per axis. The default is FastVideo's.
        grid: tokens per axis, only to check that tiles divide them.

    Raises:
        MaskError: a number is not a positive integer, numbers of axes differ, there is one window
            per head, or tiles do not divide the grid.

    >>> sliding_tile((3, 3, 3), (6, 8, 8), grid=(30, 48, 80)) == Mask.neighborhood(
    ...     (18, 24, 24), stride=(6, 8, 8)
    ... )
    True
    >>> print(sliding_tile(3, 2).draw(8))  # 4 tiles of 2 tokens
    axis 0: 8 queries, 8 keys, 48 of 64 pairs
    3 left, itself, 2 right; stride 2, shift
    6 keys per query
      0 1 2 3 4 5 6 7
    0 ◆ ■ ■ ■ ▣ ▣ ⬚ ⬚
    1 ■ ◆ ■ ■ ▣ ▣ ⬚ ⬚
    2 ■ ■ ◆ ■ ■ ■ ⬚ ⬚
    3 ■ ■ ■ ◆ ■ ■ ⬚ ⬚
    4 ⬚ ⬚ ■ ■ ◆ ■ ■ ■
    5 ⬚ ⬚ ■ ■ ■ ◆ ■ ■
    6 ⬚ ⬚ ▣ ▣ ■ ■ ◆ ■
    7 ⬚ ⬚ ▣ ▣ ■ ■ ■ ◆
    <BLANKLINE>
    ■ attended   ◆ attended, own position   ▣ attended, moved or wrapped   ⬚ not attended
    """
    if _is_nested(window):
        raise MaskError(
            "window has one window per head, and a mask is for all heads of a call.",
            "torch.cat([nbattn.attention(q, k, v, sliding_tile(w, tile)) for q, k, v, w in "
            "zip(query.split(1, -2), key.split(1, -2), value.split(1, -2), window)], -2)",
        )
    given = {"window": window, "tile": tile} | ({} if grid is None else {"grid": grid})
    lengths = {n: len(v) for n, v in given.items() if isinstance(v, (tuple, list))}
    if len({*lengths.values()}) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        problem = f"numbers of axes differ: {shown}."
        raise MaskError(problem, repairs.of_one_length(given, lengths))
    rank = next(iter(lengths.values()), 1)
    windows, tiles = (
        [whole(name, n, 1) for n in _per_axis(given[name], rank)] for name in ("window", "tile")
    )
    if grid is not None:
        _check_grid([whole("grid", n, 1) for n in _per_axis(grid, rank)], tiles)
    kernel = [(2 * (w // 2) + 1) * size for w, size in zip(windows, tiles, strict=True)]
    return Mask.neighborhood(kernel, stride=tiles)


def _is_nested(window: object) -> bool:
    """Whether a window is a list of windows."""
    return isinstance(window, (tuple, list)) and any(isinstance(w, (tuple, list)) for w in window)


def _per_axis(value: int | Sequence[int], rank: int) -> Sequence[int]:
    return value if isinstance(value, (tuple, list)) else (value,) * rank  # pyright: ignore


def _check_grid(grid: Sequence[int], tiles: Sequence[int]) -> None:
    """Check that tiles divide the grid.

    Raises:
        MaskError: they do not; the fix has the nearest grid that they divide.
    """
    rest = [axis for axis, (n, size) in enumerate(zip(grid, tiles, strict=True)) if n % size]
    if rest:
        fitting = [max(1, round(n / size)) * size for n, size in zip(grid, tiles, strict=True)]
        axis = rest[0]
        raise MaskError(
            f"axis {axis} ({grid[axis]} tokens): tiles of {tiles[axis]} do not divide it, and "
            "sliding tile attention has no shorter tiles.",
            f"grid={tuple(fitting)!r}, by another size of the image or video",
        )
