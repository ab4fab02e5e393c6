"""Tests of scales: what is shown of a long axis, where, and which indices are labelled."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbattn.pictures import zoom


@given(st.data())
@settings(max_examples=100)
def test_ends_and_places_are_shown_once_and_in_order(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 300))
    places = data.draw(st.lists(st.integers(0, length - 1), max_size=4))
    size, step = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 9))
    scale = zoom.around(length, places, size, step)
    shown = scale.indices.tolist()
    assert shown == sorted(set(shown))
    assert {0, length - 1, *places} <= set(shown)
    assert all(0 <= index < length for index in shown)
    assert all(part.start % step == 0 for part in scale.parts)
    assert [scale.place(index) for index in shown] == scale.places.tolist()
    gaps = [b - a for a, b in pairwise(scale.places)]
    steps = [b - a for a, b in pairwise(shown)]
    assert all(
        gap == (1 if step == 1 else 1 + scale.gap) for gap, step in zip(gaps, steps, strict=True)
    )
    assert scale.place(length) is None


@given(st.integers(1, 10**6), st.floats(0.5, 60), st.sampled_from([1, 4, 7, 24]))
@settings(max_examples=100)
def test_labels_are_apart_and_shown(length: int, room: float, step: int) -> None:
    scale = zoom.around(length, [length // 3], 24) if length > 96 else zoom.whole(length)
    labels = scale.ticks(room, step)
    places = [scale.place(label) for label in labels]
    assert None not in places
    assert labels[0] == 0
    assert all(b - a >= room for a, b in pairwise(places))


def test_every_part_has_a_label_and_round_ones_come_first() -> None:
    scale = zoom.around(10**6, [500_000], 24)
    assert scale.ticks(20.0) == [0, 20, 500_000, 999_990]
    assert scale.ticks(5.0)[:4] == [0, 5, 10, 15]
    assert zoom.whole(12).ticks(2.5) == [0, 5, 10]
    assert zoom.whole(48).ticks(2.5, 8) == [0, 8, 16, 24, 32, 40]


def test_labels_beside_another_scale_stay_inside() -> None:
    scale = zoom.around(10**6, [500_000], 24)
    assert scale.ticks(44.0) == [0, 999_990]
    assert scale.ticks(44.0, is_boxed=True) == [0, 500_000]
    assert zoom.whole(24).ticks(3.0, is_boxed=True) == [0, 5, 10, 15, 20]


def test_places_of_large_indices_are_exact() -> None:
    scale = zoom.around(10**18, [], 40)
    assert scale.frames[1] == (39.5 + scale.gap, 79.5 + scale.gap)
    assert scale.place(10**18 - 1) == 79 + scale.gap


def test_a_margin_lies_beyond_the_axis() -> None:
    scale = zoom.whole(4, (2, 1))
    assert scale.indices.tolist() == [-2, -1, 0, 1, 2, 3, 4]
    assert (scale.ends, scale.frames) == ((-2.5, 4.5), [(-0.5, 3.5)])
    assert scale.place(0) == 0.0
    assert scale.ticks(1.0) == [0, 1, 2, 3]
    long = zoom.around(1000, [], 10, margin=(3, 0))
    assert [len(part) for part in long.parts] == [13, 10]
    assert long.frames == [(-0.5, 9.5), (9.5 + long.gap, 19.5 + long.gap)]


@pytest.mark.parametrize("length", [0, 1])
def test_short_axes(length: int) -> None:
    scale = zoom.whole(length)
    assert scale.size == 1.0
    assert scale.indices.tolist() == list(range(length))
    assert scale.ticks(1.0) == list(range(length))
