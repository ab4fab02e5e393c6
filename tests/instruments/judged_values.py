"""Judging of values: masks and features to try, and outputs, logsumexps and gradients against
float64.

The bound is relative to what the reference reaches in the same dtype on the same rounded inputs, so
no tolerance is written down.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import dense_attention
import torch
from oracle import axis_steps, bias_entries, distances, matrix, position
from torch import Tensor

import nbattn
from nbattn import Axis, Mask

Space = tuple[int, ...]
Tensors = dict[str, Any]
DIFFERENTIABLE = ("query", "key", "value", "sink", "extra_key", "extra_value", "relative_bias")

MASKS: dict[str, tuple[Mask, Space, Space]] = {
    "full": (Mask(Axis()), (9,), (7,)),
    "full, wide": (Mask(Axis()), (3,), (11,)),
    "clip": (Mask(Axis(3, 2)), (19,), (19,)),
    "clip, rows outside": (Mask(Axis(2, 1, offset=-5, align="top-left")), (13,), (10,)),
    "shift, dilated": (Mask(Axis(2, 2, border="shift", dilation=2)), (17,), (17,)),
    "shift, stride": (Mask(Axis(2, 2, border="shift", stride=3, align="top-left")), (14,), (11,)),
    "wrap": (Mask(Axis(2, 1, border="wrap", dilation=2)), (12,), (12,)),
    "causal": (Mask(Axis(causal=True)), (40,), (40,)),
    "causal, tall": (Mask(Axis(causal=True, align="top-left")), (12,), (7,)),
    "causal, dilated": (Mask(Axis(causal=True, dilation=3)), (14,), (14,)),
    "causal, moved": (Mask(Axis(causal=True, offset=-4, align="top-left")), (13,), (9,)),
    "causal, gaps": (Mask(Axis(1, causal=True, stride=4)), (13,), (13,)),
    "causal, bottom-right": (Mask(Axis(4, causal=True, align="bottom-right")), (5,), (12,)),
    "prefix": (Mask(Axis(1, causal=True, prefix=3)), (14,), (14,)),
    "blocks": (Mask(Axis(2, 1, stride=4)), (16,), (16,)),
    "ragged blocks": (Mask(Axis(1, 1, stride=3, align="top-left")), (11,), (9,)),
    "dilated": (Mask(Axis(dilation=2, align="top-left")), (8,), (10,)),
    "folded": (Mask(Axis(0, 0), Axis(causal=True)), (3, 6), (3, 6)),
    "folded blocks": (Mask(Axis(1, 0, stride=2), Axis(dilation=2)), (4, 4), (4, 4)),
    "three axes": (
        Mask(Axis(2, causal=True), Axis(1, 1, border="shift"), Axis(1, 1, border="wrap")),
        (3, 4, 5), (3, 4, 5),
    ),
    "cross": (
        Mask(Axis(1, 1, border="shift", align="top-left"), Axis(2, 0, align="bottom-right")),
        (4, 5), (6, 3),
    ),
    "one query": (Mask(Axis(5, causal=True, align="bottom-right")), (1,), (30,)),
    "tiles": (Mask(Axis(3, 3, border="shift"), Axis(3, 3, border="shift")), (16, 12), (16, 12)),
}  # fmt: skip


class Shape(NamedTuple):
    """Sizes besides the space."""

    batch: int = 2
    heads: int = 2
    key_heads: int = 2
    dim: int = 8
    value_dim: int = 8
    extra: int = 0


class Feature(NamedTuple):
    """Something that attention() takes: sizes, numbers, and which optional tensors are there."""

    shape: Shape = Shape()
    numbers: dict[str, float] = {}
    sink: bool = False
    key_range: str = ""
    lse: bool = False
    extra_range: bool = False
    table: bool = False
    slopes: str = ""  # "heads" or "samples": the same for all samples, or not

    def fits(self, mask: Mask, queries: Space, keys: Space) -> bool:
        """Whether the mask has what is added to scores, by the rule in the documentation."""
        if self.slopes and (mask.rank > 1 or mask.axes[0].border == "wrap"):
            return False
        sizes = list(zip(mask.axes, queries, keys, strict=True))
        if (self.slopes or self.table) and any(a.align is None and n != m for a, n, m in sizes):
            return False
        return not self.table or all(has_table(*one) for one in sizes)


def has_table(axis: Axis, queries: int, keys: int) -> bool:
    """Whether every pair of one axis has one step, shorter than the window, and no query beside
    the keys has a window that is moved to them.
    """
    if axis.left is None or axis.right is None or axis.prefix:
        return False
    window, class_length = axis.left + axis.right + 1, keys // axis.dilation
    if axis.border == "wrap" and window > class_length:
        return False
    if axis.border == "shift" or axis.stride > 1:
        ends = (position(axis, i, queries, keys) for i in (0, queries - 1))
        if not all(0 <= end < keys for end in ends):
            return False
    return bool((abs(axis_steps(axis, queries, keys)) < window).all())


FEATURES: dict[str, Feature] = {
    "plain": Feature(),
    "lse": Feature(lse=True),
    "grouped heads": Feature(Shape(heads=6, key_heads=2)),
    "one key head": Feature(Shape(heads=3, key_heads=1)),
    "value_dim": Feature(Shape(value_dim=5)),
    "scale 0": Feature(numbers={"scale": 0.0}),
    "negative scale": Feature(numbers={"scale": -0.7}),
    "softcap": Feature(numbers={"softcap": 1.5}),
    "sink": Feature(sink=True),
    "extra keys": Feature(Shape(extra=3)),
    "no extra keys": Feature(Shape(extra=0), key_range="none", lse=True),
    "key_range": Feature(key_range="some"),
    "key_range, lse": Feature(key_range="some", lse=True),
    "sink, extra keys, groups": Feature(Shape(heads=4, key_heads=2, extra=3), sink=True),
    "softcap, lse, groups": Feature(Shape(heads=4), {"softcap": 0.8, "scale": 1.3}, lse=True),
    "everything": Feature(
        Shape(heads=4, key_heads=2, value_dim=5, extra=3), {"softcap": 2.0, "scale": -0.6},
        sink=True, key_range="some", lse=True,
    ),
    "relative bias": Feature(table=True),
    "relative bias, groups, softcap, lse": Feature(
        Shape(heads=4, key_heads=2), {"softcap": 1.5}, lse=True, table=True
    ),
    "alibi": Feature(slopes="heads"),
    "alibi per sample": Feature(Shape(heads=4, key_heads=2), lse=True, slopes="samples"),
    "extra range": Feature(Shape(extra=3), lse=True, extra_range=True),
    "everything added": Feature(
        Shape(heads=4, key_heads=2, value_dim=5, extra=3), {"softcap": 2.0, "scale": -0.6},
        sink=True, key_range="some", lse=True, extra_range=True, table=True,
    ),
    "everything added on a line": Feature(
        Shape(heads=4, key_heads=2, extra=3), sink=True, lse=True, extra_range=True, table=True,
        slopes="samples",
    ),
}  # fmt: skip


def random(shape: Space, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ranges(keys: Space) -> Tensor:
    """int32 [B, rank, 2]: sample 0 loses keys on both ends, sample 1 has a range without keys."""
    first = [[1, max(1, length - 2)] for length in keys]
    second = [[length // 2 + 1, length // 2] for length in keys]
    return torch.tensor([first, second], dtype=torch.int32)


def tensors(mask: tuple[Mask, Space, Space], feature: Feature, dtype: torch.dtype) -> Tensors:
    """Inputs rounded to the dtype. Keys outside a range hold NaN."""
    _, queries, keys = mask
    b, h, hk, d, dv, e = feature.shape
    made = {
        "query": random((b, *queries, h, d), 1),
        "key": random((b, *keys, hk, d), 2),
        "value": random((b, *keys, hk, dv), 3),
    }
    if e or feature.key_range == "none":
        made |= {"extra_key": random((b, e, hk, d), 4), "extra_value": random((b, e, hk, dv), 5)}
    if feature.sink:
        made["sink"] = random((h,), 6)
    if feature.table:
        sizes = (2 * (axis.left + axis.right) + 1 for axis in mask[0].axes)  # pyright: ignore
        made["relative_bias"] = random((h, *sizes), 9)
    made = {name: tensor.to(dtype) for name, tensor in made.items()}
    if feature.key_range == "some":
        made["key_range"] = ranges(keys)
        outside = ~dense_attention.inside(made["key_range"], keys).reshape(b, *keys)
        made["key"][outside] = float("nan")
        made["value"][outside] = float("nan")
    if feature.extra_range:
        made["extra_range"] = torch.tensor([[1, e], [e - 1, 1]], dtype=torch.int32)
        outside = ~dense_attention.inside(made["extra_range"][:, None], (e,))
        made["extra_key"][outside] = float("nan")
        made["extra_value"][outside] = float("nan")
    if feature.slopes:
        made["alibi_slopes"] = 2.0 ** -torch.arange(1.0, h + 1)
        if feature.slopes == "samples":
            made["alibi_slopes"] = made["alibi_slopes"] * torch.tensor([[1.0], [0.3]])
    return made


def upstream(mask: tuple[Mask, Space, Space], shape: Shape, dtype: torch.dtype) -> list[Tensor]:
    """Gradients of the output and of the logsumexp."""
    rows = (shape.batch, *mask[1], shape.heads)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    return [random((*rows, shape.value_dim), 7).to(dtype), random(rows, 8).to(exact)]


def leaves(made: Tensors) -> Tensors:
    return {
        name: tensor.detach().requires_grad_(name in DIFFERENTIABLE)
        for name, tensor in made.items()
    }


def results(out: Tensor, lse: Tensor | None, inputs: Tensors, grads: list[Tensor]) -> Tensors:
    """Everything to judge: outputs and one gradient per differentiable input."""
    ends = [(out, grads[0])] + ([] if lse is None else [(lse, grads[1])])
    wanted = [name for name in DIFFERENTIABLE if name in inputs]
    found = torch.autograd.grad(
        [end for end, _ in ends], [inputs[name] for name in wanted],
        [grad.to(end.dtype) for end, grad in ends],
    )  # fmt: skip
    named = {"out": out} | ({} if lse is None else {"lse": lse})
    return named | {f"d{name}": grad for name, grad in zip(wanted, found, strict=True)}


def run(
    mask: Mask, made: Tensors, grads: list[Tensor], feature: Feature, backend: str, **route: Any
) -> Tensors:
    inputs = leaves(made)
    found = nbattn.attention(
        **inputs, mask=mask, backend=backend, return_lse=feature.lse, **feature.numbers, **route
    )
    out, lse = found if isinstance(found, tuple) else (found, None)
    assert out.dtype == made["query"].dtype
    assert lse is None or lse.dtype == grads[1].dtype
    return results(out, lse, inputs, grads)


def by_definition(
    mask: tuple[Mask, Space, Space], made: Tensors, grads: list[Tensor], feature: Feature,
    dtype: torch.dtype = torch.float64,
) -> Tensors:  # fmt: skip
    """The definition in float64, or in another dtype."""
    pairs = pairs_of(mask, feature, made["query"].device)
    wide = {n: t.to(dtype) if t.is_floating_point() else t for n, t in made.items()}
    inputs = leaves(wide)
    out, lse = dense_attention.attend(**inputs, **pairs, **feature.numbers)
    found = results(out, lse if feature.lse else None, inputs, [g.to(dtype) for g in grads])
    if dtype == torch.float64:
        grads = [grad.double() for grad in grads]
        grad_lse = grads[1] if feature.lse else None
        found["terms"] = dense_attention.score_gradients(
            inputs, pairs, grads[0], grad_lse, feature.numbers
        )
    return found


def pairs_of(
    mask: tuple[Mask, Space, Space], feature: Feature, device: torch.device
) -> dict[str, Tensor]:
    """The mask, and what its pairs read of what is added, `[Nq, Nk]`."""
    found = {"allowed": matrix(mask[0].axes, *mask[1:])}
    if feature.table:
        found["entries"] = bias_entries(mask[0].axes, *mask[1:])
    if feature.slopes:
        found["distances"] = distances(mask[0].axes[0], mask[1][0], mask[2][0])
    return {name: torch.from_numpy(array).to(device) for name, array in found.items()}


def best_in_dtype(
    mask: tuple[Mask, Space, Space], made: Tensors, grads: list[Tensor], feature: Feature,
    backend: str,
) -> Tensors:  # fmt: skip
    """What the tested dtype can reach: the reference; for itself, float32 rounded to the dtype."""
    if backend != "reference":
        return run(mask[0], made, grads, feature, "reference")
    dtype = made["query"].dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    found = by_definition(mask, made, grads, feature, wide)
    return {n: t if n in ("lse", "terms") else t.to(dtype) for n, t in found.items()}


def judge(
    found: Tensors, lowest: Tensors, exact: Tensors, dtype: torch.dtype, more: float = 0.0
) -> None:
    """Every output and gradient; `more` is added to the eps of gradients."""
    assert found.keys() == exact.keys() - {"terms"}
    for name in found:
        size = exact["terms"].get(name, 0.0)
        if dtype == torch.float64:
            dense_attention.judge(name, found[name], exact[name], exact[name], 5e-11, size)
        else:
            eps = torch.finfo(dtype).eps + more * name.startswith("d")
            dense_attention.judge(name, found[name], lowest[name], exact[name], eps, size)


@lru_cache(None)
def known(key: tuple[Any, ...]) -> tuple[Tensors, list[Tensor], Tensors, dict[str, Tensors]]:
    """Inputs, upstream gradients, float64 results, and what the dtype can reach by backend."""
    *place, (shape, numbers, *rest), dtype = key
    place = (place[0], place[1], place[2])
    feature = Feature(shape, dict(numbers), *rest)
    made, grads = tensors(place, feature, dtype), upstream(place, shape, dtype)
    reached = {
        name: best_in_dtype(place, made, grads, feature, name) for name in ("reference", "others")
    }
    return made, grads, by_definition(place, made, grads, feature), reached


def compare(
    mask: tuple[Mask, Space, Space], feature: Feature, dtype: torch.dtype, backend: str,
    **route: Any,
) -> None:  # fmt: skip
    """One backend against float64 on one mask."""
    numbers = tuple(feature.numbers.items())
    made, grads, exact, reached = known(
        (*mask, tuple(feature._replace(numbers=numbers)), dtype)  # pyright: ignore
    )
    found = run(mask[0], made, grads, feature, backend, **route)
    lowest = reached["reference" if backend == "reference" else "others"]
    judge(
        found,
        lowest,
        exact,
        dtype,
        last_digit(made, feature) if backend in ("sdpa", "cuda", "native", "triton") else 0.0,
    )


def last_digit(made: Tensors, feature: Feature) -> float:
    """What a weight loses when it is recomputed as exp(score - lse) in float32, as sdpa's are."""
    names = ("query", "key", "extra_key") if "extra_key" in made else ("query", "key")
    norms = (made[name].double().norm(dim=-1).flatten().tolist() for name in names)
    query, *keys = (max([0.0, *norm]) for norm in norms)
    scale = feature.numbers.get("scale") or made["query"].shape[-1] ** -0.5
    return torch.finfo(torch.float32).eps * abs(scale) * query * max(keys)
