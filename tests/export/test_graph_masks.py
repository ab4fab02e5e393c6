"""Tests of masks that graphs compute, against the geometry, for lengths of every kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from nbattn import Axis, Mask, MaskError, geometry
from nbattn.export import graph_masks

CPU = torch.device("cpu")


def any_axis(choose: random.Random) -> Axis:
    """An axis of any rule; some raise."""
    border: Any = choose.choice(["clip", "shift", "wrap"])
    left, right = choose.randint(0, 4), choose.randint(0, 4)
    causal = border != "wrap" and choose.random() < 0.3
    sides = [None if border == "clip" and choose.random() < 0.2 else n for n in (left, right)]
    align: Any = choose.choice([None, "top-left", "bottom-right"]) if border == "clip" else None
    return Axis(
        sides[0],
        0 if causal else sides[1],
        dilation=choose.choice([1, 1, 2, 3]),
        stride=choose.choice([1, 1, 2, 3]),
        border=border,
        causal=causal,
        align=align,
        offset=choose.randint(-4, 4) if align else 0,
        prefix=choose.choice([0, 0, 2]),
    )


def bound(choose: random.Random) -> tuple[Axis, int, int]:
    """A legal axis with its lengths."""
    while True:
        try:
            axis = any_axis(choose)
            queries = choose.randint(1, 14)
            keys = choose.randint(1, 14) if axis.align else queries
            geometry.bind(Mask(axis), queries, keys)
        except MaskError:
            continue
        return axis, queries, keys


def test_dense_masks_are_those_of_the_geometry(cases: Callable[[str, int], None]) -> None:
    choose = random.Random(1)
    for _ in range(150):
        axes, space, key_space = zip(
            *(bound(choose) for _ in range(choose.randint(1, 2))), strict=True
        )
        found = graph_masks.dense_mask(Mask(*axes), space, key_space, CPU).numpy()
        assert (found == geometry.dense(Mask(*axes), space, key_space)).all(), (axes, space)
        cases("graph masks", 1)


def pairs_of_tiles(axis: Axis, queries: int, keys: int, rows: int) -> np.ndarray:
    """How often every pair is in the tiles of an axis."""
    tiles = graph_masks.tiles(graph_masks.tiling(axis, queries, keys, rows), CPU)
    found = np.zeros((queries, keys), dtype=int)
    of_row = tiles.allowed.flatten(0, 1)[tiles.places].numpy()
    tile = (tiles.places // tiles.queries.shape[1]).numpy()
    for query in range(queries):
        assert tiles.queries.flatten()[tiles.places[query]] == query
        np.add.at(found[query], tiles.keys.numpy()[tile[query]][of_row[query]], 1)
    return found


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_tiles_have_every_pair_once(rows: int, cases: Callable[[str, int], None]) -> None:
    choose = random.Random(rows)
    for _ in range(100):
        axis, queries, keys = bound(choose)
        found = pairs_of_tiles(axis, queries, keys, rows)
        assert (found == geometry.dense(Mask(axis), queries, keys)).all(), (axis, queries, keys)
        cases("graph masks", 1)


def test_tiles_of_a_window_have_as_many_keys_as_its_rows_attend_to() -> None:
    assert graph_masks.tiling(Axis(3, 3, border="shift"), 56, 56, 8)[3:] == (7, 8, 14)
    assert graph_masks.tiling(Axis(2, 2, dilation=4), 64, 64, 4)[3:] == (4, 4, 8)
    assert graph_masks.tiling(Axis(1, 1, stride=3), 30, 30, 4)[3:] == (8, 4, 6)
    assert graph_masks.tiling(Axis(causal=True), 30, 40, 4)[3:] == (1, 30, 40)
    assert graph_masks.tiling(Axis(9, 9), 12, 12, 4)[3:] == (3, 4, 12)


def test_masks_with_known_lengths_are_never_refused() -> None:
    mask = Mask(Axis(2, 1, border="wrap", dilation=2))
    assert graph_masks.refusal(mask.code(), (12,), (12,)) is None
