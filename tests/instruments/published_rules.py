"""The gallery's masks as their sources define them: one literal rule each, without nbattn.

A rule takes coordinates of queries and keys, one integer array per axis, `[Nq, 1]` and `[1, Nk]`,
the lengths of the query axes and of the key axes, and its own numbers; it says which pairs attend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Lengths = tuple[int, ...]


class Rule(NamedTuple):
    """What a mask of the gallery must be.

    Args:
        allows: the rule.
        drawn: its numbers in the picture.
        others: two more sizes, (query space, key space), at which the rule must hold.
        model: its numbers in the published model, where the gallery shows them.
    """

    allows: Callable[..., Any]
    drawn: dict[str, Any]
    others: tuple[tuple[Lengths, Lengths], ...]
    model: dict[str, Any] | None = None


def pairs(rule: Rule, numbers: dict[str, Any], queries: Lengths, keys: Lengths) -> Bools:
    """Which pairs of two spaces attend, `[Nq, Nk]`, row-major."""
    return pairs_of(rule, numbers, np.indices(queries).reshape(len(queries), -1), queries, keys)


def pairs_of(
    rule: Rule, numbers: dict[str, Any], at: Ints, queries: Lengths, keys: Lengths
) -> Bools:
    """The keys of the queries at the coordinates `at`, `[rank, some]`: bool `[some, Nk]`."""
    q = [axis[:, None] for axis in at]
    k = [axis[None] for axis in np.indices(keys).reshape(len(keys), -1)]
    found = rule.allows(q, k, queries, keys, **numbers)
    return np.broadcast_to(found, (at.shape[1], int(np.prod(keys))))


Coordinates = Sequence[Ints]


# Language and sequences


def everything(q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths) -> Any:
    return True


def up_to_itself(q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths) -> Any:
    return k[0] <= q[0]


def up_to_itself_after_a_cache(q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths) -> Any:
    cached = nk[0] - nq[0]
    return k[0] <= cached + q[0]


def last_tokens(
    q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths, *, window: int, cached: int = 0
) -> Any:
    """Transformers' own two conditions; a negative `cached` is all keys that are no queries."""
    position = q[0] + (nk[0] - nq[0] if cached < 0 else cached)
    return (k[0] <= position) & (k[0] > position - window)


def sinks_and_last_tokens(
    q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths, *, sinks: int, recent: int
) -> Any:
    return ((k[0] < sinks) | (q[0] - k[0] < recent)) & (k[0] <= q[0])


def prefix_and_causal(
    q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths, *, prefix: int
) -> Any:
    both_in_it = (q[0] < prefix) & (k[0] < prefix)
    return both_in_it | (k[0] <= q[0])


def at_most_away(
    q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths, *, distance: int, step: int = 1
) -> Any:
    apart = np.abs(q[0] - k[0])
    return (apart <= distance * step) & (apart % step == 0)


