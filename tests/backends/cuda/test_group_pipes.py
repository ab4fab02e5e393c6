"""Tests of the model of warpgroups: its pipes by hand, against counted instructions and published
rates, and of what the planner makes of it. No time here is measured.
"""

from __future__ import annotations

import pytest
from cuda_plans import device

from nbattn import Mask, geometry
from nbattn.backends.cuda import choice, group_pipes, pipes
from nbattn.backends.cuda.pipes import Machine
from nbattn.backends.cuda.tiles import Build, Tiles
from nbattn.geometry import bind

TILES = Tiles((1, 8, 16), (1, 8, 16), 12, 1, 3, 2)
NARROW = Tiles((1, 8, 16), (1, 8, 8), 12, 1, 4, 2)
BUILD = Build("bfloat16", 128, 128)


def machine(dtype: str = "bfloat16") -> Machine:
    return pipes.machine(device("sm_90"), dtype, 227 << 10)


def visit(kernel: str, tiles: Tiles, size: int, masked: float = 0.0) -> dict[str, float]:
    build = Build("bfloat16", size, size)
    return group_pipes.visit(kernel, tiles, build, machine(), masked=masked)


def test_pipes_of_a_visit_by_hand() -> None:
    """Of two warpgroups with 64 x 128 scores: 1024 clocks of products each at 4096 operations a
    clock, 512 of exponentials, 16 a clock; operands at 128 bytes a clock.
    """
    found = visit("fwd", TILES, 128)
    assert found["tensor"] == pytest.approx(2 * 1024, rel=0.01)
    assert found["mufu"] == 2 * 512
    # 8 steps of 16 channels: 64 queries and 128 keys of 32 bytes; 8 of 16 keys: 128 channels.
    operands = 8 * (64 + 128) * 32 + 8 * 128 * 32
    assert found["shared"] == (2 * operands + 128 * 2 * 256) / 128


@pytest.mark.parametrize(
    ("kernel", "steps", "summed"), [("dq", 8 + 4, 4 * 128), ("dkdv", 8 + 4, 4 * (128 + 64))]
)
def test_operands_of_the_gradients(kernel: str, steps: int, summed: int) -> None:
    """Both products of scores read both sides; sums have their weights in registers."""
    build = Build("bfloat16", 128, 64)
    found = group_pipes.visit(kernel, NARROW, build, machine())
    operands = steps * (64 + 64) * 32 + summed * 32
    assert found["shared"] == (2 * operands + 64 * 2 * 192) / 128
    products = {"dq": 2 * 128 + 64, "dkdv": 2 * 128 + 2 * 64}[kernel]
    assert found["tensor"] == pytest.approx(128 * 64 * products / 2048, rel=0.01)


# Instructions of the cheapest path of a visit, as NVRTC 13.0.88 compiles it for sm_90a with two
# warpgroups: kernel, head sizes, columns, unmasked, more where some pair is masked.
COUNTED = [
    ("fwd", 64, 64, 64, 244, 102),
    ("fwd", 64, 64, 128, 396, 141),
    ("fwd", 128, 128, 64, 252, 102),
    ("fwd", 128, 128, 128, 404, 141),
    ("fwd", 256, 256, 64, 287, 102),
    ("dq", 64, 64, 64, 229, 129),
    ("dq", 64, 64, 128, 381, 167),
    ("dq", 128, 128, 64, 265, 129),
    ("dq", 128, 128, 128, 417, 167),
    ("dkdv", 64, 64, 64, 268, 131),
    ("dkdv", 96, 96, 64, 283, 131),
    ("dkdv", 128, 128, 64, 302, 131),
]


@pytest.mark.parametrize(("kernel", "head", "value", "columns", "wanted", "masked"), COUNTED)
def test_instructions_are_close_to_those_of_the_compiler(
    kernel: str, head: int, value: int, columns: int, wanted: int, masked: int
) -> None:
    tiles, build = Tiles((1, 1, 128), (1, 1, columns), 12, 1, 2, 2), Build("bfloat16", head, value)
    plain, with_mask = (
        group_pipes.visit(kernel, tiles, build, machine(), masked=share)["issue"] / 2
        for share in (0.0, 1.0)
    )
    assert plain == pytest.approx(wanted, rel=0.05)
    assert with_mask - plain == pytest.approx(masked, rel=0.15)


