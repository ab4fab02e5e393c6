"""The costs of the CUDA kernels: the pairs of all visited tiles at the rate of the products."""

from __future__ import annotations

from nbattn import geometry
from nbattn.backends.cuda import tiles
from nbattn.backends.cuda.tiles import Build, Pass
from nbattn.geometry import Axes
from nbattn.program import costs
from nbattn.program.costs import Cost
from nbattn.program.device import AMPERE_SHARE, DeviceInfo
from nbattn.program.request import Request

_DELTA = 1  # launches of the kernel that computes delta
_SINK = 8  # launches to compute a sink's gradient
_NEWER = (90, 100, 103, 110)  # have newer tensor-core instructions than the kernels use


def of(
    request: Request, axes: Axes, instructions: str, build: Build, passes: dict[str, Pass]
) -> Cost:
    """The pairs of all visited tiles, at a rate lowered by the other work of a visit."""
    sizes = {kernel: tiles.products(kernel, build) for kernel in passes}
    pairs, work = (
        {kernel: sizes[kernel] * getattr(chosen, name) for kernel, chosen in passes.items()}
        for name in ("pairs", "work")
    )
    total = max(sum(pairs.values()), 1)
    launches = _DELTA + 1 + len(tiles.grads_of("dkdv", build))
    return costs.roofline(
        request,
        useful=geometry.pairs(axes),
        computed=passes["fwd"].pairs,
        calls=1,
        rate=rate(instructions, request.device, request.dtype)
        * total
        / max(sum(work.values()), total),
        backward=round((total - pairs["fwd"]) / sizes["fwd"] / costs.BACKWARD_FLOPS),
        backward_calls=launches + _SINK * request.sink,
    )


def rate(instructions: str, device: DeviceInfo, dtype: str) -> float:
    """FLOP/s of the matrix products. On Hopper and newer devices, Ampere's tensor-core instructions
    reach only a share of the peak (published for Flash 2). Without tensor cores every multiply-add
    waits for shared memory, which delivers to one lane in four.
    """
    if instructions == "simt":
        return device.peak(dtype if dtype == "float64" else "float32") / 4
    newer = device.capability in _NEWER
    return device.peak(dtype) * (AMPERE_SHARE if newer else 1.0)
