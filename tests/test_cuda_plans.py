"""The CUDA kernels as candidates: their programs are the mask, their tiles fit, their limits are
told, and what they visit is counted in closed form. No GPU, and no kernel, takes part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import masks, matrix
from work import lines

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.backends.cuda import meaning as cuda
from nbattn.backends.cuda import tiles as cuda_tiles
from nbattn.backends.cuda.meaning import CudaArguments
from nbattn.backends.cuda.tiles import Build, Tiles
from nbattn.geometry import bind
from nbattn.planner.plan import Plan
from nbattn.program.device import DEVICES, DeviceInfo

Count = Callable[[str, int], None]
Space = tuple[int, ...]


def device(name: str, providers: tuple[str, ...] = ("cupy",)) -> DeviceInfo:
    return replace(DEVICES[name], providers=providers)


def planned(mask: Mask, shape: Space, **named: Any) -> Plan:
    return nbattn.plan(mask, shape, **{"device": device("sm_90"), "backend": "cuda"} | named)


def window(plan: Plan) -> CudaArguments:
    assert plan.chosen.program is not None
    (call,) = plan.chosen.program.calls
    assert isinstance(call.arguments, CudaArguments)
    return call.arguments


@pytest.mark.parametrize("family", cuda.INSTRUCTIONS)
@given(drawn=masks(), training=st.booleans())
def test_plans_are_their_masks(
    cases: Count, drawn: tuple[Mask, Space, Space], training: bool, family: str
) -> None:
    """By index grids, in training those of the gradients' kernels too; and by intervals."""
    mask, queries, keys = drawn
    plan = planned(
        mask,
        (1, *queries, 2, 32),
        key_shape=(1, *keys, 1, 32),
        training=training,
        require=(family,),
    )
    assert plan.chosen.name == f"cuda/window+{family}"
    wanted = matrix(mask.axes, queries, keys)
    assert np.array_equal(plan.support(), wanted)
    assert plan.verify()
    assert (window(plan).keys is not None) == training
    cases("cuda plans", 1)


TILES = {
    1: ((1, 1, 16), (1, 1, 8), (1, 1, 3)),
    2: ((1, 4, 4), (1, 2, 8), (1, 3, 1)),
    3: ((2, 2, 4), (1, 2, 3), (4, 1, 2)),
}


@given(masks(), st.data())
def test_support_at_any_tile(cases: Count, drawn: tuple[Mask, Space, Space], data: Any) -> None:
    """Plans choose large tiles for small shapes: here seams and hulls are met on small ones."""
    mask, queries, keys = drawn
    lines = bind(mask, queries, keys)
    pick = st.sampled_from(TILES[mask.rank])
    tiles = [Tiles(data.draw(pick), data.draw(pick)) for _ in range(3)]
    call = CudaArguments(lines, Build("float32", 32, 32), *tiles)
    wanted = matrix(mask.axes, queries, keys)
    assert np.array_equal(call.allowed(queries, keys), wanted)
    visited = [
        (row, visit)
        for row, visits in call._traverse(call.forward, inverse=False)
        for visit in visits
    ]
    counts = [math.prod(len(part.positions) for part in (*row, *visit)) for row, visit in visited]
    walks = [cuda_tiles.Traversal(line) for line in cuda_tiles.padded(lines)]
    extents = zip(walks, tiles[0].rows, tiles[0].columns, strict=True)
    assert len(visited) == math.prod(walk.tile_pairs(*sizes) for walk, *sizes in extents)
    assert sum(counts) >= wanted.sum()
    cases("cuda tiles", 1)


