"""Tests that the same numbers with other strides give the same values and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from judged_values import (
    MASKS,
    Feature,
    Shape,
    Tensors,
    best_in_dtype,
    by_definition,
    judge,
    last_digit,
    random,
    run,
    tensors,
    upstream,
)
from native_library import NAMES
from torch import Tensor

import nbattn
from nbattn import BackendError

Count = Callable[[str, int], None]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BACKENDS = ("reference", "tiled", "sdpa", *NAMES)


# The same numbers with other strides.


def heads_first(tensor: Tensor) -> Tensor:
    return tensor.movedim(-2, 1).contiguous().movedim(1, -2)


def step_slices(tensor: Tensor) -> Tensor:
    """Every other place of every axis of something larger, which holds NaN between."""
    around = torch.full([2 * size + 1 for size in tensor.shape], float("nan")).to(tensor.dtype)
    view = around[tuple(slice(1, None, 2) for _ in tensor.shape)]
    view.copy_(tensor)
    return view


def features_strided(tensor: Tensor) -> Tensor:
    """Only the last dimension is strided."""
    around = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), float("nan")).to(tensor.dtype)
    around[..., ::2] = tensor
    return around[..., ::2]


def features_first(tensor: Tensor) -> Tensor:
    return tensor.movedim(-1, 1).contiguous().movedim(1, -1)


def reversed_dimensions(tensor: Tensor) -> Tensor:
    order = tuple(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def expanded(tensor: Tensor) -> Tensor:
    return tensor[:1].expand(tensor.shape)


def heads_expanded(tensor: Tensor) -> Tensor:
    return tensor[..., :1, :].expand(tensor.shape)


def frames(tensor: Tensor, axis: int, hop: int) -> Tensor:
    """Overlapping memory, as `unfold` gives it: the next place of an axis is `hop` numbers on."""
    axis %= tensor.dim()
    strides, unit = [0] * tensor.dim(), 1
    for n in reversed(range(tensor.dim())):
        strides[n] = hop if n == axis else unit
        unit *= 1 if n == axis else tensor.shape[n]
        unit += hop * tensor.shape[axis] if n == tensor.dim() - 1 else 0
    memory = tensor.flatten().repeat(3)
    return memory.as_strided(tensor.shape, strides)


def frames_of_tokens(tensor: Tensor) -> Tensor:
    return frames(tensor, 1, 1)


def frames_of_tokens_apart(tensor: Tensor) -> Tensor:
    return frames(tensor, 1, 3)


def frames_of_heads(tensor: Tensor) -> Tensor:
    return frames(tensor, -2, 1)


def frames_of_samples(tensor: Tensor) -> Tensor:
    return frames(tensor, 0, 1)


def tokens_expanded(tensor: Tensor) -> Tensor:
    return tensor[:, :1].expand(tensor.shape)


def one_line(tensor: Tensor) -> Tensor:
    """Every step on every axis is one number on."""
    return tensor.flatten().as_strided(tensor.shape, [1] * tensor.dim())


def one_number(tensor: Tensor) -> Tensor:
    return tensor.flatten()[:1].reshape([1] * tensor.dim()).expand(tensor.shape)


OVERLAPS = [frames_of_tokens, frames_of_tokens_apart, frames_of_heads, frames_of_samples,
            tokens_expanded, one_line, one_number]  # fmt: skip
LAYOUTS = [heads_first, step_slices, features_strided, features_first, reversed_dimensions,
           expanded, heads_expanded, *OVERLAPS]  # fmt: skip
LAYOUT_MASKS = ["clip", "causal", "causal, dilated", "blocks", "folded", "wrap", "three axes"]


def judge_all(
    label: str, views: Tensors, upward: list[Tensor], feature: Feature, dtype: torch.dtype,
    names: Sequence[str] = BACKENDS,
) -> Iterator[str]:  # fmt: skip
    """Judges backends on the same numbers; yields the names of those that took them."""
    made = {name: tensor.contiguous() for name, tensor in views.items()}
    grads = [grad.contiguous() for grad in upward]
    exact = by_definition(MASKS[label], made, grads, feature)
    reference = best_in_dtype(MASKS[label], made, grads, feature, "others")
    for backend in names:
        try:
            found = run(MASKS[label][0], views, upward, feature, backend)
        except BackendError:
            assert backend == "sdpa", label
            continue
        lowest = reference
        if backend == "reference":
            lowest = best_in_dtype(MASKS[label], made, grads, feature, backend)
        more = last_digit(made, feature) if backend == "native" else 0.0
        try:
            judge(found, lowest, exact, dtype, more)
        except AssertionError as error:
            raise AssertionError(f"{backend}, {label}, {dtype}: {error}") from error
        yield backend


# A push tries each mask in two of the four dtypes, one of them half precision.
both_halves = pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.deep)])


@both_halves
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_inputs_of_any_strides(layout: Callable[[Tensor], Tensor], half: int, cases: Count) -> None:
    feature = Feature(Shape(heads=4, key_heads=2, extra=2), sink=True)
    for place, label in enumerate(LAYOUT_MASKS):
        for dtype in DTYPES[(place + half) % 2 :: 2]:
            made = tensors(MASKS[label], feature, dtype)
            views = {n: expanded(t) if n == "sink" else layout(t) for n, t in made.items()}
            grads = upstream(MASKS[label], feature.shape, dtype)
            for backend in judge_all(label, views, grads, feature, dtype):
                cases(f"values, strides, {backend}", 1)


@both_halves
@pytest.mark.parametrize(
    "layout", [heads_first, step_slices, features_strided, expanded, *OVERLAPS],
    ids=lambda layout: layout.__name__,
)  # fmt: skip
@pytest.mark.parametrize("lse", [True, False])  # sdpa gives none that has a gradient
def test_output_gradients_of_any_strides(
    layout: Callable[[Tensor], Tensor], lse: bool, half: int, cases: Count
) -> None:
    feature = Feature(Shape(heads=4, key_heads=2, extra=2), sink=True, lse=lse)
    names = [name for name in BACKENDS if (name != "sdpa") == lse]
    labels = ["clip"] * lse + ["causal", "causal, dilated", "full", "folded"]
    for place, label in enumerate(labels):
        for dtype in DTYPES[(place + half) % 2 :: 2]:
            made = tensors(MASKS[label], feature, dtype)
            views = [layout(grad) for grad in upstream(MASKS[label], feature.shape, dtype)]
            for backend in judge_all(label, made, views, feature, dtype, names):
                cases(f"values, gradient strides, {backend}", 1)


@pytest.mark.parametrize("layout", [features_first, features_strided], ids=lambda f: f.__name__)
def test_saved_tensors_that_come_back_in_other_strides(layout: Callable[[Tensor], Tensor]) -> None:
    """A hook that offloads them may: the output is read row by row, as the inputs are."""
    made = tensors(MASKS["causal"], Feature(Shape()), torch.float32)
    leaves = [made[name].requires_grad_() for name in ("query", "key", "value")]
    upward = random(tuple(leaves[0].shape), 9).float()

    def gradients(move: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        with torch.autograd.graph.saved_tensors_hooks(move, lambda tensor: tensor):
            out = nbattn.attention(*leaves, MASKS["causal"][0], backend="sdpa")
        return torch.autograd.grad(out, leaves, upward[..., : out.shape[-1]])

    moved, plain = gradients(lambda t: layout(t.detach())), gradients(lambda tensor: tensor)
    for found, wanted in zip(moved, plain, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_projections(dtype: torch.dtype, cases: Count) -> None:
    """q, k and v as views of one tensor [B, *space, 3, H, D], whose gradient comes back whole."""
    for label in ("causal", "causal, dilated", "folded", "blocks", "tiles", "three axes"):
        mask, space, _ = MASKS[label]
        packed = random((2, *space, 3, 2, 8), 1).to(dtype).requires_grad_()
        query, key, value = packed.unbind(-3)
        made = {"query": query.detach(), "key": key.detach(), "value": value.detach()}
        grads = upstream(MASKS[label], Shape(), dtype)
        exact = by_definition(MASKS[label], made, grads, Feature())
        for backend in BACKENDS:
            out = nbattn.attention(query, key, value, mask, backend=backend)
            (grad,) = torch.autograd.grad(out, packed, grads[0])
            parts = zip(("dquery", "dkey", "dvalue"), grad.unbind(-3), strict=True)
            lowest = best_in_dtype(MASKS[label], made, grads, Feature(), backend)
            more = last_digit(made, Feature()) if backend == "native" else 0.0
            judge({"out": out, **dict(parts)}, lowest, exact, dtype, more)
            cases(f"values, packed, {backend}", 1)
