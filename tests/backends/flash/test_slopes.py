"""Tests of ALiBi's slopes in Flash calls: distances pair by pair, values and gradients, reasons."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import dense_attention
import flash_oracle
import numpy as np
import pytest
import torch
from flash_cases import attention_by_adapter, compare, random, tensors
from flash_programs import kernel, positions, request_for
from oracle import matrix
from torch import Tensor

import nbattn
from nbattn import Axis, BackendError, Mask, MaskError
from nbattn.backends.flash import candidates as flash
from nbattn.backends.flash.adapters import Kernels
from nbattn.backends.flash.meaning import FlashArguments, WindowArguments
from nbattn.geometry import bind
from nbattn.program.program import Call

Count = Callable[[str, int], None]
STRATEGIES = ("translate", "trim", "split", "virtual-pad", "pack")
SLOPES = {
    "heads": torch.tensor([0.5, 0.25, -0.125, 2.0]),
    "samples": torch.tensor([[0.5, 0.25, 0.125, 1.0], [0.0, 3.0, 1.5, 0.75]]),
}
# Masks on Flash with slopes: mask, queries, keys, the strategies of Flash 2 that take it.
TAKEN: dict[str, tuple[Mask, int, int, set[str]]] = {
    "causal": (Mask.causal(), 9, 9, {"translate", "virtual-pad"}),
    "decode": (Mask.causal("bottom-right"), 1, 12, {"translate", "virtual-pad"}),
    "prefill": (Mask.causal("bottom-right"), 5, 12, {"translate", "virtual-pad"}),
    "window": (Mask.sliding_window(4, 0), 17, 17, {"translate", "split", "virtual-pad"}),
    "both sides": (Mask.sliding_window(4, 2), 17, 17, {"translate", "virtual-pad"}),
    "full": (Mask(Axis()), 7, 7, {"translate", "virtual-pad"}),
    "the first keys": (Mask.causal("top-left"), 5, 13, {"trim", "pack", "virtual-pad"}),
    "behind": (
        Mask(Axis(5, causal=True, align="bottom-right", offset=-2)),
        7,
        12,
        {"trim", "pack", "split", "virtual-pad"},
    ),
    "blocks": (Mask(Axis(2, 1, stride=4)), 16, 16, {"pack"}),
}


def by_definition(mask: Mask, queries: int, keys: int) -> dict[str, Tensor]:
    """Distances to a query's position on the key axis, pair by pair."""
    (axis,) = mask.axes
    corner = keys - queries if axis.align == "bottom-right" else 0
    distances = [[abs(i + axis.offset + corner - j) for j in range(keys)] for i in range(queries)]
    return {"distances": torch.tensor(distances)}


@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize("label", TAKEN)
def test_the_model_is_attention_with_distances(label: str, slopes: str, cases: Count) -> None:
    mask, queries, keys, expected = TAKEN[label]
    taken = {"fa2": set[str](), "aten": set[str]()}
    for provider, strategy in product(taken, STRATEGIES):
        made = tensors((queries,), (keys,), "extra", "sink")
        if provider == "aten":  # for inference only
            made = {name: t.detach() for name, t in made.items()}
        given = {**made, "alibi_slopes": SLOPES[slopes], "softcap": 1.5, "scale": -0.4}

        def attend(*, by: str = provider, using: str = strategy, **more: Any) -> Any:
            more.pop("distances", None)
            return nbattn.attention(
                mask=mask, backend=f"flash-model:{by}", require=(using,), return_lse=True, **more
            )

        try:
            out, lse = attend(**given)
        except BackendError:
            continue
        taken[provider].add(strategy)
        numbers = {name: t for name, t in given.items() if name not in made}
        numbers |= by_definition(mask, queries, keys)
        if provider == "fa2":
            compare(mask, (queries,), (keys,), made, numbers, attend)
        else:
            allowed = torch.from_numpy(matrix(mask.axes, (queries,), (keys,)))
            want, want_lse = dense_attention.attend(**made, allowed=allowed, **numbers)
            torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
            torch.testing.assert_close(lse, want_lse, rtol=0, atol=1e-12)
        cases("flash slopes, model", 1)
    assert taken == {"fa2": expected, "aten": expected}


