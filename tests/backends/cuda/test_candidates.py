"""Tests of the CUDA kernels as candidates: programs, tiles, limits, costs and choice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import few_examples
import numpy as np
import pytest
from cuda_plans import arguments, device, planned
from hypothesis import given
from hypothesis import strategies as st
from oracle import masks, matrix
from work import lines

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.backends.cuda import meaning as cuda
from nbattn.backends.cuda import tiles as cuda_tiles
from nbattn.backends.cuda.tiles import Build

Count = Callable[[str, int], None]
Space = tuple[int, ...]


@pytest.mark.parametrize("family", cuda.INSTRUCTIONS)
@few_examples.quick(100)
@given(drawn=masks(), training=st.booleans())
def test_cuda_plans_compute_their_masks(
    cases: Count, drawn: tuple[Mask, Space, Space], training: bool, family: str
) -> None:
    """By index grids, in training those of the gradients' kernels too; and by intervals."""
    mask, queries, keys = drawn
    plan = planned(
        mask,
        (1, *queries, 2, 64),
        key_shape=(1, *keys, 1, 64),
        training=training,
        require=(family,),
    )
    assert plan.chosen.name == f"cuda/window+{family}"
    wanted = matrix(mask.axes, queries, keys)
    assert np.array_equal(plan.support(), wanted)
    assert plan.verify()
    assert (arguments(plan).grad_key is not None) == training
    cases("cuda plans", 1)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"dtype": "float32", "require": ("mma",)},
     "window+mma: takes float16, bfloat16, not float32"),
    ({"device": device("sm_75"), "dtype": "float16", "require": ("mma",)},
     "window+mma: needs sm_80 or newer, not sm_75"),
    ({"head": 20, "require": ("mma",)}, "window+mma: takes a head_dim divisible by 8, not 20"),
    ({"head": 264, "require": ("mma",)}, "window+mma: takes a head_dim of 16 to 256, not 264"),
    ({"value_dim": 8, "require": ("mma",)}, "window+mma: takes a value_dim of 16 to 256, not 8"),
    ({"head": 520}, "window+simt: takes a head_dim of 1 to 512, not 520"),
    ({"device": device("sm_90", providers=())},
     "cuda/window: needs CuPy and NVRTC, which are not installed: "
     'pip install "cupy-cuda13x>=14.2,<15" "nvidia-cuda-nvrtc>=13.0,<14" '
     '"nvidia-cuda-runtime>=13.0,<14"; with a driver of CUDA 12: pip install "cupy-cuda12x>=14.2'),
    ({"device": "cpu"}, "cuda/window: runs on cuda, not on cpu"),
    ({"device": device("gfx942", providers=("cupy",))},
     "cuda/window: needs an NVIDIA GPU, and gfx942 is AMD's"),
    ({"device": device("xe", providers=("cupy",))},
     "cuda/window: needs an NVIDIA GPU, and xe is Intel's"),
    ({"length": (1 << 25) + 1}, "window+mma: takes queries up to 33554432 on axis 0, not 3355443"),
    ({"length": 1 << 25, "batch": 16384}, "blocks are over the grid of 2147483647"),
    ({"length": 1 << 25, "batch": 1024, "training": True, "head": 256},
     "2147483648 blocks are over the grid"),
]  # fmt: skip


@pytest.mark.parametrize(("named", "text"), REFUSED)
def test_each_limit_of_cuda_has_a_reason(named: dict[str, Any], text: str) -> None:
    named = dict(named)
    length, head, batch = named.pop("length", 64), named.pop("head", 32), named.pop("batch", 1)
    with pytest.raises(BackendError) as error:
        planned(Mask.sliding_window(3), (batch, length, 2, head), **named)
    assert text in str(error.value)


def test_heads_are_not_packed_into_rows_of_warpgroups() -> None:
    plan = planned(
        Mask.sliding_window(100, 0, align="bottom-right"), (1, 1, 32, 64),
        key_shape=(1, 4096, 4, 64), require=("wgmma",),
    )  # fmt: skip
    assert arguments(plan).packed == 1
    assert arguments(plan).forward.row_count == 128


