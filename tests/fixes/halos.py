"""Fixes of halos: parts of axes, ranks, and sizes of tensors."""

from __future__ import annotations

from fixes.row import Row

_GIVEN = "from nbattn.distributed import halo\nfound = halo(Mask.full(2), (8, 8), (2, 2))"


def parts(wrong: str, right: str) -> Row:
    """A number for each axis."""
    call = "found = halo(Mask.full(2), (8, 8), {})"
    return Row(call.format(wrong), right, call.format(right), "found.ranks in (2, 4)", _GIVEN)


def sizes(wrong: str, right: str, others: str) -> Row:
    """An argument of `Halo.bytes`."""
    call = f"moved = found.bytes({{}}, {others})"
    return Row(call.format(wrong), right, call.format(right), "moved.received > 0", _GIVEN)


ROWS = [
    parts("4", "parts=(4, 1)"),
    parts("(2, 0)", "parts=(2, 1)"),
    parts("'xy'", "parts=(2, 1)"),
    Row("found.rank(4)", "rank=3", "one = found.explain(rank=3)", "'rank        3' in one", _GIVEN),
    sizes("kv_heads=0", "kv_heads=1", "head_dim=8"),
    sizes("dtype='fp16'", 'dtype="bfloat16"', "kv_heads=1, head_dim=8"),
]