def chunks(q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths, *, chunk: int) -> Any:
    return (q[0] // chunk == k[0] // chunk) & (k[0] <= q[0])


def blocks_so_far(
    q: Coordinates,
    k: Coordinates,
    nq: Lengths,
    nk: Lengths,
    *,
    block: int,
    before: int | None = None,
) -> Any:
    behind = q[0] // block - k[0] // block
    return (behind >= 0) & (behind <= (nk[0] if before is None else before))


def look_ahead(
    q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths, *, left: int, right: int
) -> Any:
    return (k[0] - q[0] <= right) & (q[0] - k[0] <= left)


def every_so_many_before(
    q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths, *, every: int
) -> Any:
    return ((q[0] - k[0]) % every == 0) & (q[0] - k[0] >= 0)


def dilated_segments(
    q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths, *, segment: int, dilation: int
) -> Any:
    return (q[0] // segment == k[0] // segment) & (q[0] % dilation == k[0] % dilation)


# Grids: what holds on every axis, by one function of an axis


def every_axis(
    of_axis: Callable[..., Any], q: Coordinates, k: Coordinates, lengths: Lengths, **numbers: Any
) -> Any:
    """The AND over axes of a rule for one axis, whose numbers are one per axis."""
    found: Any = True
    for number, (queries, keys, length) in enumerate(zip(q, k, lengths, strict=True)):
        own = {name: values[number] for name, values in numbers.items()}
        found = found & of_axis(queries, keys, length, **own)
    return found


def _nearest(q: Ints, k: Ints, n: int, kernel: int, dilation: int = 1, stride: int = 1) -> Any:
    """NATTEN's documented window on one axis; kernel 0 is an axis without limits."""
    if not kernel:
        return (q % dilation) == (k % dilation)
    i, j = q // dilation, k // dilation
    length = (n - q % dilation + dilation - 1) // dilation
    leader = np.minimum(i // stride * stride + stride // 2, length - 1)
    start = np.maximum(np.minimum(leader - kernel // 2, length - kernel), 0)
    return (q % dilation == k % dilation) & (start <= j) & (j < start + kernel)


def nearest(
    q: Coordinates,
    k: Coordinates,
    nq: Lengths,
    nk: Lengths,
    *,
    kernel: Lengths,
    dilation: Lengths | None = None,
    stride: Lengths | None = None,
) -> Any:
    one = (1,) * len(nq)
    numbers = {"kernel": kernel, "dilation": dilation or one, "stride": stride or one}
    return every_axis(_nearest, q, k, nq, **numbers)


def windows_side_by_side(
    q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths, *, window: Lengths
) -> Any:
    """Swin's partition: the same window on every axis; an axis with window 0 has one for all."""
    sides = [w or n for w, n in zip(window, nk, strict=True)]
    return every_axis(lambda i, j, n, w: i // w == j // w, q, k, nk, w=sides)


def shifted_windows(
    q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths, *, window: int
) -> Any:
    """Swin's partition of the rolled image, and its regions: what the roll brings together from
    both ends of an axis stays apart."""

    def one_axis(i: Ints, j: Ints, n: int) -> Any:
        shift = window // 2
        rolled = [(positions - shift) % n for positions in (i, j)]
        regions = [(r >= n - window).astype(int) + (r >= n - shift) for r in rolled]
        return (rolled[0] // window == rolled[1] // window) & (regions[0] == regions[1])

    return every_axis(one_axis, q, k, nk)


def blocks_with_a_halo(
    q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths, *, block: int, halo: int
) -> Any:
    def one_axis(i: Ints, j: Ints, n: int) -> Any:
        first = i - i % block
        return (j >= first - halo) & (j < first + block + halo)

    return every_axis(one_axis, q, k, nk)


def uniform_grid(q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths, *, keys: int) -> Any:
    """MaxViT's grid attention: so many keys per axis, evenly spread, the query among them."""
    return every_axis(lambda i, j, n: i % (n // keys) == j % (n // keys), q, k, nk)


def above_and_left(q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths) -> Any:
    return (k[0] <= q[0]) & (k[1] <= q[1])


# Video


def near_tiles(
    q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths, *, window: Lengths, tile: Lengths
) -> Any:
    """FastVideo's rule on tiles: at most window // 2 from the centre, which stays on the grid."""

    def one_axis(i: Ints, j: Ints, n: int, w: int, t: int) -> Any:
        tiles, reach = n // t, w // 2
        centre = np.clip(i // t, reach, max(tiles - 1 - reach, reach))
        return np.abs(j // t - centre) <= reach

    return every_axis(one_axis, q, k, nk, w=window, t=tile)


def same(q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths, *, axes: Lengths) -> Any:
    """Query and key have the same coordinate on these axes."""
    found: Any = True
    for axis in axes:
        found = found & (q[axis] == k[axis])
    return found


def last_frames_and_window(
    q: Coordinates, k: Coordinates, nq: Lengths, nk: Lengths, *, frames: int, kernel: Lengths
) -> Any:
    in_time = (k[0] <= q[0]) & (k[0] > q[0] - frames)
    return in_time & nearest(q[1:], k[1:], nq[1:], nk[1:], kernel=kernel)


# Rings


def around_a_ring(
    q: Coordinates,
    k: Coordinates,
    nq: Lengths,
    nk: Lengths,
    *,
    distance: int,
    step: int = 1,
) -> Any:
    """The last axis is a ring: the shorter way round counts."""
    one_way = (q[-1] - k[-1]) % nk[-1]
    apart = np.minimum(one_way, nk[-1] - one_way)
    return (apart <= distance * step) & (apart % step == 0)


def globe(
    q: Coordinates,
    k: Coordinates,
    nq: Lengths,
    nk: Lengths,
    *,
    rows: int,
    columns: int,
    steps: Lengths = (1, 1),
) -> Any:
    latitudes = at_most_away(q, k, nq, nk, distance=rows, step=steps[0])
    return latitudes & around_a_ring(q, k, nq, nk, distance=columns, step=steps[1])


# Cross attention


def around_a_tile(
    q: Coordinates,
    k: Coordinates,
    nq: Lengths,
    nk: Lengths,
    *,
    corner: Lengths,
    distance: int,
) -> Any:
    found: Any = True
    for queries, keys, first in zip(q, k, corner, strict=True):
        found = found & (np.abs(queries + first - keys) <= distance)
    return found


def _square(*sizes: Lengths) -> tuple[tuple[Lengths, Lengths], ...]:
    """Sizes of self attention."""
    return tuple((size, size) for size in sizes)


RULES: dict[str, Rule] = {
    "full": Rule(everything, {}, _square((9,), (15,))),
    "causal": Rule(up_to_itself, {}, _square((9,), (15,))),
    "causal-with-cache": Rule(up_to_itself_after_a_cache, {}, (((1,), (7,)), ((5,), (13,)))),
    "mistral": Rule(last_tokens, {"window": 4}, _square((7,), (17,)), {"window": 4096}),
    "gemma": Rule(
        last_tokens,
        {"window": 5, "cached": -1},
        (((1,), (9,)), ((7,), (11,))),
        {"window": 1024, "cached": -1},
    ),
    "streaming-llm": Rule(
        sinks_and_last_tokens,
        {"sinks": 2, "recent": 4},
        _square((5,), (19,)),
        {"sinks": 4, "recent": 512},
    ),
    "prefix-lm": Rule(prefix_and_causal, {"prefix": 5}, _square((7,), (15,))),
    "longformer": Rule(at_most_away, {"distance": 2}, _square((3,), (15,)), {"distance": 256}),
    "longformer-dilated": Rule(at_most_away, {"distance": 2, "step": 2}, _square((5,), (17,))),
    "modernbert": Rule(at_most_away, {"distance": 3}, _square((5,), (15,)), {"distance": 64}),
    "chunked": Rule(chunks, {"chunk": 4}, _square((4,), (20,)), {"chunk": 8192}),
    "block-causal": Rule(blocks_so_far, {"block": 4}, _square((5,), (19,))),
    "chunk-with-left-context": Rule(blocks_so_far, {"block": 4, "before": 1}, _square((4,), (20,))),
    "look-ahead": Rule(look_ahead, {"left": 5, "right": 2}, _square((5,), (17,))),
    "sparse-transformer": Rule(every_so_many_before, {"every": 4}, _square((7,), (17,))),
    "longnet": Rule(dilated_segments, {"segment": 8, "dilation": 2}, _square((8,), (24,))),
    "nat": Rule(nearest, {"kernel": (5, 5)}, _square((5, 9), (13, 7)), {"kernel": (7, 7)}),
    "dinat": Rule(
        nearest,
        {"kernel": (3, 3), "dilation": (3, 3)},
        _square((9, 11), (13, 10)),
        {"kernel": (7, 7), "dilation": (8, 8)},
    ),
    "swin": Rule(
        windows_side_by_side, {"window": (4, 4)}, _square((4, 16), (20, 8)), {"window": (7, 7)}
    ),
    "swin-shifted": Rule(shifted_windows, {"window": 4}, _square((8, 16), (20, 8)), {"window": 7}),
    "gna": Rule(nearest, {"kernel": (6, 6), "stride": (2, 2)}, _square((7, 9), (13, 11))),
    "even-kernel": Rule(
        nearest, {"kernel": (4, 4)}, _square((5, 9), (13, 7)), {"kernel": (80, 80)}
    ),
    "halonet": Rule(
        blocks_with_a_halo,
        {"block": 4, "halo": 1},
        _square((4, 16), (20, 8)),
        {"block": 8, "halo": 3},
    ),
    "maxvit-grid": Rule(uniform_grid, {"keys": 4}, _square((12, 12), (12, 15)), {"keys": 7}),
    "axial": Rule(same, {"axes": (0,)}, _square((5, 7), (9, 3))),
    "cswin": Rule(windows_side_by_side, {"window": (2, 0)}, _square((4, 7), (10, 5))),
    "causal-two-axes": Rule(above_and_left, {}, _square((5, 7), (9, 3))),
    "flux": Rule(
        nearest,
        {"kernel": (10, 10), "stride": (2, 2)},
        _square((11, 15), (17, 13)),
        {"kernel": (80, 80), "stride": (16, 16)},
    ),
    "sta": Rule(
        near_tiles,
        {"window": (3, 3, 3), "tile": (1, 2, 2)},
        _square((3, 6, 10), (5, 8, 6)),
        {"window": (3, 3, 3), "tile": (6, 8, 8)},
    ),
    "hunyuan": Rule(
        nearest,
        {"kernel": (3, 6, 6), "stride": (2, 2, 2)},
        _square((3, 7, 9), (5, 9, 7)),
        {"kernel": (18, 24, 24), "stride": (16, 8, 8)},
    ),
    "hunyuan-wide": Rule(
        nearest,
        {"kernel": (5, 10, 10), "stride": (1, 8, 2)},
        _square((5, 11, 13), (7, 10, 11)),
        {"kernel": (30, 40, 40), "stride": (1, 32, 8)},
    ),
    "cosmos-far": Rule(
        nearest,
        {"kernel": (0, 7, 14), "stride": (1, 1, 2)},
        _square((2, 9, 15), (1, 7, 17)),
        {"kernel": (0, 28, 56), "stride": (1, 4, 8)},
    ),
    "cosmos-global": Rule(
        nearest,
        {"kernel": (0, 4, 4), "dilation": (1, 2, 4)},
        _square((2, 8, 16), (1, 9, 17)),
        {"kernel": (0, 4, 16), "dilation": (1, 11, 5)},
    ),
    "ltx2-decoder": Rule(
        nearest, {"kernel": (3, 5, 5)}, _square((3, 5, 9), (7, 6, 5)), {"kernel": (3, 7, 7)}
    ),
    "video-swin": Rule(
        windows_side_by_side,
        {"window": (2, 4, 4)},
        _square((2, 4, 8), (6, 8, 4)),
        {"window": (8, 7, 7)},
    ),
    "space-only": Rule(same, {"axes": (0,)}, _square((3, 5, 7), (5, 3, 2))),
    "time-only": Rule(same, {"axes": (1, 2)}, _square((3, 5, 7), (5, 3, 2))),
    "causal-video": Rule(up_to_itself, {}, _square((3, 5, 7), (5, 3, 2))),
    "block-causal-video": Rule(
        blocks_so_far, {"block": 3}, _square((9, 3, 5), (7, 2, 3)), {"block": 3}
    ),
    "causal-window-video": Rule(
        last_frames_and_window, {"frames": 3, "kernel": (5, 5)}, _square((3, 7, 9), (7, 5, 6))
    ),
    "ring": Rule(around_a_ring, {"distance": 2}, _square((7,), (15,))),
    "globe": Rule(
        globe, {"rows": 2, "columns": 3}, _square((5, 9), (7, 15)), {"rows": 4, "columns": 8}
    ),
    "globe-far": Rule(
        globe,
        {"rows": 2, "columns": 2, "steps": (2, 3)},
        _square((5, 15), (7, 21)),
        {"rows": 4, "columns": 8, "steps": (4, 4)},
    ),
    "aurora": Rule(
        windows_side_by_side,
        {"window": (2, 3, 6)},
        _square((2, 6, 12), (4, 3, 6)),
        {"window": (2, 6, 12)},
    ),
    "cross-full": Rule(everything, {}, (((9,), (5,)), ((1,), (7,)))),
    "top-left": Rule(up_to_itself, {}, (((9,), (5,)), ((3,), (7,)))),
    "offset": Rule(last_tokens, {"window": 4, "cached": 5}, (((1,), (9,)), ((7,), (13,)))),
    "tile-of-a-map": Rule(
        around_a_tile, {"corner": (3, 5), "distance": 2}, (((3, 5), (9, 13)), ((5, 7), (7, 11)))
    ),
}
