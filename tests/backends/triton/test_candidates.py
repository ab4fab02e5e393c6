"""Tests of the Triton kernels as a candidate: programs, tiles, limits, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import few_examples
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import masks, matrix
from triton_plans import arguments, candidate, device, planned, requested
from work import lines

from nbattn import Axis, Mask
from nbattn.backends.triton import choice
from nbattn.backends.triton import tiles as triton_tiles
from nbattn.backends.triton.meaning import FIELDS
from nbattn.backends.triton.tiles import Build
from nbattn.geometry import Held, bind
from nbattn.grids import PackedGrids, grids_of
from nbattn.planner import planner
from nbattn.planner.plan import Plan
from nbattn.program.parts import PackedCall

Count = Callable[[str, int], None]
Space = tuple[int, ...]
LINE = Mask.sliding_window(3)


@few_examples.quick(100)
@given(drawn=masks(), training=st.booleans(), name=st.sampled_from(("sm_90", "gfx942", "xe")))
def test_triton_plans_compute_their_masks(
    cases: Count, drawn: tuple[Mask, Space, Space], training: bool, name: str
) -> None:
    """By index grids, in training those of the gradients' kernels too; and by intervals."""
    mask, queries, keys = drawn
    shapes = {"key_shape": (1, *keys, 1, 32), "training": training, "device": device(name)}
    plan = planned(mask, (1, *queries, 2, 32), **shapes)
    assert plan.chosen.name == "triton/window"
    assert np.array_equal(plan.support(), matrix(mask.axes, queries, keys))
    assert plan.verify()
    assert (arguments(plan).grad_key is not None) == training
    cases("triton plans", 1)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"device": device("sm_75"), "dtype": "float16"}, "Triton needs sm_80 or newer, not sm_75"),
    ({"head": 257}, "takes a head_dim up to 256 in bfloat16, not 257"),
    ({"head": 129, "dtype": "float64"}, "takes a head_dim up to 128 in float64, not 129"),
    ({"value_dim": 300}, "takes a value_dim up to 256 in bfloat16, not 300"),
    ({"device": device(providers=())}, "needs Triton, which is not installed"),
    ({"device": device("cpu", providers=("triton",))}, "runs on cuda, xpu, not on cpu"),
    ({"length": (1 << 25) + 1}, "takes queries up to 33554432 on axis 0, not 33554433"),
    ({"length": 1 << 25, "batch": 4096}, "programs are over the grid of"),
    ({"length": 1 << 25, "batch": 4096, "device": device("sm_90")}, "over the grid of 2147483647"),
    ({"mask": Mask.neighborhood((1025, 2051)), "relative_bias": True},
     "takes tables of up to 4194304 entries per head, not 8402949"),
]  # fmt: skip


@pytest.mark.parametrize(("named", "text"), REFUSED)
def test_each_limit_of_triton_has_a_reason(named: dict[str, Any], text: str) -> None:
    named = dict(named)
    mask, length = named.pop("mask", LINE), named.pop("length", 64)
    head, batch = named.pop("head", 32), named.pop("batch", 1)
    space = (length,) if mask.rank == 1 else (4096, 4096)
    found = candidate(requested(mask, (batch, *space, 2, head), **named))
    assert found.program is None
    assert text in found.reasons[0].text


def test_where_no_tile_fits_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "legal_tiles", lambda *_: ())
    found = candidate(requested(LINE, (1, 64, 2, 32)))
    assert [tuple(reason) for reason in found.reasons] == [
        ("memory", "no tile of head_dim 32 and value_dim 32 fits gfx942")
    ]


def test_the_kernel_of_delta_has_a_limit_of_its_own() -> None:
    """The other kernels' tiles have more than its 16 rows."""
    shape = (1 << 16, 64, 64, 256)
    assert candidate(requested(LINE, shape)).program is not None
    (reason,) = candidate(requested(LINE, shape, training=True)).reasons
    assert reason == ("grid", f"{1 << 24} programs are over the grid of {(1 << 24) - 1}")


