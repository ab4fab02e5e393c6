"""Tests that masks which messages advise for circles and shifted windows are those meant."""

from __future__ import annotations

import re
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import nbattn
from nbattn import Axis, Mask, MaskError, mistaken_masks
from nbattn.fixes.masks import causal_axes
from nbattn.shapes import as_code

NAMES = {"Axis": Axis, "Mask": Mask, "torch": torch}
SIDES = [*product(range(4), repeat=2)]


def circle(sides: tuple[Any, Any], dilation: int, stride: int, offset: int, n: int) -> NDArray[Any]:
    """The keys of each query on a circle of n, by the definition."""
    matrix = np.zeros((n, n), bool)
    for query in range(n):
        u, r = divmod(query + offset, dilation)
        length = n // dilation
        lead = u // stride * stride + stride // 2
        if u // stride * stride < length:
            lead = min(lead, length - 1)
        left, right = (n if side is None else side for side in sides)
        for t in range(lead - left, lead + right + 1):
            matrix[query, r + dilation * (t % length)] = True
    return matrix


@pytest.mark.parametrize("sides", SIDES)
def test_some_queries_of_a_circle_read_its_keys_on_a_line(sides: tuple[int, int]) -> None:
    mask, offered = Mask(Axis(*sides, border="wrap")), 0
    for keys, queries in product(range(1, 9), range(12)):
        if queries == keys:
            continue
        with pytest.raises(MaskError) as error:
            mask.dense(queries, keys)
        code = error.value.fix.partition(", with query 0")[0]
        assert bool(code) == (max(queries, sum(sides) + 1) <= keys)
        if not code:
            continue
        offered += 1
        key = torch.arange(keys)[None]
        given = {"query": None, "key": key, "value": key}
        line = SimpleNamespace(attention=lambda query, key, value, mask: (key, mask))
        line_keys, advised = eval(code, NAMES | given | {"nbattn": line})
        read = advised.dense(queries, line_keys.shape[1])
        found = np.zeros((queries, keys), int)
        for row, column in zip(*np.nonzero(read), strict=True):
            found[row, line_keys[0, column]] += 1
        assert (found == circle(sides, 1, 1, 0, keys)[:queries]).all()
    assert offered


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_circle_without_an_offset_is_the_same(dilation: int, stride: int) -> None:
    n, said = 12, set()
    for sides, offset in product([*SIDES, (None, 1), (2, None), (None, None)], range(-7, 8)):
        if not offset:
            continue
        with pytest.raises(MaskError) as error:
            Axis(*sides, dilation=dilation, stride=stride, border="wrap", offset=offset)
        first = re.match(r"Axis\([^()]*\)", error.value.fix)
        assert first is not None
        if "wrap" not in first[0]:  # nothing is the same
            assert stride > 1
            continue
        roll = re.search(r"key\.roll\((-?\d+), 1\)", error.value.fix)
        moved = int(roll[1]) if roll else 0
        advised = Mask(eval(first[0], NAMES)).dense(n)
        wanted = circle(sides, dilation, stride, offset, n)
        # column j of what is advised is the key that roll has put there
        assert (advised == np.roll(wanted, moved, axis=1)).all(), error.value.fix
        said.add(bool(roll))
    assert True in said


@pytest.mark.parametrize("dilation", [1, 2, 3, 5])
def test_a_dilation_and_stride_that_are_advised_fit_the_circle(dilation: int) -> None:
    for n, stride, sides in product(range(1, 20), (1, 2, 4), SIDES):
        if n % (dilation * stride) == 0:
            continue
        mask = Mask(Axis(*sides, dilation=dilation, stride=stride, border="wrap"))
        with pytest.raises(MaskError) as error:
            mask.dense(n)
        assert eval(error.value.fix.removesuffix("."), NAMES).dense(n).any(axis=1).all()


@pytest.mark.parametrize("border", ["clip", "shift", "wrap"])
def test_a_matrix_is_the_mask_that_is_advised_for_it(border: Any) -> None:
    advised = 0
    for n, sides, dilation in product(range(2, 9), SIDES, (1, 2)):
        if border == "wrap" and n % dilation:
            continue
        matrix = Mask(Axis(*sides, dilation=dilation, border=border)).dense(n)
        fix = mistaken_masks.instead_of(matrix, 1)
        if fix.startswith("mask="):
            code = fix.removeprefix("mask=").partition(", which is")[0]
            assert (eval(code, NAMES).dense(n) == matrix).all()
            advised += 1
    assert advised > 50


def test_masks_as_code_are_the_same_masks() -> None:
    for sides, dilation, stride, border in product(SIDES, (1, 2), (1, 3), ("clip", "shift")):
        axis = Axis(*sides, dilation=dilation, stride=stride, border=border)
        for rank in (1, 2):
            assert eval(as_code([axis] * rank), NAMES) == Mask(*[axis] * rank)


def test_causal_windows_are_those_of_natten() -> None:
    for size, dilation in product(range(1, 9), (1, 2)):
        given, wanted = (
            Mask.neighborhood(size, dilation=dilation, is_causal=causal) for causal in (False, True)
        )
        assert nbattn.Mask(*causal_axes(given.axes)) == wanted
