"""Tests of the values of every backend: outputs, logsumexps and gradients, against float64.

The bound is relative to what the reference reaches in the same dtype on the same rounded inputs, so
no tolerance is written down. What `attention()` takes is tried alone and together.
"""

from __future__ import annotations

from collections.abc import Callable

import dense_attention
import pytest
import torch
from judged_values import (
    FEATURES,
    MASKS,
    Feature,
    Shape,
    Space,
    best_in_dtype,
    by_definition,
    compare,
    judge,
    leaves,
    random,
    run,
    tensors,
    upstream,
)
from native_library import NAMES, backends
from oracle import matrix

import nbattn
from nbattn import Axis, BackendError, InputError, Mask

Count = Callable[[str, int], None]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BACKENDS = ("reference", "tiled", "sdpa", "native")

# what the planner must accept on sdpa, so that a refusal is no way out
SDPA = {"plain", "grouped heads", "one key head", "scale 0", "negative scale", "sink"} | {
    "extra keys",
    "sink, extra keys, groups",
}


# A push tries each feature in a float and a half, in turn.
IN_TURN = [
    pytest.param(name, dtype, marks=pytest.mark.deep if (n + m) % 2 else ())
    for n, name in enumerate(FEATURES)
    for m, dtype in enumerate(DTYPES)
]


@pytest.mark.parametrize(("name", "dtype"), IN_TURN, ids=str)
def test_values_of_every_feature(name: str, dtype: torch.dtype, cases: Count) -> None:
    """All backends together: what they should give is the same."""
    for backend in ("reference", "tiled", "sdpa", *NAMES):
        fitting = [label for label in MASKS if FEATURES[name].fits(*MASKS[label])]
        taken = sum(takes(backend, name, dtype, label) for label in fitting)
        assert taken == len(fitting) or not takes_all(backend)
        assert taken >= 8 or backend != "sdpa" or name not in SDPA
        cases(f"values, {backend}", taken)


def takes_all(backend: str) -> bool:
    """Whether a backend takes every feature on every mask that has it."""
    return backend != "sdpa"


def takes(backend: str, name: str, dtype: torch.dtype, label: str) -> bool:
    """Whether a backend takes a feature on a mask; if so, its values are right."""
    try:
        compare(MASKS[label], FEATURES[name], dtype, backend)
    except BackendError:
        assert not takes_all(backend), label
        return False
    except AssertionError as error:
        raise AssertionError(f"{backend}, {label}: {error}") from error
    return True


