"""Tests of the exact text of every message: what is wrong with both numbers, and the fix as code."""

# ruff: noqa: E501  the texts are as users see them

from textwrap import dedent

import numpy as np
import pytest
import torch

import nbattn
from nbattn import Axis, Mask, NbattnError


def t(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def twice_differentiated() -> None:
    x = torch.randn(1, 4, 1, 8, requires_grad=True)
    out = nbattn.attention(x, x, x, Mask.sliding_window(2))
    (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    grad.sum().backward()


SHAPE = (1, 8, 2, 16)
WINDOW = Mask.sliding_window(2)
NAMES = {
    "np": np,
    "torch": torch,
    "Axis": Axis,
    "Mask": Mask,
    "attention": nbattn.attention,
    "plan": nbattn.plan,
    "merge": nbattn.merge,
    "run": nbattn.plan(WINDOW, SHAPE, dtype="float32", device="cpu").run,
    "t": t,
    "twice_differentiated": twice_differentiated,
    "q": t(*SHAPE),
    "meta": t(*SHAPE, device="meta"),  # a second device
    "shape": SHAPE,
    "window": WINDOW,
    "ring": Mask(Axis(1, 1, border="wrap", dilation=3)),
}

# A call, and below it the type and the text of what it raises.

AXES = """
Axis(float("nan"))
    MaskError: left=nan is a float, not an integer.
      fix:   left=0, or left=None for all.

Axis(-1)
    MaskError: left=-1 is below 0.
      fix:   left=None for all, or left=0.

Axis(True)
    MaskError: left=True is a bool, not an integer.
      fix:   left=1, or left=None for all.

Axis("3")
    MaskError: left='3' is a str, not an integer.
      fix:   left=3, or left=None for all.

Axis(np.array([1, 2]))
    MaskError: left=array([1, 2]) is a numpy.ndarray, not an integer.
      fix:   left=1, right=2.

Axis(2**31)
    MaskError: left=2147483648 is beyond 2147483647, the largest legal number.
      fix:   left=2147483647, or left=None for all.

Axis(1, -2)
    MaskError: right=-2 is below 0.
      fix:   right=None for all, or right=0.

Axis(1, 1, dilation=0)
    MaskError: dilation=0 is below 1.
      fix:   dilation=1.

Axis(1, 1, stride=0)
    MaskError: stride=0 is below 1.
      fix:   stride=1.

Axis(1, 1, dilation=None)
    MaskError: dilation=None is a NoneType, not an integer.
      fix:   dilation=1.

Axis(1, 1, offset=-(2**40))
    MaskError: offset=-1099511627776 is beyond 2147483647, the largest legal number.
      fix:   offset=-2147483647.

Axis(1, 1, prefix=-1)
    MaskError: prefix=-1 is below 0.
      fix:   prefix=0.

Axis(1, 1, causal=1)
    MaskError: causal=1 is an int, not a bool.
      fix:   causal=True.

Axis(1, 1, causal="yes")
    MaskError: causal='yes' is a str, not a bool.
      fix:   causal=True.

Axis(1, 2, causal=True)
    MaskError: causal=True allows no keys to the right, but right=2.
      fix:   Axis(1, 0, causal=True), or Axis(1, 2) for 2 keys ahead.

Axis(1, 1, align="center")
    MaskError: align='center' is not one of 'top-left', 'bottom-right'.
      fix:   align='top-left' puts query 0 on key 0, 'bottom-right' puts the last query on the last key, an int puts query 0 on that key.

Axis(3, 3, align="bottom_right")
    MaskError: align='bottom_right' is not one of 'top-left', 'bottom-right'.
      fix:   align='bottom-right'.

Axis(1, 1, align=1.5)
    MaskError: align=1.5 is a float, not an integer.
      fix:   align=1, or align="top-left", or align="bottom-right".

Axis(1, 1, align=8, offset=2)
    MaskError: align=8 and offset=2 both set the position of query 0.
      fix:   align=10, or align=8, or align="top-left", offset=2.

Axis(3, 3, border="circular")
    MaskError: border='circular' is not one of 'clip', 'shift', 'wrap'.
      fix:   border='wrap'.

Axis(1, 1, border="reflect")
    MaskError: border='reflect' is not one of 'clip', 'shift', 'wrap'.
      fix:   border='clip' cuts windows, 'shift' moves them inward, 'wrap' is circular.

Axis(1, border="shift")
    MaskError: border="shift" needs two finite sides, but left=1, right=None.
      fix:   Axis(1, None), or Axis(1, 1, border='shift').

Axis(causal=True, border="shift")
    MaskError: border="shift" needs two finite sides, but left=None, right=0.
      fix:   Axis(None, 0, causal=True), or Axis(0, 0, border='shift').

Axis(1, 1, border="wrap", align="bottom-right")
    MaskError: border="wrap" is circular and does not support align='bottom-right'.
      fix:   Axis(1, 1, border='wrap'), the same for as many queries as keys, or Axis(1, 1, align='bottom-right').

Axis(1, causal=True, border="wrap")
    MaskError: border="wrap" is circular and does not support causal=True.
      fix:   Axis(1, 0, border='wrap'), which looks back around the circle, or Axis(1, 0, causal=True).

Axis(1, 1, border="wrap", offset=1)
    MaskError: border="wrap" is circular and does not support offset=1.
      fix:   Axis(0, 2, border='wrap'), which is the same, or Axis(1, 1, offset=1).

Axis(1, 1, dilation=2, prefix=3)
    MaskError: prefix=3 and dilation=2 cannot be combined.
      fix:   nbattn.attention(query, key, value, Mask(Axis(1, 1, dilation=2)), key_range=[[3, key.shape[1]]] * key.shape[0], extra_key=key[:, :3], extra_value=value[:, :3]).

Axis(1, 1, border="wrap", prefix=3)
    MaskError: prefix=3 and border="wrap" cannot be combined.
      fix:   nbattn.attention(query, key, value, Mask(Axis(1, 1, border='wrap')), key_range=[[3, key.shape[1]]] * key.shape[0], extra_key=key[:, :3], extra_value=value[:, :3]).
"""

MASKS = """
Mask()
    MaskError: a mask has 1 to 3 axes, not 0.
      fix:   Mask.full(rank=1).

Mask(Axis(), Axis(), Axis(), Axis())
    MaskError: a mask has 1 to 3 axes, not 4.
      fix:   mask=Mask(Axis(), Axis(), Axis()), with query.flatten(1, 2), key and value likewise.

Mask([Axis(), Axis()])
    MaskError: axis 0 is [Axis(), Axis()], a list, not an Axis.
      fix:   Mask(Axis(), Axis()).

Mask(Axis(), (3, 3))
    MaskError: axis 1 is (3, 3), a tuple, not an Axis.
      fix:   Mask(Axis(), Axis(3, 3)).

Mask.full(0)
    MaskError: rank=0 is below 1.
      fix:   rank=1.

Mask.full(4)
    MaskError: a mask has 1 to 3 axes, not 4.
      fix:   Mask.full(rank=3).

Mask.causal("bottom")
    MaskError: align='bottom' is not one of 'top-left', 'bottom-right'.
      fix:   align='bottom-right'.

Mask.causal(1.5)
    MaskError: align=1.5 is a float, not an integer.
      fix:   align=1, or align="top-left", or align="bottom-right".

Mask.sliding_window(-1)
    MaskError: left=-1 is below 0.
      fix:   left=None for all, or left=0.

Mask.sliding_window(3, dilation=0)
    MaskError: dilation=0 is below 1.
      fix:   dilation=1.

Mask.neighborhood(0)
    MaskError: kernel_size=0 is below 1.
      fix:   kernel_size=1.

Mask.neighborhood(7.0)
    MaskError: kernel_size=7.0 is a float, not an integer.
      fix:   kernel_size=7.

Mask.neighborhood((7, 7), dilation=(1, 2, 3))
    MaskError: per-axis arguments have different lengths: kernel_size 2, dilation 3.
      fix:   dilation=(1, 2).

Mask.neighborhood((7, 5), stride=6)
    MaskError: stride=6 is larger than kernel_size=5.
      fix:   stride=5, or less.

Mask.neighborhood(7, is_causal="no")
    MaskError: is_causal='no' is a str, not a bool.
      fix:   is_causal=False.

Mask.neighborhood(7, is_causal=1)
    MaskError: is_causal=1 is an int, not a bool.
      fix:   is_causal=True.

Mask.from_flash(3)
    MaskError: window_size=3 is not a pair.
      fix:   window_size=(3, 3).

Mask.from_flash((1, 2, 3))
    MaskError: window_size=(1, 2, 3) is not a pair.
      fix:   window_size=(1, 2).

Mask.from_flash((1.5, 0))
    MaskError: left=1.5 is a float, not an integer.
      fix:   left=1, or left=None for all.

Mask.from_flash((1, 0), align="left")
    MaskError: align='left' is not one of 'top-left', 'bottom-right'.
      fix:   align='top-left'.

Mask.from_cudnn(0)
    MaskError: left_bound=0 is below 1.
      fix:   left_bound=1, or left_bound=None for all.

Mask.from_cudnn(512, -1)
    MaskError: right_bound=-1 is below 0.
      fix:   right_bound=None for all, or right_bound=0.

Mask.from_transformers(0)
    MaskError: sliding_window=0 is below 1.
      fix:   sliding_window=1.

Mask.from_transformers(4, causal=1)
    MaskError: causal=1 is an int, not a bool.
      fix:   causal=True.

Mask.from_transformers(4, offset=1.5)
    MaskError: offset=1.5 is a float, not an integer.
      fix:   offset=1.

Mask(Axis(), Axis()).to_flash()
    MaskError: Flash has no window_size for this mask: it has 2 axes, Flash supports one.
      given: Mask(Axis(), Axis())
      fix:   nbattn.attention(query, key, value, mask) runs it exactly.

Mask(Axis(1, 1, dilation=2, align="bottom-right")).to_flash()
    MaskError: Flash has no window_size for this mask: dilation=2; Flash supports dilation=1 only.
      given: Mask(Axis(1, 1, dilation=2, align='bottom-right'))
      fix:   nbattn.attention(query, key, value, mask) runs it exactly.

Mask(Axis(1, 1, border="shift")).to_flash()
    MaskError: Flash has no window_size for this mask: border='shift'; Flash supports border='clip' only.
      given: Mask(Axis(1, 1, border='shift'))
      fix:   nbattn.attention(query, key, value, mask) runs it exactly.

Mask.causal("top-left").to_flash()
    MaskError: Flash has no window_size for this mask: align='top-left'; Flash aligns bottom-right, which differs if lengths differ.
      given: Mask(Axis(None, 0, causal=True, align='top-left'))
      fix:   nbattn.attention(query, key, value, mask) runs it exactly.

Mask.causal().to_flash()
    MaskError: Flash has no window_size for this mask: align=None; Flash aligns bottom-right, which differs if lengths differ.
      given: Mask(Axis(None, 0, causal=True))
      fix:   Mask(Axis(None, 0, causal=True, align='bottom-right')).to_flash(), or nbattn.attention(query, key, value, mask) runs it exactly.

Mask(Axis(1, 1, offset=2)).to_flash()
    MaskError: Flash has no window_size for this mask: align=None; Flash aligns bottom-right, which differs if lengths differ.
      given: Mask(Axis(1, 1, offset=2))
      fix:   nbattn.attention(query, key, value, mask) runs it exactly.

Mask(Axis(1, 1, align="bottom-right", offset=3)).to_flash()
    MaskError: Flash has no window_size for this mask: left=1 with offset=3 is the window -2; Flash takes a negative number as unlimited.
      given: Mask(Axis(1, 1, align='bottom-right', offset=3))
      fix:   nbattn.attention(query, key, value, mask) runs it exactly.
"""

LENGTHS = """
Mask(Axis(1, 1)).dense(-1)
    MaskError: query_space=-1: -1 is not a length.
      fix:   query_space=0.

Mask(Axis(1, 1)).dense(3.0)
    MaskError: query_space=3.0: 3.0 is not a length.
      fix:   query_space=3.

Mask(Axis(1, 1)).dense(4, "5")
    MaskError: key_space='5': '5' is not a length.
      fix:   key_space=5.

Mask(Axis(1, 1)).dense(1 << 20)
    MaskError: a dense mask of 1048576 x 1048576 pairs is over the limit of 268435456.
      fix:   nbattn.plan(mask, (1, 1048576, 1, 64), (1, 1048576, 1, 64)).verify(), or mask.draw(1048576, 1048576); backend="auto" runs it.

Mask(Axis(1, 1)).dense((3, 3))
    MaskError: the mask has 1 axis, the space of the queries 2: (3, 3).
      given: Mask(Axis(1, 1))
      fix:   Mask(Axis(1, 1), Axis(1, 1)).

Mask(Axis(1, 1)).dense(())
    MaskError: the mask has 1 axis, the space of the queries 0: ().
      given: Mask(Axis(1, 1))
      fix:   query_space=(8,).

Mask(Axis(1, 1), Axis(1, 1)).draw((3, 3), (3,))
    MaskError: the mask has 2 axes, the space of the keys 1: (3,).
      given: Mask(Axis(1, 1), Axis(1, 1))
      fix:   key_space=(3, 3).

Mask(Axis(1, 1, border="wrap")).draw(4, 5)
    MaskError: axis 0 (4 queries, 5 keys): border="wrap" needs as many queries as keys.
      given: Mask(Axis(1, 1, border='wrap'))
      fix:   nbattn.attention(query, torch.cat([key[:, 4:], key, key[:, :1]], 1), torch.cat([value[:, 4:], value, value[:, :1]], 1), Mask(Axis(1, 1, align='top-left', offset=1))), with query 0 on key 0.

Mask.sliding_window(15).dense(1, 40)
    MaskError: axis 0 (1 query, 40 keys): the lengths differ, and align=None does not align queries with keys.
      given: Mask(Axis(15, 0))
      fix:   Mask(Axis(15, 0, align='bottom-right')) puts the last query on the last key, as Flash and KV caches do (one query against a cache: align="bottom-right"); or Mask(Axis(15, 0, align='top-left')) puts query 0 on key 0, as SDPA's is_causal does.

Mask(Axis(3, 3), Axis(3, 3)).dense((28, 28), (14, 14))
    MaskError: axis 0 (28 queries, 14 keys): the lengths differ, and align=None does not align queries with keys. Grids of different resolution are not supported.
      given: Mask(Axis(3, 3), Axis(3, 3))
      fix:   Mask(Axis(3, 3, align='top-left'), Axis(3, 3, align='top-left')) puts query 0 on key 0, as SDPA's is_causal does; or Mask(Axis(3, 3, align='bottom-right'), Axis(3, 3, align='bottom-right')) puts the last query on the last key, as Flash and KV caches do (one query against a cache: align="bottom-right").

Mask.neighborhood((3, 3)).draw((8, 9), (8, 7))
    MaskError: axis 1 (9 queries, 7 keys): the lengths differ, and align=None does not align queries with keys.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   Mask(Axis(1, 1, border='shift'), Axis(1, 1, align='top-left', border='shift')) puts query 0 on key 0, as SDPA's is_causal does; or Mask(Axis(1, 1, border='shift'), Axis(1, 1, align='bottom-right', border='shift')) puts the last query on the last key, as Flash and KV caches do (one query against a cache: align="bottom-right").

Mask(Axis(1, 1), Axis(1, 1, border="wrap", dilation=2)).dense((4, 7))
    MaskError: axis 1 (7 queries, 7 keys): border="wrap" needs a length that dilation x stride = 2 divides, but 7 leaves 1.
      given: Mask(Axis(1, 1), Axis(1, 1, dilation=2, border='wrap'))
      fix:   Mask(Axis(1, 1), Axis(1, 1, border='wrap')).

Mask(Axis(1, 1, border="wrap", dilation=2, stride=3)).draw(16)
    MaskError: axis 0 (16 queries, 16 keys): border="wrap" needs a length that dilation x stride = 6 divides, but 16 leaves 4.
      given: Mask(Axis(1, 1, dilation=2, stride=3, border='wrap'))
      fix:   Mask(Axis(1, 1, dilation=2, stride=2, border='wrap')).
"""

TENSORS = """
attention(q, q, q, "causal")
    InputError: mask is a str, not a Mask.
      fix:   mask=Mask.causal("top-left").

attention(q, q, q, Axis(1, 1))
    InputError: mask is an Axis, not a Mask.
      fix:   mask=Mask(Axis(1, 1)).

attention([1], q, q, window)
    InputError: query is a list, not a tensor.
      fix:   torch.as_tensor(query).

attention(q, q.numpy(), q, window)
    InputError: key is a numpy.ndarray, not a tensor.
      fix:   torch.as_tensor(key).

attention(q, q, None, window)
    InputError: value is missing; attention takes query, key, value and a mask.
      fix:   nbattn.attention(query, key, value, mask).

attention(None, q, q, window)
    InputError: query is missing; attention takes query, key, value and a mask.
      fix:   nbattn.attention(query, key, value, mask).

attention(q, meta, meta, window)
    InputError: key is on meta, query on cpu.
      fix:   key.to('cpu').

attention(q, q, meta, window)
    InputError: value is on meta, query on cpu.
      fix:   value.to('cpu').

attention(q, q.double(), q, window)
    InputError: key is float64, query float32.
      fix:   key.to(query.dtype).

attention(q, q, q.half(), window)
    InputError: value is float16, query float32.
      fix:   value.to(query.dtype).

attention(q.int(), q.int(), q.int(), window)
    InputError: query is int32; attention supports float16, bfloat16, float32, float64.
      fix:   query.float(), key.float(), value.float().

attention(t(1, 4, 4, 2, 16), q, q, window)
    InputError: query has 5 dimensions [1, 4, 4, 2, 16]; a mask of 1 axis needs 4, [B, X, H, D].
      given: Mask(Axis(2, 0))
      fix:   mask=Mask(Axis(2, 0), Axis(2, 0)).

attention(q, q, q, Mask.full(rank=2))
    InputError: query has 4 dimensions [1, 8, 2, 16]; a mask of 2 axes needs 5, [B, X, Y, H, D].
      given: Mask(Axis(), Axis())
      fix:   query.unflatten(1, (2, 4)), for a grid of 2 x 4 tokens; or query.unsqueeze(-2), for one head; or query.movedim(1, -1).unsqueeze(-2), for one head of channels first; or nbattn.attention(query[None], key[None], value[None], mask)[0], without a batch; or mask=Mask(Axis()).

attention(t(1, 4, 4, 4, 2, 16), q, q, Mask.full(rank=3))
    InputError: key has 4 dimensions [1, 8, 2, 16]; a mask of 3 axes needs 6, [B, X, Y, Z, Hk, D].
      given: Mask(Axis(), Axis(), Axis())
      fix:   key[:, :, None, None], for text.

attention(q, t(1, 4, 4, 2, 16), q, window)
    InputError: key has 5 dimensions [1, 4, 4, 2, 16]; a mask of 1 axis needs 4, [B, X, Hk, D].
      given: Mask(Axis(2, 0))
      fix:   mask=Mask(Axis(2, 0), Axis(2, 0)).

attention(t(3), q, q, window)
    InputError: query has 1 dimension [3]; a mask of 1 axis needs 4, [B, X, H, D].
      given: Mask(Axis(2, 0))

attention(q, t(2, 8, 2, 16), t(2, 8, 2, 16), window)
    InputError: batch differs: 1 in query, 2 in key.
      given: query [1, 8, 2, 16] key [2, 8, 2, 16] value [2, 8, 2, 16]
      fix:   query.expand(2, -1, -1, -1).

attention(q, t(1, 8, 2, 8), q, window)
    InputError: head_dim differs: 16 in query, 8 in key.
      given: query [1, 8, 2, 16] key [1, 8, 2, 8] value [1, 8, 2, 16]
      fix:   torch.nn.functional.pad(key, (0, 8)), which adds zeros.

attention(q, q, t(1, 7, 2, 16), window)
    InputError: key and value differ before their last dimension: [1, 8, 2] and [1, 7, 2].
      given: query [1, 8, 2, 16] key [1, 8, 2, 16] value [1, 7, 2, 16]
      fix:   key[:, :7], value[:, :7], which have both.

attention(q, t(1, 8, 0, 16), t(1, 8, 0, 16), window)
    InputError: key heads is 0.
      given: query [1, 8, 2, 16] key [1, 8, 0, 16] value [1, 8, 0, 16]
      fix:   query.new_zeros([1, 8, 2, 16]), the output without keys or channels.

attention(t(1, 8, 2, 0), t(1, 8, 2, 0), q, window)
    InputError: head_dim is 0.
      given: query [1, 8, 2, 0] key [1, 8, 2, 0] value [1, 8, 2, 16]
      fix:   torch.nn.functional.pad(query, (0, 1)), torch.nn.functional.pad(key, (0, 1)).

attention(q, q, t(1, 8, 2, 0), window)
    InputError: value_dim is 0.
      given: query [1, 8, 2, 16] key [1, 8, 2, 16] value [1, 8, 2, 0]
      fix:   query.new_zeros([1, 8, 2, 0]), the output without keys or channels.

attention(t(1, 8, 3, 16), q, q, window)
    InputError: 3 query heads are no multiple of 2 key heads; query head h uses key head h // (H // Hk).
      given: query [1, 8, 3, 16] key [1, 8, 2, 16] value [1, 8, 2, 16]

attention(q, q, q, ring)
    MaskError: axis 0 (8 queries, 8 keys): border="wrap" needs a length that dilation x stride = 3 divides, but 8 leaves 2.
      given: Mask(Axis(1, 1, dilation=3, border='wrap'))
      fix:   Mask(Axis(1, 1, dilation=2, border='wrap')).

attention(q, t(1, 9, 2, 16), t(1, 9, 2, 16), Mask(Axis(1, 1, border="wrap")))
    MaskError: axis 0 (8 queries, 9 keys): border="wrap" needs as many queries as keys.
      given: Mask(Axis(1, 1, border='wrap'))
      fix:   nbattn.attention(query, torch.cat([key[:, 8:], key, key[:, :1]], 1), torch.cat([value[:, 8:], value, value[:, :1]], 1), Mask(Axis(1, 1, align='top-left', offset=1))), with query 0 on key 0.

attention(q, q, q, window, scale=float("nan"))
    InputError: scale=nan is not between -1e+30 and 1e+30, the range for float32.
      fix:   scale=None.

attention(q, q, q, window, scale="0.5")
    InputError: scale='0.5' is a str, not a number.
      fix:   scale=0.5.

attention(q, q, q, window, scale=True)
    InputError: scale=True is a bool, not a number.
      fix:   scale=1.0.

attention(q, q, q, window, softcap=0)
    InputError: softcap=0 is not between 1e-30 and 1e+30, the range for float32.
      fix:   softcap=None.

attention(q, q, q, window, softcap=float("inf"))
    InputError: softcap=inf is not between 1e-30 and 1e+30, the range for float32.
      fix:   softcap=None.

attention(q, q, q, window, scale=1e30, softcap=1e-30)
    InputError: scale=1e+30 is 1e+60 times softcap=1e-30; kernels divide them and support quotients up to 1e+30.
      fix:   softcap=1.0, or softcap=None.

attention(q, q, q, window, scale=-(10**12), softcap=1e-20)
    InputError: scale=-1000000000000.0 is 1e+32 times softcap=1e-20; kernels divide them and support quotients up to 1e+30.
      fix:   softcap=1e-18, or softcap=None.

attention(q, q, q, window, softcap="30")
    InputError: softcap='30' is a str, not a number.
      fix:   softcap=30.0.

attention(q, q, q, window, sink=t(3))
    InputError: sink has shape [3], not [2]: one logit per query head.

attention(q, q, q, window, sink=0.5)
    InputError: sink is a float, not a tensor.
      fix:   sink=torch.full((2,), 0.5, device=query.device).

attention(q, q, q, window, sink=t(2).int())
    InputError: sink is int32, not a floating dtype.
      fix:   sink=sink.float().

attention(q, q, q, window, sink=t(2, device="meta"))
    InputError: sink is on meta, query on cpu.
      fix:   sink=sink.to('cpu').

attention(q, q, q, window, extra_key=t(1, 3, 2, 16))
    InputError: extra_value is missing; extra keys need both.
      fix:   extra_key=extra_key, extra_value=extra_value; or extra_key=None, for none.

attention(q, q, q, window, extra_value=t(1, 3, 2, 16))
    InputError: extra_key is missing; extra keys need both.
      fix:   extra_key=extra_key, extra_value=extra_value; or extra_value=None, for none.

attention(q, q, q, window, extra_key=t(1, 3, 2, 8), extra_value=t(1, 3, 2, 16))
    InputError: extra_key has shape [1, 3, 2, 8], not [1, 3, 2, 16]: [B, E, Hk, D].

attention(q, q, q, window, extra_key=t(1, 3, 2, 16), extra_value=t(1, 4, 2, 16))
    InputError: extra_value has shape [1, 4, 2, 16], not [1, 3, 2, 16]: [B, E, Hk, Dv].
      fix:   extra_value=extra_value[:, :3].

attention(q, q, q, window, extra_key=t(3, 2, 16), extra_value=t(3, 2, 16))
    InputError: extra_key has shape [3, 2, 16], not [1, 3, 2, 16]: [B, E, Hk, D].
      fix:   extra_key=extra_key.reshape(1, 3, 2, 16).

attention(q, q, q, window, extra_key=t(1, 3, 2, 16).half(), extra_value=t(1, 3, 2, 16))
    InputError: extra_key is float16, query float32.
      fix:   extra_key=extra_key.to(query.dtype).
"""

BACKENDS = """
attention(q, q, q, window, backend="magic")
    InputError: backend='magic' is not known: one of auto, reference, sdpa, tiled, flash, flash-model, cuda, triton, native, flex, natten (flash and flash-model also with :aten, :fa2, :fa3, :fa4).
      fix:   backend="auto"

attention(q, q, q, window, require="tile")
    InputError: require='tile' is a string.
      fix:   require=('tile',).

attention(q, q, q, window, require=None)
    InputError: require=None is not a tuple of names.
      fix:   require=().

attention(q, q, q, window, require=("crop",))
    InputError: require names 'crop', which is neither a strategy (dense, causal, mask, fold, trim, split, merge, tile, translate, virtual-pad, pack, pad, zero-pad, kv-cache, key-range, window, mma, simt, wgmma, blocks, gather) nor a backend.
      fix:   require=()

attention(q, q, q, window, forbid=("crop",))
    InputError: forbid names 'crop', which is neither a strategy (dense, causal, mask, fold, trim, split, merge, tile, translate, virtual-pad, pack, pad, zero-pad, kv-cache, key-range, window, mma, simt, wgmma, blocks, gather) nor a backend.
      fix:   forbid=()

attention(t(1, 4096, 2, 16), t(1, 4096, 2, 16), t(1, 4096, 2, 16), window, backend="sdpa")
    BackendError: sdpa cannot run this:
      sdpa/dense: axis 0: its windows differ from query to query
      sdpa/mask: a matrix of 16777216 pairs is over the limit of 4194304
      given: Mask(Axis(2, 0))  query [1, 4096, 2, 16] key [1, 4096, 2, 16] float32 cpu
      fix:   backend="auto", which takes native/window

attention(q, q, q, Mask.causal(), backend="sdpa", softcap=30.0)
    BackendError: sdpa cannot run this:
      sdpa/causal: has no softcap
      sdpa/mask: has no softcap
      given: Mask(Axis(None, 0, causal=True))  query [1, 8, 2, 16] key [1, 8, 2, 16] float32 cpu softcap
      fix:   backend="auto", which takes native/window

attention(q, q, t(1, 8, 2, 8), Mask.causal(), backend="sdpa")
    BackendError: sdpa cannot run this:
      sdpa/causal: needs value_dim = head_dim, not 8 and 16
      sdpa/mask: needs value_dim = head_dim, not 8 and 16
      given: Mask(Axis(None, 0, causal=True))  query [1, 8, 2, 16] key [1, 8, 2, 16] float32 cpu value_dim=8
      fix:   backend="auto", which takes native/window

attention(q, q, q, Mask.causal(), backend="sdpa", key_range=t(1, 1, 2).int())
    BackendError: sdpa cannot run this:
      sdpa/causal: has no key_range
      sdpa/mask: has no key_range
      given: Mask(Axis(None, 0, causal=True))  query [1, 8, 2, 16] key [1, 8, 2, 16] float32 cpu key_range
      fix:   backend="auto", which takes native/window

attention(q, q, q, window, forbid=("tile", "sdpa", "native"))
    BackendError: no backend can run this:
      reference/dense: runs only if requested: backend='reference'
      sdpa/dense: axis 0: its windows differ from query to query
      sdpa/dense: uses 'sdpa', which is forbidden
      sdpa/mask: uses 'sdpa', which is forbidden
      tiled/tile: uses 'tile', which is forbidden
      flash/translate: runs on cuda, not on cpu
      flash-model/translate: runs only if requested: backend='flash-model'
      cuda/window: runs on cuda, not on cpu
      triton/window: runs on cuda, xpu, not on cpu
      native/window: uses 'native', which is forbidden
      flex/blocks: takes seconds to compile, runs only if requested: backend='flex'
      natten/window: needs the package natten, which is not installed
      natten/window: axis 0: border="clip"; it supports border="shift"
      given: Mask(Axis(2, 0))  query [1, 8, 2, 16] key [1, 8, 2, 16] float32 cpu
      fix:   forbid=('tile', 'sdpa'), which takes native/window

attention(q, q, q, window, backend="reference", require=("tile",))
    BackendError: reference cannot run this:
      reference/dense: does not use 'tile'
      given: Mask(Axis(2, 0))  query [1, 8, 2, 16] key [1, 8, 2, 16] float32 cpu
      fix:   require=()

attention(*[t(1, 1 << 15, 2, 16, device="meta")] * 3, window, backend="reference")
    MaskError: a dense mask of 32768 x 32768 pairs is over the limit of 268435456.
      fix:   nbattn.plan(mask, (1, 32768, 1, 64), (1, 32768, 1, 64)).verify(), or mask.draw(32768, 32768); backend="auto" runs it.

twice_differentiated()
    BackendError: double backward needs backend='reference'.
      fix:   backend="reference"
"""

PLANS = """
plan("x", shape)
    InputError: mask is a str, not a Mask.

plan(window, 8)
    InputError: query_shape=8 is not a shape [B, *space, H, D].
      fix:   query_shape=query.shape.

plan(window, (1, 8, 2))
    InputError: query has 3 dimensions [1, 8, 2]; a mask of 1 axis needs 4, [B, X, H, D].
      given: Mask(Axis(2, 0))
      fix:   query_shape=(1, 8, 1, 2), for one head; or grids=[(1,)], for packed sequences.

plan(window, (-1, 8, 2, 16))
    InputError: query_shape=(-1, 8, 2, 16): -1 is not a length.
      fix:   query_shape=(0, 8, 2, 16).

plan(window, (1, 8, 2.0, 16))
    InputError: query_shape=(1, 8, 2.0, 16): 2.0 is not a length.
      fix:   query_shape=(1, 8, 2, 16).

plan(window, (1, -8, 2, 16))
    InputError: query_shape=(1, -8, 2, 16): -8 is not a length.
      fix:   query_shape=(1, 0, 2, 16).

plan(window, shape, (1, 8, 3, 16))
    InputError: 2 query heads are no multiple of 3 key heads; query head h uses key head h // (H // Hk).
      given: query [1, 8, 2, 16] key [1, 8, 3, 16] value [1, 8, 3, 16]

plan(window, shape, value_dim=0)
    InputError: value_dim=0 is below 1.
      fix:   value_dim=1.

plan(window, shape, value_dim=2.5)
    InputError: value_dim=2.5 is a float, not an integer.
      fix:   value_dim=2.

plan(window, shape, extra_keys=-1)
    InputError: extra_keys=-1 is below 0.
      fix:   extra_keys=0.

plan(window, shape, extra_keys="x")
    InputError: extra_keys='x' is a str, not an integer.
      fix:   extra_keys=0.

plan(window, shape, dtype="bf16")
    InputError: dtype=bf16 is not known: one of float16, bfloat16, float32, float64.
      fix:   dtype="bfloat16"

plan(window, shape, dtype=torch.int32)
    InputError: dtype=int32 is not known: one of float16, bfloat16, float32, float64.
      fix:   dtype="bfloat16"

plan(window, shape, device="sm_91")
    InputError: device='sm_91' is not known: one of cpu, sm_75, sm_80, sm_86, sm_89, sm_90, sm_100, sm_103, sm_120, rtx_3090, rtx_4090, gfx90a, gfx942, gfx950, gfx1100, gfx1201, xe, a torch.device or a DeviceInfo.
      fix:   device="sm_90"

plan(window, shape, device=3)
    InputError: device=3 is not known: one of cpu, sm_75, sm_80, sm_86, sm_89, sm_90, sm_100, sm_103, sm_120, rtx_3090, rtx_4090, gfx90a, gfx942, gfx950, gfx1100, gfx1201, xe, a torch.device or a DeviceInfo.
      fix:   device="cuda:3".

plan(window, shape, device="cuda")
    InputError: device='cuda': this machine has no CUDA device.
      fix:   device="sm_90", which plans for an H100 without one; device=None is this machine's

plan(window, shape, softcap=-1.0)
    InputError: softcap=-1.0 is not between 1e-30 and 1e+30, the range for float32.
      fix:   softcap=None.

plan(window, shape, training="yes")
    InputError: training='yes' is a str, not a bool.
      fix:   training=True.

plan(window, shape, backend="magic")
    InputError: backend='magic' is not known: one of auto, reference, sdpa, tiled, flash, flash-model, cuda, triton, native, flex, natten (flash and flash-model also with :aten, :fa2, :fa3, :fa4).
      fix:   backend="auto"

plan(window, shape, require="tile")
    InputError: require='tile' is a string.
      fix:   require=('tile',).

plan(ring, shape)
    MaskError: axis 0 (8 queries, 8 keys): border="wrap" needs a length that dilation x stride = 3 divides, but 8 leaves 2.
      given: Mask(Axis(1, 1, dilation=3, border='wrap'))
      fix:   Mask(Axis(1, 1, dilation=2, border='wrap')).

plan(window, (1, 4096, 2, 16), backend="sdpa", device="sm_90", softcap=2.0, return_lse=True)
    BackendError: sdpa cannot run this:
      sdpa/dense: has no softcap
      sdpa/dense: returns no logsumexp, which return_lse, sink and extra keys need
      sdpa/dense: axis 0: its windows differ from query to query
      sdpa/mask: has no softcap
      sdpa/mask: returns no logsumexp, which return_lse, sink and extra keys need
      sdpa/mask: a matrix of 16777216 pairs is over the limit of 4194304
      given: Mask(Axis(2, 0))  query [1, 4096, 2, 16] key [1, 4096, 2, 16] bfloat16 sm_90 return_lse softcap
      fix:   backend="auto", which takes cuda/window+mma

plan(window, shape, backend="sdpa", device="cpu", training=True, return_lse=True)
    BackendError: sdpa cannot run this:
      sdpa/dense: its backward cannot use a gradient of the logsumexp
      sdpa/dense: axis 0: its windows differ from query to query
      sdpa/mask: its backward cannot use a gradient of the logsumexp
      given: Mask(Axis(2, 0))  query [1, 8, 2, 16] key [1, 8, 2, 16] bfloat16 cpu training return_lse
      fix:   backend="auto", which takes native/window

plan(window, shape, backend="sdpa", device="sm_90", training=True, deterministic=True)
    BackendError: sdpa cannot run this:
      sdpa/dense: its backward is not deterministic
      sdpa/dense: axis 0: its windows differ from query to query
      sdpa/mask: its backward is not deterministic
      given: Mask(Axis(2, 0))  query [1, 8, 2, 16] key [1, 8, 2, 16] bfloat16 sm_90 training deterministic
      fix:   torch.use_deterministic_algorithms(False) (in a plan: deterministic=False)

plan(Mask(Axis(causal=True), Axis(causal=True)), (1, 4, 4, 2, 16), device="cpu", require=("causal",))
    BackendError: no backend can run this:
      reference/dense: does not use 'causal'
      reference/dense: runs only if requested: backend='reference'
      sdpa/dense: axis 0 is causal and axis 1 is longer than 1: is_causal would mask in raster order over both
      sdpa/dense: does not use 'causal'
      sdpa/mask: does not use 'causal'
      tiled/tile: does not use 'causal'
      flash/translate: runs on cuda, not on cpu
      flash/translate: does not use 'causal'
      flash-model/translate: runs only if requested: backend='flash-model'
      flash-model/translate: does not use 'causal'
      cuda/window: runs on cuda, not on cpu
      cuda/window: does not use 'causal'
      triton/window: runs on cuda, xpu, not on cpu
      triton/window: does not use 'causal'
      native/window: does not use 'causal'
      flex/blocks: takes seconds to compile, runs only if requested: backend='flex'
      flex/blocks: does not use 'causal'
      natten/window: needs the package natten, which is not installed
      natten/window: axis 0: an unlimited side; it supports only finite windows
      natten/window: does not use 'causal'
      given: Mask(Axis(None, 0, causal=True), Axis(None, 0, causal=True))  query [1, 4, 4, 2, 16] key [1, 4, 4, 2, 16] bfloat16 cpu
      fix:   require=(), which takes native/window

plan(window, (1, 1 << 15, 2, 16), device="cpu").support()
    InputError: 32768 x 32768 pairs are over the limit of 67108864.
      fix:   plan.verify()

plan(window, shape, dtype="float32", device="cpu").schedule(backward=True)
    InputError: the plan is for inference: it has no backward to show.
      given: query [1, 8, 2, 16] key [1, 8, 2, 16] float32 cpu
      fix:   training=True, an argument of nbattn.plan

run(t(1, 9, 2, 16), t(1, 9, 2, 16), t(1, 9, 2, 16))
    InputError: the plan is for query_space=(8,), the tensors have (9,).
      given: query [1, 8, 2, 16] key [1, 8, 2, 16] float32 cpu
      fix:   nbattn.plan(mask, [1, 9, 2, 16], [1, 9, 2, 16], dtype='float32', device='cpu'), or nbattn.attention(query, key, value, mask).

run(q.half(), q.half(), q.half())
    InputError: the plan is for dtype=float32, the tensors have float16.
      given: query [1, 8, 2, 16] key [1, 8, 2, 16] float32 cpu
      fix:   nbattn.plan(mask, [1, 8, 2, 16], [1, 8, 2, 16], dtype='float16', device='cpu'), or nbattn.attention(query, key, value, mask).

run(meta, meta, meta)
    InputError: the plan is for cpu, the tensors are on meta.
      given: query [1, 8, 2, 16] key [1, 8, 2, 16] float32 cpu
      fix:   nbattn.plan(mask, [1, 8, 2, 16], [1, 8, 2, 16], dtype='float32', device='meta').

run(q, t(1, 8, 1, 16), t(1, 8, 1, 16))
    InputError: the plan is for kv_heads=2, the tensors have 1.
      given: query [1, 8, 2, 16] key [1, 8, 2, 16] float32 cpu
      fix:   nbattn.plan(mask, [1, 8, 2, 16], [1, 8, 1, 16], dtype='float32', device='cpu'), or nbattn.attention(query, key, value, mask).

run(q, q, t(1, 8, 2, 8))
    InputError: the plan is for value_dim=16, the tensors have 8.
      given: query [1, 8, 2, 16] key [1, 8, 2, 16] float32 cpu
      fix:   nbattn.plan(mask, [1, 8, 2, 16], [1, 8, 2, 16], value_dim=8, dtype='float32', device='cpu'), or nbattn.attention(query, key, value, mask).

run(q, q, q, softcap=2.0)
    InputError: the plan is for softcap=False, the tensors have True.
      given: query [1, 8, 2, 16] key [1, 8, 2, 16] float32 cpu
      fix:   nbattn.plan(mask, [1, 8, 2, 16], [1, 8, 2, 16], softcap=2.0, dtype='float32', device='cpu'), or nbattn.attention(query, key, value, mask, softcap=2.0).

run(q, q, q, key_range=t(1, 1, 2).int())
    InputError: the plan is for key_range=False, the tensors have True.
      given: query [1, 8, 2, 16] key [1, 8, 2, 16] float32 cpu
      fix:   nbattn.plan(mask, [1, 8, 2, 16], [1, 8, 2, 16], key_range=True, dtype='float32', device='cpu'), or nbattn.attention(query, key, value, mask, key_range=key_range).

run(q, q, q, sink=t(2))
    InputError: the plan is for sink=False, the tensors have True.
      given: query [1, 8, 2, 16] key [1, 8, 2, 16] float32 cpu
      fix:   nbattn.plan(mask, [1, 8, 2, 16], [1, 8, 2, 16], sink=True, dtype='float32', device='cpu'), or nbattn.attention(query, key, value, mask, sink=sink).

run(q, q, q, extra_key=t(1, 3, 2, 16), extra_value=t(1, 3, 2, 16))
    InputError: the plan is for extra_keys=0, the tensors have 3.
      given: query [1, 8, 2, 16] key [1, 8, 2, 16] float32 cpu
      fix:   nbattn.plan(mask, [1, 8, 2, 16], [1, 8, 2, 16], extra_keys=3, dtype='float32', device='cpu'), or nbattn.attention(query, key, value, mask, extra_key=extra_key, extra_value=extra_value).

plan(window, shape, dtype="float32", device="sm_90").run(q, q, q)
    InputError: the plan is for sm_90, the tensors are on cpu.
      given: query [1, 8, 2, 16] key [1, 8, 2, 16] float32 sm_90
      fix:   nbattn.plan(mask, [1, 8, 2, 16], [1, 8, 2, 16], dtype='float32', device='cpu').
"""

MERGES = """
merge([], [])
    InputError: 0 outputs and 0 logsumexps; merge needs as many of both, at least one.
      fix:   nbattn.merge([out], [lse]).

merge([q, q], [t(1, 8, 2)])
    InputError: 2 outputs and 1 logsumexps; merge needs as many of both, at least one.
      fix:   nbattn.merge(outputs[:1], lses[:1]).

merge([q], [t(1, 8, 3)])
    InputError: output [1, 8, 2, 16] and logsumexp [1, 8, 3] do not fit [1, 8, 2, 16]: outputs are [B, *space, H, Dv], logsumexps [B, *space, H], of the same queries.

merge([q, t(1, 7, 2, 16)], [t(1, 8, 2), t(1, 7, 2)])
    InputError: output [1, 7, 2, 16] and logsumexp [1, 7, 2] do not fit [1, 8, 2, 16]: outputs are [B, *space, H, Dv], logsumexps [B, *space, H], of the same queries.
      fix:   torch.cat(outputs, dim=1), torch.cat(lses, dim=1), for parts of the queries.
"""


def cases_of(table: str) -> dict[str, str]:
    """Call and text of every block of a table."""
    blocks = [block.split("\n", 1) for block in table.strip().split("\n\n")]
    return {call: dedent(text).strip() for call, text in blocks}


TABLES = (AXES, MASKS, LENGTHS, TENSORS, BACKENDS, PLANS, MERGES)
MESSAGES = {call: text for table in TABLES for call, text in cases_of(table).items()}


@pytest.mark.parametrize(("call", "text"), MESSAGES.items(), ids=MESSAGES)
def test_message_of_every_mistake(call: str, text: str) -> None:
    """One exception, without a stack of internal ones behind it: problem, given, fix."""
    if "cuda" in call and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(NbattnError) as error:
        eval(call, NAMES)
    raised = error.value
    assert f"{type(raised).__name__}: {raised}" == text
    assert raised.__cause__ is None
    assert raised.__context__ is None or raised.__suppress_context__
    fix = raised.fix and f"  fix:   {raised.fix}"
    parts = [raised.problem, raised.where and f"  given: {raised.where}", fix]
    assert str(raised) == "\n".join(filter(None, parts))
    assert bool(raised.fix) == (call not in WITHOUT_A_FIX)


# No code does what was wanted: the message has what is legal.
WITHOUT_A_FIX = (
    'plan("x", shape)',
    "attention(t(3), q, q, window)",
    "attention(t(1, 8, 3, 16), q, q, window)",
    "attention(q, q, q, window, sink=t(3))",
    "attention(q, q, q, window, extra_key=t(1, 3, 2, 8), extra_value=t(1, 3, 2, 16))",
    "plan(window, shape, (1, 8, 3, 16))",
    "merge([q], [t(1, 8, 3)])",
)


def test_the_table_has_enough_messages() -> None:
    assert sum(len(cases_of(table)) for table in TABLES) == len(MESSAGES) >= 150
    assert all("\n" not in call for call in MESSAGES)
