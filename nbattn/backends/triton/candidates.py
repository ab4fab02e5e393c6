"""The project's Triton kernels as a candidate: one call on whole tensors."""

from __future__ import annotations

from typing import Any

from nbattn.backends.triton import choice, costs
from nbattn.backends.triton import meaning as triton
from nbattn.backends.triton import tiles as triton_tiles
from nbattn.backends.triton.choice import Pass
from nbattn.backends.triton.meaning import FIELDS, TritonArguments
from nbattn.backends.triton.tiles import Build
from nbattn.errors import counted
from nbattn.geometry import Axes
from nbattn.program.candidate import Candidate, refused
from nbattn.program.limits import Reason
from nbattn.program.parts import PackedCall, farthest, longest
from nbattn.program.program import Call, Program, whole
from nbattn.program.request import Request

# On NVIDIA's GPUs CuPy's kernels are written to be the fast ones; neither has been measured.
_CUPY = Reason("backend", "CuPy's kernels run here, runs only if requested: backend='triton'")


def candidates(request: Request, axes: Axes) -> list[Candidate]:
    """The candidate."""
    if request.backend not in ("auto", "triton"):
        return [refused("triton", "window")]
    reasons = triton.absent(request.needs)
    if not reasons:
        reasons = triton.reasons(request.needs, farthest(request, axes))
        reasons += triton.token_reasons(request)
    if not reasons and request.relative_bias:
        reasons = triton.table_reasons(request)
    if not reasons and _is_for_cupy(request):
        reasons = [_CUPY]
    return [refused("triton", "window", *reasons) if reasons else _candidate(request, axes)]


def _is_for_cupy(request: Request) -> bool:
    """Whether "auto" has CuPy's kernels for the request, which it neither forbids, nor asks for
    Triton.
    """
    device = request.device
    has_cupy = device.may_be_nvidia and "cupy" in device.providers
    by_name = "cuda" in request.forbid or "triton" in request.require
    return request.backend == "auto" and has_cupy and not by_name


def _candidate(request: Request, axes: Axes) -> Candidate:
    """One call with the tiles that cost least."""
    of_all = longest(request, axes)
    build = Build(
        request.dtype,
        request.head_dim,
        request.value_dim,
        request.mask.rank,
        two_runs=triton.two_runs(of_all),
        circle=triton.circle(of_all),
        softcap=request.softcap,
        key_range=request.key_range,
        extra=request.extra_keys > 0,
        grids=request.grids is not None,
        extra_range=request.extra_keys > 0 and request.extra_range,
        table=request.relative_bias,
        slopes=request.alibi_slopes,
        sink=request.sink,
    )
    passes = _passes(request, axes, build)
    if isinstance(passes, Reason):
        return refused("triton", "window", passes)
    tiles = {FIELDS[kernel]: chosen.tiles for kernel, chosen in passes.items()}
    arguments: Any = TritonArguments(of_all, build, **tiles)
    if request.grids is not None:
        arguments = PackedCall(request.mask, request.grids, arguments)
    program = Program((Call(whole(request.query_space), whole(request.key_space), arguments),))
    cost = costs.of(request, axes, build, passes)
    note = _first_run(len(passes), request)
    return Candidate("triton", "window", (), program, cost, note=note)


def _first_run(kernels: int, request: Request) -> str:
    """What the first run does besides; in training, the kernel of delta is one more.

    Triton 3.8 took so long for sm_80, sm_90, sm_100, gfx90a and gfx942 on one core of a CPU, in
    every dtype; with all options at once, some need up to 7 seconds. Nothing has been compiled for
    Intel's GPUs.
    """
    number = kernels + (kernels > 1)
    seconds = "1 to 4 " * (request.device.vendor in ("nvidia", "amd"))
    each, them = (" each", "them") if number > 1 else ("", "it")
    return (
        f"the first run compiles {counted(number, 'kernel')}, in {seconds}seconds{each}, or finds "
        f"{them} in Triton's cache (TRITON_CACHE_DIR); plan.warmup() does that ahead"
    )


def _passes(request: Request, axes: Axes, build: Build) -> dict[str, Pass] | Reason:
    """The tiles of every kernel that runs, or the limit that is exceeded."""
    passes: dict[str, Pass] = {}
    for kernel in triton_tiles.kernels(build, training=request.training):
        ranked = choice.of_request(kernel, request, axes, build)
        if not ranked:
            sizes = f"head_dim {request.head_dim} and value_dim {request.value_dim}"
            return Reason("memory", f"no tile of {sizes} fits {request.device.name}")
        programs = choice.programs(kernel, ranked[0], request)
        if reason := triton.grid_reason(programs, ranked[0].tiles.warps, request.device):
            return reason
        passes[kernel] = ranked[0]
    if request.training:
        programs = triton.delta_programs(request)
        if reason := triton.grid_reason(programs, triton.DELTA_WARPS, request.device):
            return reason
    return passes