SCALES = (1e30, -1e30, 1e-30, 5e-324, -5e-324, 0.0)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("softcap", [None, 1e-30, 1e-3, 1.0, 1e30])
def test_scales_and_caps_at_the_ends_of_their_range(scale: float, softcap: float | None) -> None:
    """The largest that float32 holds, and so small that it is 0 there; never NaN."""
    if softcap is not None and abs(scale) > 1e30 * softcap:
        one = torch.ones(1, 2, 1, 1)
        with pytest.raises(InputError, match="support quotients up to 1e"):
            nbattn.attention(one, one, one, Mask.full(), scale=scale, softcap=softcap)
        return
    allowed = torch.from_numpy(matrix(Mask.causal().axes, (9,), (9,)))
    for dtype in DTYPES:
        leaves = [random((1, 9, 2, 4), n).to(dtype).requires_grad_() for n in range(3)]
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        want, _ = dense_attention.attend(*exact, allowed=allowed, scale=scale, softcap=softcap)
        upward = random((1, 9, 2, 4), 3).to(dtype)
        wanted = (want, *torch.autograd.grad(want, exact, upward.double()))
        for backend in ("reference", "tiled", "sdpa", "flash-model", *NAMES):
            if backend == "sdpa" and softcap:
                continue  # which it has not
            out = nbattn.attention(
                *leaves, Mask.causal(), scale=scale, softcap=softcap, backend=backend
            )
            found = (out, *torch.autograd.grad(out, leaves, upward))
            if backend in ("sdpa", "native") and abs(scale) > 1:
                found = (out,)  # its backward's weights are exp(score - lse), both rounded
            atol = 0.05 if dtype.itemsize == 2 else 1e-4
            for one, other in zip(found, wanted, strict=False):
                torch.testing.assert_close(one.double(), other, rtol=0.05, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", backends(BACKENDS))
def test_scores_of_ten_thousand(backend: str, dtype: torch.dtype, cases: Count) -> None:
    """Whole numbers, so that scores are exact in every dtype and only the softmax is judged."""
    for label in ("clip", "causal", "causal, dilated", "wrap", "full"):
        made = tensors(MASKS[label], Feature(), torch.float64)
        made["query"] = (made["query"] * 40).round()
        made["key"] = (made["key"] * 40).round()
        made["query"][0, 0], made["key"][0] = 50.0, -25.0  # scores of -10,000, all equal
        made["query"][0, 1] = 50.0
        made["query"][1, 0] = 0.0
        made = {name: tensor.to(dtype) for name, tensor in made.items()}
        feature = Feature(numbers={"scale": 1.0}, lse=backend != "sdpa")
        grads = upstream(MASKS[label], feature.shape, dtype)
        scores = torch.einsum("bqhd,bkhd->bhqk", *(made[n].double() for n in ("query", "key")))
        assert min(scores.max(), -scores.min()) > 9000
        # a kernel that keeps only the logsumexp recomputes weights to its last float32 digit
        digit = torch.finfo(torch.float32).eps * scores.abs().max().item()
        found = run(MASKS[label][0], made, grads, feature, backend)
        exact = by_definition(MASKS[label], made, grads, feature)
        judge(
            found,
            best_in_dtype(MASKS[label], made, grads, feature, backend),
            exact,
            dtype,
            digit if backend in ("sdpa", "native") else 0.0,
        )
        cases(f"values, large scores, {backend}", 1)


EMPTY = {
    "rows right of the axis": (Mask(Axis(2, 1, offset=4, align="top-left")), (9,), (6,)),
    "rows left of the axis": (Mask(Axis(causal=True, offset=-4, align="top-left")), (9,), (6,)),
    "stride gaps": (Mask(Axis(1, causal=True, stride=4)), (13,), (13,)),
    "a class without keys": (Mask(Axis(dilation=4, align="top-left")), (6,), (3,)),
    "all rows": (Mask(Axis(1, 1), Axis(0, 0, offset=9)), (4, 3), (4, 3)),
    "two axes": (Mask(Axis(1, causal=True, stride=3), Axis(0, 0, offset=1)), (6, 4), (6, 4)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", backends(BACKENDS))
def test_rows_without_keys_are_zero(backend: str, dtype: torch.dtype, cases: Count) -> None:
    for label, (mask, queries, keys) in EMPTY.items():
        none = ~torch.from_numpy(matrix(mask.axes, queries, keys)).any(1)
        assert none.any(), label
        made = tensors((mask, queries, keys), Feature(), dtype)
        try:
            out, lse = nbattn.attention(**made, mask=mask, backend=backend, return_lse=True)
            inputs = leaves(made)
            trained = nbattn.attention(**inputs, mask=mask, backend=backend)
        except BackendError:
            assert backend == "sdpa", label
            continue
        for found in (out, trained):
            assert not found.flatten(1, -3)[:, none].any(), label
        assert torch.equal(
            lse.flatten(1, -2) == float("-inf"), none[None, :, None].expand(2, -1, 2)
        )
        (grad,) = torch.autograd.grad(trained, inputs["query"], torch.ones_like(trained))
        assert not grad.flatten(1, -3)[:, none].any(), label
        assert grad.isfinite().all()
        cases(f"values, empty rows, {backend}", 1)


@pytest.mark.parametrize("backend", backends(["reference", "tiled", "native"]))
def test_gradients_of_a_logsumexp_without_keys_vanish(backend: str) -> None:
    for mask, queries, keys in EMPTY.values():
        feature = Feature(lse=True, key_range="some")
        made = tensors((mask, queries, keys), feature, torch.float32)
        grads = upstream((mask, queries, keys), Shape(), torch.float32)
        found = run(mask, made, grads, feature, backend)
        assert all(t.isfinite().all() for name, t in found.items() if name != "lse")


ZERO_SIZES = [
    ("no batch", Shape(batch=0), (5,), (7,)),
    ("no queries", Shape(), (0,), (7,)),
    ("no keys", Shape(), (5,), (0,)),
    ("nothing", Shape(), (0,), (0,)),
    ("no queries on one axis", Shape(), (3, 0), (3, 2)),
    ("no keys on one axis", Shape(), (3, 2), (0, 2)),
    ("no batch of extra keys", Shape(batch=0, extra=3), (5,), (7,)),
    ("extra keys alone", Shape(extra=3), (5,), (0,)),
    ("extra keys without queries", Shape(extra=3), (0,), (7,)),
]


# A push tries each in a float and a half, in turn.
ZERO_SIZES_IN_TURN = [
    pytest.param(*case, dtype, marks=pytest.mark.deep if (n + m) % 2 else ())
    for n, case in enumerate(ZERO_SIZES)
    for m, dtype in enumerate(DTYPES)
]


@pytest.mark.parametrize(("label", "shape", "queries", "keys", "dtype"), ZERO_SIZES_IN_TURN)
@pytest.mark.parametrize("backend", backends([*BACKENDS, "auto"]))
def test_sizes_of_zero(
    backend: str, label: str, shape: Shape, queries: Space, keys: Space, dtype: torch.dtype,
    cases: Count,
) -> None:  # fmt: skip
    for sink in (False, True):
        for axes in ([Axis()], [Axis(causal=True, align=0)], [Axis(1, 1, align=0)]):
            feature = Feature(shape, sink=sink)
            mask = Mask(*axes * len(queries))
            try:
                compare((mask, queries, keys), feature, dtype, backend)
            except BackendError:
                assert backend == "sdpa", label
            else:
                cases(f"values, sizes of zero, {backend}", 1)


@pytest.mark.parametrize("backend", backends(BACKENDS))
def test_extra_keys_may_number_zero(backend: str) -> None:
    made = tensors(MASKS["causal"], Feature(), torch.float32)
    empty = {"extra_key": torch.empty(2, 0, 2, 8), "extra_value": torch.empty(2, 0, 2, 8)}
    inputs = leaves(made | empty)
    out = nbattn.attention(**inputs, mask=MASKS["causal"][0], backend=backend)
    out.sum().backward()
    assert inputs["extra_key"].grad.shape == inputs["extra_value"].grad.shape == (2, 0, 2, 8)
    plain = nbattn.attention(**made, mask=MASKS["causal"][0], backend=backend)
    assert torch.equal(out, plain)


@pytest.mark.parametrize("backend", backends(BACKENDS))
def test_a_sink_of_minus_infinity_is_no_sink(backend: str) -> None:
    for label in ("causal", "causal, moved", "clip, rows outside"):
        mask, queries, keys = MASKS[label]
        made = tensors((mask, queries, keys), Feature(), torch.float32)
        plain = nbattn.attention(**made, mask=mask, backend="reference").double()
        sink = torch.full((2,), float("-inf"))
        try:
            out = nbattn.attention(**made, mask=mask, backend=backend, sink=sink)
        except BackendError:
            assert (backend, label) == ("sdpa", "clip, rows outside")
        else:
            dense_attention.judge(label, out, plain, plain, 1e-6)


@pytest.mark.parametrize("backend", backends(["reference", "tiled", "native"]))
@pytest.mark.parametrize("label", ["clip", "wrap", "tiles", "three axes"])
def test_values_outside_a_key_range_change_no_bit(backend: str, label: str) -> None:
    """Garbage, infinities and zeros outside: the same outputs and gradients, bit by bit."""
    mask, _, keys = MASKS[label]
    feature = Feature(key_range="some", lse=True)
    made = tensors(MASKS[label], feature, torch.float32)
    grads = upstream(MASKS[label], feature.shape, torch.float32)
    outside = ~dense_attention.inside(made["key_range"], keys).reshape(2, *keys)
    assert outside.any()
    found = []
    for filling in (float("nan"), 0.0, float("inf"), 1e30):
        filled = {name: tensor.clone() for name, tensor in made.items()}
        filled["key"][outside] = filling
        filled["value"][outside] = filling
        found.append(run(mask, filled, grads, feature, backend))
    for other in found[1:]:
        for name, tensor in other.items():
            assert torch.equal(tensor, found[0][name]), name
    assert not found[0]["dkey"][outside].any()
    assert not found[0]["dvalue"][outside].any()


def test_a_key_range_as_wide_as_the_axis_changes_nothing() -> None:
    mask, _, keys = MASKS["three axes"]
    made = tensors(MASKS["three axes"], Feature(), torch.float64)
    for box in ([[0, length] for length in keys], [[-7, length + 99] for length in keys]):
        whole = torch.tensor([box, box], dtype=torch.int32)
        for backend in ("reference", "tiled", *NAMES):
            plain = nbattn.attention(**made, mask=mask, backend=backend)
            ranged = nbattn.attention(**made, mask=mask, backend=backend, key_range=whole)
            assert torch.equal(plain, ranged)


# The rule can fail.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wrong_values_are_rejected(dtype: torch.dtype) -> None:
    feature = Feature(lse=True)
    made = tensors(MASKS["clip"], feature, dtype)
    grads = upstream(MASKS["clip"], feature.shape, dtype)
    exact = by_definition(MASKS["clip"], made, grads, feature)
    lowest = best_in_dtype(MASKS["clip"], made, grads, feature, "tiled")
    judge(lowest, lowest, exact, dtype)
    for name in lowest:
        size = 0.2 if torch.finfo(dtype).bits == 16 else 1e-3
        wrong = lowest | {name: lowest[name].clone()}
        wrong[name][(0,) * wrong[name].dim()] += size * exact[name].abs().max()
        with pytest.raises(AssertionError, match=name):
            judge(wrong, lowest, exact, dtype)
        wrong[name][(0,) * wrong[name].dim()] = float("nan")
        with pytest.raises(AssertionError, match=name):
            judge(wrong, lowest, exact, dtype)
