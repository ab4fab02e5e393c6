"""Tests of the layouts that tensors have, among them that of a packed projection."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import nbattn
from nbattn import Mask, execute
from nbattn.backends.inputs import Inputs, kernel_tensors, layout_of
from nbattn.planner.plan import Plan


def planned(inputs: Inputs, mask: Mask, **named: Any) -> Plan:
    options: dict[str, Any] = {
        **{"backend": "auto", "require": (), "forbid": (), "training": True},
        **{"deterministic": False, "return_lse": False},
    }
    return execute.planned(mask, inputs, **options | named)


# What "packed" means.


def packed(
    shape: tuple[int, ...], heads: tuple[int, int], dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Views of what one projection gives."""
    sizes = [heads[0] * dim, heads[1] * dim, heads[1] * dim]
    joined = torch.randn(*shape, sum(sizes))
    query, key, value = (part.unflatten(-1, (-1, dim)) for part in joined.split(sizes, dim=-1))
    return query, key, value


def test_layouts_of_calls() -> None:
    query, key, value = packed((2, 6), (4, 2), 8)
    assert layout_of(query, key, value) == "packed"
    own = torch.randn(2, 3, 4, 8)
    assert layout_of(own, key, value) == "packed"  # a context's keys and values
    assert layout_of(query, key, value.clone()) == "strided"
    assert layout_of(query, value, key) == "packed"
    assert layout_of(*(t.clone() for t in (query, key, value))) == "contiguous"
    first = query.transpose(1, 2).contiguous().transpose(1, 2)
    assert layout_of(first, first, first) == "strided"
    fused = torch.randn(2, 6, 3, 4, 8)  # x @ weight, then .unflatten(-1, (3, H, D)).unbind(2)
    assert layout_of(*fused.unbind(2)) == "packed"
    per_head = torch.randn(2, 6, 4, 3, 8)
    assert layout_of(*per_head.unbind(3)) == "strided"
    uneven = torch.randn(2, 6, 101)[..., :96].unflatten(-1, (3, 4, 8))  # 404 bytes from row to row
    assert layout_of(*uneven.unbind(2)) == "strided"
    shared = torch.randn(1, 6, 3, 4, 8).expand(2, -1, -1, -1, -1)
    assert layout_of(*shared.unbind(2)) == "strided"
    longer = torch.randn(2, 9, 3, 4, 8)[:, 1:7]
    assert layout_of(*longer.unbind(2)) == "packed"


def test_rows_that_overlap_are_not_packed() -> None:
    """Tensor maps could not say them: residues of a dilation are apart in packed rows."""
    memory = torch.randn(5000)
    for steps in ((1000, 16, 64, 1), (1000, 128, 64, 1), (640, 128, 64, 1)):
        frames = memory.as_strided((2, 6, 2, 64), steps)
        packed = steps[1] >= 128 and steps[0] >= 6 * steps[1]
        assert (layout_of(frames, frames, frames) == "packed") == packed
    key = memory.as_strided((2, 6, 2, 16), (640, 48, 16, 1))
    value = memory.as_strided((2, 6, 2, 32), (640, 48, 32, 1))
    assert layout_of(torch.randn(2, 5, 2, 16), key, value) == "strided"


def test_a_packed_plan_is_the_plan_of_a_packed_call() -> None:
    for space, heads in (((6,), (4, 2)), ((5, 4), (2, 2))):
        mask = Mask(*[nbattn.Axis(2, 1, dilation=2)] * len(space))
        query, key, value = packed((2, *space), heads, 8)
        inputs = Inputs(query, key, value, scale=1.0)
        shapes = query.shape, key.shape
        wanted = nbattn.plan(mask, *shapes, dtype="float32", device="cpu", packed=True)
        assert planned(inputs, mask, training=False) == wanted
        assert wanted.request.layout == "packed"


# What the project's own kernels read.


def test_kernels_read_contiguous_tensors_where_they_take_no_strides() -> None:
    """Queries, keys and values as they lie; a sink as precise as scores; ranges of 32 bits."""
    query, key, value = (torch.zeros(2, 2, 9, 8).half().transpose(1, 2) for _ in range(3))
    extra, sink, ranges = torch.zeros(2, 2, 3, 8).half().transpose(1, 2), torch.zeros(4)[::2], None
    inputs = Inputs(query, key, value, sink.half(), ranges, extra, extra + 0)
    found = kernel_tensors(inputs)
    assert found["query"] is query
    assert found["key"] is key
    assert found["value"] is value
    assert found["sink"].dtype == torch.float32
    assert all(found[name].is_contiguous() for name in ("extra_key", "extra_value", "sink"))
    assert "key_range" not in found
    ranges = torch.tensor([[[1, 5]], [[0, 9]]]).mT.contiguous().mT
    found = kernel_tensors(inputs._replace(key_range=ranges, extra_key=extra[:, :0], sink=None))
    assert found.keys() == {"query", "key", "value", "key_range"}
    assert found["key_range"].dtype == torch.int32
    assert found["key_range"].is_contiguous()
    double = inputs._replace(query=query.double(), sink=sink.double())
    assert kernel_tensors(double)["sink"].dtype == torch.float64
