"""Tests of errors across ranks: one rank's error is every rank's, in words, and nothing hangs."""

from __future__ import annotations

import functools
import os
import signal
from datetime import timedelta
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.tensor import DTensor, Shard

import nbattn
import nbattn.distributed as nd
from nbattn import Axis, BackendError, InputError, Mask
from nbattn.distributed import agreement

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch without gloo")
MASK = Mask(Axis(2, 2, border="shift"))
SHORT = 0.3  # seconds: the timeout of groups in which a rank is late


def line() -> Any:
    return dist.init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("x",))


def call(mesh: Any, **changed: Any) -> Any:
    """A call on 4 positions of every rank, with some arguments changed."""
    tensor = torch.ones(1, 4, 2, 4, requires_grad=True)
    named = {"query": tensor, "key": tensor, "value": tensor, "mask": MASK}
    named |= {"mesh": mesh, "shard": mesh.mesh_dim_names, "space": 4 * mesh.size()}
    named |= {"backend": "tiled"}  # which compiles nothing
    return nd.attention(**{**named, **changed})


def error_of(run: Any, *arguments: Any, **named: Any) -> str:
    try:
        run(*arguments, **named)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


TENSORS = ("query", "key", "value")
OTHER = "DistributedError: ranks call attention with different arguments: "
WRONG: list[tuple[dict[str, Any], str]] = [  # what rank 1 gives, and its error
    ({"key": torch.ones(1, 3, 2, 4)}, "InputError: key has 3 positions on axis 0; part 1 of 2 has"),
    ({"shard": ("y",)}, "InputError: shard: the mesh has no dimension 'y'"),  # ranks yet unknown
    ({"mask": "causal"}, "InputError: mask is a str"),
    ({"space": 7}, "space is (8,) on rank 0, (7,) on rank 1; key_space is (8,) on rank 0, (7,) on"),
    (
        {"value": torch.ones(1, 4, 2, 8)},
        "value is [6, *space, 2, 4] on rank 0, [6, *space, 2, 8] on rank 1",
    ),
    (
        {"key": torch.ones(1, 4, 2, 4).double()},
        "dtype is torch.float32 on rank 0, torch.float64 on rank 1",
    ),
    ({"softcap": 2.0}, "options is backend on rank 0, backend, softcap on rank 1"),
    ({"sink": torch.zeros(2)}, "options is backend on rank 0, backend, sink on rank 1"),
    (
        {"mask": Mask.neighborhood(3)},
        f"mask is {MASK!r} on rank 0, {Mask.neighborhood(3)!r} on rank 1",
    ),
]


def refused(rank: int) -> list[str]:
    """Rank 1 gives other arguments, call after call; after each, both make the same new call."""
    mesh, found = line(), list[str]()
    for number, (changed, _) in enumerate(WRONG):
        batch = torch.ones(2 + number, 4, 2, 4)
        named = {"query": batch, "key": batch, "value": batch}
        mine = {
            name: given.expand(2 + number, *given.shape[1:]) if name in TENSORS else given
            for name, given in changed.items()
        }
        found.append(error_of(call, mesh, **{**named, **(mine if rank == 1 else {})}))
        assert call(mesh, **named).equal(batch)
    return found


def test_one_rank_with_another_call_is_an_error_on_all() -> None:
    others, own = ranks.run(refused, 2)
    for error, theirs, (_, wanted) in zip(own, others, WRONG, strict=True):
        if "Error" in wanted:
            assert error.startswith(wanted)
            assert theirs.startswith(f"DistributedError: rank 1: {wanted}")
        else:
            assert wanted in error
            assert wanted in theirs
            assert theirs.startswith(OTHER)


def all_refuse(rank: int) -> None:
    mesh = line()
    for _ in range(2):
        with pytest.raises(InputError, match="key has 3 positions"):
            call(mesh, key=torch.ones(1, 3, 2, 4))
    call(mesh)


def test_ranks_that_refuse_alike_raise_their_own_errors_and_go_on() -> None:
    ranks.run(all_refuse, 2)


