"""The native kernels as a candidate: one call on whole tensors, in the cheapest tiles."""

from __future__ import annotations

from typing import Any

from nbattn import geometry
from nbattn.backends.native import costs, meaning, tiles
from nbattn.backends.native.meaning import NativeArguments
from nbattn.geometry import Axes
from nbattn.program.candidate import Candidate, refused
from nbattn.program.parts import PackedCall, farthest, longest, parts_of
from nbattn.program.program import Call, Program, whole
from nbattn.program.request import Request


def candidates(request: Request, axes: Axes) -> list[Candidate]:
    """Returns one candidate: each kernel with the tiles that cost least."""
    if request.backend not in ("auto", "native"):
        return [refused("native", "window")]
    reasons = meaning.reasons(request.needs, farthest(request, axes))
    if reasons := reasons + meaning.many_tables(request):
        return [refused("native", "window", *reasons)]
    passes = {"forward": tiles.choose("forward", request, axes)}
    if request.training:
        passes |= tiles.choose_backward(request, axes)
    kernels = {kernel: one.tiles for kernel, one in passes.items()}
    arguments: Any = NativeArguments(longest(request, axes), **kernels)
    if request.grids is not None:
        arguments = PackedCall(request.mask, request.grids, arguments)
    program = Program((Call(whole(request.query_space), whole(request.key_space), arguments),))
    works = {kernel: one.work for kernel, one in passes.items()}
    useful = sum(times * geometry.pairs(own) for own, times, _ in parts_of(request, axes))
    cost = costs.of(request, round(useful), works)
    return [Candidate("native", "window", (), program, cost)]
