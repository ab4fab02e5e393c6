"""Tests that a call for another generation of NATTEN names that generation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nbattn import InputError
from nbattn.integrations import natten
from nbattn.integrations.natten import fused, modules

PLANE = torch.zeros(1, 6, 6, 2, 8)
CALLS: dict[str, tuple[Any, str]] = {
    "a module with dim": (lambda: natten.NeighborhoodAttention2D(dim=8, num_heads=2), "0.17"),
    "a module with a bias": (
        lambda: natten.NeighborhoodAttention2D(dim=8, num_heads=2, kernel_size=3, bias=True),
        "0.14",
    ),
    "0.17's fourth place": (lambda: natten.NeighborhoodAttention2D(8, 2, 3, 1, True), "0.17"),
    "an older module with stride": (
        lambda: modules.OlderNeighborhoodAttention2D(8, 2, 3, stride=2),
        "0.21",
    ),
    "the oldest module with is_causal": (
        lambda: modules.OldestNeighborhoodAttention2D(8, 2, 3, is_causal=True),
        "0.17",
    ),
    "a table": (lambda: natten.na2d(PLANE, PLANE, PLANE, 3, rpb=torch.zeros(2, 5, 5)), "0.17"),
    "a table in its place": (
        lambda: natten.na2d(PLANE, PLANE, PLANE, 3, 1, False, torch.zeros(2, 5, 5)),
        "0.17",
    ),
    "is_causal in its place": (lambda: natten.na2d(PLANE, PLANE, PLANE, 3, 1, True), "0.17"),
    "an older function with stride": (
        lambda: fused.older_na2d(PLANE, PLANE, PLANE, 3, stride=2, return_lse=True),
        "0.21",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_generation_that_a_call_is_written_for(name: str) -> None:
    call, generation = CALLS[name]
    with pytest.raises(InputError) as error:
        call()
    assert f'natten.install(generation="{generation}")' in error.value.fix


def test_other_unknown_names_are_python_errors() -> None:
    with pytest.raises(TypeError, match="heads"):
        natten.NeighborhoodAttention2D(8, heads=2, kernel_size=3)
