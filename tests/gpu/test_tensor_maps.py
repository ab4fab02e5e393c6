"""Tests that the driver of a GPU encodes the tensor maps of every layout."""

from __future__ import annotations

import pytest
import torch
from gpu_problems import needs_hopper
from tensor_layouts import DILATED, LAYOUTS, view_of

from nbattn.kernels import tensor_maps
from nbattn.kernels.tensor_maps import TensorBoxes, View

pytestmark = [pytest.mark.gpu, needs_hopper]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_driver_takes_the_maps_of_every_layout(dtype: str, cases) -> None:
    memory = torch.empty(1 << 20, device="cuda", dtype=getattr(torch, dtype))
    for make in LAYOUTS:
        for space, dilations, tile, *_ in DILATED.values():
            for channels in (64, 80, 96):
                view = view_of(make(2, space, 2, channels))
                boxes = tensor_maps.boxes_of("key", view, tile, dilations)
                assert isinstance(boxes, TensorBoxes)
                encoded = {
                    tensor_maps.encode(each, memory.data_ptr(), dtype) for each in boxes.maps
                }
                assert len(encoded) == len(boxes.maps)
                assert all(any(each) for each in encoded)
                cases("encoded maps", len(encoded))


def test_the_driver_takes_the_largest_maps() -> None:
    memory = torch.empty(64, device="cuda", dtype=torch.float16)
    for view in (
        View.contiguous((1, 1 << 30, 1, 64)),
        View((2, 4, 1 << 20, 16, 128), (1 << 38, 1 << 36, 2048, 128, 1)),
    ):
        boxes = tensor_maps.boxes_of("key", view, (1, 1, 256))
        assert isinstance(boxes, TensorBoxes)
        assert any(tensor_maps.encode(boxes.maps[0], memory.data_ptr(), "float16"))
