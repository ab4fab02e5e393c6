"""Tests of `key_range` on Flash: its sequences, exact pairs, values, gradients, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dense_attention
import flash_stand_ins
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from judged_values import FEATURES, Feature, Shape
from judged_values import compare as judged
from torch import Tensor

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.backends.flash import adapters, ranges
from nbattn.backends.flash import model as flash_model
from nbattn.backends.inputs import Inputs
from nbattn.program.program import Program

Count = Callable[[str, int], None]
Space = tuple[int, ...]
PROVIDERS = ("aten", "fa2")
MODULES = {"adapter": adapters, "model": flash_model}
# A range per sample: padding on the right, on the left, on both sides; nothing left, in four ways;
# all left; and past the ends.
RANGES = [(0, 5), (3, 9), (2, 7), (0, 0), (4, 4), (6, 2), (9, 12), (0, 9), (-3, 20), (-5, -1)]
# Keys on one axis, whichever it is; the other one is in range, or not.
SPACES: list[tuple[Space, Space]] = [
    *(((rows,), (9,)) for rows in (9, 4, 1)), ((9,), (1,)),
    ((3, 2), (9, 1)), ((2, 3), (1, 9)), ((2, 2), (1, 1)),
]  # fmt: skip


def key_range(keys: Space) -> Tensor:
    found = torch.tensor(RANGES, dtype=torch.int32)[:, None].repeat(1, len(keys), 1)
    for number, length in enumerate(keys):
        if length == 1 and len(keys) > 1:
            found[:, number] = torch.tensor([0, 1])
            found[::4, number] = torch.tensor([1, 9])  # its only key is out of range
    return found


def present(given_range: Tensor, keys: Space) -> Tensor:
    """bool `[B, Nk]`, position by position."""
    return dense_attention.inside(given_range, keys).flatten(1)


def made(queries: Space, keys: Space, ranged: Tensor, dim: int = 8) -> dict[str, Tensor]:
    """Inputs in float64; keys and values outside the range are large, since NaN would not tell
    which of them was read.
    """
    torch.manual_seed(0)
    batch, outside = len(ranged), ~present(ranged, keys)
    sizes = {"query": (*queries, 4), "key": (*keys, 2), "value": (*keys, 2)}
    found = {n: torch.randn(batch, *s, dim, dtype=torch.float64) for n, s in sizes.items()}
    for side in ("key", "value"):
        found[side].flatten(1, -3)[outside] = 1e3
    return found


def program(queries: Space, keys: Space, batch: int, provider: str) -> Program:
    plan = nbattn.plan(
        Mask.full(len(queries)), (batch, *queries, 4, 8), (batch, *keys, 2, 8), dtype="float64",
        device="cpu", backend=f"flash-model:{provider}", key_range=True,
    )  # fmt: skip
    assert plan.chosen.name == f"flash-model:{provider}/key-range"
    assert plan.verify()
    assert plan.support().all()
    assert plan.chosen.program is not None
    return plan.chosen.program


def inputs(tensors: dict[str, Tensor], ranged: Tensor) -> Inputs:
    return Inputs(**tensors, sink=None, key_range=ranged, extra_key=None, extra_value=None,
                  scale=0.3, softcap=None)  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(-3, 9), st.integers(-3, 9)), min_size=1, max_size=4),
    st.integers(0, 7),
    st.integers(0, 5),
)
def test_every_key_in_range_is_in_its_samples_sequence(
    sides: list[tuple[int, int]], keys: int, rows: int
) -> None:
    """And every query; keys out of range are in sequences without queries."""
    ranged = torch.tensor(sides, dtype=torch.int32)[:, None]
    query, key = ranges.boundaries(ranged, 0, rows, keys)
    for side, total in ((query, len(sides) * rows), (key, len(sides) * keys)):
        assert side.dtype == torch.int32
        assert side.is_contiguous()
        assert (side.diff() >= 0).all()
        assert (int(side[0]), int(side[-1]), len(side)) == (0, total, 3 * len(sides) + 1)
    readers = np.zeros((len(sides), keys), dtype=int)
    for n in range(3 * len(sides)):
        queries = range(int(query[n]), int(query[n + 1]))
        for at in range(int(key[n]), int(key[n + 1])):
            assert {q // rows for q in queries} <= {at // keys}
            readers[at // keys, at % keys] += len(queries)
    want = [[rows * (start <= j < stop) for j in range(keys)] for start, stop in sides]
    assert readers.tolist() == want
    out = ranges.outside(ranged, 0, keys)
    assert (~out).int().tolist() == [[int(a <= j < b) for j in range(keys)] for a, b in sides]


@pytest.mark.usefixtures("providers")
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("by", MODULES)
@pytest.mark.parametrize("spaces", SPACES, ids=str)
def test_the_keys_that_are_read_are_those_in_range(
    spaces: tuple[Space, Space], by: str, provider: str, cases: Count
) -> None:
    """One-hot values show them, with queries of zero; the gradient of the values shows the rest."""
    queries, keys = spaces
    ranged = key_range(keys)
    batch, count = len(ranged), int(np.prod(keys))
    width = -(-count // 8) * 8
    tensors = {
        "query": torch.zeros(batch, *queries, 2, width, dtype=torch.float64),
        "key": torch.zeros(batch, *keys, 2, width, dtype=torch.float64),
        "value": torch.eye(count, width, dtype=torch.float64)[None, :, None]
        .repeat(batch, 1, 2, 1)
        .view(batch, *keys, 2, width),
    }
    run, found = MODULES[by], inputs(tensors, ranged)
    made_program = program(queries, keys, batch, provider)
    out, lse = run.forward(made_program, found, return_lse=True)
    want = present(ranged, keys)
    read = out.flatten(1, -3)[..., :count] != 0
    assert torch.equal(read, want[:, None, None].expand_as(read))
    number = want.sum(1)
    assert torch.equal(lse.exp().round().flatten(1).amax(1), number.double())
    assert (lse.flatten(1)[number == 0] == float("-inf")).all()
    assert (out[number == 0] == 0).all()
    upward = torch.ones_like(out)
    grads = run.backward(made_program, found, torch.zeros_like(out), lse, upward, None)
    reached = grads.value.flatten(1, -3).abs().amax((2, 3)) != 0
    assert torch.equal(reached, want)
    cases("flash key_range, pairs", batch)


@pytest.mark.usefixtures("providers")
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("by", MODULES)
@pytest.mark.parametrize("spaces", SPACES, ids=str)
def test_values_and_gradients_without_the_padding(
    spaces: tuple[Space, Space], by: str, provider: str, cases: Count
) -> None:
    """Against dense attention over the keys in range only, sample by sample."""
    queries, keys = spaces
    ranged = key_range(keys)
    tensors, run = made(queries, keys, ranged), MODULES[by]
    found = inputs(tensors, ranged)
    made_program = program(queries, keys, len(ranged), provider)
    out, lse = run.forward(made_program, found, return_lse=True)
    upward = torch.randn_like(out)
    grads = run.backward(made_program, found, out, lse, upward, None)
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    allowed = present(ranged, keys)[:, None, None]
    flat = [t.flatten(1, -3).transpose(1, 2) for t in leaves.values()]
    flat[1:] = [t.repeat_interleave(2, dim=1) for t in flat[1:]]
    scores = (flat[0] @ flat[1].mT * 0.3).masked_fill(~allowed, float("-inf"))
    weights = scores.masked_fill(~allowed.any(-1, keepdim=True), 0).softmax(-1) * allowed
    want = (weights @ flat[2]).transpose(1, 2).reshape(out.shape)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
    want_lse = scores.logsumexp(-1).transpose(1, 2).reshape(lse.shape)
    torch.testing.assert_close(lse, want_lse, rtol=0, atol=1e-12)
    wanted = torch.autograd.grad(want, list(leaves.values()), upward)
    for mine, theirs in zip((grads.query, grads.key, grads.value), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)
    cases("flash key_range, values", len(ranged))


KEY_RANGES = [
    name
    for name, feature in FEATURES.items()
    if feature.key_range == "some" and not (feature.table or feature.extra_range)
]
FULL = {
    "one axis": (Mask.full(), (9,), (7,)),
    "two axes of queries": (Mask.full(2), (3, 4), (8, 1)),
}


@pytest.mark.parametrize("name", KEY_RANGES)
@pytest.mark.parametrize("label", FULL)
def test_values_by_the_ratio_rule(label: str, name: str, cases: Count) -> None:
    """Keys and values out of range are NaN."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        judged(FULL[label], FEATURES[name], dtype, "flash-model:aten", require=("key-range",))
        cases("values, flash-model/key-range", 1)
    feature = Feature(Shape(heads=4), key_range="some")
    judged(FULL[label], feature, torch.float64, "flash-model:fa2", require=("key-range",))


