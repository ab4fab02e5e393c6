"""Tests of the emulator's part for sm_90a: its primitives against numpy, and mistakes it must find."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from emulator import build
from emulator import hopper_primitives as hopper
from emulator.launcher import MODES, Counts, Launcher, Mode
from emulator.primitives import numbers
from torch import Tensor

from nbattn.kernels.tensor_maps import TensorMap
from nbattn.kernels.variant import Variant

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))
DTYPES = {"half": torch.float16, "bfloat16": torch.bfloat16}


def launch(
    entry: str,
    mode: Mode,
    *maps: TensorMap,
    threads: int = 128,
    shared: int = 32768,
    values: tuple[int, ...] = (),
    source: str = "hopper_primitives.cu",
    seed: int = 1,
    **tensors: Tensor,
) -> Counts:
    launcher = Launcher(mode, seed, seconds=600, folder=build.HERE)
    given = hopper.mapped_numbers(*values) if maps else numbers()
    launcher.launch(Variant(source, entry, (), threads, shared), 1, tensors, given, maps)
    return launcher.counts


# Boxes. Sizes and strides are those of a tensor [2, 3, 5, 7, heads x channels].


def box_map(
    swizzle: int, extents: tuple[int, ...], steps: tuple[int, ...] = (1, 1, 1)
) -> TensorMap:
    width = 3 * swizzle // 2
    sizes = (width, 7, 5, 3, 2)
    strides = tuple(2 * width * n for n in (1, 7, 35, 105))
    positions = tuple(n * step for n, step in zip(extents, steps, strict=True))
    return TensorMap(
        "query", 0, sizes, strides, (swizzle // 2, *positions, 1), (1, *steps, 1), swizzle
    )


BOXES = {
    "inside": ((4, 2, 1), (1, 1, 1), (1, 2, 1, 1)),
    "before the start": ((4, 4, 2), (1, 1, 1), (-2, -1, -1, 0)),
    "past the end": ((4, 4, 2), (1, 1, 1), (5, 3, 2, 1)),
    "outside": ((8, 1, 1), (1, 1, 1), (7, 0, 0, 0)),
    "far outside": ((8, 1, 1), (1, 1, 1), (0, -100, 0, 1)),
    "past the last sample": ((8, 1, 1), (1, 1, 1), (0, 0, 0, 2)),
    "steps": ((4, 2, 2), (2, 3, 2), (-1, 1, -1, 1)),
    "steps of the last axis": ((8, 2, 1), (8, 1, 1), (-9, 4, 2, 0)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("swizzle", hopper.SWIZZLES)
@pytest.mark.parametrize("case", BOXES)
def test_boxes(case: str, swizzle: int, mode: Mode, cases):
    extents, steps, at = BOXES[case]
    one = box_map(swizzle, extents, steps)
    query = torch.arange(1, 1 + 210 * one.sizes[0], dtype=torch.int16)
    for inner in (swizzle // 2, one.sizes[0] - swizzle // 4, -swizzle // 4):  # in, and over, edges
        expected = hopper.box(query.numpy(), one, (inner, *at))
        out = torch.zeros(2, expected.size, dtype=torch.int16)
        counts = launch(
            "boxes", mode, one, one, values=(inner, *at, 2 * expected.size, 2), query=query, out=out
        )
        assert np.array_equal(out[0].numpy(), hopper.swizzled(expected).reshape(-1))
        assert torch.equal(out[0], out[1])
        assert (counts.boxes, counts.box_bytes) == (2, 4 * expected.size)
    cases("emulator: boxes", 3)


@pytest.mark.parametrize("mode", MODES)
def test_phases_and_bytes_of_barriers(mode: Mode, cases):
    rounds, query = 7, torch.arange(64 * 50, dtype=torch.int16)
    one = TensorMap(
        "query", 0, (64, 50, 1, 1, 1), (128, 6400, 6400, 6400), (64, 8, 1, 1, 1), (1,) * 5, 128
    )
    lse = torch.zeros(rounds, 8, 64, dtype=torch.int16)
    for seed in range(1, 6 if mode == "random" else 2):
        launch(
            "rounds",
            mode,
            one,
            values=(rounds, 1024),
            query=query,
            lse=lse.zero_(),
            out=lse[:1].clone(),
            seed=seed,
            threads=64,
        )
        for n in range(rounds):
            expected = hopper.box(query.numpy(), one, (0, 8 * n, 0, 0, 0))
            assert np.array_equal(lse[n].numpy(), hopper.swizzled(expected))
    cases("emulator: primitives", 1)


@pytest.mark.parametrize("mode", MODES)
def test_arrivals_after_copies(mode: Mode, cases):
    query, out = torch.randint(-99, 99, (5, 32, 4)).float(), torch.zeros(32, 4)
    for seed in range(1, 6 if mode == "random" else 2):
        launch(
            "copies_arrive",
            mode,
            threads=64,
            query=query,
            key_range=hopper.words(5),
            out=out.zero_(),
            seed=seed,
        )
        assert torch.equal(out, query.sum(0).flip(0))
    cases("emulator: primitives", 1)


# Products


def operand_tensors(name: str, *shapes: tuple[int, int]) -> list[Tensor]:
    rng = np.random.default_rng(0)
    return [hopper.small_integers(rng, DTYPES[name], *shape) for shape in shapes]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("swizzle", hopper.SWIZZLES)
@pytest.mark.parametrize("columns", [32, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_shared_memory(dtype: str, columns: int, swizzle: int, mode: Mode, cases):
    a, b = operand_tensors(dtype, (64, 64), (columns, 64))
    images = [torch.from_numpy(hopper.tile_image(hopper.bits(x), swizzle)) for x in (a, b)]
    steps = [
        (*hopper.k_major(64, k, swizzle), *hopper.k_major(columns, k, swizzle)) for k in range(4)
    ]
    given = hopper.words(8192, 128 * columns, 4, *(word for step in steps for word in step))
    out = torch.zeros(128, columns // 2)
    counts = launch(
        f"shared_{dtype}_{columns}", mode, query=images[0], key=images[1], key_range=given, out=out
    )
    assert np.array_equal(out.numpy(), hopper.accumulators((a.float() @ b.float().T).numpy()))
    assert counts.wgmma == 4
    cases("emulator: products", 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("swizzle", hopper.SWIZZLES)
@pytest.mark.parametrize("columns", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_registers(dtype: str, columns: int, swizzle: int, mode: Mode, cases):
    if columns % (swizzle // 2):
        pytest.skip("the channels are no whole boxes")
    a, b, c = operand_tensors(dtype, (64, 32), (32, columns), (64, columns))
    image = torch.from_numpy(hopper.tile_image(hopper.bits(b), swizzle))
    steps = [(0, 0, *hopper.mn_major(32, k, swizzle)) for k in range(2)]
    given = hopper.words(0, 64 * columns, 2, *(word for step in steps for word in step))
    query = torch.from_numpy(hopper.operands(hopper.bits(a)))
    value, out = (
        torch.from_numpy(hopper.accumulators(c.float().numpy())),
        torch.zeros(128, columns // 2),
    )
    launch(
        f"registers_{dtype}_{columns}",
        mode,
        query=query,
        key=image,
        value=value,
        key_range=given,
        out=out,
    )
    expected = (c.float() + a.float() @ b.float()).numpy()
    assert np.array_equal(out.numpy(), hopper.accumulators(expected))
    cases("emulator: products", 1)


# Others


@pytest.mark.parametrize("mode", MODES)
def test_stmatrix(mode: Mode, cases):
    query = torch.arange(128, dtype=torch.int32).reshape(32, 4) * 65537 + 65536
    place = torch.from_numpy(np.random.default_rng(0).permutation(32).astype(np.int32))
    out = torch.zeros(32, 4, dtype=torch.int32)
    launch("stmatrix", mode, threads=32, query=query, key=place, out=out)
    fragment = (
        query.numpy().view(np.int16).reshape(8, 4, 4, 2)
    )  # [row, pair of columns, matrix, element]
    rows = fragment.transpose(2, 0, 1, 3).reshape(32, 8)
    assert np.array_equal(out.numpy().view(np.int16)[place.numpy()], rows)
    cases("emulator: primitives", 1)


@pytest.mark.parametrize("mode", MODES)
def test_turns(mode: Mode, cases):
    out = torch.zeros(12, 128, dtype=torch.int32)
    launch("turns", mode, threads=384, key_range=hopper.words(4), out=out)
    assert (out == torch.arange(12)[:, None] % 3).all()
    cases("emulator: primitives", 1)


@pytest.mark.parametrize("mode", MODES)
def test_registers_are_handed_over(mode: Mode, cases):
    query, out = torch.arange(384.0), torch.zeros(384)
    launch("registers", mode, threads=384, query=query, out=out)
    assert torch.equal(out, torch.where(query < 256, 2 * query, query))
    cases("emulator: primitives", 1)
