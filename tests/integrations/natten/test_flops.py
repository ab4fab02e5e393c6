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


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*jit:DeprecationWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_fvcore_counts_the_same(name: str) -> None:
    fvcore = pytest.importorskip("fvcore.nn")
    kind, given, space = LAYERS[name]
    layer, x = kind(16, 2, **given), torch.randn(2, *space, 16)
    counter = flops.add_natten_handle(fvcore.FlopCountAnalysis(layer, x))
    assert counter.unsupported_ops_warnings(False).total() == flops.get_flops(layer, x)
