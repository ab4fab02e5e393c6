"""Tests of derivatives by finite differences: of every engine, and the reference's second ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from judged_values import (
    DIFFERENTIABLE,
    Feature,
    Shape,
    Space,
    tensors,
)
from native_library import backends
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import nbattn
from nbattn import Axis, Mask

Count = Callable[[str, int], None]

# Derivatives by finite differences.


TINY: dict[str, tuple[Mask, Space, Space]] = {
    "clip": (Mask(Axis(1, 1, align="top-left")), (4,), (5,)),
    "shift": (Mask(Axis(1, 1, border="shift", dilation=2)), (5,), (5,)),
    "wrap": (Mask(Axis(1, 0, border="wrap")), (4,), (4,)),
    "causal": (Mask(Axis(causal=True)), (4,), (4,)),
    "causal, folded": (Mask(Axis(causal=True, dilation=2)), (4,), (4,)),
    "empty rows": (Mask(Axis(causal=True, offset=-2, align="top-left")), (4,), (3,)),
    "prefix": (Mask(Axis(0, 0, prefix=2)), (4,), (4,)),
    "two axes": (Mask(Axis(1, causal=True), Axis(1, 1, border="shift")), (2, 3), (2, 3)),
}
CHECKED: dict[str, Feature] = {
    "plain": Feature(Shape(1, 2, 1, 2, 2)),
    "sink, extra keys": Feature(Shape(1, 2, 1, 2, 2, 1), {"scale": 0.9}, sink=True),
    "lse, key_range": Feature(Shape(2, 1, 1, 2, 2), lse=True, key_range="some"),
    "everything": Feature(
        Shape(2, 2, 1, 2, 3, 1), {"softcap": 1.2}, sink=True, key_range="some", lse=True
    ),
}

# A push tries each mask with every second feature, in turn.
IN_TURN = [
    pytest.param(label, name, marks=pytest.mark.deep if (n + m) % 2 else ())
    for n, label in enumerate(TINY)
    for m, name in enumerate(CHECKED)
]

TABLE = Feature(Shape(2, 2, 1, 2, 2, 2), {"softcap": 1.2}, lse=True, extra_range=True, table=True)
TABLED = [label for label in TINY if TABLE.fits(*TINY[label])]


def differentiated(
    label: str, feature: Feature, backend: str, **route: Any
) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """A function of the differentiable inputs alone, and the inputs."""
    mask = TINY[label]
    made = tensors(mask, feature, torch.float64)
    made = {name: tensor.nan_to_num(0.5) for name, tensor in made.items()}
    names = [name for name in DIFFERENTIABLE if name in made]

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        inputs = made | dict(zip(names, values, strict=True))
        found = nbattn.attention(
            **inputs, mask=mask[0], backend=backend, return_lse=feature.lse, **feature.numbers,
            **route,
        )  # fmt: skip
        if isinstance(found, Tensor):
            return (found,)
        return found[0], torch.where(found[1].isinf(), 0.0, found[1])

    return function, [made[name].requires_grad_() for name in names]


@pytest.mark.parametrize(("label", "name"), IN_TURN)
@pytest.mark.parametrize("backend", backends(["reference", "tiled", "native"]))
def test_gradients_by_finite_differences(backend: str, label: str, name: str, cases: Count) -> None:
    function, inputs = differentiated(label, CHECKED[name], backend)
    assert gradcheck(function, inputs, fast_mode=name == "everything")
    cases(f"gradcheck, {backend}", 1)


@pytest.mark.parametrize("label", TABLED)
@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_gradients_of_tables_by_finite_differences(backend: str, label: str, cases: Count) -> None:
    assert len(TABLED) > 3
    function, inputs = differentiated(label, TABLE, backend)
    assert gradcheck(function, inputs)
    if backend == "reference":
        assert gradgradcheck(function, inputs, fast_mode=True)
    cases(f"gradcheck, tables, {backend}", 1)


@pytest.mark.parametrize(
    ("label", "strategy"),
    [
        ("causal", "causal"), ("causal", "mask"), ("causal, folded", "fold"),
        ("empty rows", "trim"), ("clip", "mask"), ("wrap", "mask"), ("two axes", "mask"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["plain", "sink, extra keys"])
def test_gradients_of_sdpa_by_finite_differences(
    label: str, strategy: str, name: str, cases: Count
) -> None:
    feature = CHECKED[name]
    if strategy == "mask":
        feature = feature._replace(shape=feature.shape._replace(extra=0))
    function, inputs = differentiated(label, feature, "sdpa", require=(strategy,))
    assert gradcheck(function, inputs)
    cases("gradcheck, sdpa", 1)


@pytest.mark.parametrize(("label", "name"), IN_TURN)
def test_second_derivatives_of_the_reference(label: str, name: str, cases: Count) -> None:
    function, inputs = differentiated(label, CHECKED[name], "reference")
    assert gradgradcheck(function, inputs, fast_mode=True)
    cases("gradgradcheck, reference", 1)
