"""Tests of Swin's window attention on nbattn, against transformers' own layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.swin import modeling_swin

import nbattn
from nbattn import BackendError, InputError
from nbattn.integrations import swin

HEADS, CHANNELS = 3, 24


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def make(window: int, shift: int, space: tuple[int, int]) -> Any:
    """A layer of transformers' Swin, with a table that matters."""
    config = transformers.SwinConfig(window_size=window, attn_implementation="eager")
    torch.manual_seed(0)
    layer = modeling_swin.SwinLayer(config, CHANNELS, space, HEADS, shift_size=shift).double()
    bias = layer.attention.relative_position_bias
    torch.nn.init.normal_(bias.relative_position_bias_table, std=2.0)
    torch.nn.init.normal_(layer.attention.q_proj.weight, std=0.5)
    torch.nn.init.normal_(layer.attention.k_proj.weight, std=0.5)
    return layer.eval()


def run(layer: Any, x: Tensor, window: int, shift: int) -> Tensor:
    """The layer with nbattn's attention; Swin pads after the norm, before the projections."""
    height, width = x.shape[1:3]
    padding = (0, 0, 0, -width % window, 0, -height % window)
    normed = torch.nn.functional.pad(layer.layernorm_before(x), padding)
    attention = layer.attention
    query, key, value = (
        projection(normed).unflatten(-1, (HEADS, -1))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    table = attention.relative_position_bias.relative_position_bias_table
    bias = swin.relative_bias_from(table, window)
    found = swin.window_attention(query, key, value, bias, window=window, shift=shift)
    found = attention.o_proj(found.flatten(-2))[:, :height, :width]
    x = x + found
    return x + layer.mlp(layer.layernorm_after(x))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("space", "window"), [((14, 21), 7), ((8, 12), 4), ((6, 4), 2), ((13, 9), 5), ((7, 7), 7)]
)
def test_a_layer_is_that_of_transformers(
    space: tuple[int, int], window: int, shifted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, of the table as well; odd and even windows, also padded ones."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda t, dim, dtype: softmax(t, dim))
    shift = window // 2 if shifted and space != (7, 7) else 0
    layer, x = make(window, shift, space), random(2, *space, CHANNELS).requires_grad_()
    wanted, _ = layer(x.flatten(1, 2), space)
    found = run(layer, x, window, shift)
    torch.testing.assert_close(found.flatten(1, 2), wanted, rtol=1e-9, atol=1e-9)
    leaves = [x, *layer.parameters()]
    upward = random(*found.shape, seed=1)
    grads = [
        torch.autograd.grad(t, leaves, upward.view(t.shape), retain_graph=True)
        for t in (found, wanted)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_swins_mask_is_exact_up_to_a_score_of_minus_100() -> None:
    """Pairs that its mask leaves out have exp(-100) of their weight; here there are no pairs."""
    layer = make(4, 2, (8, 8))
    region = layer.get_attn_mask(8, 8, torch.float64, torch.device("cpu"))
    assert region.unique().tolist() == [-100, 0]
    query, value = random(1, 8, 8, 1, 4), random(1, 8, 8, 1, 4, seed=1)
    found = swin.window_attention(query * 0, query, value, window=4, shift=2)
    torch.testing.assert_close(
        found[0, :2, :2, 0], value[0, :2, :2, 0].mean((0, 1)).expand(2, 2, 4)
    )
    middle = value[0, 2:6, 2:6, 0].mean((0, 1))
    torch.testing.assert_close(found[0, 2:6, 2:6, 0], middle.expand(4, 4, 4))


def test_tables_are_flipped_and_back() -> None:
    table = random((2 * 3 - 1) * (2 * 4 - 1), HEADS)
    bias = swin.relative_bias_from(table, (3, 4))
    index = modeling_swin.SwinRelativePositionBias(HEADS, (3, 4)).relative_position_index
    theirs = table[index].view(3, 4, 3, 4, HEADS)
    for head, y, x, row, column in ((0, 0, 0, 2, 3), (1, 2, 1, 0, 3), (2, 1, 3, 1, 0)):
        assert bias[head, row - y + 2, column - x + 3] == theirs[y, x, row, column, head]
    assert torch.equal(swin.table_from(bias), table)
    line = swin.relative_bias_from(table[:9], (5,))
    assert torch.equal(line, table[:9].flip(0).T)


@pytest.mark.parametrize("shifts", [(1, 1, 0), (0, 0, 0)])
def test_windows_of_other_numbers_of_axes(shifts: tuple[int, int, int]) -> None:
    """Video Swin has three axes; a shift may differ between axes."""
    query, key, value = (random(2, 4, 6, 4, 2, 4, seed=n) for n in range(3))
    bias = random(2, 3, 5, 3, seed=3)
    found = swin.window_attention(
        query, key, value, bias, window=(2, 3, 2), shift=shifts, scale=0.7, backend="reference"
    )
    axes = [*zip((4, 6, 4), (2, 3, 2), shifts, strict=True)]
    places = [[(i - shift) // size for i in range(length)] for length, size, shift in axes]
    at = torch.cartesian_prod(*(torch.arange(length) for length, *_ in axes))
    group = torch.stack([torch.tensor(p)[at[:, n]] for n, p in enumerate(places)], dim=1)
    allowed = (group[:, None] == group).all(-1)
    steps = (at[None] - at[:, None] + torch.tensor([1, 2, 1])).clamp(0)
    steps = steps.minimum(torch.tensor([2, 4, 2]))
    scores = torch.einsum("bqhd,bkhd->bhqk", query.flatten(1, 3), key.flatten(1, 3)) * 0.7
    scores = (scores + bias[(slice(None), *steps.unbind(-1))]).masked_fill(~allowed, -torch.inf)
    wanted = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value.flatten(1, 3))
    torch.testing.assert_close(found.flatten(1, 3), wanted)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_backend_that_is_named(shift: int) -> None:
    with pytest.raises(BackendError, match="cuda cannot run this"):
        swin.window_attention(PLANE, PLANE, PLANE, window=(4, 3), shift=shift, backend="cuda")


PLANE = torch.zeros(1, 8, 9, 2, 4)
REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "a table of another window": (
        lambda: swin.relative_bias_from(torch.zeros(169, 3), 8),
        "table is [169, 3], not [225, H]: 2 W - 1 entries per axis of window (8, 8).",
        "window=7.",
    ),
    "a table of no window": (
        lambda: swin.relative_bias_from(torch.zeros(16, 3), 7),
        "table is [16, 3], not [169, H]: 2 W - 1 entries per axis of window (7, 7).",
        "",
    ),
    "no table": (
        lambda: swin.relative_bias_from(torch.zeros(3, 13, 13), 7),
        "table is [3, 13, 13], not [169, H]: 2 W - 1 entries per axis of window (7, 7).",
        "",
    ),
    "a window that does not divide": (
        lambda: swin.window_attention(PLANE, PLANE, PLANE, window=5),
        "windows of (5, 5) tokens do not divide the space (8, 9).",
        "x = torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 2)) before the projections: Swin's windows "
        "read this padding.",
    ),
    "a shift by a window": (
        lambda: swin.window_attention(PLANE, PLANE, PLANE, window=(4, 3), shift=(4, 1)),
        "shift=(4, 1) is not between 0 and the window (4, 3).",
        "shift=(0, 1).",
    ),
    "a window that is no number": (
        lambda: swin.window_attention(PLANE, PLANE, PLANE, window=4.0),  # pyright: ignore
        "window=4.0 is a float, not an integer.",
        "window=4.",
    ),
    "a window without tokens": (
        lambda: swin.window_attention(PLANE, PLANE, PLANE, window=(4, 0)),
        "window=0 is below 1.",
        "window=(4, 1).",
    ),
    "a shift that is no number": (
        lambda: swin.window_attention(PLANE, PLANE, PLANE, window=(4, 3), shift=(2.0, 1)),  # pyright: ignore
        "shift=2.0 is a float, not an integer.",
        "shift=(2, 1).",
    ),
    "keys of another grid": (
        lambda: swin.window_attention(
            PLANE, PLANE[:, :4], PLANE[:, :4], window=(4, 3), shift=(2, 1)
        ),
        "query [1, 8, 9, 2, 4], key [1, 4, 9, 2, 4], value [1, 4, 9, 2, 4]: Swin's windows hold "
        "the queries and the keys of one grid.",
        "",
    ),
    "no value": (
        lambda: swin.window_attention(PLANE, PLANE, None, window=(4, 3)),  # pyright: ignore
        "value is None, not a tensor.",
        "",
    ),
    "no table at all": (
        lambda: swin.relative_bias_from(None, 2),  # pyright: ignore
        "table is None, not [9, H]: 2 W - 1 entries per axis of window (2, 2).",
        "",
    ),
    "no table to turn back": (
        lambda: swin.table_from(torch.zeros(3)),
        "relative_bias is [3], not [H, 2 W - 1 per axis].",
        "",
    ),
    "a shift back": (
        lambda: swin.window_attention(PLANE, PLANE, PLANE, window=(4, 3), shift=(-1, 1)),
        "shift=(-1, 1) is not between 0 and the window (4, 3).",
        "shift=(3, 1).",
    ),
    "a window of other axes": (
        lambda: swin.window_attention(PLANE, PLANE, PLANE, window=(4,)),
        "window=(4,) and shift=(0, 0) for 2 axes.",
        "window=(4, 4), shift=(0, 0).",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_message_of_windows_that_do_not_fit(name: str) -> None:
    call, problem, fix = REFUSED[name]
    with pytest.raises(InputError) as error:
        call()
    assert (error.value.problem, error.value.fix) == (problem, fix)


def test_the_mask_is_natten_blocked() -> None:
    assert swin.mask((7, 4)) == nbattn.Mask.neighborhood((7, 4), stride=(7, 4))


def test_whole_numbers_of_numpy() -> None:
    wanted = swin.window_attention(PLANE, PLANE, PLANE, window=(4, 3), shift=1)
    sizes = np.array([4, 3])
    found = swin.window_attention(PLANE, PLANE, PLANE, window=tuple(sizes), shift=np.int64(1))
    assert torch.equal(found, wanted)
    assert swin.mask(np.int64(4)) == swin.mask(4)
