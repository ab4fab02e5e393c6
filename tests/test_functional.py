"""Tests of what users see of the functions, and that merge() of attentions over disjoint keys is
attention over all the keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_library import backends
from torch import Tensor
from torch.autograd import gradcheck

import nbattn
from nbattn import Axis, InputError, Mask

Count = Callable[[str, int], None]
Parts = tuple[list[Tensor], list[Tensor]]
INFINITY = float("inf")


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def moved(mask: Mask, first: int) -> Mask:
    """The mask seen from key `first` of axis 0 on: its queries are further left."""
    axis = mask.axes[0]
    assert axis.align != "bottom-right"
    at = axis.offset - first
    return Mask(Axis(axis.left, axis.right, causal=axis.causal, align=at), *mask.axes[1:])


def split(
    query: Tensor, key: Tensor, value: Tensor, mask: Mask, cuts: list[int], backend: str
) -> Parts:
    """Outputs and logsumexps over the keys between the cuts of axis 0."""
    outputs, lses = [], []
    for first, stop in pairwise(cuts):
        part = moved(mask, first)
        out, lse = nbattn.attention(
            query, key[:, first:stop], value[:, first:stop], part, backend=backend, return_lse=True
        )
        outputs.append(out)
        lses.append(lse)
    return outputs, lses


def close(found: Tensor, want: Tensor, limit: float = 1e-10) -> bool:
    none = want == -INFINITY
    gap = (found.masked_fill(none, 0) - want.masked_fill(none, 0)).abs()
    return torch.equal(found == -INFINITY, none) and bool((gap <= limit).all())


MASKS = [
    (Mask(Axis()), (6,), (11,)),
    (Mask(Axis(3, 2)), (11,), (11,)),
    (Mask(Axis(causal=True, align="top-left")), (9,), (11,)),
    (Mask(Axis(2, causal=True, offset=-3, align="top-left")), (12,), (11,)),  # rows without keys
    (Mask(Axis(2, 1, align="top-left"), Axis(1, 1, border="shift")), (7, 4), (11, 4)),
    (Mask(Axis(causal=True, align="top-left"), Axis(1, 1, border="wrap")), (5, 4), (11, 4)),
]


@pytest.mark.parametrize(("mask", "queries", "keys"), MASKS)
@pytest.mark.parametrize("backend", backends(["reference", "tiled", "native"]))
def test_merge_of_parts_is_attention_over_all_keys(
    backend: str, mask: Mask, queries: tuple[int, ...], keys: tuple[int, ...], cases: Count
) -> None:
    query = random(2, *queries, 4, 8, seed=1).requires_grad_()
    key, value = (random(2, *keys, 2, 8, seed=seed).requires_grad_() for seed in (2, 3))
    upward = random(2, *queries, 4, 8, seed=4), random(2, *queries, 4, seed=5)

    def gradients(out: Tensor, lse: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((out, lse), (query, key, value), upward)

    whole = nbattn.attention(query, key, value, mask, backend=backend, return_lse=True)
    wanted = gradients(*whole)
    for cuts in ([0, 11], [0, 4, 11], [0, 1, 2, 11], [0, 0, 5, 5, 11, 11], list(range(12))):
        out, lse = nbattn.merge(*split(query, key, value, mask, cuts, backend))
        assert close(out, whole[0])
        assert close(lse, whole[1])
        for found, want in zip(gradients(out, lse), wanted, strict=True):
            assert close(found, want)
        cases("merge, parts", 1)


@given(st.lists(st.integers(0, 14), max_size=4), st.integers(0, 9), st.integers(-6, 6))
def test_merge_of_any_split_of_the_keys_is_exact(
    cases: Count, cuts: list[int], left: int, offset: int
) -> None:
    query, key = random(1, 8, 2, 4, seed=1), random(1, 14, 2, 4, seed=2)
    mask = Mask(Axis(left, 2, align=offset))
    whole = nbattn.attention(query, key, key, mask, backend="tiled", return_lse=True)
    merged = nbattn.merge(*split(query, key, key, mask, sorted([0, *cuts, 14]), "tiled"))
    assert close(merged[0], whole[0])
    assert close(merged[1], whole[1])
    cases("merge, any split", 1)


def test_the_order_of_parts_does_not_matter() -> None:
    query, key = random(1, 8, 2, 4), random(1, 12, 2, 4, seed=1)
    outputs, lses = split(query, key, key, Mask(Axis(3, 3, align=0)), [0, 3, 7, 12], "tiled")
    first = nbattn.merge(outputs, lses)
    second = nbattn.merge(outputs[::-1], lses[::-1])
    assert close(first[0], second[0])
    assert close(first[1], second[1])


def test_merge_of_one_part_is_that_part() -> None:
    out, lse = random(2, 5, 3, 4), random(2, 5, 3, seed=1)
    merged = nbattn.merge([out], [lse])
    assert close(merged[0], out, 1e-14)
    assert close(merged[1], lse, 1e-14)


def test_an_empty_part_adds_nothing() -> None:
    out, lse = random(2, 5, 3, 4), random(2, 5, 3, seed=1)
    nothing = torch.zeros_like(out), torch.full_like(lse, -INFINITY)
    merged = nbattn.merge([nothing[0], out, nothing[0]], [nothing[1], lse, nothing[1]])
    assert close(merged[0], out, 1e-14)
    assert close(merged[1], lse, 1e-14)


def test_merge_of_rows_without_keys_is_zero_without_gradient() -> None:
    outputs = [random(2, 5, 3, 4, seed=seed).requires_grad_() for seed in (1, 2)]
    lses = [random(2, 5, 3, seed=seed) for seed in (3, 4)]
    lses[0][:, :2] = lses[1][:, :2] = -INFINITY  # empty in both
    lses[0][:, 2] = -INFINITY  # and in one
    for lse in lses:
        lse.requires_grad_()
    out, lse = nbattn.merge(outputs, lses)
    assert not out[:, :2].any()
    assert bool((lse[:, :2] == -INFINITY).all())
    assert close(out[:, 2], outputs[1][:, 2], 1e-14)
    assert lse[:, 2:].isfinite().all()
    grads = torch.autograd.grad((out.sum() + lse[:, 2:].sum()), [*outputs, *lses])
    for grad in grads:
        assert grad.isfinite().all()
        assert not grad[:, :2].any()
    assert not grads[0][:, 2].any()
    assert not grads[2][:, 2].any()


def test_numbers_in_an_empty_part_are_ignored() -> None:
    """Some kernels leave NaN in rows without keys."""
    outputs = [random(2, 5, 3, 4, seed=seed) for seed in (1, 2)]
    lses = [random(2, 5, 3, seed=seed) for seed in (3, 4)]
    lses[0][:, :2] = lses[1][:, :1] = -INFINITY
    outputs[0][:, 0], outputs[0][:, 1], outputs[1][:, 0] = float("nan"), INFINITY, -INFINITY
    leaves = [t.requires_grad_() for t in (*outputs, *lses)]
    out, lse = nbattn.merge(outputs, lses)
    assert not out[:, 0].any()
    assert close(out[:, 1], outputs[1][:, 1], 1e-14)
    assert out.isfinite().all()
    for grad in torch.autograd.grad(out.sum() + lse[:, 1:].sum(), leaves):
        assert grad.isfinite().all()


def test_merge_computes_in_the_wider_dtype_and_at_least_in_float32() -> None:
    outputs, lses = [random(1, 5, 3, 4)] * 2, [random(1, 5, 3).float()] * 2
    out, lse = nbattn.merge(outputs, lses)
    assert out.dtype == lse.dtype == torch.float64
    assert close(out, outputs[0], 1e-15)
    halves = [t.bfloat16() for t in lses]
    _, lse = nbattn.merge([t.bfloat16() for t in outputs], halves)
    assert lse.dtype == torch.float32
    assert close(lse, halves[0].float() + torch.tensor(2.0).log(), 1e-6)


def joined(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts, merged; the second has rows without keys."""
    mask = Mask(Axis(2, 1, align="top-left"))
    return nbattn.merge(*split(query, key, key, mask, [0, 3, 8], "tiled"))


