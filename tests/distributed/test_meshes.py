"""Tests of where a rank is: its parts, ranks that share the space, tensors that do not fit."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

import nbattn
from nbattn import InputError, Mask
from nbattn.distributed.meshes import Place, place_of

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch without gloo")
SPACE, KEY_SPACE = (9, 5, 7), (4, 11, 6)


def chunk(length: int, parts: int, part: int) -> list[int]:
    chunks = torch.arange(length).chunk(parts)
    return chunks[part].tolist() if part < len(chunks) else []


def places(rank: int) -> None:
    """A mesh of 2 x 2 x 2 ranks, of which `y` is the middle dimension."""
    sizes = {"x": 2, "y": 2, "z": 2}
    mesh = dist.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=tuple(sizes))
    at = dict(zip("xyz", ((rank >> 2) & 1, (rank >> 1) & 1, rank & 1), strict=True))
    for shard in {*permutations(("x", "y", "z", None), 3)}:
        place = place_of(mesh, shard, shard, SPACE, KEY_SPACE)
        for axis, name in enumerate(shard):
            part, parts = (0, 1) if name is None else (at[name], sizes[name])
            for span, length in (
                (place.queries(axis), SPACE[axis]),
                (place.keys(axis), KEY_SPACE[axis]),
            ):
                assert [*range(*span)] == chunk(length, parts, part)
        names = sorted(name for name in shard if name is not None)
        assert [shard[axis] for axis in place.mesh_axes] == names
        others = [n for n in range(8) if all((n ^ rank) >> b & 1 == 0 or name in names
                                             for b, name in enumerate("zyx"))]  # fmt: skip
        check_group(place.group, others)
        assert place.merged is None
    shard, queries = ("z", None, "x"), (None, None, "x")
    place = place_of(mesh, shard, queries, SPACE, KEY_SPACE)
    assert [*range(*place.queries(0))] == [*range(9)]
    assert [*range(*place.keys(0))] == chunk(4, 2, at["z"])
    check_group(place.merged, [rank & ~1, rank | 1])
    assert place.is_first_of_merged == (at["z"] == 0)
    whole = place_of(mesh, (None,) * 3, (None,) * 3, SPACE, KEY_SPACE)
    assert whole.group is None
    assert (whole.parts, whole.coordinates) == ((1, 1, 1), (0, 0, 0))


def check_group(group: Any, members: list[int]) -> None:
    """The ranks whose numbers a sum over the group's processes adds up, and the own place."""
    assert group.size == len(members)
    assert group.number == members.index(dist.get_rank())
    mine = torch.tensor([float(2 ** dist.get_rank())])
    run = torch.ops._c10d_functional
    total = run.wait_tensor(run.all_reduce(mine, "sum", group.name))
    assert total.item() == sum(2**n for n in members)


def test_every_rank_has_its_chunks_and_its_group() -> None:
    ranks.run(places, 8)


def a_place(**changed: Any) -> Place:
    """Part 1 of 3 of 7 positions, as a rank of three would have it."""
    named: dict[str, Any] = {
        "space": (7, 4), "key_space": (5, 4), "shard": ("x", None), "parts": (3, 1),
        "whole": (False, False), "mesh_axes": (0,), "coordinates": (1, 0), "group": None,
        "merged": None,
    }  # fmt: skip
    return Place(**(named | changed))


def test_tensors_that_are_the_part_pass() -> None:
    query, key = torch.empty(1, 3, 4, 2, 8), torch.empty(1, 2, 4, 2, 8)
    a_place().check_shapes(query, key, key)
    last = a_place(coordinates=(2, 0))
    last.check_shapes(query[:, :1], key[:, :1], key[:, :1])
    everything = torch.empty(1, 7, 4, 2, 8)
    a_place(whole=(True, False)).check_shapes(everything, key, key)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((2, 4), (2, 4), (2, 4)), "query has 2 positions on axis 0; part 1 of 3 has 3 of 7: 3 to"),
        (((3, 4), (3, 4), (2, 4)), "key has 3 positions on axis 0; part 1 of 3 has 2 of 5: 2 to 4"),
        (((3, 4), (2, 4), (5, 4)), "value has 5 positions on axis 0; part 1 of 3 has 2 of 5"),
        (((3, 5), (2, 4), (2, 4)), "query has 5 positions on axis 1, which every rank has whole"),
    ],
)
def test_tensors_that_are_not_the_part(shapes: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        a_place().check_shapes(*[torch.empty(1, *shape, 2, 8) for shape in shapes])


def turned(rank: int) -> float:
    """How far attention is from one process where columns of ranks have neighbouring numbers."""
    mesh = DeviceMesh("cpu", torch.arange(4).view(2, 2).T, mesh_dim_names=("y", "x"))
    whole = torch.randn(1, 5, 7, 1, 4, generator=torch.Generator().manual_seed(1))
    mask = Mask.neighborhood((3, 3))
    tensor: Any = whole
    want = nbattn.attention(tensor, tensor, tensor, mask, backend="tiled")
    for axis, name in ((1, "y"), (2, "x")):
        tensor, want = (t.chunk(2, axis)[mesh.get_local_rank(name)] for t in (tensor, want))
    found = nbattn.distributed.attention(
        tensor, tensor, tensor, mask, mesh=mesh, shard=("y", "x"), space=(5, 7), backend="tiled"
    )
    return (found - want).abs().max().item()


def test_a_mesh_whose_ranks_are_not_in_the_order_of_their_numbers() -> None:
    assert max(ranks.run(turned, 4)) < 1e-6


def out_of_order(rank: int) -> str:
    mesh = DeviceMesh("cpu", [[3, 1], [0, 2]], mesh_dim_names=("y", "x"))
    with pytest.raises(InputError) as error:
        place_of(mesh, ("x", "y"), ("x", "y"), (4, 4), (4, 4))
    return str(error.value)


def test_ranks_that_do_not_ascend_along_a_dimension_are_refused_on_all() -> None:
    words = ranks.run(out_of_order, 4)
    assert len({*words}) == 1
    assert "dimension 'y' the mesh has ranks [3, 0]" in words[0]


def outside(rank: int) -> str:
    mesh = DeviceMesh("cpu", [0, 2], mesh_dim_names=("x",))
    try:
        return str(place_of(mesh, ("x",), ("x",), (4,), (4,)).coordinates)
    except InputError as error:
        return error.problem


def test_a_rank_that_is_not_in_the_mesh() -> None:
    found = ranks.run(outside, 3)
    assert found == ["(0,)", "rank 1 is not in the mesh, which has no part for it.", "(1,)"]