def plane(rank: int) -> str:
    """The first call needs a group of two mesh dimensions, which one rank does not make."""
    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("x", "y"))
    mask, small = Mask.neighborhood((3, 3)), torch.ones(1, 2, 2, 1, 4)
    named: dict[str, Any] = {"query": small, "key": small, "value": small, "mask": mask}
    named |= {"mesh": mesh, "shard": ("x", "y"), "space": (4, 4), "backend": "tiled"}
    wrong = {"value": small[:, :1]} if rank == 3 else {}
    found = error_of(nd.attention, **{**named, **wrong})
    assert nd.attention(**named).equal(small)
    return found


def test_no_group_is_waited_for_that_another_rank_does_not_make() -> None:
    *others, own = ranks.run(plane, 4)
    assert own.startswith("InputError: value has 1 positions on axis 0; part 1 of 2 has 2 of 4")
    assert {error.split(" on axis")[0] for error in others} == {
        "DistributedError: rank 3: InputError: value has 1 positions"
    }


def known(rank: int) -> None:
    mesh = line()
    want = call(mesh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "_get_default_store", None)
        assert call(mesh).equal(want)
        patch.setattr(agreement.Ranks, "_wait_for_all", None)
        with pytest.raises(TypeError):
            call(mesh, softcap=2.0)


def test_a_known_call_does_not_look_at_the_store() -> None:
    ranks.run(known, 2)


def late(rank: int, what: str) -> str:
    """Rank 1 does not come to a call that is known to all, to a new one, or to a backward pass."""
    mesh = line()
    call(mesh).sum().backward()
    store, out = distributed_c10d._get_default_store(), call(mesh)
    if rank == 1:
        error = error_of(call, mesh, key=torch.ones(1, 3, 2, 4)) if what == "refuses" else ""
        store.set("rank 1 is here", "")
        store.wait(["rank 0 is done"])
        return error
    store.wait(["rank 1 is here"])
    limit = timedelta(seconds=SHORT)
    distributed_c10d._set_pg_timeout(limit, mesh.get_group())
    store.set_timeout(limit)
    found = _waited(mesh, out, what)
    store.set("rank 0 is done", "")
    return found


def _waited(mesh: Any, out: Any, what: str) -> str:
    if what == "backward":
        return error_of(out.sum().backward)
    return error_of(call, mesh, **({"softcap": 2.0} if what == "new" else {}))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("refuses", "rank 1: InputError: key has 3 positions on axis 0"),
        (
            "new",
            "1 of 2 ranks did not come to this call of attention within 0.3 s: rank 0 waits",
        ),
        (
            "backward",
            "an exchange with ranks 1 failed: one of them has ended, or is more than 0.3",
        ),
    ],
)
def test_a_rank_that_does_not_come_is_an_error_at_the_timeout(what: str, words: str) -> None:
    found = ranks.run(late, 2, what)
    assert found[0].startswith(f"DistributedError: {words}")


def killed(rank: int, what: str) -> str:
    mesh = line()
    for step in range(5):
        out = call(mesh)
        if rank == 1 and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        run = out.sum().backward if what == "backward" else functools.partial(call, mesh)
        if found := error_of(run):
            return found
    return ""


@pytest.mark.parametrize("what", ["forward", "backward"])
def test_a_killed_rank_is_an_error_on_the_others(what: str) -> None:
    """Long before the timeout of the group."""
    found = ranks.outcomes(killed, 3, what)
    assert found[1].signal == signal.SIGKILL
    for end in (found[0], found[2]):
        assert "has ended" in (end.result or end.error)


def told(rank: int) -> int:
    """How often an error of distributed tensors is told, which no backend computes."""
    tensor = DTensor.from_local(torch.ones(1, 4, 2, 4), line(), [Shard(1)], run_check=False)
    errors: list[BaseException] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement.Ranks, "tell", lambda _, error: errors.append(error))
        with pytest.raises(BackendError):
            nbattn.attention(tensor, tensor, tensor, MASK, backend="cuda")
    return len(errors)


def test_an_error_of_distributed_tensors_is_told_once() -> None:
    """Ranks count errors: who counts one twice waits for the others for ever after."""
    assert ranks.run(told, 2) == [1, 1]
