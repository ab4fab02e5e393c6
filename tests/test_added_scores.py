"""Tests of the checks of tables and slopes."""

from __future__ import annotations

import pytest
import torch

import nbattn
from nbattn import Axis, InputError, Mask, MaskError

QUERY = torch.zeros(2, 9, 4, 8)
MASK = Mask(Axis(3, 1))


def refused(error: type[Exception], mask: Mask = MASK, **given: torch.Tensor) -> str:
    with pytest.raises(error) as raised:
        nbattn.attention(QUERY, QUERY, QUERY, mask, **given)
    return str(raised.value)


@pytest.mark.parametrize("shape", [(4, 8), (9,), (9, 4), (1, 9), (4, 9, 9), (2, 4, 9)])
def test_shape_of_a_table(shape: tuple[int, ...]) -> None:
    text = refused(InputError, relative_bias=torch.zeros(shape))
    assert f"relative_bias has shape {list(shape)}, not [4, 9]: [H, 2 K - 1 per axis]" in text
    assert ("fix:" in text) == (shape in ((9,), (9, 4)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_dtype_of_a_table(dtype: torch.dtype) -> None:
    text = refused(InputError, relative_bias=torch.zeros(4, 9, dtype=dtype))
    assert f"relative_bias is {str(dtype)[6:]}, not a floating dtype." in text
    assert "relative_bias=relative_bias.float()." in text


def test_a_mask_without_a_table_is_named_before_the_shape() -> None:
    text = refused(MaskError, Mask.causal(), relative_bias=torch.zeros(4, 17))
    assert "Mask(Axis(8, 0, causal=True)), the same mask." in text


@pytest.mark.parametrize("shape", [(3,), (4, 2), (1, 4), (4, 1, 1), (1, 4, 1, 1)])
def test_shape_of_slopes(shape: tuple[int, ...]) -> None:
    text = refused(InputError, alibi_slopes=torch.zeros(shape))
    assert f"alibi_slopes has shape {list(shape)}, not [4] or [2, 4]: one slope per head." in text
    assert ("fix:" in text) == (4 in shape and shape != (4, 2))


def test_slopes_are_wide() -> None:
    text = refused(InputError, alibi_slopes=torch.zeros(4, dtype=torch.bfloat16))
    assert "alibi_slopes is bfloat16, not float32: a rounded slope is off by its error" in text


def test_slopes_have_no_gradient() -> None:
    slopes = torch.zeros(4, requires_grad=True)
    assert "alibi_slopes requires a gradient, and has none." in refused(
        InputError, alibi_slopes=slopes
    )
    with torch.no_grad():  # none is asked for
        nbattn.attention(QUERY, QUERY, QUERY, MASK, alibi_slopes=slopes)