@pytest.mark.parametrize(("size", "published"), [(128, 648), (256, 740)])
def test_an_unmasked_visit_takes_what_is_published(size: int, published: int) -> None:
    """FlashAttention-3's forward in fp16 (arXiv 2407.08608): at 128 channels without a mask, and
    the most that it reaches. One factor for both.
    """
    tiles, build = TILES if size < 256 else NARROW, Build("float16", size, size)
    clocks = group_pipes.clocks("fwd", tiles, build, machine("float16"), 0.0)
    rate = 4 * tiles.area * size / clocks * machine().multiprocessors * machine().clock
    assert rate / 1e12 == pytest.approx(published, rel=0.1)


def test_three_warpgroups_are_as_busy_as_three() -> None:
    three = Tiles((1, 12, 16), (1, 8, 8), 16, 1, 4, 3)
    two, more = visit("fwd", NARROW, 64), visit("fwd", three, 64)
    for pipe in ("tensor", "mufu", "issue"):
        assert more[pipe] == pytest.approx(1.5 * two[pipe])
    assert two["shared"] < more["shared"] < 1.5 * two["shared"]  # columns are copied once


def test_masks_cost_instructions_only() -> None:
    plain, masked = visit("fwd", TILES, 128), visit("fwd", TILES, 128, masked=1.0)
    assert masked.pop("issue") > plain.pop("issue")
    assert masked == plain


def seconds(blocks: int = 132 * 100, visits: float = 100.0, masked: float = 0.0) -> float:
    return group_pipes.seconds(
        "fwd", TILES, BUILD, machine(), blocks=blocks, visits=visits, masked=masked
    )


def test_time_grows_with_the_work() -> None:
    """One block at a time on each multiprocessor."""
    one = seconds()
    assert seconds(blocks=132 * 200) == pytest.approx(2 * one)
    assert 1.9 < seconds(visits=200.0) / one < 2
    assert 1.01 < seconds(masked=1.0) / one < 1.2
    assert seconds(blocks=0) == 0
    assert seconds(blocks=1) == seconds(blocks=132)
    assert seconds(blocks=133) == 2 * seconds(blocks=132)
    lone = seconds(blocks=1, visits=0.0) * machine().clock
    assert lone == pytest.approx(
        group_pipes.BLOCK + group_pipes.clocks("fwd", TILES, BUILD, machine(), 0.0)
    )


def test_a_slow_second_level_cache_bounds_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_pipes, "L2", 0.5)
    vectors = 100 * (100.0 * 128 + 2 * 128)
    assert seconds() * machine().clock == pytest.approx(vectors * 256 * 2 / 0.5)


def test_shared_memory_may_be_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_pipes, "SHARED", 8)
    bound = visit("fwd", TILES, 128)["shared"]
    assert group_pipes.clocks("fwd", TILES, BUILD, machine(), 0.0) == bound


@pytest.mark.parametrize(
    ("mask", "space", "share"),
    [
        (Mask.neighborhood((80, 80)), (256, 256), 0.81),
        (Mask.neighborhood((18, 24, 24)), (30, 48, 80), 0.61),
    ],
    ids=["FLUX", "Hunyuan"],
)
def test_large_problems_get_the_tiles_of_warpgroups(
    mask: Mask, space: tuple[int, ...], share: float
) -> None:
    """Faster than those of warps; with as many useful pairs as the reference's tiles."""
    axes = bind(mask, space)
    groups, warps = (
        choice.ranked("fwd", family, axes, BUILD, machine(), heads=24)[0]
        for family in ("wgmma", "mma")
    )
    assert 1.4 < warps.seconds / groups.seconds < 2
    assert geometry.pairs(axes) / groups.pairs > share


def test_few_rows_get_the_least_tiles_of_warpgroups() -> None:
    """Also where a tile has more than twice as many."""
    for n in (1, 4, 60):
        axes = bind(Mask.neighborhood((n,)), (n,))
        found = choice.ranked("fwd", "wgmma", axes, Build("bfloat16", 64, 64), machine(), heads=4)
        assert {one.tiles.row_count for one in found} == {128}
