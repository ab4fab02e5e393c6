"""Tests of the weights of a few queries: values by the definition, support, memory, mistakes."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import allocations
import dense_attention
import pytest
import torch
from hypothesis import given, settings
from judged_values import FEATURES, Feature, pairs_of, tensors
from oracle import masks
from torch import Tensor

import nbattn
from nbattn import Axis, InputError, Mask, MaskError, attention_weights

Count = Callable[[str, int], None]
Place = tuple[int, ...]
Drawn = tuple[Mask, Place, Place]
NAMES = [
    *("plain", "one key head", "scale 0", "everything", "softcap, lse, groups"),
    *("alibi per sample", "everything added", "everything added on a line"),
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def without_values(made: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in made.items() if not name.endswith("value")}


def by_definition(drawn: Drawn, feature: Feature, made: dict[str, Tensor]) -> Tensor:
    """All weights `[B, H, Nq, Nk]`: the output whose values are the keys' own numbers."""
    key, count = made["key"], made["key"][0, ..., 0, 0].numel()
    own = torch.eye(count, dtype=key.dtype).reshape(1, *drawn[2], 1, count)
    given = made | {"value": own.expand(*key.shape[:-1], count)}
    if "extra_key" in made:
        given["extra_value"] = key.new_zeros((*made["extra_key"].shape[:-1], count))
    out, _ = dense_attention.attend(
        **given, **pairs_of(drawn, feature, key.device), **feature.numbers
    )
    return out.flatten(1, -3).transpose(1, 2)


SPACES: list[Drawn] = [
    (Mask.full(), (5,), (7,)),
    (Mask(Axis(2, 1, dilation=2, align="bottom-right")), (6,), (11,)),
    (Mask(Axis(3, causal=True, align="top-left", offset=1, prefix=2)), (9,), (7,)),
    (Mask(Axis(1, causal=True, stride=3)), (10,), (10,)),  # queries without keys
    (Mask(Axis(2, 3, border="wrap")), (8,), (8,)),
    (Mask(Axis(3, 3, border="shift", stride=2)), (9,), (9,)),
    (Mask(Axis(2, 0), Axis(1, 1, border="shift")), (4, 5), (4, 5)),
    (Mask(Axis(1, 1, border="wrap", dilation=2), Axis(1, 2)), (6, 5), (6, 5)),
    (Mask(Axis(causal=True, align="bottom-right"), Axis(1, 1)), (2, 4), (5, 4)),
    (Mask(Axis(1, causal=True), Axis(1, 1, border="wrap"), Axis(1, 1)), (4, 4, 5), (4, 4, 5)),
    (Mask(Axis(0, 0), Axis(), Axis(1, 0, dilation=2)), (4, 4, 4), (4, 4, 4)),
]


@pytest.mark.parametrize("name", NAMES)
def test_weights_equal_the_definition_and_make_the_output(cases: Count, name: str) -> None:
    feature = FEATURES[name]
    for drawn in SPACES:
        if feature.fits(*drawn):
            check(drawn, feature)
            cases("weights of queries", 4)


@given(drawn=masks())
@settings(max_examples=30)
def test_weights_of_any_mask(cases: Count, drawn: Drawn) -> None:
    if 0 not in (*drawn[1], *drawn[2]):
        check(drawn, FEATURES["everything"])
        cases("weights of queries", 4)


def check(drawn: Drawn, feature: Feature) -> None:
    """First, last and other queries: values, the keys that are attended to, and the output."""
    mask, queries, keys = drawn
    made = tensors(drawn, feature, torch.float64)
    count = torch.Size(queries).numel()
    flat = [0, count // 3, (2 * count) // 3, count - 1]
    at = [tuple(n.item() for n in torch.unravel_index(torch.tensor(i), queries)) for i in flat]
    found = attention_weights(**without_values(made), mask=mask, at=at, **feature.numbers)
    assert (found.shape[2:], found.dtype) == ((4, *keys), torch.float64)
    found = found.flatten(3)
    exact = by_definition(drawn, feature, made)[:, :, flat]
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-13)

    read = torch.from_numpy(mask.dense(queries, keys))[flat].expand(len(exact), -1, -1)
    if "key_range" in made:
        read = read & dense_attention.inside(made["key_range"], keys)[:, None]
    assert torch.equal(found != 0, read[:, None].expand(exact.shape))

    given = made | {"value": made["value"].nan_to_num()}
    if "extra_value" in made:
        given["extra_value"] = torch.zeros_like(made["extra_value"])
    out = nbattn.attention(**given, mask=mask, backend="tiled", **feature.numbers)
    groups = made["query"].shape[-2] // made["key"].shape[-2]
    values = given["value"].flatten(1, -3).repeat_interleave(groups, dim=2)
    product = torch.einsum("bhqk,bkhd->bqhd", found, values)
    torch.testing.assert_close(product, out.flatten(1, -3)[:, flat], rtol=0, atol=1e-12)


