"""The independent enumerator of masks, masks of other libraries, and random masks for hypothesis.

The enumerator shares no code with the package and takes anything with an Axis's attributes. Where
a closed form clamps and divides, it goes step by step: along a class, back to the start of a group,
key by key around a circle. The package is imported only for its Axis and Mask, which strategies
yield.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from hypothesis import strategies as st

import nbattn

BORDERS = ("clip", "shift", "wrap")
ALIGNMENTS = (None, "top-left", "bottom-right")
INFINITE = 10**6  # an unlimited side; every oracle length is far below it


def position(axis: Any, i: int, queries: int, keys: int) -> int:
    """Where query i sits on the key axis; bottom-right puts the last query on the last key."""
    if axis.align == "bottom-right":
        return keys - 1 - (queries - 1 - i) + axis.offset
    assert axis.align == "top-left" or queries == keys or has_no_limit(axis)
    return i + axis.offset


def has_no_limit(axis: Any) -> bool:
    """Whether it makes no difference where a query sits: nothing is ever left out."""
    limits = axis.left is not None or axis.right is not None or axis.causal
    return not limits and axis.dilation == 1


def coordinate(at: int, step: int) -> tuple[int, int]:
    """Residue class of a position and its coordinate in it, found by walking to the origin."""
    steps = 0
    while at < 0:
        at, steps = at + step, steps - 1
    while at >= step:
        at, steps = at - step, steps + 1
    return at, steps


def leader_of(axis: Any, own: int, members: int) -> int:
    """The coordinate that the stride group of `own` centres its window on."""
    first = own
    while first % axis.stride:
        first -= 1
    group = [first + step for step in range(axis.stride)]
    leader = group[-1] if axis.causal else group[len(group) // 2]
    while first < members <= leader:  # a group that starts on the axis has its leader on the axis
        leader -= 1
    return leader


def shifted_window(leader: int, left: int, right: int, members: int) -> list[int]:
    """The window moved one step at a time until it lies inside its class."""
    window = list(range(leader - left, leader + right + 1))
    if len(window) >= members:
        return list(range(members))
    while window[0] < 0:
        window = [t + 1 for t in window]
    while window[-1] >= members:
        window = [t - 1 for t in window]
    return window


def wrapped_window(leader: int, left: int, right: int, members: int) -> list[int]:
    """The neighbours met when walking a circle of `members` places from the leader, each once."""
    if members == 0:
        return []
    start = leader % members
    found = [start]
    for way, steps in ((-1, left), (1, right)):
        here = start
        for _ in range(min(steps, members)):
            here = (here + way) % members
            if here not in found:
                found.append(here)
    return found


def attended_keys(axis: Any, i: int, queries: int, keys: int) -> set[int]:
    """The keys that query i attends to on one axis."""
    at = position(axis, i, queries, keys)
    residue, own = coordinate(at, axis.dilation)
    members = [j for j in range(keys) if j % axis.dilation == residue]
    leader = leader_of(axis, own, len(members))
    left = INFINITE if axis.left is None else axis.left
    right = 0 if axis.causal else INFINITE if axis.right is None else axis.right
    if axis.border == "shift":
        window = shifted_window(leader, left, right, len(members))
    elif axis.border == "wrap":
        window = wrapped_window(leader, left, right, len(members))
    else:
        window = [t for t in range(len(members)) if leader - t <= left and t - leader <= right]
    read = {members[t] for t in window if t <= own or not axis.causal}
    sinks = {j for j in range(keys) if j < axis.prefix and (j <= at or not axis.causal)}
    return read | sinks


def attends(axis: Any, i: int, j: int, queries: int, keys: int) -> bool:
    """Whether query i attends to key j on one axis."""
    return j in attended_keys(axis, i, queries, keys)


def axis_matrix(axis: Any, queries: int, keys: int) -> np.ndarray:
    """bool [queries, keys] of one axis."""
    matrix = np.zeros((queries, keys), dtype=bool)
    for i in range(queries):
        for j in attended_keys(axis, i, queries, keys):
            matrix[i, j] = True
    return matrix


def box(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The AND of per-axis matrices over all tuples of coordinates, row-major."""
    found = np.ones((1, 1), dtype=bool)
    for part in parts:
        pairs = found[:, None, :, None] & part[None, :, None, :]
        found = pairs.reshape(found.shape[0] * part.shape[0], found.shape[1] * part.shape[1])
    return found


