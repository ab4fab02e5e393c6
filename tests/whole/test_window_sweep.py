"""Tests of `cuda/window.cuh` and `cuda/tile_traversal.cuh`, compiled by g++, against geometry and
tile traversals, bit by bit: classes, windows, inverse windows, and the tiles that rows visit; also
of axes of which tensors hold a part.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator import build, launcher
from hypothesis import given
from hypothesis import strategies as st
from oracle import axis_matrix, is_legal, masks, matrix
from short_axes import few, specimens, value_pairs_of, value_pairs_of_sample

from nbattn import Axis, Mask, geometry
from nbattn.backends.cuda.meaning import two_runs
from nbattn.geometry import Axes, BoundAxis, Held, bind
from nbattn.kernels import layout
from nbattn.program.limits import LARGEST
from nbattn.program.tile_counts import padded
from nbattn.program.tile_traversal import Traversal

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))

Count = Callable[[str, int], None]
SOURCE = Path(__file__).resolve().parents[1] / "instruments" / "window_sweep.cpp"
QUICKLY = ("-O1",)  # to compile: there are sixteen builds, and each runs a second
STEP, EACH = 89, 5  # every value of every field meets every other that it may, as a test shows
# Extents of query and key tiles.
TILES = (
    ((1, 1, 4), (1, 1, 3)),
    ((1, 1, 3), (1, 1, 8)),
    ((1, 2, 3), (2, 3, 1)),
    ((2, 2, 2), (1, 3, 2)),
)


@cache
def device(tiles: Any = TILES[0], *, two_runs: bool = True, key_range: bool = False) -> ctypes.CDLL:
    """The device's functions at some constants."""
    launcher._runtime()
    flags = [f"-DNB_TWO_RUNS={two_runs:d}", f"-DNB_KEY_RANGE={key_range:d}", f"-I{build.CUDA}"]
    flags.append("-DNB_VALUE_DIM=16")  # used by nothing here
    for side, extents in zip(("QUERY", "KEY"), tiles, strict=True):
        flags += [f"-DNB_{side}_TILE_{axis}={n}" for axis, n in enumerate(extents)]
    ahead = build.headers(QUICKLY)
    return ctypes.CDLL(str(build.library([SOURCE], (*QUICKLY, *flags), ahead)))


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def numbers(bound_axis: BoundAxis) -> np.ndarray:
    return np.array(layout.axis_numbers(bound_axis), dtype=np.int32)


def held_numbers(bound_axis: BoundAxis) -> np.ndarray:
    return np.array(layout.held_numbers(bound_axis), dtype=np.int32)


def windows(bound_axis: BoundAxis, u: np.ndarray, keys: int) -> np.ndarray:
    at, out = u.astype(np.int32), np.zeros((len(u), 3), dtype=np.int32)
    device().sweep_windows(pointer(numbers(bound_axis)), pointer(at), len(at), keys, pointer(out))
    return out


def readers(bound_axis: BoundAxis, t: np.ndarray, keys: int) -> np.ndarray:
    at, out = t.astype(np.int32), np.zeros((len(t), 2), dtype=np.int32)
    device().sweep_readers(pointer(numbers(bound_axis)), pointer(at), len(at), keys, pointer(out))
    return out


def class_of(bound_axis: BoundAxis, index: int, *, of_key: bool) -> list[int]:
    """Residue and keys; the coordinates of the held keys and queries as `[first, stop)`."""
    out, held = np.zeros(6, dtype=np.int32), held_numbers(bound_axis)
    axis = pointer(numbers(bound_axis))
    device().sweep_class(axis, pointer(held), int(of_key), index, pointer(out))
    return out.tolist()


def sampled(first: int, count: int) -> np.ndarray:
    """All coordinates of a class, or those near its ends and some between."""
    if count <= 64:
        return np.arange(first, first + count)
    inner = np.linspace(first, first + count - 1, 40, dtype=np.int64)
    return np.unique(np.concatenate([inner, inner[0] + np.arange(9), inner[-1] - np.arange(9)]))


