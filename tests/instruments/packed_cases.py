"""Packed grids whose kernels take every turn: empty grids, grids of one token, many grids."""

from __future__ import annotations

from packed_calls import Case

from nbattn import Axis, Mask

PLANE = [(9, 13), (1, 1), (0, 5), (5, 8), (5, 8), (3, 30)]
_LINE = [(28,), (1,), (0,), (100,), (5,)]

CASES = {
    "plane": Case(Mask(Axis(2, 1, border="shift"), Axis(3, 4)), PLANE),
    "dilated": Case(
        Mask(Axis(2, 1, dilation=2), Axis(3, 3, border="shift", dilation=3)),
        PLANE, heads=4, kv_heads=2,
    ),
    "documents": Case(Mask.sliding_window(9, 0), _LINE * 3, extra=5, sink=True, softcap=2.0),
    "slopes": Case(Mask.sliding_window(9, 0), _LINE, extra=5, ranges=True, slopes=True),
    "cross": Case(
        Mask(Axis(9, 3, align="bottom-right"), Axis(3, 3, align=2)),
        [(20, 3), (1, 2), (0, 0), (5, 5), (30, 10)], [(30, 3), (4, 0), (10, 2), (1, 50), (21, 20)],
        heads=4, kv_heads=2, extra=3, key_range=True,
    ),
    "circle": Case(
        Mask(Axis(3, 3, border="wrap"), Axis(1, 1, border="shift")),
        [(8, 8), (4, 7), (4, 7), (14, 10)], key_range=True, strided=True,
    ),
    "cube": Case(Mask.neighborhood((3, 3, 5)), [(3, 4, 9), (4, 3, 5)], value_dim=24),
    "prefix": Case(Mask(Axis(4, causal=True, stride=2, prefix=3)), [(40,), (2,), (33,)]),
    "keys alone": Case(  # grids without queries, whose gradients are 0
        Mask(Axis(2, 2, align="top-left")), [(0,), (7,), (0,)], [(9,), (0,), (3,)], extra=2,
    ),
    "empty": Case(Mask(Axis(2, 2)), [(0,), (0,)]),
    "none": Case(Mask(Axis(2, 2)), []),
}  # fmt: skip
MANY = Case(Mask.neighborhood(3), [(1 + n % 7,) for n in range(3000)], heads=1)