def matrix(axes: Iterable[Any], query_space: Sequence[int], key_space: Sequence[int]) -> np.ndarray:
    """bool [prod(query_space), prod(key_space)] of a mask given by its axes."""
    sizes = zip(axes, query_space, key_space, strict=True)
    return box([axis_matrix(axis, queries, keys) for axis, queries, keys in sizes])


def axis_steps(axis: Any, queries: int, keys: int) -> np.ndarray:
    """int [queries, keys] of one axis: how many places of its class a key is after the query; on a
    circle on the way inside of the window. 0 for pairs that are not attended.
    """
    steps = np.zeros((queries, keys), dtype=int)
    for i in range(queries):
        residue, own = coordinate(position(axis, i, queries, keys), axis.dilation)
        members = [j for j in range(keys) if j % axis.dilation == residue]
        leader = leader_of(axis, own, len(members))
        for j in attended_keys(axis, i, queries, keys):
            places = [members.index(j)]
            if axis.border == "wrap":
                window = range(leader - axis.left, leader + axis.right + 1)
                places = [place for place in window if members[place % len(members)] == j]
            (place,) = places
            steps[i, j] = place - own
    return steps


def bias_entries(
    axes: Iterable[Any], query_space: Sequence[int], key_space: Sequence[int]
) -> np.ndarray:
    """int [prod(query_space), prod(key_space)]: the entry of every pair in a flat table with
    2 K - 1 entries per axis, the one of the query itself in the middle.
    """
    found = np.zeros((1, 1), dtype=int)
    for axis, queries, keys in zip(axes, query_space, key_space, strict=True):
        part = axis_steps(axis, queries, keys) + axis.left + axis.right
        pairs = found[:, None, :, None] * (2 * (axis.left + axis.right) + 1)
        pairs = pairs + part[None, :, None, :]
        found = pairs.reshape(found.shape[0] * queries, found.shape[1] * keys)
    return found


def distances(axis: Any, queries: int, keys: int) -> np.ndarray:
    """int [queries, keys]: how far a key is from the query's place on the key axis."""
    places = [position(axis, i, queries, keys) for i in range(queries)]
    return np.array([[abs(place - j) for j in range(keys)] for place in places]).reshape(
        queries, keys
    )


def is_legal(fields: dict[str, Any], queries: int, keys: int) -> bool:
    """Whether Axis(**fields) may be built and bound to these lengths."""
    left, right = fields.get("left"), fields.get("right")
    dilation, stride = fields.get("dilation", 1), fields.get("stride", 1)
    causal, border = fields.get("causal", False), fields.get("border", "clip")
    prefix, align = fields.get("prefix", 0), fields.get("align")
    limited = causal or dilation > 1 or left is not None or right is not None
    if align is None and queries != keys and limited:
        return False
    if causal and right not in (None, 0):
        return False
    if border == "shift" and (left is None or (right is None and not causal)):
        return False
    if prefix > 0 and (dilation > 1 or border == "wrap"):
        return False
    if border != "wrap":
        return True
    if causal or fields.get("offset", 0) or align == "bottom-right":
        return False
    return queries == keys and keys % (dilation * stride) == 0


