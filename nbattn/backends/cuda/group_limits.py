"""What the CUDA kernels of warpgroups ("wgmma") do not take, and why; other kernels take it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from nbattn.backends.cuda.tiles import SPLIT, Tiles
from nbattn.geometry import Axes
from nbattn.kernels import tensor_maps
from nbattn.kernels.tensor_maps import View
from nbattn.program.limits import Reason
from nbattn.program.request import Needs, Request
from nbattn.program.tile_counts import Extents, padded

HALVES = ("float16", "bfloat16")
SIZES = (64, 80, 96, 128, 192, 256)  # head sizes
_CAPABILITY = 90
_FEW = 1 << 31  # elements
_WHY = {
    "key_range": "a tensor map copies whole boxes, and what is outside may be NaN",
    "relative_bias": "only the other CUDA kernels add it to scores",
    "alibi_slopes": "only the other CUDA kernels add them to scores",
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
        elif needs.training and size > SPLIT:  # the gradients of wider ones do not fit registers
            yield Reason(name, f"takes a {name} up to {SPLIT} in training, not {size}")


def _of_features(needs: Needs) -> Iterator[Reason]:
    for name, why in _WHY.items():
        if getattr(needs, name):
            yield Reason(name, f"has no {name}: {why}")


def of_request(request: Request) -> list[Reason]:
    """The limits of what is known only of a request: packed grids, and tensors of any strides."""
    reasons: list[Reason] = []
    if request.grids is not None:
        reasons.append(Reason("grids", "has no packed grids: each would need its own tensor maps"))
    if request.layout == "strided":
        text = "takes query, key and value with strides that tensor maps can say"
        reasons.append(Reason("layout", text))
    return reasons


def unmapped(kernel: str, tiles: Tiles, request: Request, axes: Axes) -> str:
    """Why the tensors of a request have no tensor maps for a kernel with these tiles; empty if they
    have.
    """
    dilations = [axis.spec.dilation for axis in padded(axes)]
    if max(dilations) == 1 and _elements(request) < _FEW:  # all numbers of a map have room
        return ""
    # Without a dilation all extents are alike.
    rows, columns = (
        tuple(n if step > 1 else 1 for n, step in zip(extents, dilations, strict=True))
        for extents in (tiles.rows, tiles.columns)
    )
    folds = request.layout != "regular"
    return _unmapped(kernel, rows, columns, tuple(dilations), _Shapes.of(request), folds)


def _elements(request: Request) -> int:
    """Elements of the largest tensor, or more."""
    queries = request.query_count * request.heads
    keys = max(request.key_count, request.extra_keys) * request.kv_heads
    return request.batch * max(queries, keys) * max(request.head_dim, request.value_dim)


class _Shapes(NamedTuple):
    """The shapes of a request's tensors."""

    query: tuple[int, ...]
    grad_out: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    extra_key: tuple[int, ...] = ()
    extra_value: tuple[int, ...] = ()

    @classmethod
    def of(cls, request: Request) -> _Shapes:
        query, key = (
            (request.batch, *space, heads)
            for space, heads in (
                (request.query_space, request.heads),
                (request.key_space, request.kv_heads),
            )
        )
        d, dv = request.head_dim, request.value_dim
        shapes = cls((*query, d), (*query, dv), (*key, d), (*key, dv))
        if not request.extra_keys:
            return shapes
        extra = (request.batch, request.extra_keys, request.kv_heads)
        return shapes._replace(extra_key=(*extra, d), extra_value=(*extra, dv))


@lru_cache(4096)
def _unmapped(
    kernel: str,
    rows: Extents,
    columns: Extents,
    dilations: Extents,
    shapes: _Shapes,
    folds: bool,
) -> str:
    """The same of contiguous tensors; others differ in strides only, which may forbid to fold."""
    views = {
        name: View.contiguous(shape)
        for name, shape in shapes._asdict().items()
        if shape and (kernel != "fwd" or name != "grad_out")
    }
    found = tensor_maps.maps_of(kernel, views, rows, columns, dilations, folds=folds)
    return found if isinstance(found, str) else ""
