"""Tests of the native kernels, called directly: any tiles and groups, also those that the planner
does not choose, against the definition in float64; and what must be equal bit by bit.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import native_problems
import pytest
import torch
from native_library import needs_library
from native_problems import Problem, judge, line, problem_of, solved
from torch import Tensor

import nbattn
from nbattn import Axis, Mask
from nbattn.backends.inputs import Inputs
from nbattn.backends.native import run
from nbattn.backends.native.meaning import NativeArguments
from nbattn.backends.native.tiles import Tiles
from nbattn.geometry import bind
from nbattn.kernels import host
from nbattn.program.limits import LARGEST, LARGEST_DILATION
from nbattn.program.program import Call, Program, whole

pytestmark = needs_library
Count = Callable[[str, int], None]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)
PLANE = Mask(Axis(2, 2, border="shift", dilation=2), Axis(3, 1, prefix=1))


@pytest.fixture(autouse=True)
def uninitialized_memory_is_nan() -> Iterator[None]:
    """What the kernels do not write shows."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


def same(found: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert found.keys() == other.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, other[name]), name


# Values


def test_random_problems(cases: Count) -> None:
    """Masks, parts of axes, strides, features, tiles and groups: `native_problems.py` runs more."""
    for seed in range(80):
        native_problems.check(seed)
    cases("native problems", 80)


@pytest.mark.deep
@pytest.mark.parametrize("part", range(20))
def test_many_random_problems(part: int, cases: Count) -> None:
    for seed in range(1000 * (part + 1), 1000 * (part + 2)):
        native_problems.check(seed)
    cases("native problems", 1000)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_head_sizes(dtype: torch.dtype, cases: Count) -> None:
    """Rows are padded to four numbers, lanes to sixteen; sums take several columns at once."""
    tiles = [Tiles((2, 1, 2, 4), (2, 1, 1, 2)), Tiles((1, 1, 4, 4), (1, 1, 2, 1)), line(2)]
    for sizes in ((1, 1), (3, 1), (7, 20), (20, 7), (65, 130), (130, 3)):
        judge_problem(problem_of(PLANE, (6, 7), (6, 7), (1, 6, 2, *sizes), dtype=dtype,
                                 tiles=tiles, extra=2, sink=True))  # fmt: skip
        cases("native head sizes", 1)


def judge_problem(made: Problem) -> dict[str, Tensor]:
    found = solved(made)
    judge(made, found)
    return found


def later(queries: int, keys: int) -> Tensor:
    """The pairs of a causal mask, bottom-right."""
    return torch.arange(keys)[None] <= torch.arange(queries)[:, None] + keys - queries