def test_extra_keys_in_a_range_are_taken_by_warpgroups() -> None:
    plan = planned(
        Mask(*[Axis(3, 3, border="wrap")] * 2), (1, 40, 40, 4, 128), extra_keys=9, sink=True,
        extra_range=True, softcap=9.0, training=True, require=("wgmma",), packed=True,
    )  # fmt: skip
    assert plan.chosen.name == "cuda/window+wgmma"
    build = arguments(plan).build
    assert build == Build("bfloat16", 128, 128, True, True, extra=True, extra_range=True)
    for kernel, tiles in (("fwd", arguments(plan).forward), ("dq", arguments(plan).grad_query)):
        assert tiles is not None
        variant = cuda_tiles.variant(kernel, tiles, build, grads=0, vector=True)
        assert {"-DNB_EXTRA_RANGE=1", "-DNB_SOFTCAP=1"} <= {*variant.options}


def test_the_planner_chooses_per_shape() -> None:
    """Several axes and dilation: the kernels, on sm_90 those of warpgroups; one dense
    axis: Flash or torch; tiny heads: without tensor cores.
    """
    for mask, shape, named, wanted in (
        (Mask.neighborhood((80, 80)), (1, 256, 256, 24, 128), {}, "cuda/window+wgmma"),
        (Mask.neighborhood((18, 24, 24)), (1, 30, 48, 80, 24, 128), {}, "cuda/window+wgmma"),
        (
            Mask.neighborhood((80, 80)),
            (1, 256, 256, 24, 128),
            {"device": device("sm_80")},
            "cuda/window+mma",
        ),
        (
            Mask.neighborhood((80, 80)),
            (1, 256, 256, 24, 128),
            {"forbid": ("wgmma",)},
            "cuda/window+mma",
        ),
        (Mask.neighborhood((13, 13), dilation=4), (8, 224, 224, 4, 64), {}, "cuda/window+mma"),
        (Mask.neighborhood((13, 13)), (1, 16, 16, 4, 64), {"backend": "cuda"}, "cuda/window+mma"),
        (Mask.neighborhood((7, 7)), (8, 56, 56, 2, 32), {"dtype": "float32"}, "cuda/window+simt"),
        (Mask.causal(), (1, 8192, 32, 128), {}, "sdpa/causal"),
        (Mask.neighborhood((7, 7)), (8, 56, 56, 2, 20), {"forbid": ("tiled",)}, "cuda/window+simt"),
    ):
        named = {"device": device("sm_90"), "training": True} | named
        assert nbattn.plan(mask, shape, **named).chosen.name == wanted


def test_everything_that_an_attention_may_have_is_accepted() -> None:
    plan = planned(
        Mask(Axis(3, 3, prefix=2), Axis(2, 2, border="wrap")), (2, 9, 8, 4, 64),
        key_shape=(2, 9, 8, 2, 64), value_dim=48, extra_keys=5, softcap=30.0, sink=True,
        key_range=True, training=True, return_lse=True, deterministic=True,
    )  # fmt: skip
    assert plan.chosen.name == "cuda/window+mma"
    build = arguments(plan).build
    assert build == Build("bfloat16", 64, 48, True, True, True, True)
    variant = cuda_tiles.variant("fwd", arguments(plan).forward, build, grads=0, vector=True)
    assert {"-DNB_TWO_RUNS=1", "-DNB_SOFTCAP=1", "-DNB_KEY_RANGE=1"} <= {*variant.options}


def test_costs_follow_the_kernels() -> None:
    """Seven products of a training step where Flash has five, and split gradients of wide heads."""
    small, wide = Build("bfloat16", 64, 64), Build("bfloat16", 256, 64)
    assert [cuda_tiles.products(k, small) for k in cuda_tiles.KERNELS] == [128, 192, 256]
    assert [cuda_tiles.grads_of("dkdv", build) for build in (small, wide)] == [(3,), (1, 2)]
    plan = planned(Mask.full(), (1, 4096, 8, 64), training=True)
    forward = planned(Mask.full(), (1, 4096, 8, 64))
    costs = plan.chosen.cost, forward.chosen.cost
    assert costs[0] is not None
    assert costs[1] is not None
    assert costs[0].flops / costs[1].flops == pytest.approx(4.5)
    assert (costs[1].calls, costs[0].calls) == (1, 4)
    assert costs[1].computed_pairs == costs[1].useful_pairs == 8 * 4096**2


def test_a_decode_step_looks_at_one_tile() -> None:
    """With the kernels among the candidates, at any length: few queries leave nothing to choose."""
    mask = Mask.from_transformers(4096)

    def step(keys: int) -> Callable[[], object]:
        shapes = (1, 1, 32, 128), (1, keys, 8, 128)
        return partial(nbattn.plan, mask, *shapes, device=device("sm_90"))

    step(4999)()
    for keys in (*range(5000, 5020), 10**9):
        assert lines(step(keys)) <= 9000
