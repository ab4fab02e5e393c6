"""Tests of natten.flops: the numbers that NATTEN's own formulas give."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nbattn.integrations import natten
from nbattn.integrations.natten import flops, modules

LAYERS = {
    "a line": (natten.NeighborhoodAttention1D, {"kernel_size": 5, "dilation": 2}, (12,)),
    "a causal volume": (
        modules.OlderNeighborhoodAttention3D,
        {"kernel_size": (5, 3, 4), "is_causal": (True, False, False)},
        (6, 5, 8),
    ),
    "a bias": (
        modules.OlderNeighborhoodAttention2D,
        {"kernel_size": (5, 3), "rel_pos_bias": True},
        (8, 7),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_counts_whole_windows_and_projections(name: str) -> None:
    kind, given, space = LAYERS[name]
    arguments: dict[str, Any] = given
    layer: Any = kind(16, 2, **arguments)
    found = flops.get_flops(layer, torch.randn(2, *space, 16))
    queries, keys = 2 * math.prod(space), math.prod(layer.kernel_size)
    assert found == queries * (3 * 16 * 16 + 2 * keys * 16 + 16 * 16)
    shape = (2, *space, 2, 8)
    both = flops.fna_flop_count(shape, shape, shape, arguments["kernel_size"])
    assert both == 2 * queries * 2 * keys * 16


def test_extra_keys_count() -> None:
    class Extra(torch.nn.Module):
        def forward(self, query: torch.Tensor) -> torch.Tensor:
            more = query[:, :4]
            return natten.na1d(query, query, query, 3, additional_keys=more, additional_values=more)

    assert flops.get_flops(Extra(), torch.randn(1, 9, 2, 8)) == 9 * 2 * 8 * 2 * (3 + 4)


class Counter:
    """What fvcore's FlopCountAnalysis does with handles."""

    def set_op_handle(self, **handles: Any) -> Counter:
        self.handles = handles
        return self

    def attention(self, layer: torch.nn.Module, x: torch.Tensor) -> int:
        graph: Any = torch.jit.trace(layer, x).inlined_graph  # pyright: ignore
        return sum(
            self.handles[node.kind()]([*node.inputs()], [*node.outputs()])
            for node in graph.nodes()
            if node.kind() in self.handles
        )


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*jit:DeprecationWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_fvcore_s_counters_count_whole_windows(name: str) -> None:
    kind, given, space = LAYERS[name]
    layer: Any = kind(16, 2, **given)
    counter = flops.add_natten_handle(Counter())
    found = counter.attention(layer, torch.randn(2, *space, 16))
    assert found == 2 * math.prod(space) * 2 * math.prod(layer.kernel_size) * 16
