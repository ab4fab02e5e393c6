"""Tests of what native kernels add to scores by position, and of extra keys in a range: values and
gradients at the limits of tables, equal bits on any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from native_library import needs_library
from native_problems import Problem, judge, line, problem_of, solved
from torch import Tensor

import nbattn
from nbattn import Axis, Mask, biases
from nbattn.backends.inputs import Inputs
from nbattn.backends.native import run
from nbattn.backends.native.meaning import NativeArguments
from nbattn.backends.native.tiles import Tiles
from nbattn.geometry import Held, bind
from nbattn.program.program import Call, Program, whole

pytestmark = needs_library
Count = Callable[[str, int], None]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SQUARES, PAIRS = Tiles((1, 1, 4, 4), (1, 1, 2, 1)), Tiles((2, 1, 2, 4), (2, 1, 1, 1))


def with_table(made: Problem, scale: float = 1.0) -> Problem:
    """The same problem with a table."""
    heads, generator = made.tensors["query"].shape[-2], torch.Generator().manual_seed(5)
    sizes = biases.table_sizes(made.mask.axes)
    exact = torch.float64 if made.dtype == torch.float64 else torch.float32
    made.tensors["relative_bias"] = scale * torch.randn(heads, *sizes, generator=generator).to(
        exact
    )
    return made


def with_all_gradients_at_once(made: Problem, slab: tuple[int, int, int]) -> Problem:
    forward, grad_query, _ = made.tiles
    assert grad_query is not None
    return replace(made, tiles=[forward, None, None, grad_query._replace(slab=slab)])


# name: mask, space, tiles of queries, tiles of keys
TABLES: dict[str, tuple[Mask, Any, Tiles, Tiles]] = {
    "a line": (Mask(Axis(5, 3, dilation=2)), (41,), Tiles((2, 1, 1, 8), (1, 1, 1, 2)), line(2)),
    "causal": (Mask(Axis(9, causal=True)), (41,), Tiles((2, 1, 1, 8), (1, 1, 1, 2)), line(2)),
    "a plane": (Mask.neighborhood((5, 4)), (9, 10), PAIRS, SQUARES),
    "a torus": (Mask(Axis(2, 3, border="wrap"), Axis(1, 1, border="wrap")), (7, 5), PAIRS, SQUARES),
    "stride groups": (Mask(Axis(3, 3, stride=3), Axis(2, 2, stride=2)), (9, 10), PAIRS, SQUARES),
    "more than the grid": (Mask(Axis(30, 30), Axis(30, 30)), (7, 7), PAIRS, SQUARES),
    "a space": (
        Mask(Axis(1, 1), Axis(2, 2, border="shift"), Axis(2, 2, border="wrap", dilation=2)),
        (3, 6, 12), Tiles((1, 2, 2, 4), (1, 1, 1, 1)), Tiles((1, 1, 4, 4), (1, 1, 1, 1)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str, dtype: torch.dtype, cases: Count) -> None:
    """In passes by queries and by keys, and in that of all gradients where the type has it."""
    mask, space, by_query, by_key = TABLES[name]
    made = problem_of(mask, space, space, (2, 6, 2, 20, 12), dtype=dtype,
                      tiles=[by_query, by_query, by_key])  # fmt: skip
    judge(made, solved(with_table(made)))
    cases("native tables", 1)
    if dtype.itemsize >= 4:
        made = with_all_gradients_at_once(made, (9, 9, 9))
        judge(made, solved(made))
        cases("native tables", 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_cap_does_not_hold_for_what_is_added(dtype: torch.dtype) -> None:
    mask = Mask(Axis(7, 2))
    made = problem_of(mask, (40,), (40,), (1, 2, 2, 16, 16), dtype=dtype, softcap=0.5, extra=3)
    made.tensors["alibi_slopes"] = torch.tensor([0.5, 2.0])
    judge(made, solved(with_table(made, 4.0)))


@pytest.mark.parametrize("scale", [1e3, 1e30])
def test_entries_of_any_size(scale: float) -> None:
    """A lane without a row does not attend, whatever its entries would be."""
    made = with_table(problem_of(Mask(Axis(9, 8)), (19,), (19,), (1, 3, 1, 8, 8),
                                 tiles=[PAIRS, PAIRS, line(1)]), scale)  # fmt: skip
    for each in (made, with_all_gradients_at_once(made, (1, 1, 9))):
        assert all(tensor.isfinite().all() for tensor in solved(each).values())


def test_entries_of_minus_infinity_are_a_mask() -> None:
    """Also where they leave a query no key."""
    made = with_table(problem_of(Mask(Axis(2, 2)), (20,), (20,), (1, 2, 1, 8, 8)))
    table = made.tensors["relative_bias"]
    table[:, :6] = -torch.inf  # only later keys are left
    table[1] = -torch.inf
    for each in (made, with_all_gradients_at_once(made, (1, 1, 2))):
        found = solved(each)
        assert found["lse"].isinf().sum() == 20 + 2  # the last query of head 0 has none, either
        for name, tensor in found.items():
            assert name == "lse" or tensor.isfinite().all(), name
        assert not found["drelative_bias"][table.isinf()].any()


def slopes(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) + 0.1


@pytest.mark.parametrize("shape", [(6,), (2, 6)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slopes(dtype: torch.dtype, shape: tuple[int, ...], cases: Count) -> None:
    mask = Mask(Axis(30, 7, dilation=2, align="bottom-right"))
    tiles = [Tiles((2, 1, 1, 8), (1, 1, 1, 2))] * 2 + [line(1)]
    made = problem_of(mask, (40,), (57,), (2, 6, 2, 16, 16), dtype=dtype, tiles=tiles, extra=2)
    made.tensors["alibi_slopes"] = slopes(*shape)
    judge(made, solved(made))
    cases("native slopes", 1)


def test_distances_far_from_the_first_position() -> None:
    """They are exact wherever the tensors' parts of an axis begin."""
    mask, start = Mask(Axis(9, 3, dilation=3)), 3 << 26
    query, alibi = torch.randn(1, 40, 2, 8), slopes(2)
    inputs = Inputs(query, query, query, alibi_slopes=alibi)
    results = []
    for first in (0, start):
        length = first + 40
        axes = bind(mask, (40,), (40,), [Held(first, length, first, length)])
        arguments = NativeArguments(axes, line(2))
        program = Program((Call(whole((40,)), whole((40,)), arguments),))
        results.append(run.forward(program, inputs, return_lse=False)[0])
    assert torch.equal(*results)