@pytest.mark.usefixtures("providers")
@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize("label", TAKEN)
def test_the_adapters_pass_slopes(label: str, slopes: str, cases: Count) -> None:
    mask, queries, keys, expected = TAKEN[label]
    for provider, strategy in product(("fa2", "aten"), expected):
        attend = attention_by_adapter(
            provider, mask, strategy, (queries,), (keys,), alibi_slopes=True
        )
        numbers: dict[str, Any] = {"scale": 0.4, "alibi_slopes": SLOPES[slopes].double()}
        numbers |= by_definition(mask, queries, keys)
        made = tensors((queries,), (keys,), "extra", "sink")
        if provider == "fa2":
            compare(mask, (queries,), (keys,), made, numbers, attend, lse_gradient=False)
        else:
            allowed = torch.from_numpy(matrix(mask.axes, (queries,), (keys,)))
            want, want_lse = dense_attention.attend(**made, allowed=allowed, **numbers)
            out, lse = attend(**made, **numbers)
            torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
            torch.testing.assert_close(lse, want_lse, rtol=0, atol=1e-12)
        cases("flash slopes, adapters", 1)


# The kernel's distances


@pytest.mark.parametrize("entry", ["dense", "varlen"])
def test_distances_are_those_of_the_kernel(entry: str, cases: Count) -> None:
    """Also of the causal kernel, which programs with slopes do not use."""
    sides = (-1, 0, 1, 3, 6, 7)
    for rows, keys, left, right in product((1, 2, 5, 7), (1, 2, 6, 7), sides, sides):
        for causal in (False, True):
            most = {"varlen": (max(rows, 2), 7), "dense": (None, None)}[entry]
            window = WindowArguments(left, right, causal, *most, slopes=True)
            found = FlashArguments("fa2", entry, window).distances(rows, keys)
            want = flash_oracle.flash2_added(rows, keys, left, right, causal, entry, *most)
            np.testing.assert_array_equal(-found, want)
            allowed = FlashArguments("fa2", entry, window).allowed((rows,), (keys,))
            shown = flash_oracle.flash2(rows, keys, left, right, causal, entry, *most, slopes=True)
            np.testing.assert_array_equal(allowed, shown)
            cases("meaning, slopes", 1)


AXES = [
    Axis(left, right, align=align, offset=offset, **more)
    for left, right in ((None, 0), (3, 0), (2, 3), (None, 2), (None, None))
    for align, offset in (("top-left", 0), ("top-left", 3), ("bottom-right", 0))
    for more in ({}, {"dilation": 2}, {"stride": 3}, {"prefix": 2}, {"border": "shift"})
    if not (more.get("border") == "shift" and (left is None or right is None or offset))
    if not ("prefix" in more and left is None)
]


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_every_call_has_the_distances_of_the_mask(axis: Axis, cases: Count) -> None:
    """Every pair that a program's calls read, in every strategy that takes the mask."""
    taken = 0
    for queries, keys in product((1, 4, 9), (1, 6, 9)):
        mask = Mask(axis)
        try:
            bound = bind(mask, (queries,), (keys,))
            request = request_for(mask, (queries,), (keys,), alibi_slopes=True)
            every = flash.candidates(request, bound)
        except MaskError:
            continue
        wanted = by_definition(mask, queries, keys)["distances"].numpy()
        for candidate in every:
            if candidate.program is None:
                continue
            for call in candidate.program.calls:
                _compare_distances(call, wanted)
            taken += 1
    cases("flash slopes, programs", taken)


def _compare_distances(call: Call, wanted: np.ndarray) -> None:
    arguments = call.arguments
    assert isinstance(arguments, FlashArguments)
    assert arguments.window.slopes
    at, to = positions(call.query), positions(call.key)
    rows, keys = at.shape[1], to.shape[1]
    for row, column in zip(at, to, strict=True):
        if arguments.runs:
            sizes = [(run.queries, run.keys) for run in arguments.runs for _ in range(run.times)]
            window = arguments.window
            found = _of_sequences(sizes, rows, keys, window)
        else:
            window = arguments.window
            most = (window.max_queries, window.max_keys)
            found = -flash_oracle.flash2_added(
                rows, keys, window.left, window.right, window.causal, arguments.entry, *most
            )
        read = kernel(arguments, rows, keys)
        np.testing.assert_array_equal(found[read], wanted[np.ix_(row, column)][read])


def _of_sequences(
    sizes: list[tuple[int, int]], rows: int, keys: int, window: WindowArguments
) -> np.ndarray:
    found = np.zeros((rows, keys))
    row = key = 0
    for many, of in sizes:
        found[row : row + many, key : key + of] = -flash_oracle.flash2_added(
            many, of, window.left, window.right, window.causal, "varlen", window.max_queries,
            window.max_keys,
        )  # fmt: skip
        row, key = row + many, key + of
    return found


