"""The costs of the Triton kernels: the pairs of all visited tiles, in the time by `rates.py`."""

from __future__ import annotations

from nbattn import geometry
from nbattn.backends.triton import tiles
from nbattn.backends.triton.choice import Pass
from nbattn.backends.triton.tiles import EXTRA, Build
from nbattn.geometry import Axes
from nbattn.program import costs
from nbattn.program.costs import Cost
from nbattn.program.parts import parts_of
from nbattn.program.request import Request

_DELTA = 1  # launches of the kernel that computes delta
_SINK = 8  # launches to compute a sink's gradient


def of(request: Request, axes: Axes, build: Build, passes: dict[str, Pass]) -> Cost:
    """The pairs of all visited tiles, at the rate at which the chosen tiles compute them. Pairs of
    extra keys are computed at the same rate.
    """
    of_mask = {kernel: chosen for kernel, chosen in passes.items() if kernel != EXTRA}
    sizes = {kernel: tiles.products(kernel, build) for kernel in of_mask}
    pairs = {kernel: sizes[kernel] * chosen.pairs for kernel, chosen in of_mask.items()}
    total = max(sum(pairs.values()), 1)
    time = sum(chosen.seconds for chosen in of_mask.values()) + _delta(request)
    useful = sum(times * geometry.pairs(own) for own, times, _ in parts_of(request, axes))
    return costs.roofline(
        request,
        useful=round(useful),
        computed=passes["fwd"].pairs,
        calls=1,
        rate=2.0 * request.batch * request.heads * total / time if time else None,
        backward=round((total - pairs["fwd"]) / sizes["fwd"] / costs.BACKWARD_FLOPS),
        backward_calls=_DELTA + len(passes) - 1 + _SINK * request.sink,
    )


def _delta(request: Request) -> float:
    """The time of the kernel that computes delta: it reads the output and its gradient."""
    if not request.training:
        return 0.0
    rows = request.batch * request.heads * request.query_count
    return rows * 2 * request.value_dim * costs.ITEMSIZE[request.dtype] / request.device.bandwidth