def test_a_wrong_tile_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof fails where the walk of one kernel loses a column."""
    plan = planned(Mask.neighborhood((7, 5)), (1, 12, 20, 2, 32), training=True)
    assert plan.verify()
    original = cuda.Traversal.tiles

    def lossy(self: Any, rows: int, columns: int) -> Any:
        for tile in original(self, rows, columns):
            yield tile._replace(columns=tile.columns[:1]) if self.inverse else tile

    monkeypatch.setattr(cuda.Traversal, "tiles", lossy)
    with pytest.raises(AssertionError, match="the pairs of the keys' gradients differ"):
        plan.support()
    reads = cuda.Traversal.reads
    monkeypatch.setattr(cuda.Traversal, "reads", lambda self, *sizes: reads(self, *sizes)[::-1])
    with pytest.raises(AssertionError, match="axis 0: query 0 reads other keys"):
        plan.verify()


def test_full_tiles_are_not_masked_and_the_schedule_shows_them() -> None:
    plan = planned(Mask.sliding_window(255, 0), (1, 1024, 8, 64))
    visits = list(plan.schedule())
    sizes = window(plan).forward
    assert all(len(visit.queries[0]) <= sizes.rows[2] for visit in visits)
    read = matrix((Axis(255, 0),), (1024,), (1024,))
    for visit in visits:
        (columns,) = visit.keys[0]
        assert visit.full <= read[np.ix_(visit.queries[0], columns)].all()
    assert sum(visit.full for visit in visits) > len(visits) / 3
    wrapped = planned(Mask(Axis(9, 9, border="wrap", dilation=2)), (1, 512, 1, 64)).schedule()
    assert {len(visit.keys) for visit in wrapped} == {1, 2}  # a tile over the seam is two ranges


@given(masks())
def test_schedules_hold_every_pair_once(cases: Count, drawn: tuple[Mask, Space, Space]) -> None:
    """Forward and backward, also where windows wrap."""
    mask, queries, keys = drawn
    shapes = {"key_shape": (1, *keys, 1, 32), "training": True}
    plan = planned(mask, (1, *queries, 2, 32), **shapes)
    wanted = matrix(mask.axes, queries, keys)
    for backward in (False, True):
        times = np.zeros((*queries, *keys), dtype=int)
        for visit in plan.schedule(backward=backward):
            for box in visit.keys:
                times[np.ix_(*visit.queries, *box)] += 1
        assert times.max(initial=0) <= 1
        assert (times.reshape(wanted.shape) >= wanted).all()
        cases("cuda schedules", 1)


# Bytes of shared memory that a block may have, as the CUDA programming guide's table has them.
SHARED = {
    "sm_75": 64 << 10, "sm_80": 163 << 10, "sm_86": 99 << 10, "sm_87": 163 << 10, "sm_89": 99 << 10,
    "sm_90": 227 << 10, "sm_100": 227 << 10, "sm_103": 227 << 10, "sm_110": 227 << 10,
    "sm_120": 99 << 10, "sm_121": 99 << 10,
}  # fmt: skip


def test_memory_is_that_of_the_guide() -> None:
    known = {f"sm_{capability}": memory for capability, memory in cuda._MEMORY.items()}
    assert known == SHARED


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("dtype", cuda_tiles.DTYPES)
@pytest.mark.parametrize("sizes", [(16, 16), (32, 64), (64, 20), (128, 128), (256, 80), (512, 512)])
def test_tiles_fit_the_device(name: str, dtype: str, sizes: tuple[int, int], cases: Count) -> None:
    """Memory of every kernel of an accepted plan, and its registers."""
    if name == "cpu":
        return
    plan = nbattn.plan(
        Mask.neighborhood((5, 7, 7)), (2, 8, 30, 40, 4, sizes[0]), value_dim=sizes[1], dtype=dtype,
        device=device(name), training=True,
    )  # fmt: skip
    for one in plan.candidates:
        if one.backend != "cuda" or one.reasons:
            continue
        assert one.program is not None
        call = one.program.calls[0].arguments
        assert isinstance(call, CudaArguments)
        for kernel, tiles in zip(
            cuda_tiles.KERNELS, (call.forward, call.queries, call.keys), strict=True
        ):
            assert tiles is not None
            used = cuda_tiles.shared_bytes(kernel, tiles, call.build)
            assert used <= SHARED[name]
            assert cuda_tiles.accumulators(kernel, tiles, call.build) <= 160
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
     "cuda/window: needs CuPy and NVRTC, which are not installed: pip install 'nbattn[cuda13]', or "
     "'nbattn[cuda12]' with a driver of CUDA 12"),
    ({"device": "cpu"}, "cuda/window: runs on cuda, not on cpu"),
    ({"length": (1 << 25) + 1}, "window+mma: takes queries up to 33554432 on axis 0, not 3355443"),
    ({"length": 1 << 25, "batch": 16384}, "blocks are over the grid of 2147483647"),
    ({"length": 1 << 25, "batch": 136, "training": True}, "2281701376 blocks are over the grid"),
]  # fmt: skip


@pytest.mark.parametrize(("named", "text"), REFUSED)
def test_limits_are_told(named: dict[str, Any], text: str) -> None:
    named = dict(named)
    length, head, batch = named.pop("length", 64), named.pop("head", 32), named.pop("batch", 1)
    with pytest.raises(BackendError) as error:
        planned(Mask.sliding_window(3), (batch, length, 2, head), **named)
    assert text in str(error.value)


def test_numbers_of_an_axis_have_a_limit_each() -> None:
    for axis, name in (
        (Axis(1, 1, dilation=1 << 28), "dilation"),
        (Axis(1, 1, stride=1 << 28), "stride"),
        (Axis(1, 1, offset=-(1 << 28)), "offset"),
    ):
        with pytest.raises(BackendError, match=f"takes {name} up to 33554432 on axis 0, not 2684"):
            planned(Mask(axis), (1, 8, 2, 32))
    assert planned(
        Mask(Axis((1 << 31) - 1, (1 << 31) - 1)), (1, 8, 2, 32)
    ).verify()  # sides have none


def test_the_planner_chooses_per_shape() -> None:
    """Several axes and dilation: the kernels; one dense axis: Flash or torch; tiny heads: without
    tensor cores.
    """
    for mask, shape, named, wanted in (
        (Mask.neighborhood((80, 80)), (1, 256, 256, 24, 128), {}, "cuda/window+mma"),
        (Mask.neighborhood((7, 7), dilation=8), (128, 56, 56, 2, 32), {}, "cuda/window+mma"),
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
    build = window(plan).build
    assert build == Build("bfloat16", 64, 48, True, True, True)
    variant = cuda_tiles.variant("fwd", window(plan).forward, build, grads=0, vector=True)
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


def test_shipped_variants_hold_every_choice() -> None:
    """Whatever is planned for bfloat16 at 64 or 128 channels is compiled before a release."""
    shipped = set(cuda_tiles.shipped())
    assert len(shipped) == len([*cuda_tiles.shipped()])
    for space in ((64,), (5000,), (7, 7), (56, 56), (4, 48, 80), (30, 48, 80), (1, 9, 9)):
        for size in (64, 128):
            mask = Mask.neighborhood((3,) * len(space) if min(space) > 2 else (1, 3, 3))
            plan = planned(mask, (4, *space, 8, size), training=True)
            call = window(plan)
            for kernel, tiles in zip(
                cuda_tiles.KERNELS, (call.forward, call.queries, call.keys), strict=True
            ):
                assert tiles is not None
                (grads,) = cuda_tiles.grads_of(kernel, call.build)
                one = cuda_tiles.variant(kernel, tiles, call.build, grads=grads, vector=True)
                assert one in shipped
    assert {one.entry for one in shipped} == {
        "nb_delta", *(f"nb_{k}_{f}" for k in cuda_tiles.KERNELS for f in cuda.INSTRUCTIONS)
    }  # fmt: skip


def test_a_decode_step_looks_at_one_tile() -> None:
    """With the kernels among the candidates, at any length: few queries leave nothing to choose."""
    mask = Mask.from_transformers(4096)

    def step(keys: int) -> Callable[[], object]:
        shapes = (1, 1, 32, 128), (1, keys, 8, 128)
        return partial(nbattn.plan, mask, *shapes, device=device("sm_90"))

    step(4999)()
    for keys in (*range(5000, 5020), 10**9):
        assert lines(step(keys)) <= 8000
