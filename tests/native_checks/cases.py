"""The problems that guards, sanitizers and seeded bugs run: small, and together in every branch."""

from __future__ import annotations

import torch
from emulator.problem import Problem as Common

from native_checks.problem import Extents, Problem
from nbattn import Axis, Mask

_ONE: Extents = (1, 1, 1, 1)


def case(
    common: Common,
    rows: Extents,
    groups: Extents = _ONE,
    *,
    keys: Extents | None = None,
    key_groups: Extents | None = None,
    **more: object,
) -> Problem:
    """The passes by queries share their tiles; those of keys have one head. With a slab, there are
    no passes by keys.
    """
    if "slab" in more:
        return Problem(common, (rows, rows), (groups, groups), **more)
    by_key, key_groups = keys or rows, key_groups or (1, *groups[1:])
    return Problem(common, (rows, rows, by_key), (groups, groups, key_groups), **more)


# fmt: off
CASES = {
    "line": case(Common(Mask(Axis(3, 2)), (37,), (37,), dtype=torch.float32, head_dim=7,
                        value_dim=5, heads=1), (1, 1, 1, 16), (1, 1, 1, 2)),
    "half": case(Common(Mask(Axis(9, 4)), (45,), (45,), head_dim=20, value_dim=12, group=2,
                        layout="packed"), (2, 1, 1, 8), (1, 1, 1, 3), keys=(1, 1, 1, 16)),
    "bfloat": case(Common(Mask(Axis(5, 5)), (29,), (29,), dtype=torch.bfloat16, head_dim=33,
                          value_dim=17, batch=2), (1, 1, 1, 16), heads_first=True),
    "bfloat channels": case(Common(Mask(Axis(4, 2)), (23,), (23,), dtype=torch.bfloat16,
                                   head_dim=9, value_dim=6, layout="channels"), (1, 1, 1, 16)),
    "bfloat extra": case(Common(Mask(Axis(4, 2)), (20,), (20,), dtype=torch.bfloat16, heads=1,
                                extra=300, head_dim=120, value_dim=136), (1, 1, 1, 16)),
    "double": case(Common(Mask(Axis(2, 1), Axis(3, 2)), (6, 9), (6, 9), dtype=torch.float64,
                          head_dim=9, value_dim=11, heads=1), (1, 1, 4, 4), (1, 1, 1, 2)),
    "plane": case(Common(Mask(Axis(1, 2, border="shift"), Axis(2, 3, border="wrap")), (7, 11),
                         (7, 11), dtype=torch.float32, head_dim=16, value_dim=24),
                  (1, 1, 2, 8), (1, 1, 2, 1), keys=(1, 1, 4, 4)),
    "space": case(Common(Mask(Axis(1, 1), Axis(2, 0), Axis(1, 3)), (3, 5, 7), (3, 5, 7),
                         dtype=torch.float32, head_dim=8, value_dim=8, heads=1),
                  (1, 2, 2, 4), (1, 1, 2, 1), keys=(1, 1, 4, 4)),
    "ring": case(Common(Mask(Axis(1, 2, border="wrap"), Axis(1, 1), Axis(2, 0)), (9, 3, 5),
                        (9, 3, 5), dtype=torch.float32, heads=1, head_dim=8, value_dim=8),
                 (1, 4, 2, 2)),
    "planes": case(Common(Mask(Axis(1, 0), Axis(), Axis()), (5, 4, 11), (5, 4, 11),
                          dtype=torch.float32, heads=1, head_dim=8, value_dim=8), (1, 2, 2, 4)),
    "dilated": case(Common(Mask(Axis(3, 2, dilation=3), Axis(1, 1)), (13, 5), (13, 5),
                           dtype=torch.float32, head_dim=12, value_dim=7, layout="channels",
                           extra=5), (1, 1, 4, 4), (1, 1, 2, 1)),
    "strided": case(Common(Mask(Axis(4, causal=True, stride=2, prefix=3, align="bottom-right")),
                           (30,), (50,), dtype=torch.float32, extra=21, sink=True, softcap=2.0,
                           ranges=(((1, 43),), ((0, 50),)), batch=2, head_dim=16, value_dim=16),
                    (1, 1, 1, 16), (1, 1, 1, 2)),
    "padded": case(Common(Mask(Axis(2, 2), Axis(3, 3)), (9, 10), (9, 10), dtype=torch.float32,
                          head_dim=5, value_dim=6, batch=2,
                          ranges=(((2, 7), (1, 8)), ((-1, 5), (3, 12)))),
                   (1, 1, 4, 4), (1, 1, 2, 2)),
    "half padded": case(Common(Mask(Axis(4, 4, border="shift")), (26,), (26,), head_dim=11,
                               value_dim=19, extra=17, ranges=(((3, 21),),), sink=True),
                        (1, 1, 1, 16)),
    "empty": case(Common(Mask(Axis(2, 0, align="top-left", offset=-20)), (40,), (9,),
                         dtype=torch.float32, head_dim=4, value_dim=4, heads=1),
                  (1, 1, 1, 16)),
    "heads": case(Common(Mask(Axis(2, 1), Axis(3, 5)), (5, 6), (5, 6), dtype=torch.float32,
                         batch=2, heads=6, group=3, sink=True, head_dim=6, value_dim=10),
                  (2, 1, 2, 4), (2, 1, 1, 1), keys=(1, 1, 4, 4)),
    "one head each": case(Common(Mask(Axis(2, 3)), (21,), (21,), dtype=torch.float32, heads=3,
                                 group=3, head_dim=8, value_dim=3), (4, 1, 1, 4),
                          keys=(1, 1, 1, 16)),
    "long": case(Common(Mask(Axis()), (19,), (700,), dtype=torch.float32, heads=1, extra=530,
                        head_dim=16, value_dim=8), (1, 1, 1, 16)),
    "tall": case(Common(Mask(Axis()), (700,), (19,), dtype=torch.float32, heads=1, head_dim=16,
                        value_dim=8, sink=True), (1, 1, 1, 16), (1, 1, 1, 8),
                 key_groups=_ONE),
    "boxes": case(Common(Mask(Axis(), Axis(2, 2), Axis()), (3, 4, 3), (11, 4, 13),
                         dtype=torch.float32, heads=1, head_dim=160, value_dim=130),
                  (1, 2, 4, 2), (1, 2, 1, 2), keys=(1, 4, 2, 2)),
    "boxes of queries": case(Common(Mask(Axis(), Axis(2, 2), Axis()), (11, 4, 13), (3, 4, 3),
                                    dtype=torch.float32, heads=1, head_dim=160, value_dim=130),
                             (1, 2, 4, 2), keys=(1, 2, 4, 2), key_groups=(1, 2, 1, 2)),
    "wide": case(Common(Mask(Axis(20, 20)), (24,), (24,), dtype=torch.float64, heads=1, extra=40,
                        head_dim=500, value_dim=520), (1, 1, 1, 16)),
    "torus": case(Common(Mask(Axis(2, 1, border="wrap"), Axis(1, 3, border="wrap", dilation=2)),
                         (7, 14), (7, 14), dtype=torch.float32, head_dim=10, value_dim=14),
                  (1, 1, 4, 4), (1, 1, 2, 1), keys=(1, 1, 2, 8)),
    "tall torus": case(Common(Mask(Axis(2, 1, border="wrap"), Axis(1, 1)), (8, 5), (8, 5),
                              dtype=torch.float32, head_dim=8, value_dim=8), (1, 1, 8, 2)),
    # More lines than a flush has scores, of one column each, in turn of two quarters.
    "many lines": case(Common(Mask(Axis(), Axis(0, 0, align=-3), Axis()), (1, 16, 1), (257, 2, 1),
                              dtype=torch.float32, heads=1, head_dim=8, value_dim=8),
                       (1, 1, 16, 1), keys=(1, 8, 2, 1)),
    "averages of halves": case(Common(Mask(Axis(1, 0)), (40,), (40,), heads=1, scale=0.0,
                                      value_dim=64), (1, 1, 1, 16)),
    "averages of bfloats": case(Common(Mask(Axis(1, 0)), (40,), (40,), dtype=torch.bfloat16,
                                       heads=1, scale=0.0, value_dim=64), (1, 1, 1, 16)),
    "extreme": case(Common(Mask(Axis(9, 2)), (70,), (70,), dtype=torch.float32, heads=1,
                           scale=30.0, head_dim=16, value_dim=16), (1, 1, 1, 16), (1, 1, 1, 3)),
    "loud": case(Common(Mask(Axis(21, 9)), (70,), (70,), dtype=torch.float32, heads=1, scale=4.0,
                        softcap=30.0, head_dim=16, value_dim=16), (1, 1, 1, 16), (1, 1, 1, 2)),
    "negative": case(Common(Mask(Axis(12, 4, prefix=5)), (40,), (40,), dtype=torch.float32,
                            heads=2, scale=-0.7, head_dim=16, value_dim=9), (1, 1, 1, 16),
                     threads=3),
    # All gradients at once.
    "all line": case(Common(Mask(Axis(3, 2)), (100,), (100,), dtype=torch.float32, heads=1,
                            head_dim=7, value_dim=40), (1, 1, 1, 16), slab=(1, 1, 1), threads=3),
    "all plane": case(Common(Mask(Axis(2, 1, dilation=3), Axis(1, 2, border="shift")), (41, 7),
                             (41, 7), dtype=torch.float32, batch=2, heads=6, group=3, head_dim=20,
                             value_dim=12, layout="channels",
                             ranges=(((3, 41), (0, 6)), ((-1, 30), (1, 9)))),
                      (2, 1, 2, 4), slab=(1, 2, 2), threads=3),
    "all double": case(Common(Mask(Axis(3, 2), Axis(2, 1)), (5, 26), (5, 26), dtype=torch.float64,
                              head_dim=5, value_dim=21, softcap=1.5, sink=True),
                       (1, 1, 4, 4), slab=(1, 2, 1), threads=2),
    "all space": case(Common(Mask(Axis(1, 1), Axis(2, 0), Axis(1, 3)), (13, 5, 7), (13, 5, 7),
                             dtype=torch.float32, heads=4, group=2, head_dim=8, value_dim=70),
                      (1, 2, 2, 4), (1, 1, 2, 1), slab=(1, 2, 2), threads=3),
    "all torus": case(Common(Mask(Axis(2, 1, border="wrap"),
                                  Axis(1, 3, border="wrap", dilation=2)), (7, 14), (7, 14),
                             dtype=torch.float32, head_dim=10, value_dim=14, layout="packed"),
                      (1, 1, 4, 4), slab=(1, 2, 2)),
    "all strided": case(Common(Mask(Axis(4, causal=True, stride=2, align="bottom-right")), (30,),
                               (50,), dtype=torch.float32, sink=True, softcap=2.0, batch=2,
                               ranges=(((1, 43),), ((0, 50),))), (1, 1, 1, 16), slab=(1, 1, 1)),
    "all empty": case(Common(Mask(Axis(2, 0, align="top-left", offset=-20)), (40,), (9,),
                             dtype=torch.float32, head_dim=4, value_dim=4, heads=1),
                      (1, 1, 1, 16), (1, 1, 1, 2), slab=(1, 1, 2)),
    "all boxes": case(Common(Mask(Axis(), Axis(2, 2), Axis()), (3, 4, 3), (11, 4, 13),
                             dtype=torch.float32, heads=1, head_dim=160, value_dim=130),
                      (1, 2, 4, 2), (1, 2, 1, 2), slab=(1, 1, 1)),
    # More than a megabyte of gradients of keys, and more in all than stays in the caches.
    "all long": case(Common(Mask(Axis()), (20,), (1450,), dtype=torch.float32, heads=1,
                            head_dim=1480, value_dim=40), (1, 1, 1, 16), slab=(1, 1, 1),
                     threads=2),
}
# fmt: on
PROBED = (
    *("line", "double", "plane", "space", "ring", "planes", "dilated", "strided", "padded"),
    *("heads", "torus", "tall torus", "negative"),
    *("all line", "all plane", "all double", "all space", "all torus"),
)
AVERAGES = ("averages of halves", "averages of bfloats")  # of two values, rounded once