# What is refused


REFUSED: list[tuple[Mask, int, int, dict[str, Any], str]] = [
    (Mask.causal(), 9, 9, {"backend": "flash-model:fa3"}, "its kernels take none"),
    (Mask.causal(), 9, 9, {"backend": "flash-model:fa4"}, "its kernels take none"),
    (
        Mask.causal(),
        9,
        9,
        {"backend": "flash-model:aten", "training": True},
        "its backward ignores the alibi_slopes, so gradients would be wrong",
    ),
    (
        Mask.sliding_window(2, 2, align="top-left"),
        9,
        13,
        {},
        "in the call for queries from 0 on that is key 10, and the mask's position is 8",
    ),
    (Mask.sliding_window(4, 0, dilation=2), 9, 9, {}, "its calls step over positions"),
    (Mask.causal(), 9, 9, {"require": ("pad",)}, "pad: "),
    (Mask.causal(), 9, 9, {"require": ("kv-cache",)}, "no slopes are passed to the kv-cache"),
    (Mask(Axis(align="top-left")), 9, 9, {"key_range": True}, "the end of key_range moves them"),
    (Mask(Axis(2, 1, stride=4)), 16, 16, {"require": ("translate",)}, "folds groups has other"),
    (Mask(Axis(4, 1, align="bottom-right")), 9, 4, {"require": ("pad",)}, "a slope may raise the"),
]  # fmt: skip


@pytest.mark.parametrize(("mask", "queries", "keys", "options", "text"), REFUSED)
def test_what_flash_does_not_take(
    mask: Mask, queries: int, keys: int, options: dict[str, Any], text: str
) -> None:
    asked = {"backend": "flash-model:fa2", "dtype": "float32", "alibi_slopes": True, **options}
    with pytest.raises(BackendError) as raised:
        nbattn.plan(mask, (2, queries, 4, 8), (2, keys, 4, 8), **asked)
    assert text in str(raised.value)


# Packed grids


@pytest.mark.parametrize("per_grid", [False, True])
@pytest.mark.parametrize(
    ("mask", "keys"),
    [
        (Mask.causal(), None),
        (Mask.sliding_window(3, 1), None),
        (Mask.sliding_window(3, 0, align="bottom-right"), [9, 4, 0, 30, 2]),
        (Mask.full(rank=1), None),
    ],
    ids=repr,
)
@pytest.mark.usefixtures("providers")
def test_packed_grids_have_slopes_of_their_own(
    mask: Mask, keys: list[int] | None, per_grid: bool
) -> None:
    sizes = [5, 0, 13, 7, 1]
    lengths = [sum(sizes), sum(keys or sizes)]
    query, key, value = (random((lengths[n > 0], 4, 8), n) for n in range(3))
    slopes = torch.rand((5, 4) if per_grid else (4,))
    given: dict[str, Any] = {"grids": sizes, "key_grids": keys, "alibi_slopes": slopes}
    want = nbattn.attention(query, key, value, mask, backend="reference", **given)
    out = nbattn.attention(query, key, value, mask, backend="flash-model", **given)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
    plan = nbattn.plan(
        mask, query.shape, key.shape, grids=sizes, key_grids=keys, dtype="float64",
        alibi_slopes=True, backend="flash-model:fa2",
    )  # fmt: skip
    assert plan.chosen.program is not None
    (call,) = plan.chosen.program.calls
    by_adapter = _by_adapter(call, query, key, value, slopes)
    torch.testing.assert_close(by_adapter, want, rtol=0, atol=1e-12)


def _by_adapter(call: Call, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
    assert isinstance(call.arguments, FlashArguments)
    kernels = Kernels(slopes=slopes)
    out, _ = kernels.forward(call.arguments, (query[None], key[None], value[None]), 8**-0.5, None)
    return out[0]


def test_grids_whose_corners_differ_are_refused() -> None:
    given = {"grids": [5, 3], "key_grids": [9, 3], "alibi_slopes": True, "dtype": "float32"}
    with pytest.raises(BackendError, match="and the mask does not in all grids"):
        nbattn.plan(
            Mask(Axis(align="top-left")), (8, 4, 8), (12, 4, 8), backend="flash-model", **given
        )