def test_auto_leaves_nvidia_to_cupy() -> None:
    """By name it runs there; without CuPy, and on other GPUs, `auto` takes it."""
    for name, providers, accepted in (
        ("sm_90", ("cupy", "triton"), False),
        ("sm_90", ("triton",), True),
        ("gfx942", ("cupy", "triton"), True),
        ("xe", ("triton",), True),
    ):
        request = requested(LINE, (1, 64, 2, 32), device=device(name, providers), backend="auto")
        found = candidate(request)
        assert (not found.reasons) == accepted
        if not accepted:
            (reason,) = found.reasons
            assert reason.limit == "backend"
            assert "runs only if requested: backend='triton'" in reason.text
        named = requested(LINE, (1, 64, 2, 32), device=device(name, providers))
        assert candidate(named).program is not None
    other = requested(LINE, (1, 64, 2, 32), backend="tiled")
    assert candidate(other).program is candidate(other).cost is None


@pytest.mark.parametrize("named", [{"forbid": ("cuda",)}, {"require": ("triton",)}])
def test_auto_takes_triton_on_nvidia_where_cupys_kernels_are_not_wanted(
    named: dict[str, Any],
) -> None:
    both = device("sm_90", ("cupy", "triton"))
    request = requested(Mask.neighborhood((9, 9)), (1, 64, 64, 2, 32), device=both)
    request = replace(request, backend="auto")
    assert planner.make(request).chosen.name == "cuda/window+mma"
    assert planner.make(replace(request, **named)).chosen.name == "triton/window"
    other = candidate(replace(request, forbid=("mma",), require=("window",)))
    assert [reason.limit for reason in other.reasons] == ["backend"]


def test_reasons_of_the_device_come_before_that_of_auto() -> None:
    on = device("sm_75", ("cupy", "triton"))
    found = candidate(requested(LINE, (1, 64, 2, 32), device=on, backend="auto", dtype="float16"))
    assert [reason.limit for reason in found.reasons] == ["device"]


def test_everything_that_an_attention_may_have_is_accepted() -> None:
    plan = planned(
        Mask(Axis(3, 3, prefix=2), Axis(2, 2, border="wrap")), (2, 9, 8, 4, 64),
        key_shape=(2, 9, 8, 2, 64), value_dim=48, extra_keys=5, softcap=True, sink=True,
        key_range=True, extra_range=True, training=True, return_lse=True, deterministic=True,
    )  # fmt: skip
    wanted = Build("bfloat16", 64, 48, 2, True, True, True, True, True, False, True, sink=True)
    assert arguments(plan).build == wanted
    known = arguments(plan)
    assert None not in (known.grad_query, known.grad_key, known.grad_extra)
    added = planned(
        Mask.neighborhood(5), (2, 64, 4, 64), training=True, relative_bias=True, alibi_slopes=True
    )
    assert arguments(added).build == Build("bfloat16", 64, 64, 1, table=True, slopes=True)
    assert arguments(added).grad_table is not None


def test_every_kernel_that_runs_has_legal_tiles() -> None:
    named = {"training": True, "relative_bias": True, "extra_keys": 40}
    plan = planned(Mask.neighborhood((7, 7)), (1, 40, 40, 4, 64), **named)
    known = arguments(plan)
    for kernel in triton_tiles.kernels(known.build, training=True):
        legal = triton_tiles.legal_tiles(kernel, known.build, device(), (1, 2))
        assert getattr(known, FIELDS[kernel]) in legal
    forward = arguments(planned(Mask.neighborhood((7, 7)), (1, 40, 40, 4, 64), extra_keys=40))
    assert forward.grad_query is forward.grad_key is forward.grad_extra is None