FULL = Mask(Axis(), Axis())
# name: mask, queries, keys, sizes, the rest; boxes hold 256 KiB of columns, 512 scores are kept
LONG: dict[str, tuple[Mask, Any, Any, Any, dict[str, Any]]] = {
    "many keys": (
        Mask(Axis(causal=True, align="bottom-right")), (37,), (5000,), (1, 2, 1, 16, 16),
        {"pairs": later(37, 5000), "tiles": [line(2), Tiles((2, 1, 1, 8), (1, 1, 1, 3)), line(9)]},
    ),
    "many queries": (
        Mask(Axis(causal=True, align="bottom-right")), (5000,), (37,), (1, 2, 1, 16, 16),
        {"pairs": later(5000, 37), "tiles": [line(9), line(5), line(2)]},
    ),
    "a plane in rows": (
        FULL, (3, 5), (60, 50), (1, 1, 1, 32, 32), {"pairs": torch.ones(15, 3000).bool()},
    ),
    "a plane in parts of rows": (
        FULL, (3, 70), (5, 70), (1, 2, 1, 300, 500),
        {"dtype": torch.float64, "tiles": [Tiles((2, 1, 2, 4), (1, 1, 1, 3))] * 2 + [line(2)]},
    ),
    "a volume in planes": (
        Mask(Axis(), Axis(9, 9), Axis(4, 4, border="wrap")), (3, 9, 9), (3, 9, 9),
        (1, 1, 1, 500, 100), {"tiles": [Tiles((1, 1, 4, 4), (1, 3, 2, 1))] * 3},
    ),
    "extra keys in parts": (
        Mask(Axis(1, 1)), (20,), (20,), (1, 2, 2, 1030, 1030),
        {"dtype": torch.float64, "extra": 40},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_more_columns_than_are_copied_at_once(name: str, cases: Count) -> None:
    """Boxes are cut on every axis, and sums begin anew where scores are full."""
    mask, queries, keys, sizes, more = LONG[name]
    judge_problem(problem_of(mask, queries, keys, sizes, **more))
    cases("native boxes", 1)


@pytest.mark.parametrize("softcap", [0.5, 50.0, 1e4, 1e8])
def test_softcaps_of_any_size(softcap: float) -> None:
    for dtype in (torch.float32, torch.float64):
        judge_problem(problem_of(Mask(Axis(9, 4)), (40,), (40,), (1, 2, 2, 16, 16), dtype=dtype,
                                 softcap=softcap))  # fmt: skip


@pytest.mark.parametrize("offset", [LARGEST, 3, -LARGEST])
def test_positions_of_the_largest_dilation(offset: int) -> None:
    axis = Axis(5, 5, dilation=LARGEST_DILATION, offset=offset, align="top-left")
    made = problem_of(Mask(axis), (3,), (7,), (1, 1, 1, 4, 4), tiles=[line(3)] * 3)
    judge_problem(made)
    assert made.allowed.any()


def test_sizes_of_zero() -> None:
    """No samples, queries or keys: zeros, -inf, and extra keys alone."""
    mask, tiles = Mask(Axis(2, 2, align="top-left"), Axis(1, 1, align="top-left")), [line(1)] * 3
    for queries, keys, batch in (((0, 3), (4, 3), 2), ((4, 3), (0, 3), 2), ((4, 3), (4, 3), 0)):
        for extra in (0, 3):
            made = problem_of(mask, queries, keys, (batch, 2, 1, 5, 6), tiles=tiles, extra=extra)
            found = solved(made)
            assert found["out"].shape == (batch, *queries, 2, 6)
            for name, tensor in found.items():
                assert not tensor.isnan().any(), name
                if extra == 0:
                    assert not tensor.masked_fill(tensor == -torch.inf, 0).any(), name
                elif name == "dextra_value":
                    assert tensor.any() == (found["out"].numel() > 0)
            assert found["lse"].isinf().all() == (extra == 0 or found["lse"].numel() == 0)


def test_a_forward_alone_needs_no_logsumexp() -> None:
    made = problem_of(PLANE, (6, 7), (6, 7), (1, 2, 1, 8, 8))
    given = made.tensors
    inputs = Inputs(given["query"], given["key"], given["value"], scale=0.3)
    axes = bind(PLANE, (6, 7), (6, 7))
    results = []
    for arguments in (NativeArguments(axes, line(2)), NativeArguments(axes, *[line(2)] * 3)):
        program = Program((Call(whole((6, 7)), whole((6, 7)), arguments),))
        results += [run.forward(program, inputs, return_lse=False)]
    (out, none), (other, lse) = results
    assert none is None
    assert lse is not None
    assert torch.equal(out, other)


# Numbers that are not usual


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_half_is_read_and_rounded_as_torch_does(dtype: torch.dtype) -> None:
    """Values of one key come back, sums of two gradients are rounded: subnormal, tied, too large,
    infinite, NaN.
    """
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    tiles = [line(1)] * 3

    def gradient(value: Tensor, upward: Tensor) -> tuple[Tensor, Tensor]:
        """Of queries that attend to one key with weight 1."""
        count = upward.shape[1]
        made = problem_of(Mask(Axis()), (count,), (1,), (64, 1, 1, 1, 1024), dtype=dtype,
                          tiles=tiles)  # fmt: skip
        made.tensors["query"].zero_()
        made.tensors |= {"value": value, "grad_out": upward}
        found = solved(made)
        return found["out"][:, :1], found["dvalue"]

    one = every.reshape(64, 1, 1, 1024)
    assert same_bits(gradient(one, one)[0], one)
    order = torch.randperm(1 << 16, generator=torch.Generator().manual_seed(0))
    for other in (every[order], every.roll(1), every.flip(0)):
        both = torch.cat([one, other.reshape(one.shape)], dim=1)
        wanted = (both[:, :1].float() + both[:, 1:].float()).to(dtype)
        assert same_bits(gradient(one, both)[1], wanted)


def same_bits(found: Tensor, wanted: Tensor) -> bool:
    """Equal, NaN too; 0 and -0 are equal."""
    return bool(((found == wanted) | (found.isnan() & wanted.isnan())).all())


NANS = (0x7FC00000, 0x7FC00001, 0x7FFFFFFF, 0x7F800001, 0xFFFFFFFF, 0xFF800001)


@pytest.mark.parametrize("bits", [*NANS, 0x7F800000, 0xFF800000], ids=hex)
@pytest.mark.parametrize("where", ["key", "value", "query"])
def test_what_is_not_finite_stays_with_its_rows(bits: int, where: str) -> None:
    """Rows that attend to it are as the definition has them, other tiles do not notice it."""
    made = problem_of(Mask(Axis(1, 1)), (96,), (96,), (1, 1, 1, 8, 8), tiles=[line(2)] * 3)
    clean = solved(made)
    bad = torch.tensor([bits - (1 << 32) if bits >> 31 else bits], dtype=torch.int32)
    made.tensors[where][0, 40, 0, 3] = bad.view(torch.float32)[0]
    found = solved(made)
    wanted, _ = native_problems.wanted(made)
    reads = torch.zeros(96, dtype=torch.bool)
    reads[40 if where == "query" else slice(39, 42)] = True
    for name in ("out", "lse"):
        rows, exact = found[name][0, reads].double(), wanted[name][0, reads].detach()
        assert torch.equal(rows.isfinite(), exact.isfinite()), name
        rows, exact = (t.nan_to_num(0, 0, 0) for t in (rows, exact))
        torch.testing.assert_close(rows, exact, rtol=1e-5, atol=1e-5)
    assert not found["out"][0, reads].isfinite().all()
    far = torch.ones(96, dtype=torch.bool)
    far[16:64] = False  # the tile that reads it, and tiles that read a row of that
    for name, tensor in found.items():
        assert torch.equal(tensor[0, far], clean[name][0, far]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_rows_without_keys_leave_gradients_alone(dtype: torch.dtype) -> None:
    """Whatever comes back for their logsumexp; their output is 0."""
    mask = Mask(Axis(2, causal=True, stride=6))
    torch.manual_seed(0)
    leaves = [torch.randn(1, 40, 1, 16).to(dtype).requires_grad_() for _ in range(3)]
    leaves.append(torch.full((1,), -torch.inf, requires_grad=True))  # a sink without weight
    out, lse = nbattn.attention(
        *leaves[:3], mask, sink=leaves[3], backend="native", return_lse=True
    )
    empty = lse == -torch.inf
    assert empty.any()
    assert not out[empty].any()
    results = []
    for unread in (0.0, torch.nan, torch.inf):
        upward = torch.where(empty, unread, 1.0)
        given = (torch.ones_like(out), upward)
        results.append(torch.autograd.grad((out, lse), leaves, given, retain_graph=True))
        assert all(grad.isfinite().all() for grad in results[-1])
        assert not results[-1][0][empty].any()
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


# Equal bits


def shared(made: Problem, threads: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The results of so many threads, however small the problem is."""
    monkeypatch.setattr(run, "_SHARE", 1.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    return solved(made)


def of_threads(rank: int) -> Problem:
    """A problem of many items, some of them without rows, since 17 rows of a class are 3 tiles."""
    if rank == 1:
        mask, space = Mask(Axis(9, 5, dilation=3)), (52,)
        tiles = [Tiles((1, 1, 1, 16), (1, 1, 1, 1)), Tiles((4, 1, 1, 4), (1, 1, 1, 2)), line(1)]
    else:
        mask, space = PLANE, (13, 12)
        tiles = [Tiles((1, 1, 4, 4), (1, 1, 1, 2))] * 2 + [Tiles((1, 1, 4, 4), (1, 1, 1, 1))]
    return problem_of(mask, space, space, (3, 6, 2, 20, 33), tiles=tiles, extra=20, sink=True)


@pytest.mark.parametrize("rank", [1, 2])
def test_results_do_not_depend_on_threads(
    rank: int, monkeypatch: pytest.MonkeyPatch, cases: Count
) -> None:
    made = of_threads(rank)
    one = judge_problem(made)
    for threads in (1, 2, 3, 5, 1, 5, 2):
        same(shared(made, threads, monkeypatch), one)
        cases("native threads", 1)


def test_a_call_waits_for_its_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two items takes much longer; the caller begins with the short one."""
    monkeypatch.setattr(run, "_SHARE", 1.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    keys, mask = 60_000, Mask(Axis())
    query = torch.ones(2, 16, 1, 128, dtype=torch.float64)
    key = torch.ones(1, 1, 1, 128, dtype=torch.float64).expand(2, keys, 1, 128)
    key_range = torch.tensor([[[0, keys // 6]], [[0, keys]]], dtype=torch.int32)
    inputs = Inputs(query, key, key, key_range=key_range)
    window = NativeArguments(bind(mask, 16, keys), line(1))
    program = Program((Call(whole((16,)), whole((keys,)), window),))
    for _ in range(3):
        out, _ = run.forward(program, inputs, return_lse=False)
        first = out.clone()  # what a helper writes now comes too late
        torch.testing.assert_close(first, query)


def test_calls_of_several_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them asks for helpers; the pool has one list of work."""
    problems = [of_threads(1), of_threads(2)] * 3
    wanted = [solved(made) for made in problems]
    monkeypatch.setattr(run, "_SHARE", 1.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    start = threading.Barrier(len(problems))

    def call(made: Problem) -> list[dict[str, Tensor]]:
        start.wait()
        return [solved(made) for _ in range(3)]

    with ThreadPoolExecutor(len(problems)) as pool:
        for results, want in zip(pool.map(call, problems), wanted, strict=True):
            for found in results:
                same(found, want)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_of_fork_has_helpers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made = of_threads(1)
    wanted = shared(made, 3, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a process with threads forks
        child = os.fork()
    if child == 0:
        status = 1
        try:
            found = solved(made)
            status = 0 if all(torch.equal(t, wanted[n]) for n, t in found.items()) else 2
            tasks = Path("/proc/self/task")  # Linux: this thread and its two helpers
            if tasks.is_dir() and len([*tasks.iterdir()]) < 3:
                status = 3
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    same(solved(made), wanted)


def strided(made: Problem) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The same numbers in other memory, with NaN between them."""

    def spread(tensor: Tensor, order: tuple[int, ...], gaps: tuple[int, ...]) -> Tensor:
        if tensor.dim() != len(order):
            return tensor
        sizes = [n * gap for n, gap in zip(tensor.shape, gaps, strict=True)]
        memory = torch.full([sizes[n] for n in order], float("nan"), dtype=tensor.dtype)
        view = memory.permute([order.index(n) for n in range(tensor.dim())])
        return view[tuple(slice(None, None, gap) for gap in gaps)].copy_(tensor)

    def moved(tensor: Tensor) -> Tensor:
        memory = tensor.new_full((tensor.numel() + 1,), float("nan"))
        return memory[1:].view(tensor.shape).copy_(tensor)

    plain, none = (0, 1, 2, 3, 4), (1, 1, 1, 1, 1)
    layouts = {
        "heads first": ((0, 3, 1, 2, 4), none), "every second token": (plain, (1, 2, 3, 1, 1)),
        "every second channel": (plain, (1, 1, 1, 1, 2)), "channels first": ((4, 0, 3, 1, 2), none),
        "reversed": ((4, 3, 2, 1, 0), none),
    }  # fmt: skip
    for name, (order, gaps) in layouts.items():
        yield name, {n: spread(t, order, gaps) for n, t in made.tensors.items()}
    yield "one element later", {n: moved(t) for n, t in made.tensors.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides_give_the_same_bits(dtype: torch.dtype, cases: Count) -> None:
    made = problem_of(PLANE, (7, 9), (7, 9), (2, 2, 1, 19, 6), dtype=dtype, extra=3,
                      tiles=[Tiles((2, 1, 2, 4), (1, 1, 2, 1))] * 2 + [line(2)])  # fmt: skip
    plain = solved(made)
    for _, tensors in strided(made):
        same(solved(replace(made, tensors=tensors)), plain)
        cases("native strides", 1)


@pytest.mark.parametrize("step", [0, 1, 19, 1 << 40])
def test_an_axis_of_one_position_may_have_any_stride(step: int) -> None:
    made = problem_of(Mask.sliding_window(9, 0, align="bottom-right"), (1,), (12,), (2, 1, 1, 8, 8))
    plain = solved(made)
    for name in ("query", "grad_out"):
        tensor = made.tensors[name]
        made.tensors[name] = tensor.as_strided(tensor.shape, (8, step, 8, 1))
    same(solved(made), plain)


def test_warmup_loads_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(host, "library", lambda: asked.append(1))
    plan = nbattn.plan(Mask.neighborhood(7), (1, 40, 2, 16), device="cpu", backend="native")
    plan.warmup()
    assert asked


@pytest.mark.deep
def test_gradients_of_more_than_two_gibibytes() -> None:
    """Bytes are counted in 64 bits; every query shares its gradient among all keys."""
    keys, queries = 2_200_000, 16
    row = torch.randn(1, 1, 1, 256)
    given = [
        row.expand(1, queries, 1, 256),
        row.expand(1, keys, 1, 256),
        row[..., :8].expand(1, keys, 1, 8),
    ]
    tile = line(1)
    arguments = NativeArguments(bind(Mask(Axis()), (queries,), (keys,)), tile, grad_all=tile)
    program = Program((Call(whole((queries,)), whole((keys,)), arguments),))
    inputs = Inputs(*given, scale=0.1)
    out, lse = run.forward(program, inputs, return_lse=True)
    assert lse is not None
    found = run.backward(program, inputs, out, lse, torch.ones_like(out), None)
    assert found.key.numel() * 4 > 2 << 30
    assert found.key.isfinite().all()
    total = found.value.sum(dim=(0, 1, 2))
    torch.testing.assert_close(total, torch.full((8,), float(queries)), rtol=1e-4, atol=0)
