"""Tests of attention of distributed tensors: on ranks, outputs and gradients are those of one
process, with the placements that they were given.
"""

from __future__ import annotations

from typing import Any

import pytest
import ranks
import torch
from small_layers import random
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import nbattn
from nbattn import Axis, InputError, Mask

EVERYWHERE = Replicate()
PLANE = Mask(Axis(2, 1), Axis(1, 1, border="shift"))
LAST = Mask.causal("bottom-right")
SINK, TABLE = random(4, seed=3), random(4, 7, 5, seed=4)
EXTRA = {"extra_key": random(3, 2, 2, 8, seed=5), "extra_value": random(3, 2, 2, 8, seed=6)}
RANGES = {
    "key_range": torch.tensor([[[0, 5], [1, 7]], [[0, 7], [0, 7]], [[2, 7], [2, 5]]]).int(),
    "extra_range": torch.tensor([[0, 2], [1, 2], [0, 0]]).int(),
}
ALL: dict[str, Tensor] = {"sink": SINK, "relative_bias": TABLE, **EXTRA, **RANGES}
SLOPES = {"alibi_slopes": random(3, 4, seed=7).abs().float()}
# Mask, spaces of queries and keys, placements of queries and keys on a mesh of (2, 2), options.
# Chunks of 7 are 4 and 3; of 3 samples, 2 and 1; of 1 key, 1 and none.
Case = tuple[Mask, tuple[int, ...], tuple[int, ...], Any, Any, dict[str, Tensor]]
CASES: dict[str, Case] = {
    name: (mask, queries, keys, *(p if isinstance(p[0], tuple) else (p, p)), options)  # pyright: ignore
    for name, (mask, queries, keys, p, options) in {
        "both axes": (PLANE, (7, 7), (7, 7), (Shard(1), Shard(2)), ALL),
        "axes in another order": (PLANE, (7, 7), (7, 7), (Shard(2), Shard(1)), ALL),
        "batch and an axis": (PLANE, (7, 7), (7, 7), (Shard(0), Shard(1)), ALL),
        "heads and an axis": (PLANE, (7, 7), (7, 7), (Shard(3), Shard(2)), ALL),
        "batch and heads": (PLANE, (7, 7), (7, 7), (Shard(0), Shard(3)), ALL),
        "batch twice": (PLANE, (7, 7), (7, 7), (Shard(0), Shard(0)), ALL),
        "an axis": (PLANE, (7, 7), (7, 7), (EVERYWHERE, Shard(1)), ALL),
        "nothing": (PLANE, (7, 7), (7, 7), (EVERYWHERE, EVERYWHERE), ALL),
        "slopes of heads": (LAST, (3,), (9,), (Shard(2), Shard(1)), SLOPES),
        "slopes of samples": (LAST, (3,), (9,), (Shard(0), Shard(2)), SLOPES),
        "empty parts": (PLANE, (1, 3), (1, 3), (Shard(1), Shard(2)), {"sink": SINK, **EXTRA}),
        "decoding": (
            *(LAST, (1,), (9,)),
            ((EVERYWHERE, Shard(2)), (Shard(1), Shard(2))),
            {"sink": SINK, **EXTRA, "extra_range": RANGES["extra_range"], **SLOPES},
        ),
        "decoding samples": (
            *(LAST, (3,), (9,)),
            ((Shard(0), EVERYWHERE), (Shard(0), Shard(1))),
            {"sink": SINK, **EXTRA},
        ),
    }.items()
}