RANGES = [[37, 50], [9, 4], [0, 75], [-3, 90], [16, 32]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ranges_of_extra_keys(dtype: torch.dtype, cases: Count) -> None:
    """Keys outside are NaN, and their gradients zero; inside tiles, without keys, past the end."""
    made = problem_of(Mask(Axis(3, 2)), (40,), (40,), (5, 2, 1, 9, 7), dtype=dtype, extra=75)
    made.tensors["extra_range"] = torch.tensor(RANGES, dtype=torch.int32)
    for sample, (first, last) in enumerate(RANGES):
        outside = [n for n in range(75) if not first <= n < last]
        for name in ("extra_key", "extra_value"):
            made.tensors[name][sample, outside] = torch.nan
    judge(made, solved(made))
    cases("native ranges", 1)


# Equal bits


@pytest.mark.parametrize("at_once", [False, True])
def test_sums_of_a_table_do_not_depend_on_threads(
    at_once: bool, monkeypatch: pytest.MonkeyPatch, cases: Count
) -> None:
    mask = Mask(Axis(2, 2, border="shift", dilation=2), Axis(3, 1))
    made = problem_of(mask, (29, 12), (29, 12), (3, 6, 2, 20, 33), tiles=[PAIRS, PAIRS, SQUARES])
    with_table(made)
    if at_once:
        made = with_all_gradients_at_once(made, (1, 4, 9))
    one = solved(made)
    judge(made, one)
    monkeypatch.setattr(run, "_SHARE", 1.0)
    for threads in (1, 2, 3, 5, 1, 5, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found = solved(made)
        assert all(torch.equal(tensor, one[name]) for name, tensor in found.items())
        cases("native threads", 1)


def test_calls_with_and_without_slopes_of_samples_are_not_mixed_up() -> None:
    """What a call caches knows how far apart the slopes of two samples are."""
    query = torch.randn(2, 20, 2, 8)
    of_samples = slopes(2, 2)
    for given in (of_samples[0], of_samples, of_samples[0]):
        found, wanted = (
            nbattn.attention(
                query, query, query, Mask(Axis(5, 5)), alibi_slopes=given, backend=name
            )
            for name in ("native", "reference")
        )
        torch.testing.assert_close(found, wanted)


def test_a_table_of_halves_has_gradients_of_halves() -> None:
    made = with_table(problem_of(Mask(Axis(2, 2)), (20,), (20,), (1, 2, 1, 8, 8)))
    made.tensors["relative_bias"] = made.tensors["relative_bias"].bfloat16()
    assert solved(made)["drelative_bias"].dtype == torch.bfloat16
