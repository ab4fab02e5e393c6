"""Tiles by their measured times: the names under which `nbattn tune` keeps them, and a candidate
with the fastest tiles in place of those with the lowest estimate.

A measured tile counts only if it is one of `tiles.legal_tiles` for the request, so a table can
choose among the tiles that are built and tested, and can never add one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nbattn.backends.cuda import choice, costs, meaning
from nbattn.backends.cuda.choice import Pass
from nbattn.backends.cuda.meaning import FIELDS, CudaArguments
from nbattn.backends.cuda.tiles import Build, Tiles
from nbattn.geometry import Axes
from nbattn.program.candidate import Candidate
from nbattn.program.program import Program
from nbattn.program.request import Request


def name(kernel: str, tiles: Tiles) -> str:
    """The kernel and all that its tile is, as one word each.

    >>> name("fwd", Tiles((1, 8, 8), (1, 4, 16), 4, 1, 2))
    'fwd 1x8x8/1x4x16 4w1b2s'
    >>> name("fwd", Tiles((2, 8, 8), (2, 4, 8), 12, 1, 4, 2))
    'fwd 2x8x8/2x4x8 2g4s'
    """
    rows, columns = ("x".join(map(str, extents)) for extents in (tiles.rows, tiles.columns))
    warps = f"{tiles.warps}w{tiles.row_blocks}b"
    if tiles.warpgroups:
        warps = f"{tiles.warpgroups}g"
    return f"{kernel} {rows}/{columns} {warps}{tiles.stages}s"


def ranked(
    kernel: str, instructions: str, request: Request, axes: Axes, build: Build
) -> list[Pass]:
    """The legal tiles of a kernel, those with the lowest estimate first."""
    return [
        one
        for one in choice.of_request(kernel, instructions, request, axes, build)
        if choice.blocks(kernel, one, request) <= meaning.GRID
    ]


def fastest(kernel: str, legal: list[Pass], times: Mapping[str, float]) -> Pass | None:
    """The tile with the shortest measured time; None if none was measured."""
    measured = [one for one in legal if name(kernel, one.tiles) in times]
    return min(measured, key=lambda one: times[name(kernel, one.tiles)], default=None)


def retiled(
    candidate: Candidate, request: Request, axes: Axes, times: Mapping[str, float]
) -> Candidate:
    """The candidate with the fastest measured tile of each kernel. Kernels without one keep theirs,
    and so does a candidate of which nothing was measured.
    """
    if candidate.program is None or candidate.reasons or request.grids is not None:
        return candidate
    (call,) = candidate.program.calls
    known = call.arguments
    assert isinstance(known, CudaArguments)
    (instructions,) = candidate.traits
    passes: dict[str, Pass] = {}
    for kernel, field in FIELDS.items():
        tiles: Tiles | None = getattr(known, field)
        if tiles is not None:
            legal = ranked(kernel, instructions, request, axes, known.build)
            own = next(one for one in legal if one.tiles == tiles)
            passes[kernel] = fastest(kernel, legal, times) or own
    chosen = {FIELDS[kernel]: one.tiles for kernel, one in passes.items()}
    arguments = replace(known, **chosen)
    if arguments == known:
        return candidate
    program = Program((replace(call, arguments=arguments),))
    cost = costs.of(request, axes, known.build, passes)
    return replace(candidate, program=program, cost=cost)
