"""Tests of the Triton kernels' tile sizes: they fit devices and heads, and all are shipped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest

from nbattn.backends.triton import tiles as triton_tiles
from nbattn.backends.triton.tiles import DTYPES, EXTRA, TABLE, Build, Tiles, legal_tiles
from nbattn.program.device import DEVICES, DeviceInfo, named

Count = Callable[[str, int], None]
KERNELS = ("fwd", "dq", "dkdv", EXTRA, TABLE)
AXES = ((2,), (1, 2), (0, 1, 2), (0, 2), ())
GPUS = [device for device in DEVICES.values() if device.kind != "cpu"]
# Bytes of shared memory of a program, as the vendors' guides have them.
SHARED = {
    "sm_75": 64 << 10, "sm_80": 163 << 10, "sm_86": 99 << 10, "sm_89": 99 << 10,
    "sm_90": 227 << 10, "sm_100": 227 << 10, "sm_103": 227 << 10, "sm_120": 99 << 10,
    "gfx90a": 64 << 10, "gfx942": 64 << 10, "gfx950": 160 << 10, "gfx1100": 64 << 10,
    "gfx1201": 64 << 10, "xe": 128 << 10,
}  # fmt: skip
LARGEST = {"float16": 256, "bfloat16": 256, "float32": 256, "float64": 128}
TURING = {"float16": 256, "bfloat16": 256, "float32": 128, "float64": 64}


def blocks(legal: tuple[Tiles, ...]) -> list[str]:
    """Rows, columns, warps and stages, each combination once."""
    texts = [f"{t.row_count}x{t.column_count} {t.warps}w{t.stages}s" for t in legal]
    return [*dict.fromkeys(texts)]


@pytest.mark.parametrize("device", GPUS, ids=lambda device: device.name)
def test_tiles_fit_the_device(device: DeviceInfo, cases: Count) -> None:
    memory = SHARED[device.architecture or device.name]
    assert triton_tiles.memory(device) == memory
    for dtype, kernel, axes in product(DTYPES, KERNELS, AXES):
        for sizes in ((16, 16), (64, 64), (80, 20), (128, 128), (256, 256)):
            if max(sizes) > triton_tiles.largest_head(dtype, device):
                continue
            build = Build(dtype, *sizes, 3)
            legal = legal_tiles(kernel, build, device, axes)
            assert legal
            for tiles in legal:
                assert triton_tiles.shared_bytes(kernel, tiles, build, device) <= memory
                cases("triton tiles that fit", 1)


@pytest.mark.parametrize("sizes", [(255, 1), (1, 255)], ids=str)
def test_columns_of_one_wide_head_are_counted_where_registers_hold_them(
    sizes: tuple[int, int],
) -> None:
    """As Triton 3.8 compiles them for gfx942 and gfx90a: 32 columns of 256 channels."""
    tiles, build = Tiles((1, 1, 16), (1, 1, 32), 4, 1), Build("float32", *sizes, 1)
    for kernel in KERNELS:
        assert triton_tiles.shared_bytes(kernel, tiles, build, DEVICES["gfx942"]) >= 32768


@pytest.mark.parametrize("kernel", ["dkdv", EXTRA])
def test_columns_without_stages_are_counted_in_two_orders(kernel: str) -> None:
    """As Triton 3.8 compiles them for sm_86 and strides that are no multiples of two."""
    tiles, build = Tiles((1, 1, 64), (1, 1, 32), 8, 1), Build("float16", 256, 256, 1, extra=True)
    device = DEVICES["sm_86"]
    assert triton_tiles.shared_bytes(kernel, tiles, build, device) >= 114688
    assert tiles not in legal_tiles(kernel, build, device, (2,))


@pytest.mark.parametrize("device", GPUS, ids=lambda device: device.name)
def test_largest_heads(device: DeviceInfo) -> None:
    largest = {dtype: triton_tiles.largest_head(dtype, device) for dtype in DTYPES}
    assert largest == (TURING if device.name == "sm_75" else LARGEST)


@pytest.mark.parametrize(("kernel", "axes"), [*product(KERNELS, AXES)])
def test_extents_are_powers_of_two_on_long_axes(kernel: str, axes: tuple[int, ...]) -> None:
    """Products take 16 rows and columns at least."""
    for device, columns in product(GPUS, (None, (2,), (0, 1))):
        for tiles in legal_tiles(kernel, Build("bfloat16", 64, 64, 3), device, axes, columns):
            for extents, long in ((tiles.rows, axes), (tiles.columns, columns)):
                long = (2,) if kernel == EXTRA and extents is tiles.rows else long
                long = long if long is not None else ((2,) if kernel == EXTRA else axes)
                assert math.prod(extents) in (16, 32, 64, 128)
                assert all(extent & (extent - 1) == 0 for extent in extents)
                assert all(e == 1 for axis, e in enumerate(extents) if axis not in (long or (2,)))


@pytest.mark.parametrize("name", ["sm_80", "sm_86", "sm_90", "sm_100"])
def test_no_two_warps_compute_the_same_scores(name: str) -> None:
    """A tensor-core instruction of a warp has 16 rows; of wide heads, warps share the channels."""
    for kernel, size in product(("fwd", "dq", "dkdv"), (16, 64, 128)):
        build = Build("float16", size, size, 2)
        for tiles in legal_tiles(kernel, build, named(name), (1, 2)):
            assert tiles.row_count == 16 * tiles.warps


@pytest.mark.parametrize(
    ("name", "kernel", "build", "first"),
    [
        ("sm_80", "fwd", Build("bfloat16", 128, 128, 2), "128x64 8w2s"),
        ("sm_90", "fwd", Build("bfloat16", 128, 128, 2), "128x64 8w3s"),
        ("sm_86", "dq", Build("bfloat16", 128, 128, 2), "128x64 8w1s"),
        ("sm_80", "dkdv", Build("bfloat16", 64, 64, 2), "128x32 8w2s"),
        ("sm_90", "dkdv", Build("bfloat16", 64, 64, 2), "128x64 8w2s"),
        ("sm_90", "dkdv", Build("bfloat16", 64, 80, 2), "128x32 8w2s"),
        ("sm_90", "dq", Build("bfloat16", 192, 64, 2), "64x32 8w2s"),
        ("sm_90", "fwd", Build("float32", 64, 64, 2), "32x32 4w2s"),
        ("sm_90", "fwd", Build("float64", 64, 64, 2), "16x16 2w2s"),
        ("sm_75", "fwd", Build("float16", 64, 64, 2), "32x32 4w2s"),
        ("gfx942", "dkdv", Build("bfloat16", 128, 128, 2), "64x64 4w1s"),
        ("gfx942", "fwd", Build("float32", 64, 64, 2), "32x32 4w1s"),
        ("gfx1100", "fwd", Build("float16", 64, 64, 2), "32x32 4w2s"),
        ("xe", "fwd", Build("float16", 64, 64, 2), "32x32 4w2s"),
        ("sm_90", TABLE, Build("bfloat16", 64, 64, 2, table=True), "32x32 4w2s"),
        ("sm_90", EXTRA, Build("bfloat16", 128, 128, 2, extra=True), "128x32 8w2s"),
    ],
)
def test_largest_tiles(name: str, kernel: str, build: Build, first: str) -> None:
    assert blocks(legal_tiles(kernel, build, named(name), (1, 2)))[0] == first


def test_unknown_devices_are_taken_for_small_ones() -> None:
    unknown = replace(named("gfx942"), name="mine", architecture="", providers=())
    assert unknown.vendor == ""
    assert triton_tiles.memory(unknown) == 48 << 10
    found = blocks(legal_tiles("fwd", Build("bfloat16", 64, 64, 2), unknown, (1, 2)))
    assert found == ["32x32 4w2s", "16x32 4w2s", "16x16 4w2s"]


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("sm_75", ("", "", "", "")),
        ("sm_86", ("mma", "mma", "", "")),
        ("sm_90", ("wgmma", "wgmma", "", "mma")),
        ("sm_103", ("tcgen05", "tcgen05", "", "mma")),
        ("sm_120", ("mma", "mma", "", "")),
        ("gfx90a", ("mfma", "mfma", "mfma", "mfma")),
        ("gfx1100", ("wmma", "wmma", "", "")),
        ("xe", ("", "", "", "")),
    ],
)
def test_instructions_by_dtype(name: str, kinds: tuple[str, ...]) -> None:
    assert tuple(triton_tiles.instructions(named(name), dtype) for dtype in DTYPES) == kinds


def test_kernels_of_a_call() -> None:
    plain = Build("bfloat16", 64, 64, 2)
    assert triton_tiles.kernels(plain, training=False) == ("fwd",)
    assert triton_tiles.kernels(plain, training=True) == ("fwd", "dq", "dkdv")
    added = plain._replace(extra=True, table=True)
    assert triton_tiles.kernels(added, training=True) == ("fwd", "dq", "dkdv", "dextra", "dbias")


def test_products_of_a_pair() -> None:
    build = Build("bfloat16", 64, 32, 2)
    found = {kernel: triton_tiles.products(kernel, build) for kernel in KERNELS}
    assert found == {"fwd": 96, "dq": 160, "dkdv": 192, EXTRA: 192, TABLE: 96}


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "gfx942"])
def test_shipped_variants_hold_every_choice(name: str) -> None:
    """Whatever is planned for bfloat16 at 64 or 128 channels is compiled before a release."""
    device = named(name)
    shipped = [*triton_tiles.shipped(device)]
    assert len(shipped) == len({*shipped})
    compiled = {(one.kernel, one.tiles, one.build) for one in shipped}
    for size, axes, kernel in product((64, 128), AXES[:3], KERNELS[:3]):
        build = Build("bfloat16", size, size, len(axes))
        for tiles in legal_tiles(kernel, build, device, axes):
            assert (kernel, tiles, build) in compiled
    assert {one.kernel for one in shipped} == {*KERNELS}
    assert {one.build.dtype for one in shipped} == {*DTYPES}
    for option in Build._fields[4:]:
        assert any(getattr(one.build, option) for one in shipped), option
    assert {(one.step, one.wide) for one in shipped} >= {(1, False), (8, True), (8, False)}
