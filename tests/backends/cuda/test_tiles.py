"""Tests of the tile sizes of the CUDA kernels: they fit device and threads, and all are shipped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
from cuda_plans import arguments, device, planned

import nbattn
from nbattn import Mask
from nbattn.backends.cuda import meaning as cuda
from nbattn.backends.cuda import tiles as cuda_tiles
from nbattn.backends.cuda.meaning import CudaArguments
from nbattn.backends.cuda.tiles import Build, Tiles
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
            if tiles.warpgroups:
                assert tiles.row_count == 64 * tiles.warpgroups == 16 * (tiles.warps - 4)
            elif tiles.row_blocks:
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


# By hand from cuda/fwd_wgmma.cu, dq_wgmma.cu and dkdv_wgmma.cu, which assert the same: rows, stages
# of columns, barriers, origins of boxes, rows' windows, visits, mask words.
GROUP_BYTES = [
    ("fwd", Tiles((2, 8, 8), (2, 4, 8), 12, 1, 4, 2), (128, 64),
     128 * 256 + 4 * 64 * 384 + 4 * 32 + 16 + 160 + 256 + 16 * 18 + 1536 + 16 * 17),
    ("fwd", Tiles((1, 8, 16), (1, 8, 16), 12, 1, 3, 2), (64, 96),
     128 * 192 + 3 * 128 * 320 + 3 * 32 + 16 + 160 + 256 + 16 * 25 + 1536 + 16 * 28),
    ("fwd", Tiles((3, 8, 8), (1, 8, 8), 16, 1, 2, 3), (64, 64),
     192 * 128 + 2 * 64 * 256 + 2 * 32 + 16 + 160 + 256 + 16 * 19 + 1536 + 16 * 20),
    ("dq", Tiles((1, 1, 128), (1, 1, 64), 12, 1, 4, 2), (128, 64),
     128 * 384 + 4 * 64 * 384 + 4 * 32 + 16 + 160 + 256 + 16 * 130 + 1536 + 16 * 69),
    ("dkdv", Tiles((1, 8, 16), (1, 4, 8), 12, 1, 4, 2), (128, 128),
     128 * 512 + 4 * 32 * (512 + 8) + 4 * 32 + 16 + 160 + 256 + 16 * 25 + 1536 + 16 * 16),
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "tiles", "sizes", "wanted"), GROUP_BYTES)
def test_shared_memory_of_warpgroups(
    kernel: str, tiles: Tiles, sizes: tuple[int, int], wanted: int
) -> None:
    build = Build("bfloat16", *sizes)
    assert cuda_tiles.shared_bytes(kernel, tiles, build) == wanted
    variant = cuda_tiles.variant(kernel, tiles, build, grads=0, vector=True)
    assert variant.shared_bytes == wanted


# 32-bit registers of a thread, by hand: sums, scores, and in the forward weights of two in one.
GROUP_REGISTERS = [
    ("fwd", 128, 128, 128, 64 + 64 + 32),
    ("fwd", 64, 128, 64, 64 + 32 + 16),
    ("fwd", 128, 64, 64, 32 + 32 + 16),
    ("dq", 128, 64, 64, 64 + 2 * 32),
    ("dkdv", 128, 64, 64, 64 + 32 + 2 * 32),
]


@pytest.mark.parametrize(("kernel", "head", "value", "columns", "wanted"), GROUP_REGISTERS)
def test_accumulators_of_warpgroups(
    kernel: str, head: int, value: int, columns: int, wanted: int
) -> None:
    tiles = Tiles((1, 1, 128), (1, 1, columns), 12, 1, 2, 2)
    assert cuda_tiles.accumulators(kernel, tiles, Build("float16", head, value)) == wanted


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2), (2,)])
@pytest.mark.parametrize("kernel", cuda_tiles.KERNELS)
def test_tiles_of_warpgroups(kernel: str, axes: tuple[int, ...]) -> None:
    """Rows in whole warpgroups, boxes that a tensor map has, as many stages as fit."""
    memory = SHARED["sm_90"]
    for size in (64, 80, 96, 128, 192, 256):
        build = Build("bfloat16", size, size)
        found = cuda_tiles.legal_tiles(kernel, "wgmma", axes, build, memory)
        assert bool(found) == (kernel == "fwd" or size <= 128)
        for tiles in found:
            assert tiles.instructions == "wgmma"
            assert tiles.warps == 4 * (tiles.warpgroups + 1)
            assert tiles.row_count == 64 * tiles.warpgroups
            assert tiles.column_count in ((32, 64) if kernel == "dkdv" else (64, 128))
            assert max(*tiles.rows, *tiles.columns) <= 256
            assert cuda_tiles.shared_bytes(kernel, tiles, build) <= memory
            more = replace(tiles, stages=tiles.stages + 1)
            is_most = cuda_tiles.shared_bytes(kernel, more, build) > memory
            assert tiles.stages == 4 or (tiles.stages in (2, 3) and is_most)


def test_what_compilers_do_not_hold_in_registers_is_not_offered() -> None:
    """Threads of three warpgroups have 160 registers, of two 232: with more, registers spill, or
    products wait for each other.
    """

    def sizes(kernel: str, size: int) -> set[tuple[int, int]]:
        build = Build("bfloat16", size, size)
        found = cuda_tiles.legal_tiles(kernel, "wgmma", (1, 2), build, SHARED["sm_90"])
        return {(tiles.warpgroups, tiles.column_count) for tiles in found}

    assert sizes("fwd", 64) == {(2, 64), (2, 128), (3, 64), (3, 128)}
    assert sizes("fwd", 128) == {(2, 64), (2, 128), (3, 64)}
    assert sizes("fwd", 256) == {(2, 64)}
    assert sizes("dq", 96) == {(2, 64), (2, 128), (3, 64)}
    assert sizes("dq", 128) == {(2, 64), (2, 128)}
    assert sizes("dkdv", 64) == sizes("dkdv", 128) == {(2, 64)}


def test_variants_of_warpgroups() -> None:
    """No copies by threads, so none that need whole chunks; keys' gradients have keys as rows."""
    tiles = Tiles((1, 8, 16), (1, 8, 8), 12, 1, 3, 2)
    build = Build("bfloat16", 128, 128)
    one = cuda_tiles.variant("dkdv", tiles, build, grads=3, vector=True)
    assert (one.source, one.entry, one.threads) == ("dkdv_wgmma.cu", "nb_dkdv_wgmma", 384)
    assert {"-DNB_WARPS=12", "-DNB_ROW_BLOCKS=1", "-DNB_STAGES=3", "-DNB_GRADS=3"} <= {*one.options}
    assert {"-DNB_KEY_TILE_2=16", "-DNB_QUERY_TILE_2=8"} <= {*one.options}
    assert "NB_VECTOR" not in dict(one.constants)


def test_shipped_variants_hold_every_choice() -> None:
    """Whatever is planned for bfloat16 at 64 or 128 channels is compiled before a release."""
    shipped = set(cuda_tiles.shipped())
    assert len(shipped) == len([*cuda_tiles.shipped()])
    spaces = ((64,), (5000,), (7, 7), (56, 56), (4, 48, 80), (30, 48, 80), (1, 9, 9))
    for space, family in product(spaces, ("mma", "wgmma")):
        for size in (64, 128):
            mask = Mask.neighborhood((3,) * len(space) if min(space) > 2 else (1, 3, 3))
            plan = planned(mask, (4, *space, 8, size), training=True, require=(family,))
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
