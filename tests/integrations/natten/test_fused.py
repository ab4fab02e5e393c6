"""Tests of today's functions of NATTEN: published masks, gradients, signatures and refusals."""

from __future__ import annotations

import inspect
from typing import Any

import dense_attention
import neighborhood_gather_oracle as gather
import oracle
import pytest
import torch
from torch import Tensor

from nbattn import InputError, MaskError
from nbattn.integrations import natten
from nbattn.integrations.natten import fused


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


WINDOWS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((20,), {"kernel_size": 6, "stride": 4}),
    ((17,), {"kernel_size": 5, "dilation": 3}),
    ((17,), {"kernel_size": 4, "stride": 3, "is_causal": True}),
    ((9,), {"kernel_size": 9, "is_causal": True}),
    ((9, 11), {"kernel_size": (4, 3), "stride": (2, 1), "dilation": (2, 3)}),
    ((9, 8), {"kernel_size": (3, 8), "is_causal": (True, False)}),
    ((5, 6, 7), {"kernel_size": (3, 2, 3), "stride": (1, 2, 3), "dilation": (1, 3, 2)}),
]
DEFAULTS = {"stride": 1, "dilation": 1, "is_causal": False}


@pytest.mark.parametrize(("space", "window"), WINDOWS)
@pytest.mark.parametrize("extra", [0, 2])
def test_todays_functions_are_the_published_mask(space, window, extra, cases) -> None:
    """Values, logsumexp and all gradients, with fewer key heads and another value size."""
    given = {
        "query": random(2, *space, 4, 8),
        "key": random(2, *space, 2, 8, seed=1),
        "value": random(2, *space, 2, 5, seed=2),
    }
    if extra:
        given["extra_key"] = random(2, extra, 2, 8, seed=3)
        given["extra_value"] = random(2, extra, 2, 5, seed=4)
    renamed = {name.replace("extra_", "additional_"): t for name, t in given.items()}
    named = {n + "s" if n.startswith("additional") else n: t for n, t in renamed.items()}
    function = getattr(natten, f"na{len(space)}d")
    found = function(**named, **window, scale=0.7, return_lse=True)
    full = DEFAULTS | window
    allowed = torch.from_numpy(
        oracle.natten_matrix(
            space, full["kernel_size"], full["stride"], full["dilation"], full["is_causal"]
        )
    )
    wanted = dense_attention.attend(**given, allowed=allowed, scale=0.7)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    upward = [random(*t.shape, seed=7).detach() for t in wanted]
    grads = [torch.autograd.grad(t, list(given.values()), upward) for t in (found, wanted)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    cases("natten functions", 1)


# space, kernel_size, dilation, is_causal: odd and even sizes, dilations that divide nothing.
TABLES: list[tuple[tuple[int, ...], Any, Any, Any]] = [
    ((17,), 5, 3, False),
    ((9,), 9, 1, True),
    ((10,), 4, 2, False),
    ((13, 11), (3, 5), (3, 2), False),
    ((7, 9), 3, (2, 3), (True, False)),
    ((5, 4, 7), (2, 3, 3), (2, 1, 2), (False, False, True)),
]


@pytest.mark.parametrize("window", TABLES)
@pytest.mark.parametrize("extra", [0, 2])
def test_tables_of_0_17_are_those_of_the_unfused_functions(window, extra, cases) -> None:
    """Values and all gradients, of the table as well; against brute force, query by query."""
    space, kernel, dilation, causal = window
    given = {name: random(2, *space, 3, 4, seed=n) for n, name in enumerate(("query", "key"))}
    given["value"] = random(2, *space, 3, 5, seed=2)
    sizes = kernel if isinstance(kernel, tuple) else (kernel,) * len(space)
    given["rpb"] = random(3, *(2 * size - 1 for size in sizes), seed=3)
    if extra:
        given["additional_keys"] = random(2, extra, 3, 4, seed=4)
        given["additional_values"] = random(2, extra, 3, 5, seed=5)
    function = getattr(fused, f"older_na{len(space)}d")
    found = function(**given, kernel_size=kernel, dilation=dilation, is_causal=causal, scale=0.7)
    first = {n: t.movedim(-2, 1) for n, t in given.items() if n != "rpb"}
    rows = {"kernel_size": kernel, "dilation": dilation, "is_causal": causal}
    scores = gather.scores(
        first["query"] * 0.7, first["key"], **rows, rpb=given["rpb"],
        extra=first.get("additional_keys"),
    )  # fmt: skip
    wanted = gather.weighted(
        scores.softmax(-1), first["value"], **rows, extra=first.get("additional_values")
    ).movedim(1, -2)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    upward = random(*found.shape, seed=7).detach()
    grads = [torch.autograd.grad(t, list(given.values()), upward) for t in (found, wanted)]
    for name, one, other in zip(given, *grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=name)
    cases("natten functions", 1)


def test_a_float32_table_of_bfloat16_tokens_is_not_rounded() -> None:
    """Its gradient is float32, too; and the unfused functions agree."""
    query, key, value = (random(1, 9, 11, 2, 8, seed=n).detach().bfloat16() for n in range(3))
    rpb = random(2, 5, 5, seed=3).detach().float().requires_grad_()
    found = fused.older_na2d(query, key, value, 3, (2, 1), rpb=rpb)
    exact = [t.double() for t in (query, key, value, rpb)]
    wanted = fused.older_na2d(*exact[:3], 3, (2, 1), rpb=exact[3])
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=2**-8)
    grads = [torch.autograd.grad(t.sum() * 3, rpb)[0] for t in (found.float(), wanted)]
    assert grads[0].dtype == torch.float32
    torch.testing.assert_close(*grads, rtol=2**-6, atol=2**-6)


