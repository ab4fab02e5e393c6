"""Tests of the emulator for sm_90a: its primitives against numpy, and mistakes it must find."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emulator import build
from emulator import hopper_primitives as hopper
from emulator.launcher import MODES, Counts, KernelError, Launcher, Mode
from probe_kernel import needs_nvrtc, skip_where_unknown

from nbattn.kernels import nvrtc, sources
from nbattn.kernels.variant import Variant

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))


def launch(case: hopper.Case, mode: Mode, seed: int = 1) -> Counts:
    """Runs a primitive and compares its output with numpy's."""
    given, launcher = case.launched, Launcher(mode, seed, seconds=600, folder=build.HERE)
    variant = Variant("hopper_primitives.cu", given.entry, (), given.threads, given.shared)
    launcher.launch(variant, 1, given.tensors, given.numbers, given.maps)
    assert np.array_equal(given.tensors[case.output].numpy(), case.expected)
    return launcher.counts


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("swizzle", hopper.SWIZZLES)
@pytest.mark.parametrize("name", hopper.BOXES)
def test_boxes(name: str, swizzle: int, mode: Mode, cases):
    for case in hopper.boxes(name, swizzle):
        counts = launch(case, mode)
        assert (counts.boxes, counts.box_bytes) == (2, case.expected.nbytes)
        cases("emulator: boxes", 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(1, 6))
def test_barriers_that_count(seed: int, mode: Mode, cases):
    for case in (hopper.rounds(7), hopper.copies_arrive(5)):
        launch(case, mode, seed)
        cases("emulator: primitives", 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("swizzle", hopper.SWIZZLES)
@pytest.mark.parametrize("columns", [64, 128])
@pytest.mark.parametrize("dtype", hopper.DTYPES)
def test_products_of_shared_memory(dtype: str, columns: int, swizzle: int, mode: Mode, cases):
    assert launch(hopper.shared_products(dtype, columns, swizzle), mode).wgmma == 4
    cases("emulator: products", 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("columns", "swizzle"), hopper.VALUES)
@pytest.mark.parametrize("dtype", hopper.DTYPES)
def test_products_of_registers(dtype: str, columns: int, swizzle: int, mode: Mode, cases):
    assert launch(hopper.register_products(dtype, columns, swizzle), mode).wgmma == 2
    cases("emulator: products", 1)


@pytest.mark.parametrize("mode", MODES)
def test_other_primitives(mode: Mode, cases):
    for case in (hopper.stmatrix(), hopper.turns(4), hopper.registers()):
        launch(case, mode)
        cases("emulator: primitives", 1)


def test_a_box_outside_of_its_tensor_is_found():
    """The fast build, too, does not read memory that a wrong map names."""
    case = hopper.rounds(7)
    longer = hopper.rows_map(60, 8)  # than the tensor
    given = case.launched._replace(maps=(longer,), tensors={**case.launched.tensors})
    for mode in MODES:
        given.tensors["query"] = torch.zeros(45 * 64, dtype=torch.int16)
        with pytest.raises(KernelError, match=r"the box of thread 33 at .* reads 128 bytes of que"):
            launch(case._replace(launched=given), mode)


def test_a_box_of_gaps_of_a_view_is_found():
    case = hopper.rounds(2)
    tensors = {**case.launched.tensors, "query": torch.zeros(50, 64, dtype=torch.int16)[:, ::2]}
    with pytest.raises(KernelError, match="which no element of the tensor is"):
        launch(case._replace(launched=case.launched._replace(tensors=tensors)), "eager")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"offset": 8}, "address"),
        ({"strides": (136, 6400, 6400, 6400)}, "strides"),
        ({"box": (64, 264, 1, 1, 1)}, "box"),
        ({"steps": (1, 9, 1, 1, 1)}, "steps"),
        ({"box": (32, 8, 1, 1, 1)}, "swizzle"),
    ],
)
def test_maps_that_the_driver_refuses(change: dict[str, Any], name: str):
    case = hopper.rounds(2)
    maps = (dataclasses.replace(case.launched.maps[0], **change),)
    with pytest.raises(ValueError, match=f"no tensor map has this {name}"):
        launch(case._replace(launched=case.launched._replace(maps=maps)), "lazy")


@needs_nvrtc
def test_the_device_halves_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    skip_where_unknown("90a")
    for file in [*sources.directory().iterdir(), build.HERE / "hopper_primitives.cu"]:
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(sources, "directory", lambda: tmp_path)
    log = nvrtc.compile(Variant("hopper_primitives.cu", "boxes", (), 384, 32768), "90a").log
    # As "'setmaxnreg' ignored", "warpgroup.wait is injected" or a name for products in series.
    assert not re.search("warning|setmaxnreg|wait is injected|serializ", log), log


# Mistakes. A message has {line} and {other} where the sources mark the lines.

SOURCES = ("hopper_mistakes.cu", "wgmma_mistakes.cu")
SOURCE_OF = {
    entry: source
    for source in SOURCES
    for entry in re.findall(r"^MISTAKE\((\w+)\)", (build.HERE / source).read_text(), re.M)
}

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
    "no_such_named_barrier": r"named_barrier_arrive at {line}: barrier 16 of 1 to 15 for 128 "
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
THREADS: dict[str, int] = dict.fromkeys(
    ("takes_too_many_registers", "gives_what_it_lacks", "takes_fewer"), 384
)
# What needs a check build: races, fences, and what is left at the end.
CHECKED_MISTAKES = (
    "wrong_parity", "barrier_not_seen", "arrives_before_its_copies", "arrives_after_nothing",
    "waits_without_acquiring", "box_of_another_barrier", "box_over_box", "box_over_readers",
    "box_without_fence", "box_over_products", "products_not_awaited",
    "products_not_committed", "no_fence_async", "fence_before_the_writes",
    "products_before_a_barrier", "products_of_nothing", "products_of_a_box_in_flight",
    "writes_over_products", "releases_before_the_wait", "arrivals_left_over",
    "arriving_does_not_wait", "half_a_group_gives", "stmatrix_without_syncwarp",
)  # fmt: skip


def provoke(entry: str, mode: Mode) -> None:
    query, out = torch.ones(32, 64, dtype=torch.int16), torch.zeros(384, dtype=torch.int32)
    tensors = {"query": query, "key": torch.ones(4), "out": out}
    variant = Variant(SOURCE_OF[entry], entry, (), THREADS.get(entry, 128), 2 * 4096 + 128)
    maps = (hopper.rows_map(32, 32),)
    Launcher(mode, seconds=600, folder=build.HERE).launch(
        variant, 1, tensors, hopper.mapped_numbers(), maps
    )


def marks(entry: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for source in SOURCES:
        for number, line in enumerate((build.HERE / source).read_text().splitlines(), 1):
            for kind in re.findall(rf"// (line|other): {entry}$", line):
                found[kind] = re.escape(f"{source}:{number}")
    return found


def test_every_mistake_is_in_the_table():
    assert sorted(SOURCE_OF) == sorted(MISTAKES)
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
