"""Tests of natten.utils: parameters as tuples, with the values that NATTEN gives to None."""

from __future__ import annotations

import pytest
import torch

from nbattn import InputError
from nbattn.integrations import natten
from nbattn.integrations.natten import checks


def test_none_has_natten_s_meaning_everywhere() -> None:
    current, older = (checks.names(generation) for generation in ("0.21", "0.17"))
    wanted = ((3, 3), (1, 1), (1, 1), (False, False))
    assert current["check_all_args"](2, 3, None, None, None) == wanted
    assert current["check_all_args"](2, [3, 3], stride=1, is_causal=None, dilation=None) == wanted
    assert older["check_all_args"](1, kernel_size=3, dilation=None, is_causal=True) == (
        (3,), (1,), (True,),
    )  # fmt: skip
    assert current["check_dilation_arg"](3, None) == (1, 1, 1)
    assert current["check_causal_arg"](2, [True, False]) == (True, False)
    query = torch.randn(1, 9, 2, 4)
    found = natten.na1d(query, query, query, 3, stride=None, dilation=None, is_causal=None)
    assert torch.equal(found, natten.na1d(query, query, query, 3))
    layer = natten.NeighborhoodAttention1D(8, 2, 3, None, None, None)
    assert (layer.stride, layer.dilation, layer.is_causal) == ((1,), (1,), (False,))
    first = query.transpose(1, 2)
    assert torch.equal(natten.na1d_qk(first, first, 3, None), natten.na1d_qk(first, first, 3))


def test_weights_of_a_query() -> None:
    assert checks.get_num_na_weights((3, 5, 7)) == 105
    with pytest.raises(InputError, match="number of axes is not known"):
        checks.get_num_na_weights(7)  # pyright: ignore[reportArgumentType]
