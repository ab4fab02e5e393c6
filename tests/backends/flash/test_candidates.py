"""Tests that every Flash strategy computes exactly the mask, for every mask of one axis.

Two judges that share no code: programs are computed pair by pair, their calls by the host code of
`flash_oracle`, and compared with the enumerator of `oracle`; `plan.verify()` proves intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import few_examples
import flash_oracle
import numpy as np
import pytest
from flash_programs import PROVIDERS, flash_candidates_for, pair_counts, request_for
from hypothesis import given
from hypothesis import strategies as st
from oracle import axis_matrix, bound_axes, is_legal, masks, matrix

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.backends.flash import candidates as flash
from nbattn.geometry import bind
from nbattn.planner import proof
from nbattn.program import device

Count = Callable[[str, int], None]


def check(axis: Axis, queries: int, keys: int, want: np.ndarray, cases: Count) -> None:
    """Every accepted candidate is the mask, and each provider has one."""
    able: set[str] = set()
    for candidate in flash_candidates_for(Mask(axis), (queries,), (keys,)):
        if candidate.program is None:
            assert candidate.reasons
            continue
        able.add(candidate.backend.removesuffix("fa2"))
        times = pair_counts(candidate.program.calls, queries, keys)
        assert np.array_equal(times, want.astype(int)), (axis, queries, keys, candidate.name)
        cases(f"flash programs, {candidate.strategy}", 1)
    assert len(able - {"flash-model:"}) == len(PROVIDERS), (axis, queries, keys)


# The grid of clipped windows: masks with equal bands share their programs.


def clipped(most: int) -> list[tuple[int | None, int | None, str, int]]:
    """Left and right sides up to `most`, alignments and offsets."""
    sides = (None, *range(most + 1))
    return list(product(sides, sides, ("top-left", "bottom-right"), range(-3, 4)))


def sweep(queries: int, keys: int, most: int, cases: Count) -> None:
    """All masks of a shape against one formula; programs once per different band."""
    fields = clipped(most)
    corners = {"top-left": 0, "bottom-right": keys - queries}
    bands = [  # None where no pair is cut off
        (None if left is None else left - at, None if right is None else right + at)
        for left, right, align, offset in fields
        for at in [corners[align] + offset]
    ]
    far = queries + keys
    left, right = (
        np.array([far if side is None else side for side in sides])[:, None, None]
        for sides in zip(*bands, strict=True)
    )
    centre, key = np.arange(queries)[:, None], np.arange(keys)
    wanted = (key >= centre - left) & (key <= centre + right)
    programs: dict[tuple[int | None, int | None], np.ndarray] = {}
    for (*sides, align, offset), (left, right), want in zip(fields, bands, wanted, strict=True):
        band = (
            None if left is None or left >= queries - 1 else left,
            None if right is None or right >= keys - 1 else right,
        )
        if band not in programs:
            check(Axis(*sides, align=align, offset=offset), queries, keys, want, cases)
            programs[band] = want
        assert np.array_equal(programs[band], want)
    cases("flash masks, clipped", len(fields))


@pytest.mark.parametrize("keys", range(1, 8))
def test_clipped_windows_to_length_7(keys: int, cases: Count) -> None:
    for queries in range(1, 8):
        sweep(queries, keys, 7, cases)


@pytest.mark.deep
@pytest.mark.parametrize("keys", range(1, 13))
def test_clipped_windows_to_length_12(keys: int, cases: Count) -> None:
    for queries in range(1, 13):
        sweep(queries, keys, 12, cases)


# Every other field, drawn; the enumerator judges.


def borders(border: str, every: int, cases: Count) -> None:
    """Every so many axes of a border, lengths to 6, sides to 3."""
    sides, some = (None, 0, 1, 3), (1, 2, 3)
    aligns = (None, "top-left", "bottom-right") if border != "wrap" else (None, "top-left")
    grid = product(
        range(7), range(7), sides, sides, some, some, (False, True), aligns,
        (0, -2, 3) if border != "wrap" else (0,), (0, 2),
    )  # fmt: skip
    for number, chosen in enumerate(grid):
        queries, keys, left, right, dilation, stride, causal, align, offset, prefix = chosen
        fields: dict[str, Any] = {
            "left": left, "right": right, "dilation": dilation, "stride": stride, "causal": causal,
            "align": align, "offset": offset, "prefix": prefix, "border": border,
        }  # fmt: skip
        sampled = border == "wrap" or number % every == 0
        if sampled and is_legal(fields, queries, keys):
            axis = Axis(**fields)
            check(axis, queries, keys, axis_matrix(axis, queries, keys), cases)
            cases(f"flash masks, {border}", 1)


@pytest.mark.parametrize("border", ["clip", "shift", "wrap"])
def test_borders_dilations_strides_and_prefixes(border: str, cases: Count) -> None:
    borders(border, 43, cases)


@pytest.mark.deep
@pytest.mark.parametrize("border", ["clip", "shift"])
def test_the_full_grid_of_borders(border: str, cases: Count) -> None:
    borders(border, 1, cases)


@few_examples.quick(100)
@given(bound_axes(24))
def test_programs_of_random_axes_are_the_mask(cases: Count, bound: tuple[Axis, int, int]) -> None:
    axis, queries, keys = bound
    want = axis_matrix(axis, queries, keys).astype(int)
    for candidate in flash_candidates_for(Mask(axis), (queries,), (keys,)):
        if candidate.program is not None:
            assert np.array_equal(pair_counts(candidate.program.calls, queries, keys), want)
            assert proof.verify(request_for(Mask(axis), (queries,), (keys,)), candidate)
            cases("flash programs, any axis", 1)


@few_examples.quick(100)
@given(masks(3), st.integers(1, 2), st.sampled_from(("contiguous", "packed")))
def test_any_mask_that_reduces_to_one_axis(
    cases: Count, drawn: tuple[Mask, tuple[int, ...], tuple[int, ...]], batch: int, layout: str
) -> None:
    mask, queries, keys = drawn
    request = request_for(
        mask, queries, keys, batch=batch, heads=4, kv_heads=2, layout=layout, head_dim=5
    )
    want = matrix(mask.axes, queries, keys)
    for candidate in flash.candidates(request, bind(mask, queries, keys)):
        if candidate.program is not None:
            assert np.array_equal(proof.support(request, candidate), want), candidate.name
            assert proof.verify(request, candidate)
            cases("flash programs, any mask", 1)


@given(
    st.integers(1, 4096), st.integers(1, 4096), st.sampled_from((None, 0, 7, 128, 4095)),
    st.sampled_from((None, 0, 1, 300)), st.sampled_from(("top-left", "bottom-right")),
    st.sampled_from(("clip", "shift")), st.integers(1, 3),
)  # fmt: skip
def test_long_axes_by_intervals(
    cases: Count, queries: int, keys: int, left: int | None, right: int | None, align: Any,
    border: Any, dilation: int,
) -> None:  # fmt: skip
    if border == "shift":
        left, right = left or 5, right or 4
    axis = Axis(left, right, align=align, border=border, dilation=dilation)
    request = request_for(Mask(axis), (queries,), (keys,), batch=2)
    for candidate in flash_candidates_for(Mask(axis), (queries,), (keys,), batch=2):
        if candidate.program is not None:
            assert proof.verify(request, candidate)
            cases("flash programs, long axes", 1)


# The seed: causal from the top-left corner with seqlen_q != seqlen_k


def test_the_two_proposals_of_the_seed_are_wrong_where_the_document_says() -> None:
    shapes = list(product(range(1, 13), repeat=2))
    causal = {shape: flash_oracle.band(*shape, None, 0) for shape in shapes}
    window = [
        (rows, keys)
        for rows, keys in shapes
        if not np.array_equal(
            flash_oracle.flash2(rows, keys, keys, rows - keys), causal[rows, keys]
        )
    ]
    assert len(window) == 91
    assert sum(rows < keys for rows, keys in window) == 66
    assert sum(rows >= 2 * keys for rows, keys in window) == 25
    padded = [
        (rows, keys)
        for rows, keys in shapes
        if rows > keys and flash_oracle.flash2(rows, rows, -1, 0)[:, keys:].any()
    ]
    assert len(padded) == 66
    assert (min(window), min(padded)) == ((1, 2), (2, 1))
    plain = [s for s in shapes if not np.array_equal(flash_oracle.flash2(*s, -1, 0), causal[s])]
    assert len(plain) == 132


def test_causal_top_left_programs_are_exact_for_every_shape(cases: Count) -> None:
    for rows, keys in product(range(1, 13), repeat=2):
        axis = Axis(None, 0, align="top-left")
        check(axis, rows, keys, flash_oracle.band(rows, keys, None, 0), cases)


def test_the_choice_for_the_seeds_shapes() -> None:
    """One strategy per regime, each with the reason that rules the others out."""
    chosen = {
        (2048, 2048): "translate",
        (2048, 7688): "trim",
        (3000, 2048): "translate",
        (7688, 2048): "virtual-pad",
    }
    for (rows, keys), strategy in chosen.items():
        plan = nbattn.plan(
            Mask.causal("top-left"),
            (1, rows, 8, 128),
            (1, keys, 8, 128),
            device="sm_80",
            backend="flash",
        )
        assert plan.chosen.name == f"flash:aten/{strategy}"
        assert plan.verify()
    (refused,) = [c for c in plan.candidates if c.name == "flash:aten/translate"]
    assert refused.reasons[0].text == (
        "Flash 2 with dense window_size=(-1, 5640) on 7688 queries and 2048 keys lets query 0 "
        "attend to keys 0:2048, not 0:1"
    )


def test_the_schedule_of_the_seeds_example_lists_the_blocks() -> None:
    """Block m of 128 queries visits 2 (m + 1) blocks of 64 keys, up to all 32."""
    plan = nbattn.plan(
        Mask.causal("top-left"),
        (1, 7688, 8, 128),
        (1, 2048, 8, 128),
        device="sm_90",
        backend="flash",
    )
    visits = list(plan.schedule())
    blocks: dict[int, list[bool]] = {}
    for visit in visits:
        ((keys,),) = visit.keys
        assert keys.start % 64 == 0
        blocks.setdefault(visit.queries[0].start // 128, []).append(visit.full)
    assert {m: len(full) for m, full in blocks.items()} == {
        m: min(2 * (m + 1), 32) for m in range(61)
    }
    assert [blocks[m].count(False) for m in range(61)] == [2] * 16 + [0] * 45
    assert plan.chosen.cost is not None
    assert plan.chosen.cost.computed_pairs == 8 * len(visits) * 128 * 64


def test_the_backward_of_the_seeds_example_lists_the_blocks() -> None:
    """Queries from 128 n on attend to block n of 128 keys: all 121 blocks of 64 queries but 2 n."""
    shapes = (1, 7688, 8, 128), (1, 2048, 8, 128)
    plan = nbattn.plan(
        Mask.causal("top-left"), *shapes, device="sm_90", backend="flash", training=True
    )
    blocks: dict[int, list[tuple[int, bool]]] = {}
    visits = list(plan.schedule(backward=True))
    for visit in visits:
        ((keys,),) = visit.keys
        assert visit.queries[0].start % 64 == 0
        blocks.setdefault(keys.start // 128, []).append((visit.queries[0].start // 64, visit.full))
    assert list(blocks) == list(range(16))
    for n, found in blocks.items():
        assert [m for m, _ in found] == list(range(2 * n, 121))
        assert [full for _, full in found] == [False] * 2 + [True] * (119 - 2 * n)
    cost = plan.chosen.cost
    assert cost is not None
    assert cost.backward_pairs == 8 * len(visits) * 64 * 128
    assert cost.computed_pairs == 8 * len(list(plan.schedule())) * 128 * 64
    assert cost.flops == 2 * (128 + 128) * (cost.computed_pairs + 2.5 * cost.backward_pairs)
    forward = nbattn.plan(Mask.causal("top-left"), *shapes, device="sm_90", backend="flash")
    assert forward.chosen.cost is not None
    assert forward.chosen.cost.backward_pairs == 0
    with pytest.raises(nbattn.InputError, match="it has no backward to show"):
        forward.schedule(backward=True)


# Choices and reasons


def test_every_strategy_can_be_required_and_forbidden() -> None:
    shapes = (1, 30, 2, 8), (1, 10, 2, 8)
    for strategy in ("split", "virtual-pad", "pad"):
        plan = nbattn.plan(
            Mask.causal("top-left"), *shapes, device="sm_80", backend="flash", require=(strategy,)
        )
        assert plan.chosen.strategy == strategy
    every = ("split", "virtual-pad", "pad")
    with pytest.raises(BackendError, match="uses 'split', which is forbidden"):
        nbattn.plan(Mask.causal("top-left"), *shapes, device="sm_80", backend="flash", forbid=every)


DECODES = Mask.from_transformers(5)


@pytest.mark.parametrize("provider", ["fa2", "fa3"])
def test_kv_cache_runs_only_if_required(provider: str) -> None:
    """A slice computes the same with one launch less."""
    shapes: dict[str, Any] = {"query_shape": (2, 3, 2, 8), "key_shape": (2, 30, 2, 8)}
    named = shapes | {"device": "cpu", "dtype": "float32", "backend": f"flash-model:{provider}"}
    plan = nbattn.plan(DECODES, **named)
    assert plan.chosen.strategy != "kv-cache"
    asked = nbattn.plan(DECODES, **named, require=("kv-cache",))
    assert asked.chosen.name == f"flash-model:{provider}/kv-cache"
    assert asked.verify()
    assert np.array_equal(asked.support(), matrix(DECODES.axes, (3,), (30,)))
    behind = Mask(Axis(4, causal=True, align="bottom-right", offset=-20))
    late = nbattn.plan(behind, **named, require=("kv-cache",))
    assert late.chosen.program is not None
    (call,) = late.chosen.program.calls
    assert call.arguments.describe() == "kvcache window_size=(4, 0), cache_seqlens=7 of 27"
    assert late.verify()
    assert {keys.stop for visit in late.schedule() for (keys,) in visit.keys} == {10}
    cheaper, costs = plan.chosen.cost, asked.chosen.cost
    assert cheaper is not None
    assert costs is not None
    assert (costs.calls, costs.computed_pairs) == (cheaper.calls + 1, cheaper.computed_pairs)


@pytest.mark.parametrize(
    ("mask", "fields", "text"),
    [
        (Mask.causal("top-left"), {}, 'align="top-left" puts a decoded query on key 0'),
        (Mask(Axis(2, 2, align="bottom-right")), {}, "right=2 attends to keys that come later"),
        (DECODES, {"training": True}, "the kv-cache entry has no backward"),
    ],
)
def test_the_cache_entry_raises_with_its_reason(mask: Mask, fields: Any, text: str) -> None:
    named = {"device": "cpu", "backend": "flash-model:fa2", "require": ("kv-cache",)} | fields
    with pytest.raises(BackendError, match=text):
        nbattn.plan(mask, (1, 3, 2, 8), (1, 30, 2, 8), **named)


def test_the_cache_is_the_one_long_axis_of_keys() -> None:
    """Where nothing is masked it is the axis with the keys, whichever is long in queries."""
    mask = Mask(Axis(causal=True, align="bottom-right"), Axis())
    named: dict[str, Any] = {"device": "cpu", "dtype": "float32", "backend": "flash-model:fa2"}
    shapes = (1, 1, 3, 2, 8), (1, 1, 9, 2, 8)
    plan = nbattn.plan(mask, *shapes, **named, require=("kv-cache",))
    assert plan.support().all()
    assert plan.verify()
    with pytest.raises(BackendError, match="a cache has one axis of keys longer than 1"):
        nbattn.plan(mask, (1, 1, 3, 2, 8), (1, 4, 9, 2, 8), **named, require=("kv-cache",))


@pytest.mark.parametrize("strategy", ["translate", "virtual-pad"])
def test_a_mask_without_pairs_needs_no_call(strategy: str) -> None:
    """Also with windows on several axes: one that is empty leaves nothing to compute."""
    far = Axis(1, 1, align="top-left", offset=50)
    mask = Mask(Axis(1, 1), Axis(1, 1), far)
    options = {"dtype": "float32", "device": "cpu", "backend": "flash-model:fa2"}
    plan = nbattn.plan(mask, (1, 8, 8, 8, 2, 16), require=(strategy,), **options)
    assert plan.chosen.program.calls == ()
    assert plan.verify()


def test_zero_padding_is_refused_with_its_error() -> None:
    """Seven of ten keys of the last row would be zeros: at equal scores they take 70 % of it."""
    shapes = (1, 10, 2, 8), (1, 3, 2, 8)
    plan = nbattn.plan(Mask.causal("top-left"), *shapes, device="sm_80", backend="flash")
    (refused,) = [c for c in plan.candidates if c.strategy == "zero-pad"]
    assert [reason.text for reason in refused.reasons] == [
        "7 keys of zeros have score 0, not weight 0: with scores of 0 they take up to 70% of a row"
    ]
    masked = nbattn.plan(Mask.causal("top-left"), *shapes, device="sm_80", require=("pad",))
    assert masked.chosen.program is not None
    (call,) = masked.chosen.program.calls
    assert call.arguments.describe() == "dense window_size=(-1, 0), 7 padded keys"
    assert masked.verify()
    capped = {"device": "cpu", "backend": "flash-model", "require": ("pad",), "softcap": 2.0}
    with pytest.raises(
        BackendError, match="a softcap would raise the scores that mask padded keys"
    ):
        nbattn.plan(Mask.causal("top-left"), *shapes, **capped)


def test_the_number_of_calls_does_not_grow_with_the_length() -> None:
    axes = {
        Axis(3, 3, border="shift"): 3,
        Axis(3, 2, border="wrap"): 3,
        Axis(5, causal=True, prefix=4): 2,
        Axis(3, 3, border="shift", stride=4): 3,
        Axis(causal=True, dilation=4): 2,
    }
    for axis, calls in axes.items():
        for length in (64, 4000, 1 << 16):
            size = length if axis.border == "wrap" else length + 1
            found = flash_candidates_for(Mask(axis), (size,), (size,))
            counts = {
                len(c.program.calls) for c in found if c.strategy == "translate" and c.program
            }
            assert counts == {calls}, axis


def test_auto_never_runs_the_model() -> None:
    for on in ("cpu", "sm_80", "sm_90"):
        plan = nbattn.plan(Mask.sliding_window(3), (1, 9, 2, 8), device=on)
        assert plan.chosen.runner != "flash-model"
        (model,) = (candidate for candidate in plan.candidates if candidate.runner == "flash-model")
        assert model.reasons[0].text == "runs only if requested: backend='flash-model'"
    with pytest.raises(BackendError, match="flash-model/translate: runs only if requested"):
        nbattn.plan(Mask.causal("top-left"), (1, 9, 2, 8), device="cpu", require=("flash-model",))


def test_flash_never_runs_on_a_cpu() -> None:
    with pytest.raises(BackendError, match="flash/translate: runs on cuda, not on cpu"):
        nbattn.plan(Mask.causal("top-left"), (1, 9, 2, 8), device="cpu", backend="flash")


@pytest.mark.parametrize(("name", "vendor"), [("gfx942", "AMD"), ("xe", "Intel")])
def test_flash_never_runs_on_gpus_of_others(name: str, vendor: str) -> None:
    """Torch has a Flash kernel for them, whose windows are not known to be these."""
    text = f"flash/translate: needs an NVIDIA GPU, and {name} is {vendor}'s"
    every = replace(device.DEVICES[name], providers=("flash-attn", "flash-attn-3", "flash-attn-4"))
    for provider in ("", ":aten", ":fa2", ":fa3", ":fa4"):
        with pytest.raises(BackendError, match=text):
            nbattn.plan(Mask.causal(), (1, 9, 2, 8), device=every, backend=f"flash{provider}")


def test_named_provider_never_falls_back() -> None:
    full = replace(
        device.DEVICES["sm_90"], providers=("flash-attn", "flash-attn-3", "flash-attn-4")
    )
    window = Mask.sliding_window(100)
    for name in ("aten", "fa2", "fa3", "fa4"):
        plan = nbattn.plan(window, (1, 4000, 4, 64), device=full, backend=f"flash:{name}")
        assert plan.chosen.backend == f"flash:{name}"
    with pytest.raises(BackendError, match="flash:fa3/translate: needs the package flash-attn-3"):
        nbattn.plan(window, (1, 4000, 4, 64), device="sm_90", backend="flash:fa3")


def test_too_many_samples_for_the_grid() -> None:
    for samples, texts in (
        (65_535, []),
        (65_536, ["65536 samples after folding are over the grid of 65535"]),
    ):
        plan = nbattn.plan(Mask.causal(), (samples, 16, 2, 8), device="sm_80")
        (found,) = [c for c in plan.candidates if c.name.startswith("flash:aten/translate")]
        assert [r.text for r in found.reasons] == texts


def test_too_many_heads_for_the_grid() -> None:
    axis = Axis(3, dilation=32)
    plan = nbattn.plan(Mask(axis), (1, 4096, 4000, 8), device="sm_80", dtype="float16")
    (found,) = [c for c in plan.candidates if c.name.startswith("flash:aten/translate")]
    assert [r.text for r in found.reasons] == [
        "128000 heads after folding are over the grid of 65535"
    ]
