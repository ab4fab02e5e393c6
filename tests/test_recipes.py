"""Tests of masks by name: against an enumeration of tiles that shares no code with the package, and
against the sparsity that papers publish.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import nbattn
from nbattn import Mask, MaskError
from nbattn.recipes import sliding_tile

GRIDS = {  # whose kernels FastVideo compiles: HunyuanVideo, Step-Video, Wan
    "hunyuan": (30, 48, 80),
    "step": (36, 48, 48),
    "wan": (18, 48, 80),
}


def tiles_of(window: tuple[int, ...], canvas: tuple[int, ...]) -> dict[tuple, set[tuple]]:
    """The tiles that each tile attends to: per axis, those at most window // 2 from its centre,
    which is clamped so that the window stays on the canvas, as FastVideo's kernels count.
    """
    found: dict[tuple, set[tuple]] = {}
    every = list(itertools.product(*(range(n) for n in canvas)))
    for tile in every:
        halves = [w // 2 for w in window]
        centre = [
            max(half, min(at, n - 1 - half)) if 2 * half < n else half
            for at, n, half in zip(tile, canvas, halves, strict=True)
        ]
        found[tile] = {
            other
            for other in every
            if all(abs(c - o) <= h for c, o, h in zip(centre, other, halves, strict=True))
        }
    return found


def by_tiles(window: tuple[int, ...], tile: tuple[int, ...], canvas: tuple[int, ...]) -> np.ndarray:
    """The matrix of all tokens, row-major over the grid of tokens, filled tile by tile."""
    grid = tuple(n * size for n, size in zip(canvas, tile, strict=True))
    numbers = np.arange(math.prod(grid)).reshape(grid)

    def tokens(at: tuple[int, ...]) -> np.ndarray:
        box = tuple(slice(n * size, (n + 1) * size) for n, size in zip(at, tile, strict=True))
        return numbers[box].ravel()

    allowed = np.zeros((numbers.size, numbers.size), dtype=bool)
    for own, others in tiles_of(window, canvas).items():
        for other in others:
            allowed[np.ix_(tokens(own), tokens(other))] = True
    return allowed


@pytest.mark.parametrize("tile", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("window", range(1, 9))
def test_one_axis_is_the_enumeration(window: int, tile: int, cases) -> None:
    """Odd and even tiles and windows, on canvases that are narrower, equal and wider."""
    for canvas in range(1, 11):
        found = sliding_tile(window, tile).dense(canvas * tile)
        assert (found == by_tiles((window,), (tile,), (canvas,))).all(), canvas
        cases("sliding tiles", 1)


@pytest.mark.parametrize(
    ("window", "tile", "canvas"),
    [
        ((3, 3), (2, 3), (5, 4)),
        ((3, 5), (4, 2), (3, 7)),
        ((2, 4), (3, 2), (5, 6)),
        ((3, 3, 3), (2, 2, 2), (4, 3, 5)),
        ((1, 3, 2), (3, 2, 1), (2, 4, 2)),
        ((3, 6, 1), (1, 2, 3), (3, 6, 2)),
    ],
)
def test_several_axes_are_the_enumeration(window, tile, canvas) -> None:
    grid = tuple(n * size for n, size in zip(canvas, tile, strict=True))
    mask = sliding_tile(window, tile, grid=grid)
    assert (mask.dense(grid) == by_tiles(window, tile, canvas)).all()


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("window", [(3, 3, 3), (3, 3, 5), (5, 3, 3), (3, 6, 1), (1, 6, 10)])
def test_every_tile_of_the_published_grids(name: str, window: tuple[int, ...]) -> None:
    """Axis by axis, since a mask is the AND of its axes."""
    grid, tile = GRIDS[name], (6, 8, 8)
    mask = sliding_tile(window, tile, grid=grid)
    rows = [
        Mask(axis).dense(length).reshape(length // size, size, length // size, size)
        for axis, length, size in zip(mask.axes, grid, tile, strict=True)
    ]
    for axis in rows:  # whole tiles attend to whole tiles
        assert (axis == axis[:, :1, :, :1]).all()
    canvas = tuple(n // size for n, size in zip(grid, tile, strict=True))
    for own, others in tiles_of(window, canvas).items():
        per_axis = [np.flatnonzero(axis[at, 0, :, 0]) for axis, at in zip(rows, own, strict=True)]
        assert set(itertools.product(*(a.tolist() for a in per_axis))) == others


def test_an_even_window_is_the_odd_one_above_it() -> None:
    assert sliding_tile((2, 4, 6)) == sliding_tile((3, 5, 7))
    assert sliding_tile((1, 6, 10)).dense((1, 6, 10)).all()


def test_ints_are_for_all_axes() -> None:
    assert sliding_tile(3, (4, 4)) == sliding_tile((3, 3), 4) == sliding_tile((3, 3), (4, 4))
    assert sliding_tile(3, 4) == Mask.neighborhood(12, stride=4)
    assert sliding_tile(grid=(30, 48, 80)) == sliding_tile((3, 3, 3), (6, 8, 8))


def test_where_tiles_do_not_divide_the_last_window_is_moved_inward() -> None:
    """STA has no such grids; the mask does as NATTEN's strides do, and `grid` refuses."""
    found = sliding_tile(1, 4).dense(10)
    assert np.flatnonzero(found[9]).tolist() == [6, 7, 8, 9]
    assert np.flatnonzero(found[7]).tolist() == [4, 5, 6, 7]
    with pytest.raises(MaskError, match="tiles of 4 do not divide it"):
        sliding_tile(1, 4, grid=10)


