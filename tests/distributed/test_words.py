"""Tests of calls of attention across ranks that do not fit: what is said where no fix is pasted."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import distributed

import nbattn
from nbattn import InputError, Mask
from nbattn.distributed import words

PART = torch.zeros(1, 4, 1, 8)
MASK = Mask.sliding_window(2)


def refused(*args: Any, **named: Any) -> InputError:
    """The error of a call, for which there need be no processes."""
    with pytest.raises(InputError) as caught:
        nbattn.distributed.attention(*args, **named)
    return caught.value


def test_help_shows_what_one_process_takes_and_what_is_cut() -> None:
    shown = inspect.signature(nbattn.distributed.attention).parameters
    one = set(inspect.signature(nbattn.attention).parameters) - {"grids", "key_grids"}
    assert set(shown) == set(words.NAMES)
    assert set(shown) - one == {"mesh", "shard", "space", "key_space", "query_shard"}
    assert {*words.Options.__annotations__, "return_lse"} == one - {*[*shown][:4]}
    assert [n for n, p in shown.items() if p.default is p.empty] == [*shown][:7]


def test_all_that_is_missing_is_named() -> None:
    assert refused(PART, PART, PART).problem == "attention() needs mask, mesh, shard and space."
    found = refused(PART, PART, PART, MASK, mesh=None, shard="x").problem
    assert found == "attention() needs space."


def test_the_number_of_arguments_by_place_is_said() -> None:
    error = refused(PART, PART, PART, MASK, None, "x", 8)
    assert error.problem == "attention() takes 4 arguments by place, not 7; the rest by name."
    assert "mesh=None, shard='x', space=8)" in error.fix


def test_what_is_no_tensor_is_named() -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    mesh = distributed.init_device_mesh("cpu", (1,), mesh_dim_names=("x",))
    named: dict[str, Any] = {"mesh": mesh, "shard": "x", "space": 4}
    try:
        assert refused(PART, None, PART, MASK, **named).problem == "key is None, not a tensor."
        error = refused(PART.numpy(), PART, PART, MASK, **named)
        assert error.problem == "query is a numpy.ndarray, not a tensor."
        assert error.fix == "torch.as_tensor(query)."
        assert refused(PART, PART, PART, MASK, **named | {"shard": 3}).fix == "shard=('x',)."
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("attn_mask", torch.ones(4, 4).bool(), "a mask is an nbattn.Mask"),
        ("cu_seqlens", torch.tensor([0, 4]), "packed sequences are packed grids"),
        ("segment_ids", torch.zeros(1, 4), "segments that share a row"),
        ("zebra", 1, "it takes query, key, value, mask, mesh, shard, space"),
    ],
)
def test_what_has_no_place_across_ranks_has_no_fix(name: str, value: object, text: str) -> None:
    """Fixes of one process would compute a rank's own part only."""
    error = refused(PART, PART, PART, MASK, mesh=None, shard="x", space=8, **{name: value})
    assert f"takes no argument {name!r}" in error.problem
    assert text in error.problem
    assert error.fix == ""


def test_ranges_are_said_to_be_those_of_the_whole_space() -> None:
    padding = torch.ones(1, 8)
    error = refused(PART, PART, PART, MASK, mesh=None, shard="x", space=8, attention_mask=padding)
    assert error.fix.endswith(", of the whole space.")