def check_arithmetic(bound_axis: BoundAxis) -> None:
    """Classes, windows and inverse windows of an axis."""
    d = bound_axis.spec.dilation
    for group in bound_axis.classes():
        start, stop = group.start, group.start + group.queries
        ends = [group.skip, group.skip + group.keys, start, stop]
        for c in {0, group.size - 1}:
            residue = group.first + bound_axis.first_key - d * group.skip + c
            wanted = [residue, group.length, *ends]
            assert class_of(bound_axis, group.origin + c, of_key=False) == wanted
            if group.keys:
                assert class_of(bound_axis, group.first + c, of_key=True) == wanted
        u = sampled(start, group.queries)
        wanted = np.stack(geometry.window_of(bound_axis.spec, u, group.length), axis=1)
        found = windows(bound_axis, u, group.length)
        assert np.array_equal(found[:, 2], wanted[:, 2])
        # empty windows lie anywhere before their borders are cut
        same = (found == wanted).all(axis=1)
        assert (same | ((found[:, 0] >= found[:, 1]) & (wanted[:, 0] >= wanted[:, 1]))).all()
        t = sampled(group.skip, group.keys)
        inverse = np.stack(geometry.readers_of(bound_axis.spec, t, group.length), axis=1)
        bounds = (
            (start, stop) if bound_axis.spec.border != "wrap" else (-2 * layout.FAR, 2 * layout.FAR)
        )
        assert np.array_equal(
            np.clip(readers(bound_axis, t, group.length), *bounds), np.clip(inverse, *bounds)
        )
    for key in range(min(d, bound_axis.keys)):
        check_class_of_key(bound_axis, key)


def check_class_of_key(bound_axis: BoundAxis, key: int) -> None:
    """The class of one of the first keys, which may be one that no query is in."""
    d, offset = bound_axis.spec.dilation, bound_axis.offset
    t, residue = divmod(key + bound_axis.first_key, d)
    found = class_of(bound_axis, key, of_key=True)
    assert found[:2] == [residue, len(range(residue, bound_axis.lengths[1], d))]
    assert found[2:4] == [t, t + len(range(key, bound_axis.keys, d))]
    queries = [u for u in range(offset, offset + bound_axis.queries) if u % d == residue]
    assert found[5] - found[4] == len(queries)
    assert not queries or found[4] == queries[0] // d


def check_pairs(axes: Axes, tiles: Any, key_range: np.ndarray | None = None) -> np.ndarray:
    """What row tiles compute, queries' and keys', each pair once; and how much they visit."""
    axes_of_mask = padded(axes)
    pointers = [0] * len(layout.POINTERS)
    if key_range is not None:
        pointers[layout.POINTERS.index("key_range")] = key_range.ctypes.data
    params = struct.pack(f"<{len(pointers)}Q", *pointers) + layout.pack_numbers(
        [0] * 24,
        1.0,
        0.0,
        np.concatenate([numbers(bound_axis) for bound_axis in axes_of_mask]).tolist(),
        np.concatenate([held_numbers(bound_axis) for bound_axis in axes_of_mask]).tolist(),
        (1, 1, 1, 0, len(axes), 1, 0, 0),
    )
    library = device(tiles, two_runs=two_runs(axes), key_range=key_range is not None)
    found: list[np.ndarray] = []
    sizes = (
        math.prod(bound_axis.queries for bound_axis in axes_of_mask),
        math.prod(bound_axis.keys for bound_axis in axes_of_mask),
    )
    for inverse in (False, True):
        shape = sizes[::-1] if inverse else sizes
        times = np.zeros(shape, dtype=np.uint8)
        full = np.zeros(1, dtype=np.int32)
        arrays = pointer(times), shape[1], pointer(full)
        visits = library.sweep_pairs(params, int(inverse), *arrays)
        row, column = tiles[::-1] if inverse else tiles
        if key_range is None and all(bound_axis.held is None for bound_axis in axes):
            sizes_of_axes = [*zip(axes_of_mask, row, column, strict=True)]
            assert visits == math.prod(
                Traversal(a, inverse).tile_pairs(n, m) for a, n, m in sizes_of_axes
            )
            assert full[0] == math.prod(
                sum(
                    visit.full
                    for tile in Traversal(a, inverse).tiles(n, m)
                    for visit in tile.columns
                )
                for a, n, m in sizes_of_axes
            )
        assert visits >= 0
        found.append(times.T if inverse else times)
    forward, backward = found
    assert np.array_equal(forward, backward)
    assert forward.max(initial=0) <= 1
    return forward.astype(bool)


