"""Tests of the emulator: its primitives against numpy, and mistakes it must find, with lines."""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from emulator import build, problem
from emulator.launcher import MODES, Counts, KernelError, Launcher, Mode
from emulator.primitives import numbers
from torch import Tensor

from nbattn import Axis, Mask
from nbattn.kernels import layout
from nbattn.kernels.variant import Variant

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))
SHARED = 1024
FAST: tuple[Mode, ...] = ("eager", "lazy", "random")
Run = Callable[..., Counts]


def launch(
    entry: str,
    mode: Mode,
    *,
    source: str = "primitives.cu",
    threads: int = 64,
    blocks: int = 1,
    shared: int = SHARED,
    seed: int = 1,
    channel_stride: int = 1,
    **tensors: Tensor,
) -> Counts:
    seconds = 1 if entry == "never_ends" else 600  # only a launch that never ends may be stopped
    launcher = Launcher(mode, seed, seconds=seconds, folder=build.HERE)
    variant = Variant(source, entry, (), threads, shared)
    launcher.launch(variant, blocks, tensors, numbers(channel_stride))
    return launcher.counts


def ints(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def floats(*shape: int) -> Tensor:
    return torch.zeros(shape)


# Primitives


@pytest.mark.parametrize("mode", MODES)
def test_ldmatrix(mode: Mode, cases):
    rows = torch.arange(256, dtype=torch.int16).reshape(32, 8)
    out = ints(2, 4, 32)
    launch("ldmatrix", mode, threads=32, query=rows, out=out)
    matrices = rows.numpy().reshape(4, 8, 8)  # [matrix, row, column]
    for found, stored in zip(out.numpy(), (matrices, matrices.transpose(0, 2, 1)), strict=True):
        # Lane 4 r + c has the elements 2 c and 2 c + 1 of row r.
        assert np.array_equal(found.view(np.int16).reshape(4, 8, 8), stored)
    cases("emulator: primitives", 2)


def test_ldmatrix_counts_bank_conflicts():
    for swizzled, ways in ((0, 8), (1, 1)):
        query = torch.tensor([swizzled], dtype=torch.int32)
        counts = launch("bank_conflicts", "lazy", threads=32, query=query, out=ints(32))
        assert (counts.matrices, counts.bank_ways) == (4, 4 * ways)


def fragments(matrix: np.ndarray, rows: list[int], columns: list[int]) -> np.ndarray:
    """Of each lane: elements (g + row, c + column), with g = lane // 4 and c = 2 (lane % 4)."""
    lane = np.arange(32)
    pairs = zip(rows, columns, strict=True)
    return np.stack([matrix[lane // 4 + r, lane % 4 * 2 + c] for r, c in pairs], axis=1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mma(mode: Mode, dtype: torch.dtype, cases):
    rng = np.random.default_rng(0)
    a, b, c = (
        rng.integers(-8, 9, shape).astype(np.float32) for shape in ((16, 16), (16, 8), (16, 8))
    )
    half = [torch.from_numpy(x / 4).to(dtype) for x in (  # exact in either format, as are all sums
        fragments(a, [0, 0, 8, 8, 0, 0, 8, 8], [0, 1, 0, 1, 8, 9, 8, 9]),
        fragments(b.T, [0, 0, 0, 0], [0, 1, 8, 9]),
    )]  # fmt: skip
    value = torch.from_numpy(fragments(c, [0, 0, 8, 8], [0, 1, 0, 1]))
    out = floats(32, 4)
    entry = "multiply_half" if dtype == torch.float16 else "multiply_bfloat16"
    counts = launch(entry, mode, threads=32, query=half[0], key=half[1], value=value, out=out)
    expected = fragments(c + a @ b / 16, [0, 0, 8, 8], [0, 1, 0, 1])
    assert np.array_equal(out.numpy(), expected)
    assert counts.mma == 1
    cases("emulator: primitives", 1)


def test_mma_keeps_subnormals_infinities_and_nan():
    query = torch.zeros(32, 8, dtype=torch.float16)
    key = torch.zeros(32, 4, dtype=torch.float16)
    key[0, 0] = 1.0  # b[0, 0]
    query[0, 0], query[4, 0], query[8, 0] = 2.0**-24, torch.inf, torch.nan  # a[0..2, 0]
    out = floats(32, 4)
    launch("multiply_half", "lazy", threads=32, query=query, key=key, value=floats(32, 4), out=out)
    assert out[0, 0] == 2.0**-24
    assert out[4, 0] == torch.inf
    assert out[8, 0].isnan()


def shuffled(x: np.ndarray, argument: int, width: int) -> np.ndarray:
    """By index, xor, up and down, lane by lane, as the PTX ISA writes `shfl`: c is the clamp with
    the segment mask in bits 8 to 12, as CUDA's functions pass it.
    """
    out = np.empty((4, len(x)), x.dtype)
    for thread in range(len(x)):
        lane, b, mask = thread % 32, argument % 32, 32 - width
        for row, mode in enumerate(("idx", "bfly", "up", "down")):
            c = 0 if mode == "up" else 31
            most, least = (lane & mask) | (c & ~mask & 31), lane & mask
            j = {"idx": least | (b & ~mask), "bfly": lane ^ b, "up": lane - b, "down": lane + b}
            source = j[mode]
            valid = source >= most if mode == "up" else source <= most
            out[row, thread] = x[thread - lane + (source if valid else lane)]
    return out


def test_xor_may_read_earlier_segments_but_no_later_ones():
    """The case that differs from "stays inside": lane 16 of width 16 reads lane 0."""
    out = ints(4, 64)
    key = torch.tensor([16, 16], dtype=torch.int32)
    launch("shuffle_int", "lazy", query=torch.arange(64, dtype=torch.int32), key=key, out=out)
    warp = [*range(16), *range(16)]
    assert out[1].tolist() == [*warp, *(32 + lane for lane in warp)]


@pytest.mark.parametrize(("entry", "dtype"), [("int", torch.int32), ("double", torch.float64)])
def test_shuffles(entry: str, dtype: torch.dtype, cases):
    x = torch.arange(64).to(dtype) / 3 if dtype.is_floating_point else torch.arange(64, dtype=dtype)
    for width in (4, 16, 32):
        for argument in (0, 1, 2, 3, 8, 16, 31):
            out = torch.zeros(4, 64, dtype=dtype)
            key = torch.tensor([argument, width], dtype=torch.int32)
            launch(f"shuffle_{entry}", "random", query=x, key=key, out=out, seed=argument + 1)
            assert np.array_equal(out.numpy(), shuffled(x.numpy(), argument, width))
            cases("emulator: primitives", 4)


@pytest.mark.parametrize("pattern", [0, 0xFFFFFFFF, 0x80000001, 0x00F0F000])
def test_warp_ballot_any_all(pattern: int, cases):
    bits = (pattern >> np.arange(32)) & 1
    query = torch.from_numpy(np.concatenate([bits, 1 - bits]).astype(np.int32))
    out = ints(3, 64)
    launch("votes", "random", query=query, out=out)
    for warp, mask in enumerate((pattern, pattern ^ 0xFFFFFFFF)):
        found = out.numpy()[:, 32 * warp : 32 * warp + 32].view(np.uint32)
        assert (found[0] == mask).all()
        assert (found[1] == (mask != 0)).all()
        assert (found[2] == (mask == 0xFFFFFFFF)).all()
    cases("emulator: primitives", 3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [0, 20, 32, 50, 64])
def test_async_copies_fill_with_zeros(mode: Mode, rows: int, cases):
    query, out = torch.randn(max(rows, 1), 4), floats(64, 4)
    key = torch.tensor([rows], dtype=torch.int32)
    counts = launch("copies", mode, query=query, key=key, out=out)
    assert torch.equal(out[:rows], query[:rows])
    assert not out[rows:].any()
    assert counts.copied_bytes == 16 * rows
    cases("emulator: primitives", 1)


def test_async_copies_complete_as_the_mode_requires():
    query, seen = torch.ones(2, 4), set()
    for mode, seed in (("eager", 1), ("lazy", 1), *(("random", s) for s in range(1, 9))):
        out = floats(2)
        launch("early_reads", mode, threads=1, query=query, out=out, seed=seed)
        landed = tuple(out.isfinite().tolist())
        if mode != "random":
            assert landed == ((True, True) if mode == "eager" else (False, False))
        seen.add(landed)
    assert len(seen) >= 3  # random is neither


@pytest.mark.parametrize("mode", MODES)
def test_barriers_and_blocks(mode: Mode, cases):
    query, out = torch.arange(64, dtype=torch.int32), ints(5, 64)
    launch("barriers", mode, blocks=5, query=query, out=out)
    assert torch.equal(out, query.flip(0) + 1000 * torch.arange(5, dtype=torch.int32)[:, None] + 5)
    cases("emulator: primitives", 1)


def test_arithmetic():
    x = torch.tensor(
        [0.0, 1.0, -3.5, 127.0, 128.0, -126.0, -126.5, -torch.inf, torch.inf, torch.nan]
    )
    out, pairs = floats(2, 10), ints(2, 10)
    launch("arithmetic", "lazy", threads=10, query=x, out=out, lse=pairs)
    expected = torch.exp2(x)
    expected[6] = 0  # subnormal
    assert torch.equal(out[0].nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(out[1].nan_to_num(7.0), (1 / x).nan_to_num(7.0))
    for found, dtype in zip(pairs, (torch.float16, torch.bfloat16), strict=True):
        assert torch.equal(found.view(dtype)[0::2].isnan(), x.isnan())
        assert torch.equal(found.view(dtype)[0::2].nan_to_num(), x.to(dtype).nan_to_num())
        assert torch.equal(found.view(dtype)[1::2].nan_to_num(), (2 * x).to(dtype).nan_to_num())


def test_unwritten_memory_is_nan():
    out = floats(3, 3)
    launch("poison", "lazy", threads=1, blocks=3, out=out)
    assert out[:, 0].isnan().all()
    assert not (out[:, 1].abs() < 1e30).any()
    assert out[:, 2].isnan().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_strided_views_keep_their_alignment(mode: Mode, offset: int, cases):
    view, out = torch.randn(64)[offset::2][:20], floats(20)
    launch("strided", mode, threads=20, channel_stride=2, query=view, out=out)
    assert torch.equal(out, view)
    cases("emulator: primitives", 1)


def test_an_expanded_view():
    view, out = torch.randn(1).expand(20), floats(20)
    launch("strided", "check", threads=20, channel_stride=0, query=view, out=out)
    assert torch.equal(out, view)


@pytest.mark.parametrize("mode", ["lazy", "check"])
def test_a_view_that_spans_more_than_memory(mode: Mode):
    stride = 2**31 + 8
    view, out = torch.empty_strided((2,), (stride,)).copy_(torch.tensor([3.0, 5.0])), floats(2)
    launch("strided", mode, threads=2, channel_stride=stride, query=view, out=out)
    assert out.tolist() == [3.0, 5.0]


def test_gaps_of_a_view_are_nan_and_reads_of_them_are_found():
    view = torch.randn(64)[::2][:20]
    out = floats(20)
    launch("strided", "lazy", threads=20, channel_stride=1, query=view, out=out)
    assert out[1::2].isnan().all()
    with pytest.raises(
        KernelError, match=r"reads query\[4\] of 156 bytes at primitives.cu:\d+, which no"
    ):
        launch("strided", "check", threads=20, channel_stride=1, query=view, out=out)


def test_the_same_seed_is_the_same_run():
    runs = []
    for seed in (1, 1, 2, 3, 4):
        out = floats(2)
        launch("early_reads", "random", threads=1, query=torch.ones(2, 4), out=out, seed=seed)
        runs.append(tuple(out.isfinite().tolist()))
    assert runs[0] == runs[1]
    assert len(set(runs)) > 1


# Mistakes. A message has {line} and {other} where mistakes.cu marks the lines.

RACE = (  # who comes first depends on the order of threads
    r"race: thread \d+ (reads|writes) shared\[\d+\] of 1024 bytes at "
    r"({line}, thread \d+ (wrote|read) it at {other}|{other}, thread \d+ (wrote|read) it at {line})"
)
UNDEFINED = r"thread 1 does what C\+\+ does not define .* at {line}"
IN_FLIGHT = r"touches shared\[0\] .* at {line} while cp.async of {other} is in flight"
MISTAKES = {
    "no_barrier": RACE,
    "no_barrier_before_reuse": RACE,
    "writes_over_readers": r"race: thread 31 writes .* at {line}, thread 63 read it at {other}",
    "two_writers": r"race: thread 1 writes shared\[0\] .* at {line}, thread 0 wrote it at {line}",
    "no_syncwarp": RACE,
    "syncwarp_for_a_barrier": RACE,
    "ldmatrix_before_barrier": RACE,
    "uninitialised": r"thread 58 reads shared\[20\] of 1024 bytes at {line}, which nothing has wri",
    "reads_an_output": r"thread 0 reads out\[0\] of 256 bytes at {line}, which nothing has written",
    "reads_past_the_end": r"thread 63 reads 4 bytes of query\[256\] of 256 bytes at {line}",
    "reads_before_the_start": r"thread 0 reads 4 bytes of query\[-4\] of 256 bytes at {line}",
    "writes_past_the_end": r"thread 63 writes 4 bytes of out\[256\] of 256 bytes at {line}",
    "writes_an_input": r"writes query\[0\] of 256 bytes, which it may only read, at {line}",
    "shared_too_small": r"thread 63 writes 4 bytes of shared\[1024\] of 1024 bytes at {line}",
    "in_a_header": r"query\[256\] of 256 bytes at {element_after} \(called in {line}\)",
    "two_blocks": r"block 1: blocks 0 and 1 both touch out\[128\] .*, at {line} and at {line}",
    "divergent_barrier": r"a barrier is met in different places: {other} and {line}",
    "leaves_before_a_barrier": r"deadlock: 32 threads have ended, 32 at __syncthreads in {line}",
    "divergent_shuffle": r"deadlock: 32 threads have ended, 32 at a shuffle in {line} \(thread 0\)",
    "different_operations": r"warp 0 has diverged: a shuffle at {other}, __syncwarp at {line}",
    "half_a_warp": r"a shuffle at {line} with mask 0000ffff: only whole warps",
    "no_wait": IN_FLIGHT,
    "waits_for_too_few": IN_FLIGHT,
    "wait_without_barrier": RACE,
    "never_waits": r"thread 0 ends without waiting for cp.async at {line}",
    "copies_over_readers": RACE,
    "copies_from_outside": r"reads 16 bytes of query\[256\] of 256 bytes at {line}",
    "copies_to_outside": r"cp.async at {line}: thread 0 copies to shared\[1024\]",
    "copies_unaligned": r"cp.async at {line}: thread 0 copies from query\[4\] .* multiple of 16",
    "ldmatrix_unaligned": r"ldmatrix at {line}: lane 0 names shared\[8\]",
    "divides_by_zero": r"thread 0 (divides an integer by zero|does what C\+\+ .*) at {line}",
    "overflows": UNDEFINED,
    "unaligned_vector": UNDEFINED.replace("1", "0"),
    "past_a_local_array": UNDEFINED,
    "never_ends": r"the launch has not ended in 1 s of the CPU: thread 0 is at {line}",
    "never_ends_its_calls": r"thread 0 has no stack left",
}
# What needs no check build, because values, a guard page or a deadlock show it.
FAST_MISTAKES = (
    "reads_past_the_end", "writes_past_the_end", "shared_too_small", "in_a_header",
    "divergent_barrier", "leaves_before_a_barrier", "divergent_shuffle", "different_operations",
    "half_a_warp", "copies_to_outside", "copies_unaligned", "ldmatrix_unaligned",
    "divides_by_zero",
)  # fmt: skip


def marks() -> dict[str, dict[str, str]]:
    """Mistake → its marked lines."""
    found: dict[str, dict[str, str]] = {}
    for path in (build.HERE / "mistakes.cu", build.HERE / "mistakes.cuh"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for kind, name in re.findall(r"// (line|other): (\w+)", line):
                found.setdefault(name, {})[kind] = f"{path.name}:{number}"
    return found


def provoke(entry: str, mode: Mode) -> None:
    tensors = {"query": torch.ones(64, dtype=torch.int32), "out": ints(64)}
    blocks = 2 if entry == "two_blocks" else 1
    launch(entry, mode, source="mistakes.cu", blocks=blocks, **tensors)


def message(entry: str) -> str:
    lines = {"element_after": marks()["element_after"]["line"], **marks().get(entry, {})}
    return re.sub(r"{(\w+)}", lambda m: re.escape(lines[m[1]]), MISTAKES[entry])


def test_every_mistake_is_in_the_table():
    entries = re.findall(r"^MISTAKE\((\w+)\)", (build.HERE / "mistakes.cu").read_text(), re.M)
    assert entries == list(MISTAKES)


@pytest.mark.parametrize("entry", MISTAKES)
def test_the_check_build_names_file_and_line(entry: str, cases):
    with pytest.raises(KernelError, match=message(entry)) as caught:
        provoke(entry, "check")
    assert "/" not in str(caught.value)
    cases("emulator: mistakes", 1)


@pytest.mark.parametrize("mode", FAST)
@pytest.mark.parametrize("entry", FAST_MISTAKES)
def test_the_fast_build_faults(entry: str, mode: Mode, cases):
    with pytest.raises(KernelError, match=r"mistakes\.cuh?:\d+"):
        provoke(entry, mode)
    cases("emulator: mistakes", 1)


def test_a_fault_leaves_the_emulator_usable():
    for _ in range(3):
        with pytest.raises(KernelError):
            provoke("leaves_before_a_barrier", "lazy")
        test_barriers_and_blocks("lazy", lambda *_: None)


# Build and launch


def offsets_in_cpp(names: list[str], tmp_path: Path) -> list[int]:
    source = tmp_path / "offsets.cpp"
    values = ", ".join(f"offsetof(nb::Params, {name})" for name in names)
    source.write_text(
        '#include <cstddef>\n#include "params.h"\n'
        f'extern "C" const unsigned offsets[] = {{{values}}};\n'
    )
    library = ctypes.CDLL(str(build.library([source], (f"-I{build.CUDA}",))))
    return list((ctypes.c_uint * len(names)).in_dll(library, "offsets"))


def test_python_packs_what_the_struct_declares(tmp_path: Path):
    members: list[tuple[str, str]] = [(name, "Q") for name in layout.POINTERS]
    for tensor in layout.STRIDES:
        parts = ("batch", "axis[0]", "axis[1]", "axis[2]", "head", "channel")
        members += [(f"{tensor}_stride.{part}", "q") for part in parts]
    members += [("scale", "d"), ("softcap", "d")]
    members += [(f"axis[{i}].{name}", "i") for i in range(3) for name in layout.AXIS]
    members += [(f"held[{i}].{name}", "i") for i in range(3) for name in layout.HELD]
    members += [(name, "i") for name in layout.COUNTS]
    packed = struct.Struct("<" + "".join(kind for _, kind in members))
    expected = [
        struct.calcsize("<" + "".join(k for _, k in members[:i])) for i in range(len(members))
    ]
    assert packed.size == layout.SIZE
    assert offsets_in_cpp([name for name, _ in members], tmp_path) == expected


def test_a_build_is_reused_until_a_header_changes(tmp_path: Path):
    for name in ("mistakes.cu", "mistakes.cuh"):
        (tmp_path / name).write_bytes((build.HERE / name).read_bytes())
    variant = Variant("mistakes.cu", "no_barrier", (), 64, SHARED)
    here = build.kernel(variant, checked=False, folder=build.HERE)
    assert (
        build.kernel(variant, checked=False, folder=tmp_path) == here
    )  # the folder does not matter
    assert build.kernel(variant, checked=True, folder=build.HERE) != here
    header = tmp_path / "mistakes.cuh"
    header.write_text(header.read_text() + "// changed\n")
    assert build.kernel(variant, checked=False, folder=tmp_path) != here


def test_error_of_a_kernel_that_does_not_build(tmp_path: Path):
    (tmp_path / "bad.cu").write_text('#include "params.h"\n__shared__ int x;\n')
    with pytest.raises(RuntimeError, match=r"bad\.cu:2:\d+: error: .*__shared__"):
        build.kernel(Variant("bad.cu", "bad", (), 32, 0), checked=False, folder=tmp_path)


@pytest.mark.parametrize(("grads", "names"), [(1, ["value"]), (2, ["key"]), (3, ["key", "value"])])
def test_tensors_that_a_kernel_does_not_write_stay_unchanged(grads: int, names: list[str]):
    p = problem.Problem(Mask(Axis(2, 2)), (20,), (20,), extra=3, grads=grads)
    launcher, known = Launcher("check"), problem.make(p)
    for kernel in ("fwd", "delta"):
        known |= problem.run(p, launcher, kernel, known)
    every = {n: known[n].clone() for n in ("key", "value", "extra_key", "extra_value")}
    tensors = {n: known[n] for n in problem.READS["dkdv"] if n in known}
    tensors |= {f"grad_{n}": t.fill_(7) for n, t in every.items()}
    launcher.launch(
        problem.variant(p, "dkdv"),
        problem.blocks(p, "dkdv"),
        tensors,
        problem.numbers(p, "dkdv", known),
    )
    for name, tensor in every.items():
        assert (tensor == 7).all() == (name.removeprefix("extra_") not in names)
