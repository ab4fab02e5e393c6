"""Tests of the emulator for sm_90a: its primitives against numpy, and mistakes it must find."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from emulator import build
from emulator import hopper_primitives as hopper
from emulator.launcher import MODES, Counts, KernelError, Launcher, Mode
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
@pytest.mark.parametrize(("columns", "swizzle"), hopper.VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_registers(dtype: str, columns: int, swizzle: int, mode: Mode, cases):
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


# Mistakes. A message has {line} and {other} where hopper_mistakes.cu marks the lines.

BOX = r"tma_load at hopper_mistakes\.cuh:\d+: "
IN_FLIGHT = r"touches shared\[\d+\] .* at {line} while a box of .*{other}.* is in flight"
RACE = r"race: thread \d+ reads .* at {line}, thread \d+ wrote it at {other}"
STARTS = r"wgmma at {line}: thread \d+ starts it without wgmma_fence since "
MISTAKES = {
    "too_many_arrivals": r"mbarrier_arrive_expect at {line}: thread 1 arrives at shared\[8192\] .*"
    r"which waits only for 4096 bytes: phase 0 has its 1 arrivals",
    "too_few_arrivals": r"deadlock: .*128 at mbarrier_wait in {line}",
    "too_many_bytes": r"deadlock: .*128 at mbarrier_wait in {line}",
    "bytes_that_nobody_awaits": r"the block ends while 1 boxes",
    "wrong_parity": IN_FLIGHT,
    "no_such_parity": r"mbarrier_wait at {line}: the parity 2 is neither 0 nor 1",
    "no_barrier_there": r"mbarrier_arrive at {line}: shared\[8200\] .* is no mbarrier; "
    r"mbarrier_init",
    "initialised_twice": r"mbarrier_init at {line}: shared\[8192\] .* is an mbarrier already",
    "overwritten_barrier": r"at {line}: the mbarrier shared\[8192\] .* has been overwritten",
    "barrier_not_seen": r"race: mbarrier_arrive at {line}: thread 32 uses the mbarrier .*, which "
    r"thread 0 initialised at {other}, and no barrier between",
    "no_init_fence": BOX + r"thread 0 has initialised the mbarrier .* without mbarrier_init_fence",
    "arrives_before_its_copies": r"touches .* at {line} while cp.async of {other} is in flight",
    "arrives_after_nothing": r"thread \d+ ends without waiting for cp.async at {line}",
    "waits_without_acquiring": r"race: thread \d+ (reads .* at {line}, .* wrote it at {other}|"
    r"writes .* at {other}, .* read it at {line})",
    "box_unaligned": r"tma_load at {line}: thread 0 copies to shared\[128\] .* no multiple of 1024",
    "box_past_the_end": r"tma_load at {line}: thread 0 copies 4096 bytes to shared\[8320\]",
    "no_map": r"tma_load at {line}: thread 0 names no tensor map",
    "box_not_awaited": r"the block ends while 1 boxes or arrivals after copies are in flight",
    "box_of_another_barrier": r"race: thread \d+ reads .* at {line}, a box wrote it at .*{other}",
    "box_over_box": r"thread 1 copies a box to .*{other}.* while a box of .*{other}.* is in flight",
    "box_over_readers": r"race: thread 0 copies a box to .*{other}.*, thread \d+ read it at {line}",
    "box_without_fence": r"thread 0 copies a box to shared\[0\] .* at .*{other}.*, which thread 0 "
    r"wrote at {line} without fence_async",
    "box_over_products": r"race: thread 0 copies a box to .*{other}.*, wgmma at .*{line}.* may "
    r"still",
    "products_without_fence": STARTS + "its start",
    "no_fence_after_wait": STARTS + "wgmma_wait gave it these registers",
    "writes_after_fence": r"wgmma at {line}: thread \d+ has written its registers after "
    r"wgmma_fence",
    "writes_accumulators": r"thread 0 has written the accumulators of wgmma at .* before "
    r"wgmma_wait",
    "writes_operands": r"thread 0 has written a register operand of wgmma at {line} before wgmma_w",
    "products_not_awaited": r"thread \d+ ends without waiting for wgmma at hopper_mistakes\.cuh",
    "products_not_committed": r"thread \d+ ends without waiting for wgmma at {line}",
    "different_descriptors": r"the threads of a warpgroup start different products: {line} with "
    r".*; thread \d+ {line} with",
    "products_of_three_warps": r"thread \d+ has started \d products in \d groups at {line}, thread",
    "products_of_a_warp": r"deadlock: .*32 at wgmma_wait in {line}",
    "no_fence_async": r"wgmma at .*{other}.* reads shared\[0\] .*, which thread 0 wrote at {line} "
    r"without fence_async",
    "fence_before_the_writes": r"which thread 0 wrote at {line} without fence_async",
    "products_before_a_barrier": r"race: wgmma at .*{other}.* reads .*, thread \d+ wrote it at "
    r"{line}",
    "products_of_nothing": r"wgmma at .*{other}.* reads shared\[0\] .*, which nothing has written",
    "products_of_a_box_in_flight": r"starts wgmma, which reads shared\[0\] .*{other}.* while a box "
    r"of .*{line}.* is in flight",
    "writes_over_products": r"race: thread \d+ writes shared\[\d+\] .* at {line}, wgmma at "
    r".*{other}",
    "releases_before_the_wait": r"race: thread 0 writes .* at {line}, wgmma at .*{other}.* may "
    r"still",
    "descriptor_without_swizzle": r"the descriptor \w+ has no swizzle, or unknown bits",
    "descriptor_of_a_second_row": r"wgmma at {line}: the descriptor \w+ begins at \d+, not in the",
    "descriptor_past_the_end": r"wgmma at {line}: row \d+, chunk 0 of the descriptor \w+ is shared",
    "named_barrier_of_too_many": r"named barrier 1 expects 96 threads at {line}, 128 at {line}",
    "named_barrier_that_waits": r"deadlock: 64 threads have ended, 64 at named_barrier_sync in "
    r"{line}",
    "no_such_named_barrier": r"named_barrier_arrive at {line}: barrier 16 of 0 to 15 for 128 "
    r"threads",
    "arrives_twice": r"named_barrier_arrive at {line}: thread 0 comes to barrier 2 twice, and only",
    "arrivals_left_over": r"ends with 32 of 64 arrivals at the named barrier 2, the first at "
    r"{line}",
    "arriving_does_not_wait": RACE,
    "takes_too_many_registers": r"deadlock: .*\d+ at take_registers in {line}",
    "gives_what_it_lacks": r"give_registers at {line}: thread 0 has 168 registers, 232 are more",
    "takes_fewer": r"take_registers at {line}: thread 0 has 168 registers, 40 are fewer",
    "half_a_group_gives": r"thread 64 has not changed its registers at {line}, as others of its",
    "stmatrix_unaligned": r"stmatrix at {line}: lane 0 names shared\[8\]",
    "stmatrix_without_syncwarp": RACE,
}
THREADS = dict.fromkeys(("takes_too_many_registers", "gives_what_it_lacks", "takes_fewer"), 384)
# What needs a check build: races, fences, and what is left at the end.
CHECKED_MISTAKES = (
    "wrong_parity", "barrier_not_seen", "arrives_before_its_copies", "arrives_after_nothing",
    "waits_without_acquiring", "box_of_another_barrier", "box_over_box", "box_over_readers",
    "box_without_fence", "box_over_products", "writes_after_fence", "products_not_awaited",
    "products_not_committed", "no_fence_async", "fence_before_the_writes",
    "products_before_a_barrier", "products_of_nothing", "products_of_a_box_in_flight",
    "writes_over_products", "releases_before_the_wait", "arrivals_left_over",
    "arriving_does_not_wait", "half_a_group_gives", "stmatrix_without_syncwarp",
)  # fmt: skip


def provoke(entry: str, mode: Mode) -> None:
    one = TensorMap(
        "query", 0, (64, 32, 1, 1, 1), (128, 4096, 4096, 4096), (64, 32, 1, 1, 1), (1,) * 5, 128
    )
    query, out = torch.ones(2048, dtype=torch.int16), torch.zeros(384, dtype=torch.int32)
    threads = THREADS.get(entry, 128)
    tensors = {"query": query, "key": torch.ones(4), "out": out}
    source = "hopper_mistakes.cu"
    launch(entry, mode, one, source=source, threads=threads, shared=2 * 4096 + 128, **tensors)


def marks(entry: str) -> dict[str, str]:
    text = (build.HERE / "hopper_mistakes.cu").read_text().splitlines()
    found: dict[str, str] = {}
    for number, line in enumerate(text, 1):
        for kind in re.findall(rf"// (line|other): {entry}$", line):
            found[kind] = re.escape(f"hopper_mistakes.cu:{number}")
    return found


def test_every_mistake_is_in_the_table():
    entries = re.findall(
        r"^MISTAKE\((\w+)\)", (build.HERE / "hopper_mistakes.cu").read_text(), re.M
    )
    assert entries == list(MISTAKES)
    assert set(CHECKED_MISTAKES) < set(MISTAKES)


@pytest.mark.parametrize("entry", MISTAKES)
def test_the_check_build_finds_the_mistake(entry: str, cases):
    expected = re.sub(r"{(\w+)}", lambda m: marks(entry)[m[1]], MISTAKES[entry])
    with pytest.raises(KernelError, match=expected) as caught:
        provoke(entry, "check")
    assert "/" not in str(caught.value)
    cases("emulator: mistakes", 1)


FAST_MISTAKES = [
    (entry, mode)
    for entry in MISTAKES
    for mode in MODES
    if mode != "check" and entry not in CHECKED_MISTAKES
    if mode == "lazy" or entry not in ("box_not_awaited", "bytes_that_nobody_awaits")
]


@pytest.mark.parametrize(("entry", "mode"), FAST_MISTAKES)
def test_the_fast_build_finds_the_mistake(entry: str, mode: Mode, cases):
    with pytest.raises(KernelError):
        provoke(entry, mode)
    cases("emulator: mistakes", 1)
