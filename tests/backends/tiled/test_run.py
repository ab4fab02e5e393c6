"""Tests of the values of the tiled engine at every tile size.

Plans choose large tiles for small shapes; here sizes are forced, so that seams, hulls and tiles
that run as one batch are met on shapes small enough for the oracle.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from dense_attention import attend
from hypothesis import given
from hypothesis import strategies as st
from oracle import masks, matrix

from nbattn import Axis, Mask, geometry
from nbattn.backends.inputs import Inputs
from nbattn.backends.tiled import run as tiled
from nbattn.backends.tiled.meaning import TiledArguments
from nbattn.program.program import Call, Program, whole

Space = tuple[int, ...]
Count = Callable[[str, int], None]


def check(mask: Mask, queries: Space, keys: Space, tile: Space, seed: int = 0) -> None:
    """Forward and backward of the engine at one tile size, in float64, with a gradient of lse."""
    torch.manual_seed(seed)
    make = torch.randn
    tensors = [make(2, *queries, 4, 4), make(2, *keys, 2, 4), make(2, *keys, 2, 3)]
    tensors += [make(4), make(2, 2, 2, 4), make(2, 2, 2, 3)]
    q, k, v, sink, extra_key, extra_value = leaves = [t.double().requires_grad_() for t in tensors]
    allowed = torch.from_numpy(matrix(mask.axes, queries, keys))
    extras = {"sink": sink, "extra_key": extra_key, "extra_value": extra_value} if seed % 2 else {}
    out, lse = attend(q, k, v, allowed, **extras)
    upward = torch.randn(out.shape, dtype=torch.float64)
    lse_upward = torch.randn(lse.shape, dtype=torch.float64).masked_fill(lse == -torch.inf, 0)
    loss = (out * upward).sum() + (lse.masked_fill(lse == -torch.inf, 0) * lse_upward).sum()
    wanted = torch.autograd.grad(loss, leaves, allow_unused=True)

    arguments = TiledArguments(geometry.bind(mask, queries, keys), tile)
    program = Program((Call(whole(queries), whole(keys), arguments),))
    plain = [t.detach() for t in leaves]
    rest = (plain[3], None, plain[4], plain[5]) if extras else (None,) * 4
    inputs = Inputs(*plain[:3], *rest, scale=0.5, softcap=None)
    found, found_lse = tiled.forward(program, inputs, return_lse=True)
    assert found_lse is not None
    grads = tiled.backward(program, inputs, found, found_lse, upward, lse_upward)
    torch.testing.assert_close(found, out.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found_lse, lse.detach(), rtol=1e-10, atol=1e-12)
    names = (grads.query, grads.key, grads.value, grads.sink, grads.extra_key, grads.extra_value)
    for grad, want in zip(names, wanted, strict=True):
        assert (grad is None) == (want is None)
        if grad is not None and want is not None:
            torch.testing.assert_close(grad, want, rtol=1e-9, atol=1e-11)


@given(masks(), st.lists(st.integers(1, 5), min_size=3, max_size=3), st.integers(0, 3))
def test_values_at_any_tile_size(
    cases: Count, drawn: tuple[Mask, Space, Space], sizes: list[int], seed: int
) -> None:
    mask, queries, keys = drawn
    check(mask, queries, keys, tuple(sizes[: mask.rank]), seed)
    cases("tiles, values", 1)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 32])
@pytest.mark.parametrize(
    ("mask", "queries", "keys"),
    [
        (Mask(Axis(20, 20, border="shift", stride=32)), (96,), (96,)),
        (Mask(Axis(0, causal=True, stride=4, prefix=3)), (5,), (5,)),
        (Mask(Axis(3, 3, border="shift", dilation=2)), (61,), (61,)),
        (Mask(Axis(5, 2, border="wrap")), (48,), (48,)),
        (Mask(Axis(2, 2), Axis(3, 3, border="shift")), (5, 40), (5, 40)),
        (Mask(Axis(1, 1, offset=9), Axis(2, 2, border="wrap")), (6, 9), (6, 9)),
    ],
)
def test_values_where_tiles_join(
    mask: Mask, queries: Space, keys: Space, size: int, cases: Count
) -> None:
    """Equal neighbours run as one batch only where they move evenly; hulls hold late prefixes."""
    check(mask, queries, keys, (size,) * mask.rank, size)
    cases("tiles, joined", 1)