def check(fields: dict[str, Any], queries: int, keys: int, tiles: Any) -> None:
    (bound_axis,) = bind(Mask(Axis(**fields)), queries, keys)
    check_arithmetic(bound_axis)
    assert np.array_equal(check_pairs((bound_axis,), tiles), bound_axis.dense())


def check_part(fields: dict[str, Any], queries: int, keys: int, tiles: Any, number: int) -> None:
    """A part of an axis, chosen by a number; against geometry, and as a part of the whole axis."""
    row, last_row = sorted((number % (queries + 1), number // 3 % (queries + 1)))
    key, last_key = sorted((number // 5 % (keys + 1), number // 7 % (keys + 1)))
    held = Held(row, queries, key, keys)
    axis = Axis(**fields)
    (bound_axis,) = bind(Mask(axis), last_row - row, last_key - key, [held])
    check_arithmetic(bound_axis)
    found = check_pairs((bound_axis,), tiles)
    assert np.array_equal(found, bound_axis.dense())
    (whole,) = bind(Mask(axis), queries, keys)
    assert np.array_equal(found, whole.dense()[row:last_row, key:last_key])


def test_the_sample_for_cuda_has_every_legal_pair_of_values() -> None:
    every = value_pairs_of_sample(1, 31)
    assert value_pairs_of(few(0, STEP, EACH)) == every
    assert value_pairs_of_sample(5, 29) <= every


def test_small_axes_equal_geometry(cases: Count) -> None:
    for number, (fields, queries, keys) in enumerate(few(0, STEP, EACH)):
        check(fields, queries, keys, TILES[number % 2])
        cases("window.cuh, sampled product", 1)
        if number % 3 == 0:
            check_part(fields, queries, keys, TILES[number % 2], number * 31)
            cases("window.cuh, parts of axes", 1)


@pytest.mark.parametrize("sides", [(9, 9), (0, 13), (17, 2)], ids=str)
def test_tiles_that_need_no_mask_are_found_on_both_sides_of_a_seam(sides: tuple[int, int]) -> None:
    """As the enumerator finds them; masking them would be right, and slow."""
    check({"left": sides[0], "right": sides[1], "border": "wrap"}, 41, 41, TILES[0])


@pytest.mark.deep
@pytest.mark.parametrize("first", range(16))
def test_every_small_axis_equals_geometry(first: int, cases: Count) -> None:
    for number, (fields, queries, keys) in enumerate(specimens(first, 16)):
        if is_legal(fields, queries, keys):
            check(fields, queries, keys, TILES[number % 2])
            check_part(fields, queries, keys, TILES[number % 2], number * 31)
            cases("window.cuh, full product", 2)


def ranges(data: Any, keys: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Ranges of valid keys, as `key_range` has them, and the keys inside them."""
    ends = [data.draw(st.tuples(st.integers(-1, n + 1), st.integers(-1, n + 1))) for n in keys]
    valid = np.ones(1, dtype=bool)
    for n, (a, b) in zip(keys, ends, strict=True):
        valid = np.kron(valid, (np.arange(n) >= a) & (np.arange(n) < b))
    return np.array(ends, dtype=np.int32), valid


@given(masks(), st.sampled_from(TILES), st.data())
def test_traversal_of_any_rank(cases: Count, drawn: Any, tiles: Any, data: Any) -> None:
    """Against the enumerator, without and with ranges of valid keys."""
    mask, queries, keys = drawn
    axes, wanted = bind(mask, queries, keys), matrix(mask.axes, queries, keys)
    assert np.array_equal(check_pairs(axes, tiles), wanted)
    key_range, valid = ranges(data, keys)
    assert np.array_equal(check_pairs(axes, tiles, key_range), wanted & valid)
    cases("tile_traversal.cuh, masks", 1)


def parts_of(data: Any, lengths: tuple[int, ...]) -> Iterator[slice]:
    """A part of every axis."""
    for length in lengths:
        yield slice(*sorted(data.draw(st.tuples(*[st.integers(0, length)] * 2))))


@given(masks(), st.sampled_from(TILES), st.data())
def test_traversal_of_parts_of_axes(cases: Count, drawn: Any, tiles: Any, data: Any) -> None:
    """Tensors that hold a part of every axis: the part has the pairs of the whole mask."""
    mask, queries, keys = drawn
    rows, columns = tuple(parts_of(data, queries)), tuple(parts_of(data, keys))
    wanted, held = np.ones((1, 1), dtype=bool), []
    for axis, n, m, row, column in zip(mask.axes, queries, keys, rows, columns, strict=True):
        wanted = np.kron(wanted, axis_matrix(axis, n, m)[row, column])
        held.append(Held(row.start, n, column.start, m))
    some_queries, some_keys = (
        tuple(part.stop - part.start for part in side) for side in (rows, columns)
    )
    axes = bind(mask, some_queries, some_keys, held)
    assert np.array_equal(check_pairs(axes, tiles), wanted)
    key_range, valid = ranges(data, some_keys)
    assert np.array_equal(check_pairs(axes, tiles, key_range), wanted & valid)
    cases("tile_traversal.cuh, parts of masks", 1)


LARGE = st.integers(0, LARGEST) | st.integers(0, 4000)
STEPS = st.integers(1, 9) | st.integers(1, LARGEST)
SIDE = st.none() | st.integers(0, 2**31 - 1) | st.integers(0, 5000)


@given(
    lengths=st.tuples(LARGE, LARGE),
    sides=st.tuples(SIDE, SIDE),
    steps=st.tuples(STEPS, STEPS),
    offset=st.integers(-LARGEST, LARGEST),
    border=st.sampled_from(("clip", "shift", "wrap")),
    causal=st.booleans(),
    prefix=st.integers(0, 2**31 - 1),
)
def test_large_numbers_stay_exact(
    cases: Count,
    lengths: tuple[int, int],
    sides: tuple[int | None, int | None],
    steps: tuple[int, int],
    offset: int,
    border: str,
    causal: bool,
    prefix: int,
) -> None:
    """Up to the dialect's limits nothing overflows, and a clamped side is an unlimited one."""
    queries, keys = lengths
    dilation, stride = steps
    fields: dict[str, Any] = {"border": border, "dilation": dilation, "stride": stride}
    left, right = (0 if side is None and border == "shift" else side for side in sides)
    if border == "wrap":
        keys -= keys % (dilation * stride)
        queries = keys
    else:
        fields |= {"causal": causal, "prefix": prefix if dilation == 1 else 0}
        fields |= {"align": "top-left", "offset": offset}
    fields |= {"left": left, "right": 0 if fields.get("causal") else right}
    (bound_axis,) = bind(Mask(Axis(**fields)), queries, keys)
    for group in bound_axis.classes():
        u = sampled(group.start, group.queries)
        wanted = np.stack(geometry.window_of(bound_axis.spec, u, group.keys), axis=1)
        found = windows(bound_axis, u, group.keys)
        empty = (found[:, 0] >= found[:, 1]) & (wanted[:, 0] >= wanted[:, 1])
        assert np.array_equal(found[~empty], wanted[~empty])
        t = sampled(0, group.keys)
        bounds = (group.start, group.start + group.queries)
        if border == "wrap":
            bounds = (-2 * layout.FAR, 2 * layout.FAR)
        inverse = np.stack(geometry.readers_of(bound_axis.spec, t, group.keys), axis=1)
        assert np.array_equal(
            np.clip(readers(bound_axis, t, group.keys), *bounds), np.clip(inverse, *bounds)
        )
    cases("window.cuh, large axes", 1)
