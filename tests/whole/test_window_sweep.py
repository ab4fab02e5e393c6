"""Tests of `cuda/window.cuh` and `cuda/walk.cuh`, compiled by g++, against geometry and tile
traversals, bit by bit: classes, windows, inverse windows, and the tiles that rows visit.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator import build, launcher
from hypothesis import given
from hypothesis import strategies as st
from oracle import is_legal, masks, matrix
from short_axes import specimens, value_pairs_of_sample

from nbattn import Axis, Mask, geometry
from nbattn.backends.cuda import run as cuda
from nbattn.backends.cuda.meaning import FAR, LARGEST
from nbattn.backends.cuda.tile_traversal import Traversal
from nbattn.backends.cuda.tiles import padded
from nbattn.geometry import BoundAxis, bind
from nbattn.kernels import layout

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))

Count = Callable[[str, int], None]
SOURCE = Path(__file__).resolve().parents[1] / "instruments" / "window_sweep.cpp"
STEP = 89  # at which every value of every field meets every other that it may, as a test shows
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
    for side, extents in zip(("QUERY", "KEY"), tiles, strict=True):
        flags += [f"-DNB_{side}_TILE_{axis}={n}" for axis, n in enumerate(extents)]
    return ctypes.CDLL(str(build.library([SOURCE], ("-O2", *flags))))


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def numbers(bound_axis: BoundAxis) -> np.ndarray:
    return np.array(cuda._axis(bound_axis), dtype=np.int32)


def windows(bound_axis: BoundAxis, u: np.ndarray, keys: int) -> np.ndarray:
    at, out = u.astype(np.int32), np.zeros((len(u), 3), dtype=np.int32)
    device().sweep_windows(pointer(numbers(bound_axis)), pointer(at), len(at), keys, pointer(out))
    return out


def readers(bound_axis: BoundAxis, t: np.ndarray, keys: int) -> np.ndarray:
    at, out = t.astype(np.int32), np.zeros((len(t), 2), dtype=np.int32)
    device().sweep_readers(pointer(numbers(bound_axis)), pointer(at), len(at), keys, pointer(out))
    return out


def class_of(bound_axis: BoundAxis, index: int, *, of_key: bool) -> list[int]:
    out = np.zeros(5, dtype=np.int32)
    device().sweep_class(pointer(numbers(bound_axis)), int(of_key), index, pointer(out))
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
        for residue in {0, group.size - 1}:
            first = group.origin + residue
            wanted = [group.first + residue, group.keys, first, group.start, group.queries]
            assert class_of(bound_axis, first, of_key=False) == wanted
            if group.keys:
                assert class_of(bound_axis, group.first + residue, of_key=True) == wanted
        u, start, stop = (
            sampled(group.start, group.queries),
            group.start,
            group.start + group.queries,
        )
        wanted = np.stack(geometry.window_of(bound_axis.spec, u, group.keys), axis=1)
        found = windows(bound_axis, u, group.keys)
        assert np.array_equal(found[:, 2], wanted[:, 2])
        # empty windows lie anywhere before their borders are cut
        same = (found == wanted).all(axis=1)
        assert (same | ((found[:, 0] >= found[:, 1]) & (wanted[:, 0] >= wanted[:, 1]))).all()
        t = sampled(0, group.keys)
        inverse = np.stack(geometry.readers_of(bound_axis.spec, t, group.keys), axis=1)
        bounds = (start, stop) if bound_axis.spec.border != "wrap" else (-2 * FAR, 2 * FAR)
        assert np.array_equal(
            np.clip(readers(bound_axis, t, group.keys), *bounds), np.clip(inverse, *bounds)
        )
    for key in range(min(d, bound_axis.keys)):  # classes of keys that no query is in
        residue, keys, *_, queries = class_of(bound_axis, key, of_key=True)
        assert residue == key
        assert keys == len(range(key, bound_axis.keys, d))
        assert queries == sum(
            (i + bound_axis.offset) % d == key for i in range(min(bound_axis.queries, d))
        ) * (len(range((key - bound_axis.offset) % d, bound_axis.queries, d)))


def check_pairs(
    mask: Mask, queries: Any, keys: Any, tiles: Any, key_range: np.ndarray | None = None
) -> np.ndarray:
    """What row tiles compute, queries' and keys', each pair once; and how much they visit."""
    axes_of_mask = padded(bind(mask, queries, keys))
    axes = np.concatenate([numbers(bound_axis) for bound_axis in axes_of_mask]).tolist()
    pointers = [0] * len(layout.POINTERS)
    if key_range is not None:
        pointers[layout.POINTERS.index("key_range")] = key_range.ctypes.data
    params = struct.pack(f"<{len(pointers)}Q", *pointers) + layout.pack_numbers(
        [0] * 24, 1.0, 0.0, axes, (1, 1, 1, 0, mask.rank, 0)
    )
    two = any(
        bound_axis.spec.border == "wrap" or bound_axis.spec.prefix for bound_axis in axes_of_mask
    )
    library = device(tiles, two_runs=two, key_range=key_range is not None)
    found: list[np.ndarray] = []
    sizes = (
        math.prod(bound_axis.queries for bound_axis in axes_of_mask),
        math.prod(bound_axis.keys for bound_axis in axes_of_mask),
    )
    for inverse in (False, True):
        shape = sizes[::-1] if inverse else sizes
        times = np.zeros(shape, dtype=np.uint8)
        visits = library.sweep_pairs(params, int(inverse), pointer(times), shape[1])
        row, column = tiles[::-1] if inverse else tiles
        if key_range is None:
            sizes_of_axes = zip(axes_of_mask, row, column, strict=True)
            assert visits == math.prod(
                Traversal(a, inverse).tile_pairs(n, m) for a, n, m in sizes_of_axes
            )
        assert visits >= 0
        found.append(times.T if inverse else times)
    assert np.array_equal(*found)
    assert found[0].max(initial=0) <= 1
    return found[0].astype(bool)


def check(fields: dict[str, Any], queries: int, keys: int, tiles: Any) -> None:
    mask = Mask(Axis(**fields))
    (bound_axis,) = bind(mask, queries, keys)
    check_arithmetic(bound_axis)
    assert np.array_equal(check_pairs(mask, queries, keys, tiles), bound_axis.dense())


def test_the_sample_for_cuda_has_every_legal_pair_of_values() -> None:
    assert value_pairs_of_sample(0, STEP) == value_pairs_of_sample(1, 31) | value_pairs_of_sample(
        3, 17
    )


def test_small_axes_equal_geometry(cases: Count) -> None:
    for number, (fields, queries, keys) in enumerate(specimens(0, STEP)):
        if is_legal(fields, queries, keys):
            check(fields, queries, keys, TILES[number % 2])
            cases("window.cuh, sampled product", 1)


@pytest.mark.deep
@pytest.mark.parametrize("first", range(16))
def test_every_small_axis_equals_geometry(first: int, cases: Count) -> None:
    for number, (fields, queries, keys) in enumerate(specimens(first, 16)):
        if is_legal(fields, queries, keys):
            check(fields, queries, keys, TILES[number % 2])
            cases("window.cuh, full product", 1)


@given(masks(), st.sampled_from(TILES), st.data())
def test_traversal_of_any_rank(cases: Count, drawn: Any, tiles: Any, data: Any) -> None:
    """Against the enumerator, without and with ranges of valid keys."""
    mask, queries, keys = drawn
    wanted = matrix(mask.axes, queries, keys)
    assert np.array_equal(check_pairs(mask, queries, keys, tiles), wanted)
    ends = [data.draw(st.tuples(st.integers(-1, n + 1), st.integers(-1, n + 1))) for n in keys]
    inside = [
        (np.arange(n) >= a) & (np.arange(n) < b) for n, (a, b) in zip(keys, ends, strict=True)
    ]
    valid = np.ones(1, dtype=bool)
    for part in inside:
        valid = np.kron(valid, part)
    found = check_pairs(mask, queries, keys, tiles, np.array(ends, dtype=np.int32))
    assert np.array_equal(found, wanted & valid)
    cases("walk.cuh, masks", 1)


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
            bounds = (-2 * FAR, 2 * FAR)
        inverse = np.stack(geometry.readers_of(bound_axis.spec, t, group.keys), axis=1)
        assert np.array_equal(
            np.clip(readers(bound_axis, t, group.keys), *bounds), np.clip(inverse, *bounds)
        )
    cases("window.cuh, large axes", 1)
