"""Tests of the tile sizes of the CUDA kernels: they fit device and threads, and all are shipped."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from cuda_plans import arguments, device, planned

import nbattn
from nbattn import Mask
from nbattn.backends.cuda import meaning as cuda
from nbattn.backends.cuda import tiles as cuda_tiles
from nbattn.backends.cuda.meaning import CudaArguments
from nbattn.backends.cuda.tiles import Build
from nbattn.program.device import DEVICES

Count = Callable[[str, int], None]
Space = tuple[int, ...]


# Bytes of shared memory that a block may have, as the CUDA programming guide's table has them.
SHARED = {
    "sm_75": 64 << 10, "sm_80": 163 << 10, "sm_86": 99 << 10, "sm_87": 163 << 10, "sm_89": 99 << 10,
    "sm_90": 227 << 10, "sm_100": 227 << 10, "sm_103": 227 << 10, "sm_110": 227 << 10,
    "sm_120": 99 << 10, "sm_121": 99 << 10,
}  # fmt: skip


def test_memory_is_that_of_the_guide() -> None:
    known = {f"sm_{capability}": memory for capability, memory in cuda._MEMORY.items()}
    assert known == SHARED


@pytest.mark.parametrize("name", [name for name, one in DEVICES.items() if one.may_be_nvidia])
@pytest.mark.parametrize("dtype", cuda_tiles.DTYPES)
@pytest.mark.parametrize("sizes", [(16, 16), (32, 64), (64, 20), (128, 128), (256, 80), (512, 512)])
def test_tiles_fit_the_device(name: str, dtype: str, sizes: tuple[int, int], cases: Count) -> None:
    """Memory of every kernel of an accepted plan, and its registers."""
    plan = nbattn.plan(
        Mask.neighborhood((5, 7, 7)), (2, 8, 30, 40, 4, sizes[0]), value_dim=sizes[1], dtype=dtype,
        device=device(name), training=True,
    )  # fmt: skip
    for candidate in plan.candidates:
        if candidate.backend != "cuda" or candidate.reasons:
            continue
        assert candidate.program is not None
        call = candidate.program.calls[0].arguments
        assert isinstance(call, CudaArguments)
        for kernel, tiles in zip(
            cuda_tiles.KERNELS, (call.forward, call.grad_query, call.grad_key), strict=True
        ):
            assert tiles is not None
            used = cuda_tiles.shared_bytes(kernel, tiles, call.build)
            assert used <= SHARED[f"sm_{DEVICES[name].capability}"]
            assert cuda_tiles.accumulators(kernel, tiles, call.build) <= 192
            if tiles.row_blocks:
                assert tiles.row_count == 16 * tiles.warps * tiles.row_blocks
            cases("cuda tiles that fit", 1)


@pytest.mark.parametrize("size", [16, 64, 128, 192, 256])
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2), (2,)])
def test_a_thread_holds_its_part_of_output_and_scores(size: int, axes: tuple[int, ...]) -> None:
    """Of a warp's rows, dealt out to 32 threads; above 160 compilers spill."""
    build = Build("float16", size, size)
    found = cuda_tiles.legal_tiles("fwd", "mma", axes, build, SHARED["sm_90"])
    assert found
    for tiles in found:
        rows, columns = tiles.row_count // tiles.warps, math.prod(tiles.columns)
        assert rows * (size + columns) // 32 <= 160


def test_shipped_variants_hold_every_choice() -> None:
    """Whatever is planned for bfloat16 at 64 or 128 channels is compiled before a release."""
    shipped = set(cuda_tiles.shipped())
    assert len(shipped) == len([*cuda_tiles.shipped()])
    for space in ((64,), (5000,), (7, 7), (56, 56), (4, 48, 80), (30, 48, 80), (1, 9, 9)):
        for size in (64, 128):
            mask = Mask.neighborhood((3,) * len(space) if min(space) > 2 else (1, 3, 3))
            plan = planned(mask, (4, *space, 8, size), training=True)
            call = arguments(plan)
            for kernel, tiles in zip(
                cuda_tiles.KERNELS, (call.forward, call.grad_query, call.grad_key), strict=True
            ):
                assert tiles is not None
                (grads,) = cuda_tiles.grads_of(kernel, call.build)
                one = cuda_tiles.variant(kernel, tiles, call.build, grads=grads, vector=True)
                assert one in shipped
    assert {one.entry for one in shipped} == {
        "nb_delta", *(f"nb_{k}_{f}" for k in cuda_tiles.KERNELS for f in cuda.INSTRUCTIONS)
    }  # fmt: skip