def natten_axis(n: int, kernel: int, stride: int, dilation: int, causal: bool) -> np.ndarray:
    """bool [n, n]: one axis of NATTEN's published mask: residues agree and start <= j < end."""
    matrix = np.zeros((n, n), dtype=bool)
    for query, key in product(range(n), range(n)):
        if query % dilation != key % dilation:
            continue
        i, j = query // dilation, key // dilation
        length = n // dilation + (1 if query % dilation < n % dilation else 0)
        if causal:
            lead = min((i // stride) * stride + stride - 1, length - 1)
            start, end = max(lead - (kernel - 1), 0), i + 1
        else:
            lead = min((i // stride) * stride + stride // 2, length - 1)
            start = min(max(lead - kernel // 2, 0), length - kernel)
            end = start + kernel
        matrix[query, key] = start <= j < end
    return matrix


def per_axis(value: Any, rank: int) -> tuple[Any, ...]:
    """One value per axis from a scalar or a sequence."""
    return tuple(value) if isinstance(value, tuple | list) else (value,) * rank


def natten_matrix(
    space: Sequence[int], kernel_size: Any, stride: Any, dilation: Any, is_causal: Any
) -> np.ndarray:
    """bool [N, N]: NATTEN's mask for parameters it accepts (2 <= K, s <= K, K * d <= L)."""
    settings = (per_axis(value, len(space)) for value in (kernel_size, stride, dilation, is_causal))
    return box([natten_axis(*one) for one in zip(space, *settings, strict=True)])


def flash_matrix(queries: int, keys: int, left: int | None, right: int | None) -> np.ndarray:
    """bool [queries, keys]: Flash's documented window, bottom-right; negative is unlimited."""
    matrix = np.zeros((queries, keys), dtype=bool)
    for i, j in product(range(queries), range(keys)):
        centre = i + keys - queries
        after = left is None or left < 0 or j >= centre - left
        before = right is None or right < 0 or j <= centre + right
        matrix[i, j] = after and before
    return matrix


def runs(members: Iterable[int], step: int) -> list[tuple[int, int]]:
    """The maximal runs (start, count) of a set of places that lie `step` apart."""
    found: list[tuple[int, int]] = []
    for place in sorted(members):
        if found and place == found[-1][0] + found[-1][1] * step:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((place, 1))
    return found


def tile_counts(matrix: np.ndarray, query_tile: int, key_tile: int) -> np.ndarray:
    """Pairs per tile, counted pair by pair; tiles at the end may be partial."""
    rows = len(range(0, matrix.shape[0], query_tile))
    columns = len(range(0, matrix.shape[1], key_tile))
    counts = np.zeros((rows, columns), dtype=int)
    for i, j in np.argwhere(matrix):
        counts[i // query_tile, j // key_tile] += 1
    return counts


lengths = st.integers(0, 40)


def sides(most: int) -> st.SearchStrategy[int | None]:
    """Neighbours on one side: unlimited, or up to `most`."""
    return st.one_of(st.none(), st.integers(0, most))


@st.composite
def axes(draw: st.DrawFn, borders: Sequence[str] = BORDERS, most: int = 12) -> nbattn.Axis:
    """A random legal Axis; windows, offsets and prefixes reach up to `most`."""
    border = draw(st.sampled_from(borders))
    causal = border != "wrap" and draw(st.booleans())
    finite = border == "shift"
    fields: dict[str, Any] = {
        "left": draw(st.integers(0, most) if finite else sides(most)),
        "right": draw(st.sampled_from((None, 0)) if causal else sides(most)),
        "dilation": draw(st.integers(1, 4)),
        "stride": draw(st.integers(1, 5)),
        "causal": causal,
        "border": border,
    }
    if finite and not causal:
        fields["right"] = draw(st.integers(0, most))
    fields["align"] = draw(st.sampled_from(ALIGNMENTS[: 2 if border == "wrap" else 3]))
    if border != "wrap":
        fields["offset"] = draw(st.integers(-most, most))
        if fields["dilation"] == 1:
            fields["prefix"] = draw(st.one_of(st.just(0), st.integers(0, most)))
    return nbattn.Axis(**fields)


@st.composite
def bound_axes(
    draw: st.DrawFn, longest: int = 40, borders: Sequence[str] = BORDERS
) -> tuple[nbattn.Axis, int, int]:
    """An Axis with lengths (queries, keys) it may be bound to, 0 and 1 among them."""
    axis = draw(axes(borders, most=min(12, longest + 2)))
    if axis.border != "wrap":
        queries = draw(st.integers(0, longest))
        alike = axis.align is None and not has_no_limit(axis)
        return axis, queries, queries if alike else draw(st.integers(0, longest))
    circle = axis.dilation * axis.stride
    if circle > longest:
        axis, circle = replace(axis, dilation=1, stride=1), 1
    size = circle * draw(st.integers(0, longest // circle))
    return axis, size, size


@st.composite
def masks(
    draw: st.DrawFn, max_rank: int = 3, borders: Sequence[str] = BORDERS
) -> tuple[nbattn.Mask, tuple[int, ...], tuple[int, ...]]:
    """A Mask of one to three axes with the query and key spaces it may be bound to."""
    rank = draw(st.integers(1, max_rank))
    longest = {1: 24, 2: 7, 3: 4}[rank]
    parts = [draw(bound_axes(longest, borders)) for _ in range(rank)]
    chosen, queries, keys = zip(*parts, strict=True)
    return nbattn.Mask(*chosen), queries, keys