def test_gradients_equal_those_of_the_definition() -> None:
    feature = FEATURES["everything added on a line"]
    drawn = (Mask(Axis(1, 2, dilation=2)), (12,), (12,))
    made = {
        name: t.nan_to_num().requires_grad_(t.dtype == torch.float64)
        for name, t in tensors(drawn, feature, torch.float64).items()
    }
    leaves = [made[n] for n in ("query", "key", "sink", "extra_key", "relative_bias")]
    upward = random(2, 4, 2, 12, seed=1).double()
    at = [11, 4]
    found = attention_weights(**without_values(made), mask=drawn[0], at=at, **feature.numbers)
    exact = by_definition(drawn, feature, made)[:, :, [11, 4]]
    ours = torch.autograd.grad(found.flatten(3), leaves, upward, create_graph=True)
    for one, other in zip(ours, torch.autograd.grad(exact, leaves, upward), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    again = torch.autograd.grad(ours[0].square().sum(), leaves)
    assert all(gradient.abs().max() > 0 for gradient in again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_dtype_is_that_of_the_softmax(dtype: torch.dtype) -> None:
    query = random(1, 9, 2, 8).to(dtype)
    found = attention_weights(query, query, Mask.sliding_window(3), at=[4])
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wide = attention_weights(query.double(), query.double(), Mask.sliding_window(3), at=[4])
    torch.testing.assert_close(found.double(), wide, rtol=1e-6, atol=1e-6)


def test_autocast_lowers_the_inputs_and_not_the_products() -> None:
    query = random(1, 9, 2, 8)
    low = query.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_weights(query, query, Mask.sliding_window(3), at=[4])
    assert torch.equal(found, attention_weights(low, low, Mask.sliding_window(3), at=[4]))


def test_rows_are_counted_from_the_end_and_taken_as_arrays() -> None:
    query, mask = random(1, 5, 6, 2, 8), Mask.neighborhood((3, 5))
    wanted = attention_weights(query, query, mask, at=[(4, 3), (0, 5)])
    rows = torch.tensor([[4, 3], [0, 5]])
    for at in ([(-1, 3), (0, -1)], rows.tolist(), rows, [*rows], [*rows.numpy()]):
        assert torch.equal(attention_weights(query, query, mask, at=at), wanted)
    line = random(1, 7, 2, 8)
    one = attention_weights(line, line, Mask.full(), at=[(6,)])
    for at in ([-1], torch.tensor([6]), range(6, 7)):
        assert torch.equal(attention_weights(line, line, Mask.full(), at=at), one)
    assert attention_weights(query, query, mask, at=[]).shape == (1, 2, 0, 5, 6)


def test_a_query_without_keys_gives_zeros() -> None:
    query = random(1, 6, 1, 4).requires_grad_()
    mask = Mask(Axis(0, causal=True, stride=3))
    found = attention_weights(query, query, mask, at=[0, 2])
    assert found[0, 0].tolist() == [[0.0] * 6, [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]]
    assert torch.equal(torch.autograd.grad(found.sum(), query)[0], torch.zeros(1, 6, 1, 4))
    none = attention_weights(query, query[:, :0], Mask.full(), at=[3], sink=torch.zeros(1))
    assert none.shape == (1, 1, 1, 0)


def test_other_keys_are_not_read() -> None:
    query = random(1, 6, 6, 1, 4)
    key = query.clone()
    key[:, 4:] = float("nan")
    found = attention_weights(query, key.requires_grad_(), Mask.neighborhood((3, 3)), at=[(1, 2)])
    assert found.sum().item() == pytest.approx(1)
    assert torch.autograd.grad(found.square().sum(), key)[0].isfinite().all()


@pytest.mark.parametrize("mask", [Mask.neighborhood(7, rank=3), Mask.full(3)], ids=str)
def test_one_query_of_a_large_space_takes_no_more_than_its_row(mask: Mask) -> None:
    """The largest allocation, with a bfloat16 key of 4 MiB, is the copy of the keys it attends to;
    all pairs would be 256 GiB.
    """
    key = random(1, 64, 64, 64, 1, 8).bfloat16()
    run = lambda: attention_weights(key, key, mask, at=[(31, 2, 63)])  # noqa: E731
    result = run()
    attended = int(result.count_nonzero())
    row = result.numel() * 4
    assert attended == (343 if mask.axes[0].left else 64**3)
    assert allocations.largest(run) <= max(row, attended * 8 * 4)


def test_results_on_a_device_without_data_have_the_shape() -> None:
    query = random(1, 5, 6, 2, 8).to("meta")
    found = attention_weights(query, query, Mask.full(2), at=[(0, 0), (4, 5)])
    assert (found.device.type, found.shape) == ("meta", (1, 2, 2, 5, 6))


def test_the_signature_has_what_attention_has() -> None:
    ours = inspect.signature(attention_weights).parameters
    left_out = {"value", "extra_value", "grids", "key_grids", "backend", "require", "forbid"}
    left_out |= {"return_lse"}
    wanted = inspect.signature(nbattn.attention).parameters
    assert {*wanted} - left_out == {*ours} - {"at"}
    assert ours["at"].default is inspect.Parameter.empty


MISTAKES = {
    "at=[(8, 16)]": (
        "at[0]=(8, 16): 8 is not in [-5, 5): axis 0 has 5 queries.",
        "at=[(4, 5)].",
    ),
    "at=[(1, 1), (0, -7)]": (
        "at[1]=(0, -7): -7 is not in [-6, 6): axis 1 has 6 queries.",
        "at=[(1, 1), (0, 0)].",
    ),
    "at=(4, 3)": ("at=(4, 3) is one query, not a list of queries.", "at=[(4, 3)]."),
    "at=3": ("at=3 is an int, not a list of queries.", "at=[(3, 3)]."),
    "at='all'": ("at='all' is a str, not a list of queries.", "at=[(0, 0)]."),
    "at=[7]": ("at[0]=7 has 1 index, and the queries 2 axes.", "at=[(1, 1)]."),
    "at=[(1, 2, 3)]": ("at[0]=(1, 2, 3) has 3 indices, and the queries 2 axes.", "at=[(1, 2)]."),
    "at=[(1.5, 2)]": ("at[0]=(1.5, 2): 1.5 is a float, not an integer.", "at=[(1, 2)]."),
    "at=[(1, True)]": ("at[0]=(1, True): True is a bool, not an integer.", "at=[(1, 1)]."),
    "at=9": ("at=9 is an int, not a list of queries.", "at=[(4, 5)]."),
    "at=[30]": ("at[0]=30 has 1 index, and the queries 2 axes.", "at=[(4, 0)]."),
    "at=range(3)": (
        "at[0]=0 has 1 index, and the queries 2 axes.",
        "at=[(0, 0), (0, 1), (0, 2)].",
    ),
    "at=[None, (9, -1)]": (
        "at[0]=None has 1 index, and the queries 2 axes.",
        "at=[(0, 0), (4, -1)].",
    ),
    "at=torch.tensor([2, 3]).numpy()": (
        "at=(2, 3) is one query, not a list of queries.",
        "at=[(2, 3)].",
    ),
    "at=torch.zeros(1, 2, device='meta')": (
        "at is a tensor [1, 2] on meta, which has no values.",
        "at=[(0, 0)].",
    ),
    "at=[(9, 9)] * 9": ("at[0]=(9, 9): 9 is not in [-5, 5): axis 0 has 5 queries.", "at=[(4, 5)]."),
}


@pytest.mark.parametrize("given", MISTAKES)
def test_message_of_what_is_no_list_of_queries(given: str) -> None:
    query = random(1, 5, 6, 2, 8)
    known = {"query": query, "mask": Mask.full(2), "weights": attention_weights, "torch": torch}
    with pytest.raises(InputError) as caught:
        eval(f"weights(query, query, mask, {given})", known)
    assert (caught.value.problem, caught.value.fix) == MISTAKES[given]
    eval(f"weights(query, query, mask, {caught.value.fix.rstrip('.')})", known)


def test_message_of_what_is_no_tensor() -> None:
    array = random(1, 9, 2, 8).numpy()
    with pytest.raises(InputError) as caught:
        attention_weights(array, array, Mask.full(), at=[4], key_range=[[0, 5]])
    assert caught.value.fix == "torch.as_tensor(query)."


def test_errors_of_attention_have_the_fix_of_weights() -> None:
    query = random(1, 5, 6, 2, 8)
    with pytest.raises(
        MaskError, match=r"fix:   nbattn.attention_weights\(query, key, at=at, mask="
    ):
        attention_weights(
            query, query, Mask.neighborhood((3, 3)), at=[], alibi_slopes=torch.ones(2)
        )
    with pytest.raises(MaskError) as caught:  # its fix would be a merge of outputs
        attention_weights(
            query[:, 0], query[:, 0], Mask(Axis(2, 0, prefix=2)), at=[], relative_bias=random(2, 5)
        )
    assert caught.value.fix == ""