def test_a_scale_of_zero_is_no_default() -> None:
    query, value = random(1, 9, 1, 4).detach(), random(1, 9, 1, 4, seed=1).detach()
    found = natten.na1d(query, query, value, 3, scale=0.0)
    torch.testing.assert_close(found[0, 4], value[0, 3:6].mean(0))


def test_order_of_positional_arguments_in_each_generation() -> None:
    query = random(1, 12, 12, 2, 4).detach()
    today = natten.na2d(query, query, query, 3, 2, 4)
    assert torch.equal(today, natten.na2d(query, query, query, 3, stride=2, dilation=4))
    before = fused.older_na2d(query, query, query, 3, 4)
    assert torch.equal(before, natten.na2d(query, query, query, 3, dilation=4))
    assert not torch.equal(before, natten.na2d(query, query, query, 3, stride=3))


def test_attention_and_merge_join_halves_with_exact_gradients() -> None:
    query, key = random(1, 10, 2, 4), random(1, 12, 2, 4, seed=1)
    whole = natten.attention(query, key, key)
    halves = [natten.attention(query, k, k, return_lse=True) for k in key.split(6, dim=1)]
    out, _ = natten.merge_attentions(*zip(*halves, strict=True))
    torch.testing.assert_close(out, whole, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(t.square().sum(), (query, key)) for t in (out, whole)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    causal = natten.attention(query, query, query, is_causal=True)
    wanted, _ = dense_attention.attend(query, query, query, torch.ones(10, 10).tril().bool())
    torch.testing.assert_close(causal, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("queries", "keys"), [(5, 9), (9, 5), (1, 7)])
def test_causal_attention_of_two_lengths_is_top_left(queries: int, keys: int) -> None:
    query, key = random(1, queries, 2, 4), random(1, keys, 2, 4, seed=1)
    found = natten.attention(query, key, key, is_causal=True)
    wanted, _ = dense_attention.attend(query, key, key, torch.ones(queries, keys).tril().bool())
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_tuning_arguments_change_nothing() -> None:
    query = random(1, 12, 12, 2, 4).detach()
    tuned = natten.na2d(
        query, query, query, 3, q_tile_shape=(8, 8), kv_tile_shape=(8, 8), torch_compile=True,
        backward_q_tile_shape=(8, 8), backward_kv_tile_shape=(8, 8), backward_kv_splits=(1, 1),
        backward_use_pt_reduction=True, run_persistent_kernel=False, kernel_schedule="coop",
        attention_kwargs={"q_tile_size": 64, "backend": None}, backend="tiled",
    )  # fmt: skip
    torch.testing.assert_close(tuned, natten.na2d(query, query, query, 3))


LINE, PLANE = torch.zeros(1, 9, 2, 4), torch.zeros(1, 8, 9, 2, 4)
REFUSED = {
    "NATTEN's kernel": (
        lambda: natten.na1d(LINE, LINE, LINE, 3, backend="cutlass-fna"),
        "backend='cutlass-fna' is not one of nbattn's, and nbattn never replaces a named "
        "kernel by another.",
    ),
    "kwargs that change": (
        lambda: natten.na1d(LINE, LINE, LINE, 3, attention_kwargs={"is_causal": True}),
        "attention_kwargs has 'is_causal', which would change the result.",
    ),
    "other spaces": (
        lambda: natten.na1d(LINE, LINE[:, :5], LINE[:, :5], 3),
        "query is [1, 9, 2, 4], key [1, 5, 2, 4]: their spaces differ.",
    ),
    "rank": (
        lambda: natten.na2d(LINE, LINE, LINE, 3),
        "query is [1, 9, 2, 4], not [B, X, Y, H, D].",
    ),
    "window": (
        lambda: natten.na2d(PLANE, PLANE, PLANE, (9, 3)),
        "axis 0: kernel_size 9 x dilation 1 = 9 is more than its 8 tokens.",
    ),
    "no tensor": (
        lambda: natten.neighborhood_attention_generic(LINE, [1], LINE, 3),
        "key is a list, not a tensor.",
    ),
    "keys without values": (
        lambda: natten.na1d(LINE, LINE, LINE, 3, additional_keys=LINE[:, :2]),
        "additional_values is missing.",
    ),
    "values without keys": (
        lambda: fused.older_na2d(
            PLANE, PLANE, PLANE, 3, rpb=torch.zeros(2, 5, 5), additional_values=LINE[:, :2]
        ),
        "additional_keys is missing.",
    ),
    "a plane as a sequence": (
        lambda: natten.attention(PLANE, PLANE, PLANE),
        "query is [1, 8, 9, 2, 4], not [B, N, H, D].",
    ),
    "packed": (
        lambda: natten.attention(LINE, LINE, LINE, seqlens_Q=torch.tensor([4, 5])),
        "seqlens_Q is given: packed sequences are not supported.",
    ),
    "xformers": (
        lambda: fused.older_na1d(LINE, LINE, LINE, 3, xformers_kwargs={"p": 0.1}),
        "xformers_kwargs={'p': 0.1} is not supported.",
    ),
    "heads": (
        lambda: natten.NeighborhoodAttention1D(10, 3, 3),
        "10 channels are no multiple of 3 heads.",
    ),
    "channels": (
        lambda: natten.NeighborhoodAttention2D(8, 2, 3)(torch.zeros(1, 8, 9, 7)),
        "x is [1, 8, 9, 7], not [B, X, Y, 8].",
    ),
    "a table of another window": (
        lambda: fused.older_na2d(PLANE, PLANE, PLANE, 3, rpb=torch.zeros(2, 5, 7)),
        "rpb is [2, 5, 7], not [H, 2 K - 1].",
    ),
    "a table that would be rounded": (
        lambda: fused.older_na1d(LINE, LINE, LINE, 3, rpb=torch.zeros(2, 5).double()),
        "rpb is float64 and would be rounded for use with float32.",
    ),
    "a window that is no number": (
        lambda: fused.older_na1d(LINE, LINE, LINE, "3", rpb=torch.zeros(2, 5)),  # pyright: ignore
        "kernel_size='3' is a str, not an integer.",
    ),
    "a window without keys": (
        lambda: fused.older_na1d(LINE, LINE, LINE, 0, rpb=torch.zeros(2, 5)),
        "kernel_size=0 is below 1.",
    ),
    "other spaces in 0.17": (
        lambda: fused.older_na1d(LINE, LINE[:, :5], LINE[:, :5], 3),
        "query is [1, 9, 2, 4], key [1, 5, 2, 4]: their spaces differ.",
    ),
    "generation": (
        lambda: natten.install(generation="0.19"),
        "generation='0.19' is not known: '0.21', '0.17', '0.14'.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_message_of_every_unsupported_natten_argument(name: str) -> None:
    call, text = REFUSED[name]
    with pytest.raises((InputError, MaskError)) as error:
        call()
    assert error.value.problem == text
    assert error.value.fix


def test_fixes_keep_the_options_of_the_call() -> None:
    """Those of NATTEN's call under the names of nbattn, or the fix would be another attention."""
    table, more = (
        torch.zeros(2, 37),
        {"additional_keys": LINE[:, :2], "additional_values": LINE[:, :2]},
    )
    with pytest.raises(InputError) as wide:
        fused.older_na1d(LINE, LINE, LINE, 19, rpb=table, scale=0.5, **more)
    options = "extra_key=additional_keys, extra_value=additional_values"
    mask = "nbattn.Mask.neighborhood((19,))"
    call = f"nbattn.attention(query, key, value, {mask}, scale=0.5, relative_bias=rpb, {options})"
    assert call in wide.value.fix
    with pytest.raises(InputError) as other:
        natten.na1d(LINE, LINE[:, :5], LINE[:, :5], 3, **more)
    assert f", {options})" in other.value.fix
    with pytest.raises(InputError) as beside:  # no table has entries for queries beside the keys
        fused.older_na1d(LINE, LINE[:, :5], LINE[:, :5], 3, rpb=torch.zeros(2, 5))
    assert not beside.value.fix


# Signatures.


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_todays_signatures_are_those_of_0_21(rank: int) -> None:
    window = ["kernel_size", "stride", "dilation", "is_causal"]
    tiles = ["q_tile_shape", "kv_tile_shape", "backward_q_tile_shape", "backward_kv_tile_shape"]
    wanted = ["query", "key", "value", *window, "scale", "additional_keys", "additional_values"]
    wanted += ["attention_kwargs", "backend", *tiles, "backward_kv_splits"]
    wanted += ["backward_use_pt_reduction", "run_persistent_kernel", "kernel_schedule"]
    wanted += ["torch_compile", "return_lse", "try_fuse_additional_kv"]
    assert [*inspect.signature(getattr(natten, f"na{rank}d")).parameters] == wanted
    kind = getattr(natten, f"NeighborhoodAttention{rank}D")
    given = ["embed_dim", "num_heads", *window, "qkv_bias", "qk_scale", "proj_drop"]
    assert [*inspect.signature(kind).parameters] == given
