"""What the CUDA kernels of warpgroups ("wgmma") do not take, and why: for all of it there are those
of warps ("mma").
"""

from __future__ import annotations

from collections.abc import Iterator

from nbattn.geometry import Axes
from nbattn.program.limits import Reason
from nbattn.program.request import Needs, Request

HALVES = ("float16", "bfloat16")
SIZES = (64, 80, 96, 128, 192, 256)  # head sizes
_TRAINING = 128  # the largest in training: gradients of wider ones do not fit registers
_CAPABILITY = 90
_MAPS = 24  # kMaps of cuda/boxes.cuh
_TENSORS = (
    4  # that have maps of each class in one launch: query, key, value, gradient of the output
)
_WHY = {
    "key_range": "a tensor map copies whole boxes, and what is outside may be NaN",
    "relative_bias": "their threads have no registers left for it",
    "alibi_slopes": "their threads have no registers left for them",
}


def reasons(needs: Needs) -> list[Reason]:
    """Every limit that a request exceeds, whatever its mask and layout."""
    return [*_of_kind(needs), *_of_sizes(needs), *_of_features(needs)]


def _of_kind(needs: Needs) -> Iterator[Reason]:
    if needs.device.capability != _CAPABILITY:
        text = f"needs sm_{_CAPABILITY}, not {needs.device.name}: no other architecture has wgmma"
        yield Reason("device", text)
    if needs.dtype not in HALVES:
        yield Reason("dtype", f"takes {', '.join(HALVES)}, not {needs.dtype}")


def _of_sizes(needs: Needs) -> Iterator[Reason]:
    *most, last = SIZES
    for name, size in (("head_dim", needs.head_dim), ("value_dim", needs.value_dim)):
        if size not in SIZES:
            text = f"takes a {name} of {', '.join(map(str, most))} or {last}, not {size}"
            yield Reason(name, text)
        elif needs.training and size > _TRAINING:
            yield Reason(name, f"takes a {name} up to {_TRAINING} in training, not {size}")


def _of_features(needs: Needs) -> Iterator[Reason]:
    for name, why in _WHY.items():
        if getattr(needs, name):
            yield Reason(name, f"has no {name}: {why}")


def of_maps(request: Request, axes: Axes) -> list[Reason]:
    """The reasons against tensors that tensor maps cannot describe."""
    reasons: list[Reason] = []
    if request.grids is not None:
        reasons.append(Reason("grids", "has no packed grids: each would need its own tensor maps"))
    if request.layout == "strided":
        text = "takes contiguous or packed query, key and value, of which there are tensor maps"
        reasons.append(Reason("layout", text))
    if (maps := _maps(axes)) > _MAPS:
        text = f"takes dilations of up to {_MAPS} tensor maps, not {maps}"
        reasons.append(Reason("dilation", text))
    return reasons


def _maps(axes: Axes) -> int:
    """Tensor maps of a launch: one for each residue class, but for those of a last axis that the
    dilation divides, and one of each other tensor.
    """
    classes = 1
    for number, axis in enumerate(axes):
        dilation, lengths = axis.spec.dilation, (axis.queries, axis.keys)
        folds = number == len(axes) - 1 and not any(length % dilation for length in lengths)
        classes *= 1 if folds else min(dilation, max(lengths))
    return _TENSORS * classes + _TENSORS
