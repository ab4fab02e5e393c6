"""Tests of names that users bring from other libraries: each gets an answer, and the whole call."""

from __future__ import annotations

import inspect

import pytest
import torch

from nbattn import Axis, InputError, Mask, NeighborhoodAttention

MASK = Mask.neighborhood((3, 3))
NAMES = {
    "torch": torch,
    "Axis": Axis,
    "Mask": Mask,
    "Layer": NeighborhoodAttention,
    "mask": MASK,
    "layer": NeighborhoodAttention(16, 4, MASK),
    "x": torch.zeros(2, 4, 5, 16),
    "padding": torch.zeros(2, 4, 5, dtype=torch.bool),
}
WINDOWS = "windows are in the mask."
DROPS = "attention stores no weights that could be dropped; proj_drop drops of its output."
SAME = "NeighborhoodAttention(64, 4, Mask.neighborhood((3, 3))"
CONSTRUCTOR = {  # arguments: the reason, and the fix
    "dim=64, num_heads=4, kernel_size=7": (
        f"'kernel_size': {WINDOWS}",
        "NeighborhoodAttention(64, 4, Mask.neighborhood((7, 7))).",
    ),
    "64, 4, kernel_size=(7, 5), dilation=2, is_causal=True, stride=1": (
        f"'kernel_size': {WINDOWS}",
        "NeighborhoodAttention(64, 4, Mask.neighborhood((7, 5), dilation=2, is_causal=True)).",
    ),
    "64, 4, mask, dilation=2": (
        f"'dilation': {WINDOWS}",
        "NeighborhoodAttention(64, 4, Mask.neighborhood((3, 3), dilation=2)).",
    ),
    "64, 4, mask, is_causal=True": (
        f"'is_causal': {WINDOWS}",
        "NeighborhoodAttention(64, 4, Mask.neighborhood((3, 3), is_causal=True)).",
    ),
    "64, 4, is_causal=True": (
        f"'is_causal': {WINDOWS}",
        "NeighborhoodAttention(64, 4, Mask.causal()).",
    ),
    "64, 4, window_size=7": (
        f"'window_size': {WINDOWS}",
        "NeighborhoodAttention(64, 4, Mask.neighborhood((7, 7))).",
    ),
    "64, 4, window_size=(512, 0)": (
        f"'window_size': {WINDOWS}",
        "NeighborhoodAttention(64, 4, Mask.from_flash((512, 0))).",
    ),
    "64, 4, window_size=-1": (
        f"'window_size': {WINDOWS}",
        "NeighborhoodAttention(64, 4, Mask.from_flash((-1, -1))).",
    ),
    "64, heads=4, mask=mask": ("'heads': here it is num_heads.", f"{SAME})."),
    "embed_dim=64, num_heads=4, mask=mask": ("'embed_dim': here it is dim.", f"{SAME})."),
    "64, 4, mask, dim_head=8": ("'dim_head': here it is head_dim.", f"{SAME}, head_dim=8)."),
    "64, 4, mask, qk_scale=0.5": ("'qk_scale': here it is scale.", f"{SAME}, scale=0.5)."),
    "64, 4, mask, qkv_bais=False": (
        "'qkv_bais': here it is qkv_bias.",
        f"{SAME}, qkv_bias=False).",
    ),
    "64, 4, mask, rope=layer": (
        "'rope': here it is qk_transform.",
        f"{SAME}, qk_transform=rope).",
    ),
    "64, 4, mask, heads=8": ("'heads': here it is num_heads.", f"{SAME})."),
    "64, 4, mask, dropout=0.1": (f"'dropout': {DROPS}", f"{SAME}, proj_drop=0.1)."),
    "64, 4, mask, attn_drop=0.0": (f"'attn_drop': {DROPS}", f"{SAME})."),
    "64, 4, mask, batch_first=True": ("'batch_first': the batch always comes first.", f"{SAME})."),
    "64, 4, mask, kernel_size=5, rel_pos_bias=True": (
        f"'kernel_size': {WINDOWS}",
        f"{SAME.replace('3, 3', '5, 5')}, relative_bias=True).",
    ),
    "64, 4, mask, rpb=False": (
        "'rpb': here it is relative_bias.",
        f"{SAME}, relative_bias=False).",
    ),
    "64, 4, mask, use_rpb=mask": (
        "'use_rpb': here it is relative_bias.",
        f"{SAME}, relative_bias=True).",
    ),
    "64, 4, mask, alibi=True": (
        "'alibi': slopes are given to each call, layer(x, alibi_slopes=slopes).",
        "",  # without them the layer would mean something else
    ),
    "64, 4, mask, zzz=1": (
        "'zzz': it has dim, num_heads, mask, kv_heads, head_dim, qkv_bias, proj_drop, "
        "qk_transform, scale, qk_norm, context_dim, relative_bias, layout, backend, device, "
        "dtype.",
        "",  # without it the layer could mean something else
    ),
}
PADDING = "padding is a range of keys."
HAS_MASK = "the layer's mask is Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))"
CALLS = {
    "x, attn_mask=None": (f"'attn_mask': {HAS_MASK}.", "layer(x)."),
    "x, attn_mask=torch.ones(20, 20)": (
        f"'attn_mask': {HAS_MASK}, and a Tensor cannot take its place.",
        "layer(x).",
    ),
    "x, mask=Mask.full(2)": (
        "'mask': the layer has one already.",
        "layer.mask = Mask(Axis(), Axis()); layer(x).",
    ),
    "x, is_causal=True": (
        "'is_causal': the layer's mask says what is causal.",
        "layer.mask = Mask.neighborhood((3, 3), is_causal=True); layer(x).",
    ),
    "x, is_causal=False": ("'is_causal': the layer's mask says what is causal.", "layer(x)."),
    "x, key_padding_mask=padding": (
        f"'key_padding_mask': {PADDING}",
        "layer(x, key_range=nbattn.key_range_from(~key_padding_mask)).",
    ),
    "x, attention_mask=padding": (
        f"'attention_mask': {PADDING}",
        "layer(x, key_range=nbattn.key_range_from(attention_mask.bool())).",
    ),
    "x, need_weights=False": (
        "'need_weights': attention stores no weights that it could return.",
        "layer(x).",
    ),
    "x, encoder_hidden_states=x": (
        "'encoder_hidden_states': here it is context.",
        "layer(x, encoder_hidden_states).",
    ),
    "x, registers=x[:, 0], key_range=[[0, 3], [0, 3]]": (
        "'registers': here it is extra_tokens.",
        "layer(x, extra_tokens=registers, key_range=key_range).",
    ),
}
CALLS["x, slopes=padding"] = (
    "'slopes': here it is alibi_slopes.",
    "layer(x, alibi_slopes=slopes).",
)
THREE = "layer takes x and a context, not 3 tensors: it projects queries, keys and values itself."