ERRORS = {
    "numbers of axes differ: window 2, tile 3.\n  fix:   tile=(6, 8).": {"window": (3, 3)},
    "window=0 is below 1.\n  fix:   window=1.": {"window": (3, 0, 3)},
    "tile=2.5 is a float, not an integer.\n  fix:   tile=2.": {"tile": (2.5, 8, 8)},
    "grid=0 is below 1.\n  fix:   grid=1.": {"grid": (30, 0, 80)},
    "axis 0 (33 tokens): tiles of 6 do not divide it, and sliding tile attention has no shorter "
    "tiles.\n  fix:   grid=(36, 48, 80), by another size of the image or video": {
        "grid": (33, 45, 80)
    },
    "axis 2 (3 tokens): tiles of 8 do not divide it, and sliding tile attention has no shorter "
    "tiles.\n  fix:   grid=(30, 48, 8), by another size of the image or video": {
        "grid": (30, 48, 3)
    },
    "window has one window per head, and a mask is for all heads of a call.\n  fix:   torch.cat("
    "[nbattn.attention(q, k, v, sliding_tile(w, tile)) for q, k, v, w in zip(query.split(1, -2), "
    "key.split(1, -2), value.split(1, -2), window)], -2)": {"window": [(3, 3, 3), (1, 6, 10)]},
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors(text: str) -> None:
    with pytest.raises(MaskError) as caught:
        sliding_tile(**ERRORS[text])
    assert str(caught.value) == text


# Published sparsity in percent, as many digits as the source has, by configuration and mask.
PUBLISHED = {
    # GNA, arXiv 2504.16922: section 4.3 and table 6, "approximately 90 %" at 80 x 80
    ("flux_4k", "exact"): "90",
    ("flux_4k", "strided"): "90",
    # GNA, table 5: 18 x 24 x 24, stride 1 and 16 x 8 x 8; 30 x 40 x 40, stride 1 x 32 x 8
    ("hunyuan_video", "exact"): "91.0",
    ("hunyuan_video", "strided"): "91.0",
    ("hunyuan_video", "wide"): "58.3",
    # STA, arXiv 2502.04507: table 2 and table 4, w=(18,24,24), w=(30,24,40), w=(30,40,40)
    ("hunyuan_sta", "near"): "91.00",
    ("hunyuan_sta", "tall"): "75.00",
    ("hunyuan_sta", "wide"): "58.33",
    # GNA, section 4.2: 16 x 32 x 48 on 16 x 44 x 80; table 3: 16 x 24 x 16
    ("cosmos_7b", "wide"): "56.4",
    ("cosmos_7b", "near"): "89",
    # the published table of Cosmos-Predict2's NATTEN variant
    ("cosmos_predict2", "global"): "98",
    ("cosmos_predict2", "wide"): "95",
    ("cosmos_predict2", "near"): "92",
    ("cosmos_predict2", "middle"): "77",
    ("cosmos_predict2", "far"): "55",
}
NOT_PUBLISHED = {("wan_sta", name): share for name, share in (  # tiles of the window, of 180
    ("near", 27 / 180), ("wide", 75 / 180), ("frame", 50 / 180))}  # fmt: skip


def density(config: str, name: str) -> float:
    """The share of pairs, counted axis by axis in dense matrices."""
    plan = nbattn.load(config).plans[name]
    shares = [
        Mask(axis).dense(length).mean()
        for axis, length in zip(plan.mask.axes, plan.query[1:-2], strict=True)
    ]
    return math.prod(shares)


@pytest.mark.parametrize(("config", "name"), PUBLISHED)
def test_sparsity_is_the_published_one(config: str, name: str) -> None:
    expected = PUBLISHED[config, name]
    digits = len(expected.partition(".")[2])
    found = 100 * (1 - density(config, name))
    assert f"{found:.{digits}f}" == expected


@pytest.mark.parametrize(("config", "name"), NOT_PUBLISHED)
def test_windows_without_a_published_sparsity(config: str, name: str) -> None:
    assert density(config, name) == pytest.approx(NOT_PUBLISHED[config, name], rel=1e-12)


def test_configurations_are_the_recipes() -> None:
    hunyuan, wan = nbattn.load("hunyuan_sta").masks, nbattn.load("wan_sta").masks
    grid, own = GRIDS["hunyuan"], GRIDS["wan"]
    assert hunyuan["near"] == sliding_tile((3, 3, 3), grid=grid)
    assert hunyuan["tall"] == sliding_tile((5, 3, 5), grid=grid)
    assert hunyuan["wide"] == sliding_tile((5, 5, 5), grid=grid)
    assert wan["near"] == sliding_tile((3, 3, 3), grid=own)
    assert wan["wide"] == sliding_tile((3, 5, 5), grid=own)
    assert wan["frame"] == sliding_tile((1, 5, 10), grid=own)


def test_dense_blocks_of_the_paper() -> None:
    """STA, arXiv 2502.04507, table 1: tiles (4,4,4) on (48,48,48) leave 1.56 % and 7.23 % of blocks
    for windows of (12,12,12) and (20,20,20), all of them dense.
    """
    for window, expected in ((3, "1.56"), (5, "7.23")):
        mask = sliding_tile((window,) * 3, (4, 4, 4), grid=(48, 48, 48))
        (axis,) = {*mask.axes}
        blocks = Mask(axis).dense(48).reshape(12, 4, 12, 4).mean((1, 3))
        assert {*blocks.ravel().tolist()} == {0.0, 1.0}
        assert f"{100 * blocks.mean() ** 3:.2f}" == expected
