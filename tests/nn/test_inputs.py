"""Tests of the exact error messages of the layer's options and inputs, which come first."""

# ruff: noqa: E501  the texts are as users see them

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from small_layers import LINE
from torch import Tensor, nn

import nbattn
from nbattn import Axis, Mask, NbattnError, NeighborhoodAttention

pytestmark = [  # what torch's own compiler warns of
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
]


# Messages.


class Plain(nn.Module):
    """A transform of queries and keys alone."""

    def __init__(self, change: Callable[[Tensor, Tensor], Any] = lambda q, k: (q, k)) -> None:
        super().__init__()
        self.change = change

    def forward(self, query: Tensor, key: Tensor) -> Any:
        return self.change(query, key)


def t(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


PLAIN = NeighborhoodAttention(64, 4, Mask.neighborhood((3, 3)))
NAMES = {
    "np": np,
    "torch": torch,
    "t": t,
    "Layer": NeighborhoodAttention,
    "Axis": Axis,
    "Mask": Mask,
    "Plain": Plain,
    "mask": LINE,
    "layer": PLAIN,
    "x": t(2, 6, 7, 64),
    "line": NeighborhoodAttention(8, 2, LINE),
    "ring": NeighborhoodAttention(8, 2, Mask(Axis(1, 1, border="wrap"))),
    "plain": NeighborhoodAttention(8, 2, LINE, qk_transform=Plain()),
    "wide": NeighborhoodAttention(8, 2, LINE, qk_transform=Plain(lambda q, k: (q, k[:, 1:]))),
    "single": NeighborhoodAttention(8, 2, LINE, qk_transform=Plain(lambda q, k: q)),
    "nothing": NeighborhoodAttention(8, 2, LINE, qk_transform=Plain(lambda q, k: (q, None))),
}

TABLE = """
Layer(64, 4, (7, 7))
    InputError: mask is a tuple, not an nbattn.Mask.
      fix:   mask=Mask.neighborhood((7, 7)).

Layer(64, 4, "encoder")
    InputError: mask is a str, not a Mask.

Layer(64, 4, Axis(3, 3))
    InputError: mask is an Axis, not a Mask.
      fix:   mask=Mask(Axis(3, 3)).

Layer(0, 4, mask)
    InputError: dim=0 is below 1.
      fix:   dim=1.

Layer(True, 1, mask)
    InputError: dim=True is a bool, not an integer.
      fix:   dim=1.

Layer(64.0, 4, mask)
    InputError: dim=64.0 is a float, not an integer.
      fix:   dim=64.

Layer("64", 4, mask)
    InputError: dim='64' is a str, not an integer.
      fix:   dim=64.

Layer(64, 0, mask)
    InputError: num_heads=0 is below 1.
      fix:   num_heads=1.

Layer(64, None, mask)
    InputError: num_heads=None is a NoneType, not an integer.
      fix:   num_heads=1.

Layer(64, 7, mask)
    InputError: dim=64 is no multiple of num_heads=7.
      fix:   num_heads=4, or head_dim=9.

Layer(4, 8, mask)
    InputError: dim=4 is no multiple of num_heads=8.
      fix:   num_heads=4, or head_dim=1.

Layer(64, 4, mask, head_dim=0)
    InputError: head_dim=0 is below 1.
      fix:   head_dim=1.

Layer(64, 4, mask, head_dim=16.0)
    InputError: head_dim=16.0 is a float, not an integer.
      fix:   head_dim=16.

Layer(64, 8, mask, kv_heads=3)
    InputError: num_heads=8 is no multiple of kv_heads=3.
      fix:   kv_heads=2: query head h uses key head h // 4.

Layer(64, 4, mask, kv_heads=8)
    InputError: num_heads=4 is no multiple of kv_heads=8.
      fix:   kv_heads=4: query head h uses key head h // 1.

Layer(64, 4, mask, kv_heads=0)
    InputError: kv_heads=0 is below 1.
      fix:   kv_heads=1.

Layer(64, 4, mask, kv_heads=False)
    InputError: kv_heads=False is a bool, not an integer.
      fix:   kv_heads=1.

Layer(64, 4, mask, qkv_bias=1)
    InputError: qkv_bias=1 is an int, not a bool.
      fix:   qkv_bias=True.

Layer(64, 4, mask, proj_drop=1.5)
    InputError: proj_drop=1.5 is not a probability.
      fix:   proj_drop=0.0.

Layer(64, 4, mask, proj_drop=-0.1)
    InputError: proj_drop=-0.1 is not a probability.
      fix:   proj_drop=0.0.

Layer(64, 4, mask, proj_drop=float("nan"))
    InputError: proj_drop=nan is not a probability.
      fix:   proj_drop=0.0.

Layer(64, 4, mask, proj_drop=True)
    InputError: proj_drop=True is a bool, not a number.
      fix:   proj_drop=0.0.

Layer(64, 4, mask, proj_drop="0.1")
    InputError: proj_drop='0.1' is a str, not a number.
      fix:   proj_drop=0.1.

Layer(64, 4, mask, backend="magic")
    InputError: backend='magic' is not known: one of auto, reference, sdpa, tiled, flash, flash-model, cuda, triton, native, flex, natten (flash and flash-model also with :aten, :fa2, :fa3, :fa4).
      fix:   backend="auto"

Layer(64, 4, mask, backend=None)
    InputError: backend=None is not known: one of auto, reference, sdpa, tiled, flash, flash-model, cuda, triton, native, flex, natten (flash and flash-model also with :aten, :fa2, :fa3, :fa4).
      fix:   backend="auto"

Layer(64, 4, mask, qk_transform=torch.nn.functional.normalize)
    InputError: qk_transform is a function, not a torch.nn.Module. Its forward(query, key) returns both.
      fix:   class Transform(torch.nn.Module): forward = staticmethod(normalize)
             qk_transform=Transform().

Layer(64, 4, mask, qk_transform=torch.nn.RMSNorm)
    InputError: qk_transform is a type, not a torch.nn.Module.
      fix:   qk_transform=RMSNorm(normalized_shape).

layer(None)
    InputError: x is None, not a tensor: [1, 14, 14, 64].
      fix:   torch.zeros(1, 14, 14, 64).

layer([[1.0]])
    InputError: x is a list, not a tensor: [1, 14, 14, 64].
      fix:   torch.as_tensor(x).

layer(x.to_sparse())
    InputError: x is a sparse or nested tensor.
      fix:   x.to_dense().

layer(torch.nested.nested_tensor([x[0], x[1, 1:]], layout=torch.jagged))
    InputError: x is a sparse or nested tensor.
      fix:   torch.nested.to_padded_tensor(x, 0.0), with key_range= for the padding.

layer(t(2, 42, 64))
    InputError: x has 3 dimensions [2, 42, 64], not 4.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   x.unflatten(1, (6, 7)), or x[None] without a batch.

layer(t(2, 6, 7, 4, 16))
    InputError: x has 5 dimensions [2, 6, 7, 4, 16], not 4.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   x.flatten(-2).

layer(t(2, 6, 7, 32))
    InputError: x has 32 channels [2, 6, 7, 32], not 64.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   torch.nn.Linear(32, 64)(x).

layer(t(2, 64, 6, 7))
    InputError: x has 7 channels [2, 64, 6, 7], not 64.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   x.movedim(1, -1), or layout='channels_first' in the layer.

layer(x.half())
    InputError: x is float16, the layer float32.
      fix:   x.to(torch.float32).

layer(x.long())
    InputError: x is int64, the layer float32.
      fix:   x.to(torch.float32).

layer(x.to("meta"))
    InputError: x is on meta, the layer on cpu.
      fix:   torch.zeros_like(x, device='cpu').

layer(x, x[0])
    InputError: context has 3 dimensions [6, 7, 64], not 4.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   context[None].

Layer(64, 4, Mask.full(rank=2), context_dim=32)(x, t(2, 79, 32))
    InputError: context has 3 dimensions [2, 79, 32], not 4.
      given: Mask(Axis(), Axis())
      fix:   context[:, :, None], for text.

layer(x, x[..., :1])
    InputError: context has 1 channel [2, 6, 7, 1], not 64.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   NeighborhoodAttention(64, 4, Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift')), context_dim=1).

layer(x, x[:1])
    InputError: batch differs: 2 in x, 1 in context.
      given: x [2, 6, 7, 64] context [1, 6, 7, 64]
      fix:   torch.cat([context] * 2).

layer(x, x.double())
    InputError: context is float64, the layer float32.
      fix:   context.to(torch.float32).

layer(x, extra_tokens=t(3, 64))
    InputError: extra_tokens has 2 dimensions [3, 64], not 3.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   extra_tokens[None].

layer(x, extra_tokens=t(2, 64, 3))
    InputError: extra_tokens has 3 channels [2, 64, 3], not 64.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   extra_tokens.mT.

layer(x, extra_tokens=4)
    InputError: extra_tokens is an int, not a tensor: [1, 4, 64].
      fix:   torch.zeros(1, 4, 64).

layer(x, key_range=t(2, 2, 2))
    InputError: key_range is float32, not int32.
      fix:   key_range=torch.as_tensor(key_range).int().

layer(x, key_range=t(2, 2).int())
    InputError: key_range has shape [2, 2], not [2, 2, 2]: [start, stop) per sample and axis.
      fix:   key_range=[[[0, int(stop)] for stop in stops] for stops in key_range], for lengths of axes; or key_range=torch.as_tensor(key_range).expand(2, 2, 2), for the same ranges of all samples.

ring(t(1, 6, 8), t(1, 5, 8))
    MaskError: axis 0 (6 queries, 5 keys): border="wrap" needs as many queries as keys.
      given: Mask(Axis(1, 1, border='wrap'))

line(t(1, 1, 8), t(1, 40, 8))
    MaskError: axis 0 (1 query, 40 keys): the lengths differ, and align=None does not align queries with keys.
      given: Mask(Axis(3, 1))
      fix:   Mask(Axis(3, 1, align='bottom-right')) puts the last query on the last key, as Flash and KV caches do (one query against a cache: align="bottom-right"); or Mask(Axis(3, 1, align='top-left')) puts query 0 on key 0, as SDPA's is_causal does.

plain(t(1, 6, 8), extra_tokens=t(1, 2, 8))
    InputError: extra_tokens with a Plain as qk_transform, which has no method extra_key for their keys.
      fix:   type(layer.qk_transform).extra_key = lambda self, key: key, which leaves them as they are.

plain.plan_for((1, 6, 8), extra_tokens=2)
    InputError: extra_tokens with a Plain as qk_transform, which has no method extra_key for their keys.
      fix:   type(layer.qk_transform).extra_key = lambda self, key: key, which leaves them as they are.

wide(t(1, 6, 8))
    InputError: qk_transform made the key [1, 6, 2, 4] into [1, 5, 2, 4].
      fix:   return query, key.

nothing(t(1, 6, 8))
    InputError: qk_transform made the key [1, 6, 2, 4] into a NoneType.
      fix:   return query, key.

single(t(1, 6, 8))
    InputError: a Plain as qk_transform returned a Tensor, not two tensors.
      fix:   return query, key.

layer.plan_for(64)
    InputError: shape is an int, not a shape.
      fix:   shape=x.shape.

layer.plan_for("2, 6, 7, 64")
    InputError: shape is a str, not a shape.
      fix:   shape=x.shape.

layer.plan_for((2, 6, 64))
    InputError: shape has 3 dimensions [2, 6, 64], not 4.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   shape=(2, 2, 3, 64).

layer.plan_for((2, 6.0, 7, 64))
    InputError: shape[1]=6.0 is a float, not an integer.
      fix:   shape=(2, 6, 7, 64).

layer.plan_for((2, 6, -7, 64))
    InputError: shape[2]=-7 is below 0.
      fix:   shape=(2, 6, 0, 64).

layer.plan_for((2, 6, 7, 4, 16))
    InputError: shape has 5 dimensions [2, 6, 7, 4, 16], not 4.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   shape=(2, 6, 7, 64).

layer.plan_for((2, 6, 7, 64), (1, 6, 7, 64))
    InputError: batch differs: 2 in shape, 1 in context_shape.
      given: shape [2, 6, 7, 64] context_shape [1, 6, 7, 64]
      fix:   context_shape=(2, 6, 7, 64).

layer.plan_for((2, 6, 7, 64), (2, 6, 7, 32))
    InputError: context_shape has 32 channels [2, 6, 7, 32], not 64.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   NeighborhoodAttention(64, 4, Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift')), context_dim=32).

layer.plan_for((2, 6, 7, 64), extra_tokens=-1)
    InputError: extra_tokens=-1 is below 0.
      fix:   extra_tokens=0.

layer.plan_for((2, 6, 7, 64), key_range=1)
    InputError: key_range=1 is an int, not a bool.
      fix:   key_range=True.

layer.plan_for((2, 6, 7, 64), training=1)
    InputError: training=1 is an int, not a bool.
      fix:   training=True.

layer.plan_for((2, 6, 7, 64), dtype="float8")
    InputError: dtype=float8 is not known: one of float16, bfloat16, float32, float64.
      fix:   dtype="bfloat16"
"""
BLOCKS = [block.split("\n", 1) for block in TABLE.strip().split("\n\n")]
MESSAGES = {call: dedent(text).strip() for call, text in BLOCKS}


@pytest.mark.parametrize(("call", "text"), MESSAGES.items(), ids=MESSAGES)
def test_message_of_every_mistake_with_the_layer(call: str, text: str) -> None:
    with pytest.raises(NbattnError) as error:
        eval(call, NAMES)
    assert f"{type(error.value).__name__}: {error.value}" == text
    assert error.value.__cause__ is None
    assert error.value.__context__ is None or error.value.__suppress_context__


def test_a_mistake_is_found_before_anything_else_is_done() -> None:
    assert len(BLOCKS) == len(MESSAGES) >= 60
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(nbattn.InputError, match="x is int64"),
    ):
        PLAIN(t(2, 6, 7, 64).long())
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(nbattn.InputError, match="x is float64"),
    ):
        PLAIN(t(2, 6, 7, 64).double())