def whole(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    found = nbattn.attention(query, key, key, Mask(Axis(2, 1, align=0)), return_lse=True)
    assert isinstance(found, tuple)
    return found


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own jvp
def test_transforms_and_compilers_go_through() -> None:
    query, key = random(3, 1, 8, 2, 4), random(3, 1, 8, 2, 4, seed=1)

    def loss(run: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
        def total(query: Tensor, key: Tensor) -> Tensor:
            out, lse = run(query, key)
            return out.square().sum() + lse.sin().sum()

        return total

    found, wanted = (
        torch.vmap(torch.func.grad(loss(run), (0, 1)))(query, key) for run in (joined, whole)
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    outputs, lses = [random(1, 5, 3, 4)] * 2, [random(1, 5, 3, seed=n) for n in (1, 2)]
    lses[1][:, 0] = -INFINITY
    _, tangent = torch.func.jvp(
        lambda lse: nbattn.merge(outputs, [lse, lses[1]])[1],
        (lses[0],),
        (torch.ones_like(lses[0]),),
    )
    torch.testing.assert_close(tangent, (lses[0] - torch.logaddexp(*lses)).exp())
    torch._dynamo.reset()
    compiled = torch.compile(nbattn.merge, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(outputs, lses), nbattn.merge(outputs, lses), strict=True):
        torch.testing.assert_close(one, other)
    torch._dynamo.reset()


def test_merge_gradients_by_finite_differences() -> None:
    outputs = [random(1, 3, 2, 2, seed=seed).requires_grad_() for seed in (1, 2, 3)]
    lses = [random(1, 3, 2, seed=seed).requires_grad_() for seed in (4, 5, 6)]
    assert gradcheck(lambda *t: nbattn.merge(t[:3], t[3:]), [*outputs, *lses])
    assert torch.autograd.gradgradcheck(lambda *t: nbattn.merge(t[:3], t[3:]), [*outputs, *lses])


@pytest.mark.parametrize("far", [1e4, -1e4])
def test_merge_of_very_different_logsumexps(far: float) -> None:
    outputs = [random(1, 3, 2, 2, seed=seed, dtype=torch.float32) for seed in (1, 2)]
    lses = [torch.full((1, 3, 2), far), torch.zeros(1, 3, 2)]
    out, lse = nbattn.merge(outputs, lses)
    heavy = 0 if far > 0 else 1
    assert torch.equal(out, outputs[heavy])
    assert torch.equal(lse, lses[heavy])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_half_outputs_keep_their_dtype(dtype: torch.dtype) -> None:
    query, key = (random(1, n, 2, 8, seed=n).to(dtype) for n in (9, 12))
    mask = Mask(Axis(4, 4, align="top-left"))
    out, lse = nbattn.merge(*split(query, key, key, mask, [0, 5, 12], "tiled"))
    exact = nbattn.attention(
        *(t.double() for t in (query, key, key)), mask, backend="reference", return_lse=True
    )
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    eps = torch.finfo(dtype).eps
    assert close(out.double(), exact[0], 4 * eps * exact[0].abs().max().item())
    assert close(lse.double(), exact[1], 4 * eps * exact[1].abs().max().item())


def test_merge_of_sizes_of_zero() -> None:
    for shape in ((0, 5, 2, 4), (2, 0, 2, 4), (2, 0, 3, 2, 4)):
        out, lse = nbattn.merge([torch.zeros(shape)] * 2, [torch.zeros(shape[:-1])] * 2)
        assert out.shape == shape
        assert lse.shape == shape[:-1]


OUT, LSE = torch.zeros(2, 5, 3, 4), torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("outputs", "lses", "words"),
    [
        ([], [], "0 outputs and 0 logsumexps"),
        ([OUT], [], "1 outputs and 0 logsumexps"),
        ([OUT], [LSE, LSE], "1 outputs and 2 logsumexps"),
        ([OUT, OUT[:, :4]], [LSE, LSE[:, :4]], r"\[2, 4, 3, 4\]"),
        ([OUT], [LSE[:, :4]], r"\[2, 4, 3\]"),
        ([OUT, OUT], [LSE, OUT], r"\[2, 5, 3, 4\]"),
        ([OUT], [LSE.mT], r"\[2, 3, 5\]"),
        ([OUT, OUT.half()], [LSE, LSE], "outputs are float32 on cpu and float16 on cpu."),
        ([OUT, OUT], [LSE, LSE.double()], "logsumexps are float32 on cpu and float64 on cpu."),
        ([OUT.long()], [LSE], "outputs are int64 on cpu."),
        ([OUT], [LSE.to("meta")], "outputs are on cpu, logsumexps on meta."),
        ([[1.0]], [LSE], "an output is a list, not a tensor."),
    ],
)
def test_merge_arguments_that_do_not_fit_have_a_message(
    outputs: list[Tensor], lses: list[Tensor], words: str
) -> None:
    with pytest.raises(InputError, match=words) as refused:
        nbattn.merge(outputs, lses)
    assert bool(refused.value.fix) == (words != r"\[2, 4, 3\]")


def test_merge_refuses_a_tensor_instead_of_a_list() -> None:
    out, lse = torch.zeros(1, 4, 2, 8), torch.zeros(1, 4, 2)
    with pytest.raises(InputError, match="merge takes lists of outputs and logsumexps, not one"):
        nbattn.merge(out, lse)
    generated = nbattn.merge((t for t in [out, out]), (t for t in [lse, lse]))
    assert torch.equal(generated[0], out)


@pytest.mark.parametrize(
    ("function", "needed"),
    [
        (nbattn.attention, ["query", "key", "value", "mask"]),
        (nbattn.plan, ["mask", "query_shape"]),
        (nbattn.NeighborhoodAttention.forward, ["self", "x"]),
        (nbattn.merge, ["outputs", "lses"]),
        (nbattn.load, ["source"]),
    ],
)
def test_signatures_show_what_is_needed_and_nothing_that_is_refused(
    function: Callable[..., object], needed: list[str]
) -> None:
    shown = inspect.signature(function).parameters.values()
    assert [p.name for p in shown if p.default is p.empty] == needed
    assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in shown)