@pytest.mark.usefixtures("providers")
def test_the_host_does_not_read_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading it would stop the host until the device is done, and break graphs."""
    ranged = key_range((9,))
    found = inputs(made((4,), (9,), ranged), ranged)
    made_program = program((4,), (9,), len(ranged), "aten")
    reads: list[str] = []

    def no(name: str) -> Any:
        return lambda *_: reads.append(name) or pytest.fail(f"{name} reads the device")

    boundaries = ranges.boundaries

    def watched(*arguments: Any) -> tuple[Tensor, Tensor]:
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__index__"):
                patch.setattr(Tensor, name, no(name))
            return boundaries(*arguments)

    monkeypatch.setattr(ranges, "boundaries", watched)
    flash_stand_ins.WRITTEN.clear()
    out, _ = adapters.forward(made_program, found, return_lse=False)
    assert out.isfinite().all()
    assert not reads


REFUSED = [
    (Mask.causal("top-left"), (8,), (8,), "axis 0 has a window, which Flash counts from a sample's "
     "last key: it would move with the end of key_range"),
    (Mask.sliding_window(3), (8,), (8,), "axis 0 has a window"),
    (Mask(Axis(), Axis(2, 2)), (1, 8), (1, 8), "axis 1 has a window"),
    (Mask.full(2), (4, 4), (4, 5), "axes 0 and 1 are longer than 1: keys in a box are no sequence"),
    (Mask(Axis(dilation=2)), (8,), (8,), "axis 0 is not one piece with all its queries and keys"),
    (Mask(Axis(2, 1, stride=4)), (8,), (8,), "axis 0 is not one piece with all its queries"),
]  # fmt: skip


@pytest.mark.parametrize(("mask", "queries", "keys", "text"), REFUSED)
def test_what_would_not_be_exact_is_refused(
    mask: Mask, queries: Space, keys: Space, text: str
) -> None:
    shapes = (2, *queries, 4, 8), (2, *keys, 4, 8)
    plan = nbattn.plan(mask, *shapes, device="sm_80", key_range=True, dtype="float16")
    (found,) = [c for c in plan.candidates if c.name == "flash:aten/key-range"]
    assert [reason.limit for reason in found.reasons] == ["key_range"]
    assert found.reasons[0].text.startswith(text)
    with pytest.raises(BackendError, match="cannot run this"):
        nbattn.plan(mask, *shapes, device="sm_80", key_range=True, backend="flash")


def test_padding_runs_on_flash_on_a_gpu() -> None:
    """Training, too; a window that excludes nothing at these lengths is none."""
    named = {"device": "sm_80", "key_range": True, "dtype": "float16"}
    for mask in (Mask.full(), Mask(Axis(5000, 4095))):
        plan = nbattn.plan(mask, (4, 4096, 8, 64), training=True, **named)
        assert plan.chosen.name == "flash:aten/key-range"
        assert "no mask, max_seqlen_k=4096, the keys of each sample by key_range; " in str(plan)


def test_the_grid_holds_three_sequences_per_sample() -> None:
    named = {"device": "sm_80", "key_range": True, "dtype": "float16", "require": ("key-range",)}
    assert nbattn.plan(Mask.full(), (21_845, 16, 1, 8), **named).chosen.backend == "flash:aten"
    with pytest.raises(BackendError, match="key-range: 65538 sequences are over the grid of 65535"):
        nbattn.plan(Mask.full(), (21_846, 16, 1, 8), **named)
    with pytest.raises(BackendError, match="65536 heads"):
        nbattn.plan(Mask.full(), (1, 16, 65_536, 8), **named)


@pytest.mark.parametrize("provider", ["fa3", "fa4"])
def test_providers_without_a_varlen_entry_here_refuse(provider: str) -> None:
    with pytest.raises(BackendError, match="has no key_range"):
        nbattn.plan(Mask.full(), (2, 8, 2, 8), key_range=True, device="cpu",
                    backend=f"flash-model:{provider}")  # fmt: skip
