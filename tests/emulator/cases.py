"""The problems on which bugs are put into the kernels: each reaches what others do not."""

from __future__ import annotations

from dataclasses import replace

import torch

from emulator.problem import SIMT_LINE, SIMT_PLANE, Problem
from nbattn import Axis, Mask

# fmt: off
CASES: dict[str, Problem] = {
    "plain": Problem(Mask(Axis(21, 9)), (70,), (70,), stages=3),
    "wide": Problem(Mask(Axis(40, 46)), (100,), (100,), heads=1),  # tiles that are not masked
    "padded": Problem(
        Mask(Axis()), (40,), (60,), ranges=(((3, 41),), ((0, 60),)), batch=2, heads=1,
        rows=(1, 1, 64),
    ),
    "strided": Problem(Mask(Axis(4, 3, stride=4, dilation=2)), (41,), (41,)),
    "far": Problem(Mask(Axis(5, 3)), (40,), (40,), batch=2, heads=1, layout="far"),
    "outside": Problem(  # rows without keys
        Mask(Axis(2, 1, align="top-left", offset=-9)), (50,), (37,), dtype=torch.bfloat16,
    ),
    "few": Problem(  # fewer queries than classes
        Mask(Axis(2, 1, dilation=5, align="top-left", offset=3)), (3,), (40,), heads=1,
    ),
    "plane": Problem(
        Mask(Axis(2, 1, border="shift"), Axis(3, 4, stride=3, dilation=2, offset=-3)),
        (9, 13), (9, 13), rows=(1, 4, 8), columns=(1, 4, 4), heads=4, group=2,
        head_dim=24, value_dim=40,
    ),
    "circle": Problem(
        Mask(Axis(5, 4, border="wrap"), Axis(2, 1)), (12, 10), (12, 10),
        rows=(1, 4, 8), columns=(1, 4, 4), ranges=(((2, 11), (0, 9)), ((0, 12), (3, 10))), batch=2,
    ),
    "ring": Problem(Mask(Axis(50, 46, border="wrap")), (160,), (160,), heads=1),
    "cube": Problem(
        Mask(Axis(1, 1), Axis(2, 1), Axis(3, 2)), (3, 4, 9), (3, 4, 9),
        rows=(1, 4, 8), columns=(1, 4, 4), heads=1, ranges=(((1, 3), (0, 4), (1, 9)),),
    ),
    "extras": Problem(
        Mask(Axis(4, causal=True, stride=2, prefix=3, align="bottom-right")), (40,), (50,),
        extra=21, sink=True, softcap=2.0, ranges=(((1, 43),), ((0, 50),)), batch=2,
    ),
    "ragged": Problem(  # extra keys next to a dilation; channels two apart
        Mask(Axis(3, 2, dilation=3), Axis(1, 1)), (11, 5), (11, 5),
        rows=(1, 8, 4), columns=(1, 4, 4), extra=5, vector=False, layout="channels",
        head_dim=40, value_dim=24,
    ),
    "many": Problem(  # fifty visits, all of them masked: the ring of visits goes round
        Mask(Axis(), Axis(3, 2)), (4, 7), (100, 7), rows=(1, 4, 8), columns=(1, 4, 4), heads=1,
        stages=3,
    ),
    "tall": Problem(  # the same for gradients of keys
        Mask(Axis(), Axis(3, 2)), (100, 7), (4, 7), rows=(1, 4, 8), columns=(1, 4, 4), heads=1,
        stages=3,
    ),
    "big": Problem(  # two row blocks; several copies of a thread
        Mask(Axis(3, 2), Axis(6, 4)), (9, 13), (9, 13), rows=(1, 8, 8), columns=(1, 4, 8),
        row_blocks=2, heads=2, group=2, head_dim=64, value_dim=96,
    ),
    "narrow": Problem(  # a warp, with more columns than threads
        Mask(Axis(30, 20)), (90,), (90,), rows=(1, 1, 16), columns=(1, 1, 64), heads=1,
        head_dim=80, value_dim=24,
    ),
    "eight": Problem(  # eight warps, and fewer vectors than threads copy
        Mask(Axis(30, 20)), (150,), (150,), rows=(1, 1, 128), columns=(1, 1, 64), heads=2, group=2,
        head_dim=80, value_dim=96, dtype=torch.bfloat16, vector=False,
    ),
    "loud": Problem(Mask(Axis(21, 9)), (70,), (70,), scale=4.0),  # maxima move by more than 2^8
    "negative": Problem(
        Mask(Axis(40, 12)), (90,), (90,), rows=(1, 1, 128), row_blocks=2, heads=1, scale=-0.7,
    ),
    "kept": Problem(Mask(Axis(21, 9)), (50,), (50,), heads=1, scale=-0.7),  # and queries kept
    "zero": Problem(Mask(Axis(7, 3)), (40,), (40,), heads=1, scale=0.0),
    "packed": Problem(
        Mask(Axis(2, 1), Axis(3, 5)), (6, 9), (6, 9), rows=(2, 1, 16), columns=(1, 4, 4),
        batch=2, heads=6, group=3, packed=3, sink=True,
    ),
    "table": Problem(  # stride groups, classes; the cap is before the table
        Mask(Axis(7, 5, stride=3, dilation=2, offset=2, align="top-left")), (41,), (45,),
        heads=4, group=2, batch=2, softcap=1.5, table=True,
    ),
    "table-plane": Problem(
        Mask(Axis(2, 1, border="shift"), Axis(4, causal=True, dilation=2)), (9, 13), (9, 13),
        rows=(1, 4, 8), columns=(1, 4, 4), table=True, extra=5, ranges=(((1, 8), (0, 11)),),
        scale=-0.7,
    ),
    "table-circle": Problem(  # where a window has the whole circle, too
        Mask(Axis(1, 2, border="wrap"), Axis(6, 5, border="wrap", stride=3)), (4, 12), (4, 12),
        rows=(1, 4, 8), columns=(1, 4, 4), table=True, parts=3, scale=0.0,
    ),
    "table-cube": Problem(
        Mask(Axis(2, 1, border="wrap"), Axis(1, 1), Axis(3, 2, border="shift")), (6, 4, 9),
        (6, 4, 9), rows=(1, 4, 8), columns=(1, 4, 4), heads=1, table=True,
    ),
    "table-packed": Problem(
        Mask(Axis(5, causal=True, align="bottom-right")), (5,), (40,), rows=(2, 1, 16), heads=6,
        group=3, packed=3, batch=2, table=True, slopes=2, parts=1,
    ),
    "slopes": Problem(
        Mask(Axis(20, causal=True, dilation=2, align="bottom-right")), (40,), (57,), heads=4,
        group=2, batch=2, slopes=2, softcap=3.0, extra=3,
    ),
    "table-seam": Problem(  # visits that are not masked, by tiles with rows past the end
        Mask(Axis(62, 5)), (100,), (100,), heads=1, table=True, parts=1, louder=100.0,
    ),
    "slopes-ahead": Problem(Mask(Axis(9, 12)), (40,), (40,), heads=2, slopes=1),
    "text": Problem(  # ranges inside tiles, without keys, past the end
        Mask(Axis(3, 2)), (40,), (40,), batch=4, extra=75,
        extra_ranges=((37, 50), (9, 4), (0, 75), (-3, 90)),
    ),
    "nothing": Problem(  # rows without keys where a range has none
        Mask(Axis(2, 1, align="top-left", offset=-9)), (50,), (37,), batch=2, heads=1, extra=5,
        extra_ranges=((0, 0), (2, 3)), vector=False,
    ),
}
# fmt: on


def simt(case: Problem) -> Problem:
    """The same problem without tensor cores."""
    rows, columns = SIMT_LINE if case.rank == 1 else SIMT_PLANE
    if case.packed > 1:
        rows = (2, 1, 4)
    return replace(case, family="simt", dtype=torch.float32, rows=rows, columns=columns)


CASES |= {f"{name}-simt": simt(case) for name, case in CASES.items()}