def results(tensors: list[Tensor], mask: Mask, options: dict[str, Tensor]) -> list[Tensor]:
    """Output, logsumexp, and the gradients of all that is trained."""
    leaves = [*tensors, *(t for t in options.values() if t.dtype == torch.float64)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    found: Any = nbattn.attention(*tensors, mask, return_lse=True, **options)
    backward(found)
    return [*found, *(leaf.grad for leaf in leaves)]  # pyright: ignore


def backward(found: Any) -> None:
    """Gradients of results, which are as distributed as these are."""
    grads: list[Any] = [random(*part.shape, seed=9) for part in found]
    for n, part in enumerate(found):
        if isinstance(part, DTensor):
            grads[n] = placed(grads[n], part.device_mesh, part.placements)
    torch.autograd.backward(found, grads)


def placed(tensor: Tensor, mesh: DeviceMesh, placements: Any) -> Any:
    """A tensor that all ranks have, distributed without sending it."""
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def same(found: Any, wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.full_tensor(), other, rtol=1e-12, atol=1e-12)


def tensors_of(case: Case) -> list[Tensor]:
    _, queries, keys, _, _, options = case
    key_heads = 2 if "extra_key" in options else 4
    sizes = (*queries, 4, 8), (*keys, key_heads, 8), (*keys, key_heads, 8)
    return [random(3, *size, seed=n) for n, size in enumerate(sizes)]


def compare(case: Case, mesh: DeviceMesh) -> None:
    mask, _, _, ours, theirs, options = case
    given = tensors_of(case)
    copies = {name: option.clone() for name, option in options.items()}
    wanted = results([t.clone() for t in given], mask, copies)
    own = [placed(t, mesh, p) for t, p in zip(given, (ours, theirs, theirs), strict=True)]
    whole = [EVERYWHERE] * 2
    shared = {name: placed(option, mesh, whole) for name, option in options.items()}
    found: list[Any] = results(own, mask, shared)
    same(found, wanted)
    assert [t.placements for t in found[:2]] == [ours, ours]
    shares = [Partial() if k != EVERYWHERE and p == EVERYWHERE else p
              for p, k in zip(ours, theirs, strict=True)]  # fmt: skip
    assert [list(t.placements) for t in found[2:5]] == [shares, list(theirs), list(theirs)]
    of_options = [Partial() if p != EVERYWHERE else p for p in theirs]
    assert all(list(t.placements) == of_options for t in found[5:])


def plain_options_are_whole(mesh: DeviceMesh) -> None:
    """Tensors that are not distributed are cut; their gradients are this rank's share. Distributed
    ones may be placed as the call is.
    """
    case = CASES["batch and heads"]
    mask, _, _, placements, _, options = case
    wanted = results(tensors_of(case), mask, {n: t.clone() for n, t in options.items()})
    own = [placed(t, mesh, placements) for t in tensors_of(case)]
    found = results(own, mask, {name: option.clone() for name, option in options.items()})
    for n, grad in enumerate(found[5:]):
        torch.distributed.all_reduce(grad)
        torch.testing.assert_close(grad, wanted[5 + n], rtol=1e-12, atol=1e-12)
    cut: dict[str, Any] = {
        "sink": (EVERYWHERE, Shard(0)),
        "relative_bias": (EVERYWHERE, Shard(0)),
        "extra_key": (Shard(0), Shard(2)),
        "extra_value": (Shard(0), EVERYWHERE),
        "key_range": (Shard(0), EVERYWHERE),
        "extra_range": (Shard(0), EVERYWHERE),
    }
    cut = {name: placed(t.clone(), mesh, cut[name]) for name, t in options.items()}
    own = [placed(t, mesh, placements) for t in tensors_of(case)]
    again: Any = results(own, mask, cut)
    same(again, wanted)
    assert [list(t.placements) for t in again[5:]] == [
        [Partial(), Shard(0)],
        [Partial(), Shard(0)],
        [Shard(0), Shard(2)],
        [Shard(0), Partial()],
    ]


def joint(mesh: DeviceMesh, placements: Any, of_extras: Any) -> None:
    """Extra tokens that are queries, on all ranks of the space."""
    sizes = [(3, 7, 5, 4, 8)] * 3 + [(3, 2, 4, 8)] * 3
    given = [random(*size, seed=n) for n, size in enumerate(sizes)]

    def run(tensors: list[Any]) -> list[Any]:
        tensors = [t.requires_grad_() for t in tensors]
        found = nbattn.joint_attention(*tensors[:3], PLANE, *tensors[3:], return_lse=True)
        backward(found)
        return [*found, *(t.grad for t in tensors)]

    wanted = run([t.clone() for t in given])
    all_placements = [placements] * 3 + [of_extras] * 3
    same(run([placed(t, mesh, p) for t, p in zip(given, all_placements, strict=True)]), wanted)


def refusals(mesh: DeviceMesh) -> None:
    """What placements cannot be; the fixes are in tests/fixes."""
    image = random(2, 8, 8, 4, 8)
    own = placed(image, mesh, (Shard(1), Shard(2)))
    with pytest.raises(InputError, match=r"sink has shape \[3\], not \[4\]"):
        nbattn.attention(own, own, own, PLANE, sink=random(3))
    with pytest.raises(InputError, match="key is a tensor of this rank, query one of a mesh"):
        nbattn.attention(own, image, image, PLANE)
    with pytest.raises(InputError, match=r"extra_query is a tensor of this rank"):
        nbattn.joint_attention(own, own, own, PLANE, *[random(2, 3, 4, 8)] * 3)
    twice = DTensor.from_local(image, mesh, (Shard(1), Shard(1)))
    with pytest.raises(InputError, match="two mesh dimensions shard axis 0") as error:
        nbattn.attention(twice, twice, twice, PLANE)
    assert "placements=[Shard(dim=1), Replicate()]" in error.value.fix


def on_four(rank: int) -> None:
    del rank
    named = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
    unnamed = init_device_mesh("cpu", (2, 2))
    for number, case in enumerate(CASES.values()):
        compare(case, unnamed if number % 2 else named)
    compare(CASES["both axes"], unnamed)
    plain_options_are_whole(named)
    joint(named, (Shard(1), Shard(2)), (EVERYWHERE, EVERYWHERE))
    joint(unnamed, (Shard(3), Shard(2)), (EVERYWHERE, EVERYWHERE))
    joint(unnamed, (Shard(0), Shard(1)), (Shard(0), EVERYWHERE))
    refusals(named)


def on_two(rank: int) -> None:
    """A mesh of one dimension without a name."""
    del rank
    mesh = init_device_mesh("cpu", (2,))
    for name in ("an axis", "slopes of heads"):
        mask, queries, keys, _, _, options = CASES[name]
        for placement in (Shard(1), Shard(len(queries) + 1)):
            side = (placement,)
            compare_on_a_line((mask, queries, keys, side, side, options), mesh)


def compare_on_a_line(case: Case, mesh: DeviceMesh) -> None:
    mask, _, _, placements, _, options = case
    wanted = results(tensors_of(case), mask, {n: t.clone() for n, t in options.items()})
    own = [placed(t, mesh, placements) for t in tensors_of(case)]
    found = results(own, mask, {n: t.clone() for n, t in options.items()})
    same(found[:5], wanted[:5])


def compiled(rank: int) -> None:
    """One graph, forward and backward."""
    del rank
    mesh = init_device_mesh("cpu", (2, 2))
    case = CASES["heads and an axis"]
    placements = case[3]
    options = {name: t for name, t in case[5].items() if name != "key_range"}
    wanted: Any = results([placed(t, mesh, placements) for t in tensors_of(case)], PLANE, options)
    own = [placed(t, mesh, placements).requires_grad_() for t in tensors_of(case)]
    options = {name: t.detach() for name, t in options.items()}

    def run(query: Any, key: Any, value: Any) -> Any:
        return nbattn.attention(query, key, value, PLANE, return_lse=True, **options)

    found: Any = torch.compile(run, backend="aot_eager", fullgraph=True)(*own)
    backward(found)
    for one, other in zip([*found, *(t.grad for t in own)], wanted, strict=False):
        torch.testing.assert_close(one.to_local(), other.to_local(), rtol=1e-12, atol=1e-12)


@pytest.mark.deep
def test_one_graph_has_the_exchange() -> None:
    ranks.run(compiled, 4, seconds=300)


@pytest.mark.parametrize(("work", "count"), [(on_four, 4), (on_two, 2)])
def test_ranks_are_one_process(work: Any, count: int) -> None:
    ranks.run(work, count)