def message(call: str) -> str:
    with pytest.raises(InputError) as error:
        eval(call, NAMES)
    return str(error.value)


@pytest.mark.parametrize("arguments", CONSTRUCTOR)
def test_names_of_the_constructor(arguments: str) -> None:
    why, fix = CONSTRUCTOR[arguments]
    wanted = f"NeighborhoodAttention takes no argument {why}"
    assert message(f"Layer({arguments})") == wanted + (f"\n  fix:   {fix}" if fix else "")


@pytest.mark.parametrize("arguments", CALLS)
def test_names_of_a_call(arguments: str) -> None:
    why, fix = CALLS[arguments]
    assert message(f"layer({arguments})") == f"layer takes no argument {why}\n  fix:   {fix}"


def test_queries_keys_and_values_of_a_call() -> None:
    assert message("layer(x, x, x)") == f"{THREE}\n  fix:   layer(x)."
    assert message("layer(x, x + 1, x + 1)") == f"{THREE}\n  fix:   layer(x, context)."


def test_a_kernel_size_in_the_place_of_the_mask() -> None:
    for size in ("7", "(7, 7)"):
        assert message(f"Layer(64, 4, {size})").endswith("fix:   mask=Mask.neighborhood((7, 7)).")


def test_the_signature_of_the_constructor_is_its_own() -> None:
    parameters = inspect.signature(NeighborhoodAttention).parameters
    assert [*parameters][:3] == ["dim", "num_heads", "mask"]
    assert {p.kind for p in parameters.values()} == {
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    }
    with pytest.raises(InputError, match="needs mask"):
        NeighborhoodAttention(64, 4)  # pyright: ignore[reportCallIssue]
