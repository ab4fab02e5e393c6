"""Tests of answers to keys and values of other libraries; `tests/fixes/config.py` pastes them."""

from __future__ import annotations

from typing import Any

import pytest

from nbattn.config import answers
from nbattn.config.notation import TOML


def answer_to(*path: str | int, **table: Any) -> tuple[str, str]:
    key = next(iter(table))
    return answers.of_key((*path, key), table, TOML)


def test_dropout_of_weights_becomes_that_of_the_projection() -> None:
    why, fix = answer_to("layers", "a", dropout=0.1)
    assert why.startswith("weights of attention are never stored")
    assert fix == "proj_drop = 0.1"
    assert answer_to("layers", "a", dropout=0.0)[1] == "no dropout"
    assert answer_to("layers", "a", attn_drop=0.1, proj_drop=0.2)[1] == "no attn_drop"
    assert answer_to("plans", "a", dropout_p=0.1)[1] == "no dropout_p"


def test_windows_go_to_the_mask_that_a_layer_names() -> None:
    here = answer_to("layers", "a", kernel_size=7, mask="nat")
    assert here == (
        "masks.nat says which keys a query reads",
        "neighborhood = { kernel_size = 7 } in masks.nat",
    )
    assert answer_to("layers", "a", window=7)[1] == (
        "sliding_window = { left = 6 } (a query and the keys before it), or neighborhood = "
        '{ kernel_size = 7 } (keys around it) in masks.a and mask = "a" here'
    )
    wide = answer_to("layers", "a", window_size=[512, 0], causal=True, mask="m")[1]
    assert wide == "from_flash = { window_size = [512, 0], causal = true } in masks.m"


def test_a_mask_that_has_a_window_is_not_replaced() -> None:
    """`is_causal` beside a mask: a mask that is only causal would read other keys."""
    assert answer_to("layers", "a", is_causal=True, mask="nat")[1] == ""
    assert answer_to("layers", "a", dilation=2, mask="nat")[1] == ""
    assert answer_to("layers", "a", is_causal=True)[1].startswith("causal = {} in masks.a")


def test_sizes_of_a_plan_are_in_its_shape() -> None:
    assert answer_to("plans", "a", heads=8) == (
        "the shape says it: query is [batch, *space, heads, head_dim]",
        "",
    )


def test_fields_of_an_axis_need_a_list() -> None:
    assert answer_to("masks", "a", left=8, causal=True)[1] == "axes = [{ left = 8, causal = true }]"
    assert answer_to("masks", "a", kernel_size=7, is_causal=True)[1] == (
        "neighborhood = { kernel_size = 7, is_causal = true }"
    )


@pytest.mark.parametrize(
    ("table", "fix"),
    [
        ({"kernel_size": 7}, 'left = 3, right = 3, border = "shift"'),
        ({"kernel_size": 8, "border": "wrap"}, "left = 4, right = 3"),
        ({"window": 7}, "left = 3, right = 3"),
        ({"window": 7, "causal": True}, "left = 6"),
        ({"window_size": [3, -1]}, "left = 3"),
        ({"window_size": [-1, -1]}, "no window_size"),
        ({"window_size": "7"}, ""),
        ({"circular": True}, 'border = "wrap"'),
        ({"periodic": False}, "no periodic"),
        ({"periodic": True, "border": "clip"}, ""),
        ({"colour": "red"}, ""),
    ],
)
def test_windows_and_borders_of_an_axis(table: dict[str, Any], fix: str) -> None:
    assert answer_to("masks", "a", "axes", 0, **table)[1] == fix


def test_a_window_that_counts_the_query_is_one_key_shorter() -> None:
    why, fix = answer_to("masks", "a", "sliding_window", window=512)
    assert (why, fix) == (
        "left counts the keys before a query, which is the last of 512",
        "left = 511",
    )


@pytest.mark.parametrize(
    ("path", "value", "expected", "fix"),
    [
        (("masks", "a", "axes", 0, "left"), "1,024", "a whole number", "left = 1024"),
        (("masks", "a", "axes", 0, "left"), "012", "a whole number", ""),  # octal, or not
        (("masks", "a", "axes", 0, "left"), 2.5, "a whole number", ""),
        (("masks", "a", "axes", 0, "causal"), "Off", "true or false", "causal = false"),
        (("masks", "a", "axes", 0, "causal"), 2, "true or false", ""),
        (("masks", "a", "sliding_window"), True, "a table", ""),
        (("masks", "a", "causal"), "top-left", "a table", 'causal = { align = "top-left" }'),
        (("masks", "a", "from_cudnn"), 8, "a table", "from_cudnn = { left_bound = 8 }"),
        (("plans", "a", "require"), "tile", "a list", 'require = ["tile"]'),
        (("plans", "a", "query"), "all", "a list", ""),
        (("plans", "a", "query"), "1x12", "a list", "query = [1, 12]"),
        (("plans", "a", "grids"), "14x14", "a list", "grids = [[14, 14]]"),
        (("plans", "a", "key_grids"), 512, "a list", "key_grids = [[512]]"),
        (("plans", "a", "softcap"), "thirty", "a number", ""),
    ],
)
def test_values_in_another_form(path: Any, value: object, expected: str, fix: str) -> None:
    assert answers.of_value(path, {path[-1]: value}, expected, TOML) == fix


def test_a_number_of_a_window_alone_is_asked_back() -> None:
    fix = answers.of_value(
        ("masks", "a", "sliding_window"), {"sliding_window": 512}, "a table", TOML
    )
    assert fix == (
        "sliding_window = { left = 512 } for 512 before the query's own, "
        "sliding_window = { left = 511 } for 512 in all"
    )
