"""Tests of NATTEN's unfused functions against brute force in float64: values, first and second
gradients, tangents, orders of arguments, and refusals.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import neighborhood_gather_oracle as gather
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from nbattn import InputError, MaskError
from nbattn.integrations import natten
from nbattn.integrations.natten import neighborhood_gather, parameters, unfused

# space, kernel_size, dilation, is_causal: odd and even sizes, dilations that divide nothing.
WINDOWS: list[tuple[tuple[int, ...], Any, Any, Any]] = [
    ((7,), 3, 2, False),
    ((17,), 5, 3, False),
    ((17,), 5, 3, True),
    ((9,), 9, 1, False),
    ((9,), 9, 1, True),
    ((10,), 4, 2, False),
    ((2,), 2, 1, True),
    ((40,), 7, 1, False),
    ((5, 8), 3, (1, 2), False),
    ((13, 11), (3, 5), (3, 2), False),
    ((7, 9), (3, 3), (2, 3), (True, False)),
    ((7, 9), (2, 5), (3, 1), (True, True)),
    ((3, 3), 3, 1, False),
    ((3, 4, 5), 3, 1, False),
    ((5, 4, 7), (2, 3, 3), (2, 1, 2), False),
    ((5, 4, 7), (3, 3, 3), (1, 1, 2), (True, False, False)),
]
KINDS = list(product(WINDOWS, (0, 3), (False, True)))


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def tensors(space: tuple[int, ...], kernel: Any, extra: int, bias: bool) -> dict[str, Tensor]:
    found = {"query": random(2, 3, *space, 4), "key": random(2, 3, *space, 4, seed=1)}
    found["value"] = random(2, 3, *space, 6, seed=2)
    if extra:
        found["extra_key"] = random(2, 3, extra, 4, seed=3)
        found["extra_value"] = random(2, 3, extra, 6, seed=4)
    if bias:
        sizes = (kernel,) * len(space) if isinstance(kernel, int) else kernel
        found["rpb"] = random(3, *(2 * k - 1 for k in sizes), seed=5)
    return found


@pytest.mark.parametrize(("window", "extra", "bias"), KINDS)
def test_scores_weights_and_gradients_are_those_of_brute_force(window, extra, bias, cases) -> None:
    space, kernel, dilation, causal = window
    given = tensors(space, kernel, extra, bias)
    query, key, value = given["query"], given["key"], given["value"]
    extra_key, extra_value, rpb = (given.get(n) for n in ("extra_key", "extra_value", "rpb"))
    found = unfused.scores(query, key, kernel, dilation, extra_key, causal, rpb)
    wanted = gather.scores(query, key, kernel, dilation, is_causal=causal, rpb=rpb, extra=extra_key)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    out = unfused.weighted(found.softmax(-1), value, kernel, dilation, extra_value, causal)
    exact = gather.weighted(
        wanted.softmax(-1), value, kernel, dilation, is_causal=causal, extra=extra_value
    )
    torch.testing.assert_close(out, exact, rtol=1e-12, atol=1e-12)
    upward = random(*out.shape, seed=6).detach()
    ours, theirs = (torch.autograd.grad(t, list(given.values()), upward) for t in (out, exact))
    for name, one, other in zip(given, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11, msg=name)
    cases("unfused", 1)


@pytest.mark.parametrize("window", [WINDOWS[0], WINDOWS[2], WINDOWS[8], WINDOWS[15]])
def test_unfused_functions_have_second_derivatives(window) -> None:
    space, kernel, dilation, causal = window
    space, kernel = (space, kernel) if len(space) < 3 else ((3, 2, 5), (2, 2, 2))
    query, key, value = (random(1, 1, *space, 2, seed=n) for n in range(3))

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attn = unfused.scores(query, key, kernel, dilation, None, causal).softmax(-1)
        return unfused.weighted(attn, value, kernel, dilation, None, causal)

    assert torch.autograd.gradcheck(run, (query, key, value))
    assert torch.autograd.gradgradcheck(run, (query, key, value))


def tangents(run: Callable[..., Tensor], given: dict[str, Tensor], moved: list[str]) -> Tensor:
    """The directional derivative of a function along some of its arguments."""
    with forward_ad.dual_level():
        duals = {
            name: forward_ad.make_dual(t, random(*t.shape, seed=60 + n).detach().to(t))
            for n, (name, t) in enumerate(given.items())
            if name in moved
        }
        tangent = forward_ad.unpack_dual(run(**(given | duals))).tangent
    assert tangent is not None, f"no tangent along {moved}"
    return tangent


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own jvp
@pytest.mark.parametrize(("window", "extra", "bias"), KINDS)
def test_tangents_are_those_of_brute_force(window, extra, bias, cases) -> None:
    """Along each argument by itself, and along all of them, without and with gradients wanted."""
    space, kernel, dilation, causal = window
    given = tensors(space, kernel, extra, bias)

    def run(query, key, value, extra_key=None, extra_value=None, rpb=None) -> Tensor:
        attn = unfused.scores(query, key, kernel, dilation, extra_key, causal, rpb).softmax(-1)
        return unfused.weighted(attn, value, kernel, dilation, extra_value, causal)

    def exact(query, key, value, extra_key=None, extra_value=None, rpb=None) -> Tensor:
        named = {"is_causal": causal, "extra": extra_key}
        attn = gather.scores(query, key, kernel, dilation, rpb=rpb, **named).softmax(-1)
        named["extra"] = extra_value
        return gather.weighted(attn, value, kernel, dilation, **named)

    for moved in [*([name] for name in given), list(given)]:
        for trained in (True, False):
            given = {n: t.detach().requires_grad_(trained) for n, t in given.items()}
            found, wanted = (tangents(f, given, moved) for f in (run, exact))
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
            cases("unfused tangents", 1)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own jvp
@pytest.mark.parametrize("causal", [False, True])
def test_tangents_are_differences_and_can_be_differentiated(causal: bool) -> None:
    query, key, value = (random(1, 1, 3, 4, 2, seed=n) for n in range(3))

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attn = unfused.scores(query, key, 2, 1, None, causal).softmax(-1)
        return unfused.weighted(attn, value, 2, 1, None, causal)

    checks = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(
        run, (query, key, value), check_batched_forward_grad=True, **checks
    )
    assert torch.autograd.gradgradcheck(run, (query, key, value), check_fwd_over_rev=True)

    def along(step: Tensor) -> Tensor:
        return run(query.detach() * step, key.detach(), value.detach() * step).square().sum()

    step = torch.tensor(0.7, dtype=torch.float64)
    modes = (torch.func.jacfwd, torch.func.jacrev)
    twice = [outer(inner(along))(step) for outer in modes for inner in modes]
    for other in twice[1:]:
        torch.testing.assert_close(other, twice[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own jvp
def test_tiles_cached_in_inference_and_transforms_work_in_training() -> None:
    """Tiles are cached per shape: here the first to ask for them may not leave tensors behind."""
    query, other = random(1, 1, 11, 3), random(1, 1, 11, 3, seed=1)

    def run(query: Tensor) -> Tensor:
        return unfused.scores(query, other, 4, 2, None, True).exp().sum()

    neighborhood_gather._tiles.cache_clear()
    with torch.inference_mode(), forward_ad.dual_level():
        run(query)
    assert torch.autograd.gradcheck(run, (query,), check_forward_ad=True)
    neighborhood_gather._tiles.cache_clear()
    along = torch.func.jvp(run, (query.detach(),), (other.detach(),))[1]
    (grad,) = torch.autograd.grad(run(query), query)
    torch.testing.assert_close((grad * other).sum().detach(), along)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_tangents_keep_their_dtype(dtype: torch.dtype) -> None:
    given = {n: t.detach().to(dtype) for n, t in tensors((5, 8), 3, 3, True).items()}

    def run(query: Tensor, key: Tensor, extra_key: Tensor, rpb: Tensor, **_: Tensor) -> Tensor:
        return unfused.scores(query, key, 3, (1, 2), extra_key, False, rpb)

    found = tangents(run, given, list(given))
    exact = tangents(run, {n: t.double() for n, t in given.items()}, list(given))
    assert found.dtype == dtype
    assert (found - exact).abs().max() <= 16 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own jvp
@pytest.mark.parametrize("causal", [False, True])
def test_transforms_go_through(causal: bool) -> None:
    """Every operator has its rule for vmap, its node for torch.func, and its forward derivative."""
    query, value = random(3, 1, 2, 5, 6, 4).detach(), random(1, 2, 5, 6, 4, seed=1).detach()
    rpb = random(3, 2, 5, 5, seed=2).detach()

    def loss(query: Tensor, rpb: Tensor, value: Tensor) -> Tensor:
        bias = None if causal else rpb
        attn = natten.na2d_qk(query, query, 3, rpb=bias, is_causal=causal).softmax(-1)
        return natten.na2d_av(attn, value, 3, is_causal=causal).square().sum()

    grads = torch.vmap(torch.func.grad(loss, (0, 1, 2)), in_dims=(0, 0, None))(query, rpb, value)
    for n in range(3):
        leaves = [t.clone().requires_grad_() for t in (query[n], rpb[n], value)]
        wanted = torch.autograd.grad(loss(*leaves), leaves, allow_unused=True)
        for one, other in zip(grads, wanted, strict=True):
            other = torch.zeros_like(one[n]) if other is None else other
            torch.testing.assert_close(one[n], other, rtol=1e-12, atol=1e-12)

    def along(step: Tensor) -> Tensor:
        return loss(query[0] * step, rpb[0], value)

    step = torch.ones((), dtype=torch.float64)
    twice = torch.func.hessian(along)(step)
    torch.testing.assert_close(twice, torch.func.grad(torch.func.grad(along))(step))
    torch.testing.assert_close(torch.func.jacfwd(along)(step), torch.func.grad(along)(step))


def test_vmap_over_any_axis() -> None:
    code = parameters.window((5, 6), 3).code()
    query, weights = random(2, 3, 5, 6, 4).detach(), random(3, 2, 5, 6, 9, seed=1).detach()
    for name, first in (("products", query.movedim(0, 1)), ("sums", weights), ("returns", weights)):
        run = neighborhood_gather.OPERATORS[name]
        found = torch.vmap(run, in_dims=(1, 0, None))(first, query, code)
        wanted = [run(first[:, n], query[n], code) for n in range(2)]
        torch.testing.assert_close(found, torch.stack(wanted))
        shared = torch.vmap(run, in_dims=(1, None, None))(first, query[0], code)
        torch.testing.assert_close(shared[1], run(first[:, 1], query[0], code))


def test_bias_gradients_pass_gradcheck() -> None:
    query, rpb = random(1, 2, 4, 5, 2), random(2, 3, 5, seed=1)
    assert torch.autograd.gradcheck(
        lambda q, r: unfused.scores(q, q, (2, 3), (2, 1), rpb=r), (query, rpb)
    )


def test_every_order_of_arguments_means_the_same() -> None:
    query, rpb = random(1, 2, 9, 10, 4).detach(), random(2, 5, 5).detach()
    wanted = unfused.scores(query, query, 3, 2, rpb=rpb)
    attn = wanted.softmax(-1)
    for call in (
        natten.natten2dqkrpb(query, query, rpb, 3, 2),
        natten.natten2dqkrpb(query, query, rpb, kernel_size=3, dilation=2),
        natten.natten2dqkrpb(query, query, rpb, 3, dilation=2),
        natten.natten2dqkrpb(query, query, rpb, 2),  # up to 0.14.4
        natten.natten2dqkrpb(query, query, rpb, dilation=2),
        natten.na2d_qk(query, query, 3, 2, rpb=rpb),
        natten.na2d_qk(query, query, (3, 3), (2, 2), None, False, rpb),
    ):
        assert torch.equal(call, wanted)
    assert torch.equal(natten.natten2dqk(query, query, 3, 2), unfused.scores(query, query, 3, 2))
    summed = unfused.weighted(attn, query, 3, 2)
    for call in (
        natten.natten2dav(attn, query, 3, 2),
        natten.natten2dav(attn, query, 2),
        natten.natten2dav(attn, query, dilation=2),
        natten.na2d_av(attn, query, 3, 2),
    ):
        assert torch.equal(call, summed)


def test_one_and_three_axes_have_their_orders_too() -> None:
    tokens, table = random(1, 2, 9, 4).detach(), random(2, 5).detach()
    for call in (
        natten.natten1dqkrpb(tokens, tokens, table, 3, 2),
        natten.natten1dqkrpb(tokens, tokens, table, 2),
    ):
        assert torch.equal(call, unfused.scores(tokens, tokens, 3, 2, rpb=table))
    box, table = random(1, 2, 4, 6, 7, 4).detach(), random(2, 3, 5, 5).detach()
    found = natten.natten3dqkrpb(box, box, table, 2, 3, 2, 1)
    assert torch.equal(found, unfused.scores(box, box, (2, 3, 3), (2, 1, 1), rpb=table))
    assert torch.equal(
        natten.natten3dav(found, box, 2, 3, 2, 1),
        unfused.weighted(found, box, (2, 3, 3), (2, 1, 1)),
    )
    assert torch.equal(
        natten.natten3dqk(box, box, 2, 3, 2, 1), natten.na3d_qk(box, box, (2, 3, 3), (2, 1, 1))
    )


def test_bfloat16_is_summed_in_float32() -> None:
    query = random(1, 2, 12, 12, 32).detach()
    low = query.bfloat16()
    found = natten.na2d_av(natten.na2d_qk(low * 0.2, low, 5).softmax(-1), low, 5)
    assert found.dtype == torch.bfloat16
    exact = low.double()
    wanted = gather.weighted(gather.scores(exact * 0.2, exact, 5).softmax(-1), exact, 5)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=0.02)
    low.requires_grad_()
    natten.na2d_qk(low, low, 5).sum().backward()
    assert low.grad is not None
    assert low.grad.dtype == torch.bfloat16


def test_gradients_of_bfloat16_are_rounded_once() -> None:
    """Keys of several tiles would be rounded at each of them."""
    weights = random(1, 1, 40, 9).detach().bfloat16()
    value = random(1, 1, 40, 8, seed=1).detach().bfloat16()
    halves, doubles = value.requires_grad_(), value.detach().double().requires_grad_()
    natten.na1d_av(weights, halves, 9).sum().backward()
    natten.na1d_av(weights.double(), doubles, 9).sum().backward()
    assert halves.grad is not None
    assert doubles.grad is not None
    assert torch.equal(halves.grad, doubles.grad.bfloat16())


def test_views_and_empty_batches() -> None:
    grid = random(2, 6, 7, 3, 4).detach()  # heads last, seen heads first
    query = grid.movedim(-2, 1)
    wanted = gather.scores(query, query, 3)
    torch.testing.assert_close(natten.na2d_qk(query, query, 3), wanted)
    assert natten.na2d_qk(query[:0], query[:0], 3).shape == (0, 3, 6, 7, 9)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_they_compile_as_one_graph() -> None:
    query, rpb = random(1, 2, 6, 7, 4), random(2, 5, 5, seed=1)

    def run(query: Tensor, rpb: Tensor) -> Tensor:
        attn = natten.natten2dqkrpb(query, query, rpb, 3, 2).softmax(-1)
        return natten.natten2dav(attn, query, 3, 2)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    both = [
        torch.autograd.grad(f(query, rpb).square().sum(), (query, rpb)) for f in (run, compiled)
    ]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other)
    torch._dynamo.reset()


def test_the_operators_pass_opcheck() -> None:
    code = parameters.window((5, 6), 3, is_causal=(True, False)).code()
    query, weights = random(2, 5, 6, 3), random(2, 5, 6, 9, seed=1)
    for operator, first in (
        (neighborhood_gather.OPERATORS["products"], query),
        (neighborhood_gather.OPERATORS["sums"], weights),
        (neighborhood_gather.OPERATORS["returns"], weights),
    ):
        torch.library.opcheck(operator, (first, query, code))
    torch.library.opcheck(neighborhood_gather.steps, (query, code, (5, 6), 0))


QUERY = torch.zeros(1, 2, 8, 9, 4)
REFUSED = {
    "window larger than its axis": (
        lambda: natten.na2d_qk(QUERY, QUERY, 3, 3),
        "axis 0: kernel_size 3 x dilation 3 = 9 is more than its 8 tokens.\n"
        "  fix:   dilation=2 or less, or nbattn.attention(query, key, value, "
        "nbattn.Mask.neighborhood((3, 3), dilation=3)), "
        "where such a window has all keys.",
    ),
    "kernel of one": (
        lambda: natten.na2d_qk(QUERY, QUERY, 1),
        "axis 0: kernel_size=1 is less than 2.\n  fix:   kernel_size=2.",
    ),
    "wrong rank": (
        lambda: natten.na3d_qk(QUERY, QUERY, 3),
        "query is [1, 2, 8, 9, 4], not [B, H, X, Y, Z, C].\n  fix:   query[None], a batch of one.",
    ),
    "no tensor": (
        lambda: unfused.scores([1], QUERY, 3),  # pyright: ignore
        "query is list, not [B, H, *space, D] of one to three axes.\n"
        "  fix:   query=torch.as_tensor(query).",
    ),
    "other key": (
        lambda: natten.na2d_qk(QUERY, QUERY[:, :, :5], 3),
        "query is [1, 2, 8, 9, 4], key [1, 2, 5, 9, 4].\n  fix:   key.expand(1, 2, 8, 9, 4).",
    ),
    "two values for three axes": (
        lambda: natten.na2d_qk(QUERY, QUERY, (3, 3, 3)),
        "kernel_size=(3, 3, 3) has 3 values for 2 axes.\n  fix:   kernel_size=(3, 3).",
    ),
    "key of a wider dtype": (
        lambda: natten.na2d_qk(QUERY, QUERY.double(), 3),
        "key is float64 and would be rounded for use with float32.\n"
        "  fix:   key.to(torch.float32).",
    ),
    "bias of a wider dtype": (
        lambda: natten.na2d_qk(QUERY, QUERY, 3, rpb=torch.zeros(2, 5, 5).double()),
        "rpb is float64 and would be rounded for use with float32.\n"
        "  fix:   rpb.to(torch.float32).",
    ),
    "bias elsewhere": (
        lambda: natten.na2d_qk(QUERY, QUERY, 3, rpb=torch.zeros(2, 5, 5, device="meta")),
        "rpb is on meta, the tensor that it is used with on cpu.\n  fix:   rpb.to('cpu').",
    ),
    "integers": (
        lambda: natten.na2d_qk(QUERY.long(), QUERY.long(), 3),
        "query is int64, not a floating dtype.\n  fix:   query.float().",
    ),
    "weights of a wider dtype": (
        lambda: natten.na2d_av(torch.zeros(1, 2, 8, 9, 9).double(), QUERY, 3),
        "attn is float64 and would be rounded for use with float32.\n"
        "  fix:   attn.to(torch.float32).",
    ),
    "extra values that are none": (
        lambda: natten.na2d_av(torch.zeros(1, 2, 8, 9, 9), QUERY, 3, additional_values=[1]),
        "additional_values is a list, not a tensor.\n"
        "  fix:   additional_values=torch.as_tensor(additional_values).",
    ),
    "bias of other heads": (
        lambda: natten.na2d_qk(QUERY, QUERY, 3, rpb=torch.zeros(8, 5, 5)),
        "rpb is [8, 5, 5], not [H, 2 K - 1].\n  fix:   rpb = torch.zeros(2, 5, 5).",
    ),
    "weights of another window": (
        lambda: natten.na2d_av(torch.zeros(1, 2, 8, 9, 25), QUERY, 3),
        "attn is [1, 2, 8, 9, 25], value [1, 2, 8, 9, 4].\n"
        "  fix:   attn[..., :9]: 9 slots, 0 extra keys.",
    ),
    "extra keys of other heads": (
        lambda: natten.na2d_qk(QUERY, QUERY, 3, additional_keys=torch.zeros(1, 5, 2, 4)),
        "additional_keys is [1, 5, 2, 4], not [1, 2, 2, 4].\n"
        "  fix:   additional_keys.expand(1, 2, -1, 4).",
    ),
    "kernel size alone": (
        lambda: natten.natten2dqkrpb(QUERY, QUERY, torch.zeros(2, 5, 5), kernel_size=3),
        "the window is (kernel_size=3), not (kernel_size, dilation).\n"
        "  fix:   kernel_size=3, dilation=1.",
    ),
    "no window of a square": (
        lambda: natten.natten2dav(torch.zeros(1, 2, 8, 9, 15), QUERY, 1),
        "15 slots do not fit one kernel_size on 2 axes.\n"
        "  fix:   kernel_size=4, dilation=1, and attn of 16 slots.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unfused_arguments_that_do_not_fit_have_a_message(name: str) -> None:
    call, text = REFUSED[name]
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value) == text


def test_a_kernel_size_that_contradicts_the_table_is_refused() -> None:
    """For any order of arguments, the table determines K."""
    with pytest.raises(InputError, match=r"rpb is \[2, 5, 5\]"):
        natten.natten2dqkrpb(QUERY, QUERY, torch.zeros(2, 5, 5), 2, 1)
    with pytest.raises(MaskError, match="stride=4 is larger than kernel_size=3"):
        natten.na2d(QUERY, QUERY, QUERY, 3, 4)
