"""Tests of the Triton kernels' window arithmetic in the interpreter, against `nbattn/rows.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import triton_interpreter
from numpy.typing import NDArray
from oracle import is_legal
from short_axes import few, specimens, value_pairs_of

from nbattn import Axis, Mask, rows
from nbattn.backends.triton.kernels import numbers
from nbattn.geometry import BoundAxis, bind
from nbattn.kernels import layout
from nbattn.program.limits import LARGEST

pytestmark = pytest.mark.skipif(
    triton_interpreter.missing() is not None, reason=str(triton_interpreter.missing())
)

Count = Callable[[str, int], None]
Ints = NDArray[np.int64]
BORDER = {"clip": 0, "shift": 1, "wrap": 2}
BEYOND = 1 << 28  # all coordinates, and less than what stands for no end


class Class(NamedTuple):
    """One class of one axis, and coordinates of it to try."""

    axis: BoundAxis
    keys: int
    at: Ints

    def columns(self) -> dict[str, Ints]:
        """The class as one lane per coordinate."""
        named = dict(zip(layout.AXIS, layout.axis_numbers(self.axis), strict=True))
        lanes = {name: np.full(len(self.at), number) for name, number in named.items()}
        return lanes | {"members": np.full(len(self.at), self.keys), "at": self.at}


def classes_of(fields: dict[str, Any], queries: int, keys: int) -> Iterator[Class]:
    """The classes of an axis, with all coordinates that queries or keys have and some around."""
    (bound_axis,) = bind(Mask(Axis(**fields)), queries, keys)
    for group in bound_axis.classes():
        ends = group.start, group.start + group.queries, group.keys
        yield Class(bound_axis, group.keys, np.arange(min(*ends, 0) - 2, max(ends) + 3))


def computed(name: str, classes: list[Class], outputs: int) -> Ints:
    """What a function of the kernels returns for all coordinates of all classes, in one call for
    each border and causality, `[outputs, coordinates]`.
    """
    lanes = [one.columns() for one in classes]
    together = {field: np.concatenate([lane[field] for lane in lanes]) for field in lanes[0]}
    found = np.zeros((outputs, len(together["at"])), dtype=np.int64)
    for border in BORDER.values():
        for causal in (0, 1):
            own = np.flatnonzero((together["border"] == border) & (together["causal"] == causal))
            if not len(own):
                continue
            size = 1 << (len(own) - 1).bit_length()
            chosen = np.resize(own, size)  # the interpreter has arrays of powers of two
            lane = {field: values[chosen].astype(np.int32) for field, values in together.items()}
            axis = numbers.Axis(
                *(lane[field] for field in layout.AXIS[:-2]), border, causal, 0, 0, 0
            )
            parts = triton_interpreter.call(name, axis, lane["at"], lane["members"])
            found[:, own] = [np.broadcast_to(part, size)[: len(own)] for part in parts]
    return found


def split(found: Ints, classes: list[Class]) -> Iterable[tuple[Class, Ints]]:
    """The results of each class."""
    ends = np.cumsum([len(one.at) for one in classes])[:-1]
    return zip(classes, np.split(found, ends, axis=1), strict=True)


def check_windows(classes: list[Class]) -> None:
    for one, found in split(computed("window.window_of", classes, 3), classes):
        spec, keys = one.axis.spec, one.keys
        if spec.border == "wrap":  # kernels take one lap off or add one
            own = found[:2, (one.at >= 0) & (one.at < keys)]
            assert ((own >= -keys) & (own <= 2 * keys)).all(), (one, own)
        if spec.border == "wrap" and window_of(spec) == keys:  # all keys, from anywhere on
            assert (found[1] - found[0] == keys).all(), one
        else:
            wanted = np.stack(rows.window_of(spec, one.at, keys))
            assert np.array_equal(found, wanted), (one, found, wanted)


def check_readers(classes: list[Class]) -> None:
    """At the coordinates of keys; there are no readers of others."""
    classes = [
        one._replace(at=np.unique(np.clip(one.at, 0, one.keys - 1))) for one in classes if one.keys
    ]
    for one, found in split(computed("window.readers_of", classes, 2), classes):
        spec, keys = one.axis.spec, one.keys
        if spec.border == "wrap" and window_of(spec) == keys:
            assert (found[1] - found[0] == keys).all(), one
        else:
            wanted = np.stack(rows.readers_of(spec, one.at, keys))
            found, wanted = (np.clip(ends, -BEYOND, BEYOND) for ends in (found, wanted))
            assert np.array_equal(found, wanted), (one, found, wanted)


def window_of(spec: Axis) -> int:
    """Keys of a window with two sides, of any number where a side is not limited."""
    return sum(layout.FAR if side is None else side for side in (spec.left, spec.right)) + 1


def test_the_windows_of_small_axes_equal_geometry(cases: Count) -> None:
    sample = list(few(0, 89, 5))
    classes = [one for specimen in sample for one in classes_of(*specimen)]
    check_windows(classes)
    check_readers(classes)
    assert len(value_pairs_of(sample)) > 900
    cases("Triton windows, classes", len(classes))


@pytest.mark.deep
@pytest.mark.parametrize("first", range(16))
def test_the_windows_of_every_small_axis_equal_geometry(first: int, cases: Count) -> None:
    sample = [one for one in specimens(first, 16) if is_legal(*one)]
    for start in range(0, len(sample), 5000):
        classes = [one for each in sample[start : start + 5000] for one in classes_of(*each)]
        check_windows(classes)
        check_readers(classes)
        cases("Triton windows, classes", len(classes))


def large_axis(random: np.random.Generator) -> tuple[dict[str, Any], int, int]:
    """An axis with some numbers as large as the kernels take."""

    def number(lowest: int, highest: int) -> int:
        near = lowest + int(random.integers(12))
        return [near, highest, int(random.integers(lowest, highest + 1))][random.integers(3)]

    border = str(random.choice(["clip", "shift", "wrap"]))
    causal = border != "wrap" and bool(random.integers(2))
    dilation, stride = number(1, LARGEST), number(1, LARGEST)
    queries, keys = number(0, LARGEST), number(0, LARGEST)
    fields: dict[str, Any] = {
        "left": number(0, LARGEST), "right": 0 if causal else number(0, LARGEST),
        "border": border, "stride": stride, "causal": causal,
    }  # fmt: skip
    if border == "wrap":
        fields |= {"dilation": dilation if dilation * stride <= LARGEST else 1}
        keys = max(keys // (fields["dilation"] * stride), 1) * fields["dilation"] * stride
        return fields, keys, keys
    if random.integers(2):
        fields |= {"dilation": dilation}
    else:
        fields |= {"prefix": number(0, LARGEST)}
    if border == "clip" and random.integers(4) == 0:
        fields |= {"left": None}
    return fields | {"align": "top-left", "offset": number(-LARGEST, LARGEST)}, queries, keys


def test_large_numbers_stay_within_32_bits(cases: Count) -> None:
    """A launch would not notice a sum that overflows; the interpreter does."""
    random, classes = np.random.default_rng(0), list[Class]()
    while len(classes) < 600:
        fields, queries, keys = large_axis(random)
        if max(queries, keys) > LARGEST:
            continue
        (bound_axis,) = bind(Mask(Axis(**fields)), queries, keys)
        for group in bound_axis.classes():
            ends = {group.start, group.start + group.queries - 1, 0, group.keys - 1}
            near = np.array([end + step for end in ends for step in (0, 1, -1, 7, -7)])
            at = np.clip(near, min(group.start, 0), max(group.start + group.queries, group.keys))
            classes.append(Class(bound_axis, group.keys, at))
    check_windows(classes)
    check_readers(classes)
    cases("Triton windows, large classes", len(classes))


def test_quotients_are_rounded_as_said() -> None:
    a, b = np.meshgrid(np.r_[-40:41, -LARGEST, LARGEST], np.r_[1:10, LARGEST])
    a, b = (np.resize(side.ravel(), 1024).astype(np.int32) for side in (a, b))
    assert np.array_equal(triton_interpreter.call("window.floor_div", a, b), a // b)
    assert np.array_equal(triton_interpreter.call("window.ceil_div", a, b), -(-a // b))


def test_the_members_of_a_class_are_counted_from_its_residue(cases: Count) -> None:
    tried = [
        (first, count, residue, dilation)
        for dilation in (1, 2, 3, 7)
        for residue in range(dilation)
        for first in range(-9, 10)
        for count in range(12)
    ]
    lanes = np.resize(np.array(tried, dtype=np.int32), (4096, 4)).T.copy()
    lo, hi = triton_interpreter.call("window.members", *lanes)
    for number, (first, count, residue, dilation) in enumerate(tried):
        places = [x for x in range(-40, 40) if first <= residue + dilation * x < first + count]
        assert hi[number] - lo[number] == len(places)
        assert not places or lo[number] == places[0]
    cases("Triton windows, members of classes", len(tried))
