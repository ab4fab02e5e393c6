"""The costs of the CUDA kernels: the pairs of all visited tiles, in the time by `pipes.py`."""

from __future__ import annotations

from nbattn import geometry
from nbattn.backends.cuda import tiles
from nbattn.backends.cuda.choice import Pass
from nbattn.backends.cuda.tiles import Build
from nbattn.geometry import Axes
from nbattn.program import costs
from nbattn.program.costs import Cost
from nbattn.program.parts import parts_of
from nbattn.program.request import Request

_DELTA = 1  # launches of the kernel that computes delta
_SINK = 8  # launches to compute a sink's gradient


def of(request: Request, axes: Axes, build: Build, passes: dict[str, Pass]) -> Cost:
    """The pairs of all visited tiles, at the rate at which the chosen tiles compute them."""
    sizes = {kernel: tiles.products(kernel, build) for kernel in passes}
    pairs = {kernel: sizes[kernel] * chosen.pairs for kernel, chosen in passes.items()}
    total = max(sum(pairs.values()), 1)
    time = sum(chosen.seconds for chosen in passes.values()) + _delta(request)
    launches = _DELTA + 1 + len(tiles.grads_of("dkdv", build))
    useful = sum(times * geometry.pairs(own) for own, times, _ in parts_of(request, axes))
    return costs.roofline(
        request,
        useful=round(useful),
        computed=passes["fwd"].pairs,
        calls=1,
        rate=2.0 * request.batch * request.heads * total / time if time else None,
        backward=round((total - pairs["fwd"]) / sizes["fwd"] / costs.BACKWARD_FLOPS),
        backward_calls=launches + _SINK * request.sink,
    )


def _delta(request: Request) -> float:
    """The time of the kernel that computes delta: it reads the output and its gradient."""
    if not request.training:
        return 0.0
    rows = request.batch * request.heads * request.query_count
    return rows * 2 * request.value_dim * costs.ITEMSIZE[request.dtype] / request.device.bandwidth
