"""The problems on which bugs are put into the kernels of sm_90a: each reaches what others do
not.
"""

from __future__ import annotations

from functools import partial

import torch

from emulator.problem import Problem
from nbattn import Axis, Mask

_problem = partial(
    Problem, family="wgmma", head_dim=64, value_dim=64, heads=1, dtype=torch.bfloat16,
    rows=(1, 1, 128), columns=(1, 1, 64),
)  # fmt: skip
_plane = partial(_problem, rows=(1, 8, 16), columns=(1, 8, 8))
_cube = partial(_problem, rows=(2, 8, 8), columns=(2, 4, 8))
# fmt: off
CASES: dict[str, Problem] = {
    # Several visits of each kind: masked on both sides, and not masked.
    "line": _problem(Mask(Axis(230, 70)), (300,), (300,), heads=2),
    "deep": _problem(Mask(Axis(230, 70)), (300,), (300,), stages=4, dtype=torch.float16),
    "wide": _problem(Mask(Axis(130, 40)), (200,), (200,), columns=(1, 1, 128), head_dim=128,
                     value_dim=128),
    "ring": _problem(Mask(Axis(), Axis(9, 5)), (1, 30), (250, 30), rows=(1, 8, 16),
                     columns=(1, 8, 8)),  # over fifty visits
    "tall": _problem(Mask(Axis(), Axis(9, 5)), (250, 30), (1, 30), rows=(1, 8, 16),
                     columns=(1, 8, 8)),  # the same for gradients of keys
    "outside": _problem(Mask(Axis(2, 1, align="top-left", offset=-300)), (500,), (150,)),
    "plane": _plane(
        Mask(Axis(4, 3, border="shift"), Axis(9, 12, stride=3, offset=-3)), (17, 40), (17, 40),
        heads=4, group=2, batch=2, head_dim=80, value_dim=96,
    ),
    "cube": _cube(Mask(Axis(1, 1), Axis(4, 3), Axis(7, 6)), (3, 10, 17), (3, 10, 17),
                  head_dim=96, value_dim=80),
    "circle": _plane(Mask(Axis(5, 4, border="wrap"), Axis(7, 9)), (16, 21), (16, 21)),
    "three": _problem(Mask(Axis(4, 3), Axis(5, 2), Axis(5, 6)), (6, 9, 12), (6, 9, 12),
                      rows=(3, 8, 8), columns=(2, 8, 8)),
    "steps": _plane(Mask(Axis(3, 3, dilation=2), Axis(4, 4, dilation=3)), (17, 40), (17, 40)),
    "classes": _plane(Mask(Axis(3, 3, dilation=2), Axis(4, 4, dilation=3)), (17, 40), (17, 40),
                      ways="classes", batch=2),
    "fold": _plane(Mask(Axis(3, 3, dilation=2), Axis(4, 4, dilation=4)), (17, 40), (17, 40),
                   ways="fold", heads=2),
    "shifted": _problem(  # the queries' residue classes are not the keys'
        Mask(Axis(30, 20, dilation=3, align="top-left", offset=40)), (280,), (300,),
        ways="classes",
    ),
    "heads": _plane(Mask(Axis(3, 3), Axis(4, 4)), (9, 21), (9, 21), layout="heads", heads=4,
                    group=2, batch=2),
    "packed": _plane(Mask(Axis(3, 3), Axis(4, 4)), (9, 21), (9, 21), layout="packed", heads=2),
    "extras": _problem(
        Mask(Axis(40, causal=True, stride=2, prefix=3, align="bottom-right")), (140,), (190,),
        extra=85, sink=True, softcap=2.0, heads=2, group=2, batch=2,
    ),
    "text": _problem(  # ranges inside of tiles, without keys, past the end
        Mask(Axis(30, 20)), (140,), (140,), batch=4, extra=150,
        extra_ranges=((37, 150), (9, 4), (0, 75), (-3, 190)), head_dim=96, value_dim=80,
    ),
    "nothing": _problem(  # no keys but extra ones
        Mask(Axis(2, 1, align="top-left", offset=-300)), (140,), (50,), extra=85,
        extra_ranges=((3, 50),),
    ),
    "dilated": _problem(Mask(Axis(30, 20, dilation=2)), (200,), (200,), extra=21, heads=2,
                        group=2),
    "loud": _problem(Mask(Axis(230, 70)), (300,), (300,), scale=4.0),  # maxima move often
    "negative": _problem(Mask(Axis(230, 70)), (300,), (300,), scale=-0.7),
    "big": _problem(Mask(Axis(230, 70)), (150,), (150,), head_dim=192, value_dim=128),
    "bigger": _problem(Mask(Axis(230, 70)), (150,), (150,), head_dim=64, value_dim=256),
}
# fmt: on
CASES = {f"{name}-wgmma": case for name, case in CASES.items()}
