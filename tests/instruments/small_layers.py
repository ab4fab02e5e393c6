"""Small layers: cases with their inputs, and a transform that records its arguments."""

from __future__ import annotations

from typing import Any

import torch
from oracle import axis_matrix, box
from torch import Tensor, nn

from nbattn import Axis, Mask, NeighborhoodAttention

State = dict[str, Tensor]
LINE = Mask(Axis(3, 1))
PLANE = Mask(Axis(1, 1, border="shift"), Axis(2, causal=True))
CROSS_LINE = Mask(Axis(3, 1, align="top-left"))
CROSS = Mask(Axis(1, 1, border="shift", align="top-left"), Axis(2, causal=True, align="top-left"))
SOLID = Mask(
    Axis(1, causal=True), Axis(1, 1, border="wrap"), Axis(1, 2, border="shift", dilation=2)
)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build(mask: Mask = LINE, dim: int = 12, heads: int = 4, **options: Any) -> Any:
    """A float64 layer with weights large enough that every mistake shows."""
    layer = NeighborhoodAttention(dim, heads, mask, **options).double()
    for n, parameter in enumerate(layer.parameters()):
        parameter.data = random(*parameter.shape, seed=100 + n) * 0.5
    return layer


def matrix_of(mask: Mask, queries: tuple[int, ...], keys: tuple[int, ...]) -> Tensor:
    """bool [Nq, Nk] by the enumerator."""
    sizes = zip(mask.axes, queries, keys, strict=True)
    return torch.from_numpy(box([axis_matrix(*size) for size in sizes]))


CASES: dict[str, tuple[Mask, tuple[int, ...], tuple[int, ...] | None, dict[str, Any], str]] = {
    "line": (LINE, (11,), None, {}, ""),
    "line_grouped_heads": (LINE, (11,), None, {"kv_heads": 2}, ""),
    "line_one_key_head_of_odd_size": (LINE, (9,), None, {"kv_heads": 1, "head_dim": 5}, "extra"),
    "line_shorter_context": (Mask.causal("bottom-right"), (9,), (5,), {}, ""),
    "line_longer_context": (
        CROSS_LINE,
        (5,),
        (9,),
        {"kv_heads": 2, "qkv_bias": False},
        "extra range",
    ),
    "line_rows_without_keys": (Mask(Axis(1, 0, offset=-3)), (7,), None, {}, ""),
    "plane": (PLANE, (4, 5), None, {"kv_heads": 2}, "range"),
    "plane_extra": (PLANE, (4, 5), None, {"head_dim": 6}, "extra"),
    "plane_context": (CROSS, (4, 5), (3, 7), {"kv_heads": 2}, "extra range"),
    "plane_no_extra_tokens_at_all": (PLANE, (4, 5), None, {}, "none"),
    "solid": (SOLID, (3, 4, 6), None, {}, ""),
    "solid_everything": (SOLID, (2, 3, 5), None, {"kv_heads": 2, "head_dim": 4}, "extra range"),
    "solid_context": (Mask.full(3), (2, 3, 1), (1, 2, 5), {"kv_heads": 1}, "extra"),
    "reference": (CROSS, (4, 5), (3, 7), {"kv_heads": 2, "backend": "reference"}, "extra range"),
    "tiled": (CROSS, (4, 5), (3, 7), {"kv_heads": 2, "backend": "tiled"}, "extra range"),
}


def case(name: str) -> tuple[Any, Tensor, list[Tensor], dict[str, Any]]:
    """Layer, dense mask, positional tensors and named ones."""
    mask, space, keys, options, given = CASES[name]
    layer = build(mask, **options)
    tokens = [random(2, *space, 12)] + ([] if keys is None else [random(2, *keys, 12, seed=1)])
    named: dict[str, Any] = {}
    if "extra" in given or "none" in given:
        named["extra_tokens"] = random(2, 3 if "extra" in given else 0, 12, seed=2)
    if "range" in given:
        boxes = [[[0, n] for n in keys or space], [[1, max(1, n - 1)] for n in keys or space]]
        named["key_range"] = torch.tensor(boxes, dtype=torch.int32)
    return layer, matrix_of(mask, space, keys or space), tokens, named


# The transform.


class Recorder(nn.Module):
    """Doubles queries, negates keys, remembers what it saw; strided results of another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += [tuple(query.shape), tuple(key.shape)]
        return (2 * query).mT.contiguous().mT.double(), -key

    def extra_key(self, key: Tensor) -> Tensor:
        self.seen.append(tuple(key.shape))
        return 3 * key