@pytest.mark.parametrize(
    ("named", "kernels"),
    [
        ({}, "1 kernel, in 1 to 4 seconds, or finds it"),
        ({"training": True}, "4 kernels, in 1 to 4 seconds each, or finds them"),
        ({"training": True, "extra_keys": 2}, "5 kernels,"),
        ({"training": True, "extra_keys": 2, "relative_bias": True}, "6 kernels,"),
        ({"dtype": "float32"}, "1 kernel, in 1 to 4 seconds, or finds it"),
        ({"device": device("xe")}, "1 kernel, in seconds, or finds it"),
    ],
)
def test_explain_says_what_the_first_run_compiles(named: dict[str, Any], kernels: str) -> None:
    plan = planned(Mask.neighborhood((3, 3)), (1, 32, 32, 2, 32), **named)
    text = plan.explain()
    assert f"the first run compiles {kernels}" in text
    assert "TRITON_CACHE_DIR" in text
    assert "plan.warmup()" in text


@few_examples.quick(60)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4),
    st.sampled_from((Axis(1, 2), Axis(2, 2, border="shift"), Axis(1, 1, border="wrap"))),
)
def test_packed_grids_are_one_call(cases: Count, sizes: list[tuple[int, int]], axis: Axis) -> None:
    grids = PackedGrids(*2 * [grids_of(sizes)])
    tokens = sum(a * b for a, b in sizes)
    mask = Mask(axis, Axis(1, 0))
    plan = planned(mask, (tokens, 2, 32), grids=grids, training=True)
    assert plan.chosen.program is not None
    (call,) = plan.chosen.program.calls
    assert isinstance(call.arguments, PackedCall)
    build = arguments(plan).build
    assert build.grids
    assert build.circle == (axis.border == "wrap")
    assert plan.verify()
    found = plan.support()
    wanted, at = np.zeros((tokens, tokens), dtype=bool), 0
    for a, b in sizes:
        wanted[at : at + a * b, at : at + a * b] = matrix(mask.axes, (a, b), (a, b))
        at += a * b
    assert np.array_equal(found, wanted)
    cases("triton packed", 1)


def test_every_packed_grid_is_checked() -> None:
    """The longest, wherever it is; its lengths are those that tiles are chosen for."""
    mask = Mask.sliding_window(3)
    for longest, accepted in ((1 << 20, True), ((1 << 25) + 1, False)):
        sizes = [(5,), (longest,), (7,)]
        grids = PackedGrids(*2 * [grids_of(sizes)])
        request = requested(mask, (longest + 12, 2, 32), grids=grids)
        found = candidate(request)
        assert (found.program is not None) == accepted
        assert accepted or found.reasons[0].text.startswith("takes queries up to 33554432")
        if found.program is not None:
            known = arguments(Plan(request, found, (found,)))
            assert [axis.queries for axis in known.axes] == [longest]


def test_a_decode_step_looks_at_few_tiles() -> None:
    """At any length: few queries leave nothing to choose."""
    mask = Mask.from_transformers(4096)

    def step(keys: int) -> Callable[[], object]:
        shapes = (1, 1, 32, 128), (1, keys, 8, 128)
        return partial(planned, mask, *shapes[:1], key_shape=shapes[1])

    step(4999)()
    for keys in (*range(5000, 5010), 10**7):
        assert lines(step(keys)) <= 8000


@pytest.mark.parametrize("border", ["clip", "shift", "wrap"])
def test_parts_of_axes_are_accepted(border: Any) -> None:
    """Of both axes: what tensors hold need not be the whole."""
    mask = Mask(Axis(2, 2, border=border), Axis(1, 1, border=border, dilation=2))
    held = (Held(3, 24, 1, 24), Held(0, 16, 6, 16))
    named = {"key_shape": (1, 20, 8, 2, 32), "held": held, "training": True}
    plan = planned(mask, (1, 10, 16, 2, 32), **named)
    assert plan.verify()
    whole = [axis.dense() for axis in bind(mask, (10, 16), (20, 8), held)]
    wanted = np.kron(*(side.astype(int) for side in whole)).astype(bool)
    assert np.array_equal(plan.support(), wanted)
