"""Tests of what the CUDA kernels of warpgroups take: devices, sizes, features, and tensors of which
there are maps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cuda_plans import arguments, device, planned

import nbattn
from nbattn import BackendError, Mask
from nbattn.backends.cuda import group_limits
from nbattn.backends.cuda.tiles import KERNELS, Tiles
from nbattn.grids import grids_of
from nbattn.planner import planner
from nbattn.program.request import request_of

WGMMA = {"require": ("wgmma",)}
REFUSED: list[tuple[dict[str, Any], str]] = [
    *(({"device": device(name)},
       f"needs sm_90, not {name}: no other architecture has wgmma")
      for name in ("sm_80", "sm_89", "sm_100", "sm_103", "sm_120")),
    ({"dtype": "float32"},
     "takes float16, bfloat16, not float32"),
    ({"head": 72},
     "takes a head_dim of 64, 80, 96, 128, 192 or 256, not 72"),
    ({"head": 64, "value_dim": 32},
     "takes a value_dim of 64, 80, 96, 128, 192 or 256, not 32"),
    ({"head": 192, "training": True},
     "takes a head_dim up to 128 in training, not 192"),
    ({"head": 64, "key_range": True},
     "has no key_range: a tensor map copies whole boxes, and what is outside may be "
     "NaN"),
    ({"head": 64, "relative_bias": True},
     "has no relative_bias: only the other CUDA kernels add it to scores"),
    ({"head": 64, "alibi_slopes": True},
     "has no alibi_slopes: only the other CUDA kernels add them to scores"),
]  # fmt: skip


@pytest.mark.parametrize(("named", "text"), REFUSED)
def test_each_limit_has_a_reason(named: dict[str, Any], text: str) -> None:
    head = named.get("head", 64)
    others = {name: value for name, value in named.items() if name != "head"}
    with pytest.raises(BackendError) as error:
        planned(Mask.sliding_window(3), (1, 64, 2, head), **WGMMA, **others)
    assert f"cuda/window+wgmma: {text}\n" in str(error.value)


@pytest.mark.parametrize("size", group_limits.SIZES)
def test_all_head_sizes_are_taken(size: int) -> None:
    plan = planned(Mask.sliding_window(300), (1, 640, 2, size), training=size <= 128, **WGMMA)
    assert plan.chosen.name == "cuda/window+wgmma"
    assert (arguments(plan).grad_key is not None) == (size <= 128)


def test_packed_grids_have_no_tensor_maps() -> None:
    """And are run by the kernels of warps."""
    grids = {"grids": grids_of([(40, 40), (30, 60)]), "device": device("sm_90"), "backend": "cuda"}
    mask, shape = Mask.neighborhood((7, 7)), (3400, 4, 64)
    assert nbattn.plan(mask, shape, **grids).chosen.name == "cuda/window+mma"
    with pytest.raises(BackendError, match="has no packed grids: each would need its own tensor"):
        nbattn.plan(mask, shape, **grids, require=("wgmma",))


def test_tensors_of_any_strides_may_have_no_tensor_maps() -> None:
    shape = (1, 64, 64, 4, 64)
    named = {"dtype": "bfloat16", "device": device("sm_90"), "backend": "cuda"}
    request = request_of(Mask.neighborhood((7, 7)), shape, shape, value_dim=64, **named)
    for layout in ("contiguous", "packed", "regular"):
        plan = planner.make(replace(request, layout=layout, require=("wgmma",)))
        assert plan.chosen.name == "cuda/window+wgmma"
    strided = replace(request, layout="strided")
    assert planner.make(strided).chosen.name == "cuda/window+mma"
    with pytest.raises(
        BackendError, match="takes query, key and value with strides that tensor maps"
    ):
        planner.make(replace(strided, require=("wgmma",)))


def test_dilations_have_the_tensor_maps_that_a_launch_has_room_for() -> None:
    """Steps of up to 8 positions, last axes that the dilation divides, and few classes."""
    for dilation, space, training in (
        ((4, 8), (61, 67), True),  # steps
        ((1, 40), (20, 640), True),  # channels
        ((8,), (1009,), False),  # eight maps for each of three tensors
        ((6,), (1009,), True),  # six for each of four
    ):
        mask = Mask.neighborhood((3,) * len(space), dilation=dilation)
        plan = planned(mask, (1, *space, 2, 64), require=("wgmma",), training=training)
        assert plan.verify()
    for dilation, training in ((9, False), (7, True)):
        mask = Mask.neighborhood((3,), dilation=dilation)
        with pytest.raises(
            BackendError,
            match=f"tensor maps can say: at a dilation of {dilation} the tensors need ",
        ):
            planned(mask, (1, 1009, 2, 64), require=("wgmma",), training=training)


def test_regular_tensors_do_not_fold_a_dilation() -> None:
    """Their strides may leave no room among the channels: a map for each class, or a step."""
    for dilation, taken in ((8, True), (40, False)):
        mask, shape = Mask.neighborhood((3, 3), dilation=(1, dilation)), (1, 20, 640, 2, 64)
        named = {"dtype": "bfloat16", "device": device("sm_90"), "backend": "cuda"}
        request = request_of(mask, shape, shape, value_dim=64, **named)
        by_maps = [
            not one.reasons
            for layout in ("contiguous", "regular")
            for one in planner.make(replace(request, layout=layout)).candidates
            if one.name == "cuda/window+wgmma"
        ]
        assert by_maps == [True, taken], dilation


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("batch", "space", "heads"),
    [(1, (64,), 1), (3, (7, 0), 2), (2, (1, 1, 1), 5), (1, (1 << 20,), 15), (1 << 20, (1, 9), 1)],
)
def test_small_tensors_without_a_dilation_always_have_maps(
    kernel: str, batch: int, space: tuple[int, ...], heads: int
) -> None:
    """Which is why nobody asks for them."""
    mask, shape = Mask.full(rank=len(space)), (batch, *space, heads, 128)
    request = request_of(
        mask, shape, shape, value_dim=96, dtype="bfloat16", device=device("sm_90"), extra_keys=5
    )
    assert group_limits._elements(request) < group_limits._FEW
    shapes = group_limits._Shapes.of(request)
    tiles = Tiles((2, 8, 8), (2, 4, 16), 12, 1, 2, 2)
    for folds in (False, True):
        assert not group_limits._unmapped(
            kernel, tiles.rows, tiles.columns, (1, 1, 1), shapes, folds
        )
    assert not group_limits.unmapped(kernel, tiles, request, request.axes())


def test_tensors_that_are_too_large_have_no_maps() -> None:
    """The shorter way is not taken: an axis of more than 2^39 elements has no stride in a map."""
    mask, shape = Mask.full(rank=2), (2, 1 << 17, 1 << 17, 1, 64)
    request = request_of(mask, shape, shape, value_dim=64, dtype="bfloat16", device=device("sm_90"))
    tiles = Tiles((1, 1, 128), (1, 1, 64), 12, 1, 2, 2)
    wanted = "query: its batch stride is 2199023255552 bytes, a map takes less than 1099511627776"
    assert group_limits.unmapped("fwd", tiles, request, request.axes()) == wanted
