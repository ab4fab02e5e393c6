"""Agreement of ranks on a call, and errors of one rank told to all, by torch.distributed's store.

The first time that a rank sees a call, it posts what must be alike in the store and waits until all
ranks have posted the same. Known calls cost one look-up. A rank that raises an error writes its
words into the store first, and others read them where they wait: in an agreement at once, in an
exchange when it fails, which is when the rank's process ends or after the group's timeout. NCCL's
exchanges fail on the device, where torch's watchdog ends the process at the timeout, in torch's
words.

    nbattn/<ranks>/<errors so far>/error        words of the rank that raised first
                                   <call>       how many ranks have posted this call
                                   latest       the call that was posted last
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import (
    _get_default_store,  # pyright: ignore[reportPrivateUsage]
)

from nbattn.errors import DistributedError, NbattnError

_Found = TypeVar("_Found")
_FIRST_PAUSE, _LONGEST_PAUSE = 1e-4, 0.1  # seconds between two looks at the store
_LOOKS = 1000  # of all ranks together at most about as many a second, while they wait for long
_KNOWN = 4096  # calls

Call = dict[str, str]  # what must be alike on all ranks, in words


@dataclass(slots=True)
class Ranks:
    """Ranks that call attention together.

    Args:
        ranks: their numbers in the default group.
        errors: how many calls have ended with an error.
        known: calls that were agreed on.
    """

    ranks: tuple[int, ...]
    errors: int = 0
    known: set[Any] = field(default_factory=set)

    def agree(self, key: Any, described: Callable[[], Call]) -> None:
        """Waits until all ranks have come to the same call, where it is new to this rank.

        Args:
            key: what stands for the call on this rank.
            described: the call in words.

        Raises:
            DistributedError: another rank has another call, or has raised an error, or does not
                come within the timeout.
        """
        if key in self.known or torch.compiler.is_compiling():
            return
        if len(self.ranks) > 1 and _has_store():
            self._wait_for_all(described())
        if len(self.known) >= _KNOWN:
            self.known.clear()
        self.known.add(key)

    def tell(self, error: BaseException) -> None:
        """Writes the words of this rank's error where other ranks find them."""
        if len(self.ranks) > 1 and _has_store():
            words = error.problem if isinstance(error, NbattnError) else str(error)
            own = f"rank {dist.get_rank()}: {type(error).__name__}: "
            text = words if isinstance(error, DistributedError) else own + words
            with contextlib.suppress(RuntimeError):  # the store ended with the process that had it
                _get_default_store().compare_set(self._key("error"), "", text)
            self.errors += 1

    def lost(self, error: BaseException) -> DistributedError:
        """The error of an exchange that failed, with the words of the rank that caused it."""
        try:
            words = self._words()
        except RuntimeError:
            words = ""
        if words:
            return DistributedError(words)
        return DistributedError(
            f"an exchange with ranks {self._others()} failed: one of them has ended, or is more "
            f"than {_timeout():g} s late. {str(error).splitlines()[0] if str(error) else ''}"
        )

    def _wait_for_all(self, call: Call) -> None:
        store, text = _get_default_store(), json.dumps(call)
        name = self._key(hashlib.sha256(text.encode()).hexdigest())
        end, pause = time.monotonic() + _timeout(), _FIRST_PAUSE
        longest = max(_LONGEST_PAUSE, len(self.ranks) / _LOOKS)
        try:
            store.set(self._key("latest"), json.dumps([dist.get_rank(), call]))
            count, trouble = store.add(name, 1), ""
            while count < len(self.ranks) and not trouble:
                time.sleep(pause)
                pause = min(2 * pause, longest)
                trouble = self._words() or self._difference(call)
                if time.monotonic() > end:
                    trouble = trouble or self._late(len(self.ranks) - count)
                count = store.add(name, 0)  # last: whoever has come may be in trouble with the next
        except RuntimeError as error:  # of the store
            raise self.lost(error) from error
        if count < len(self.ranks):
            raise DistributedError(trouble)

    def _difference(self, call: Call) -> str:
        """How the call that was posted last differs; empty if it does not."""
        other, theirs = json.loads(_get_default_store().get(self._key("latest")))
        return "" if theirs == call else _differences(dist.get_rank(), call, other, theirs)

    def _late(self, count: int) -> str:
        return (
            f"{count} of {len(self.ranks)} ranks did not come to this call of attention within "
            f"{_timeout():g} s: rank {dist.get_rank()} waits for ranks {self._others()}. They have "
            "ended, are late, or are in a call that is known to them."
        )

    def _words(self) -> str:
        """The words of the rank that raised an error first; empty if none did."""
        store, key = _get_default_store(), self._key("error")
        return store.get(key).decode() if store.check([key]) else ""

    def _others(self) -> str:
        others = [str(rank) for rank in self.ranks if rank != dist.get_rank()]
        return ", ".join(others if len(others) < 9 else [*others[:7], "…", others[-1]])

    def _key(self, name: str) -> str:
        ranks = hashlib.sha256(repr(self.ranks).encode()).hexdigest()[:16]
        return f"nbattn/{ranks}/{self.errors}/{name}"


_of_group: dict[str, Ranks] = {}


def ranks_of(mesh: DeviceMesh, dimensions: Sequence[int]) -> Ranks:
    """The ranks that differ from this one in some dimensions of a mesh only."""
    return _ranks_of(mesh, tuple(dimensions))


@lru_cache(256)
def _ranks_of(mesh: DeviceMesh, dimensions: tuple[int, ...]) -> Ranks:
    own = mesh.get_coordinate()
    if own is None:  # this process is not in the mesh
        return Ranks(())
    index = tuple(slice(None) if n in dimensions else at for n, at in enumerate(own))
    found = tuple(mesh.mesh[index].flatten().tolist())
    return _of_numbers(found)


@lru_cache(256)
def _of_numbers(ranks: tuple[int, ...]) -> Ranks:
    return Ranks(ranks)


def tell(mesh: Any, shard: Any, error: BaseException) -> None:
    """Tells an error to all ranks that share the space; those of every combination of the mesh's
    dimensions where `shard` does not say which these are.
    """
    if not isinstance(mesh, DeviceMesh) or not mesh.mesh_dim_names:
        return
    names = mesh.mesh_dim_names
    cut = [n for n in (shard if isinstance(shard, (tuple, list)) else [shard]) if n is not None]
    if cut and all(name in names for name in cut):
        ranks_of(mesh, [names.index(name) for name in cut]).tell(error)
        return
    for count in range(1, mesh.ndim + 1):
        for some in combinations(range(mesh.ndim), count):
            ranks_of(mesh, some).tell(error)


def know_group(name: str, ranks: Ranks) -> None:
    """Keeps the ranks of a process group, by its name."""
    _of_group[name] = ranks


def of_group(name: str) -> Ranks:
    """The ranks of a process group that `know_group` was told of."""
    return _of_group[name]


def in_words(run: Callable[..., _Found], *arguments: Any, group: str) -> _Found:
    """Calls a collective, whose failure becomes an error with the words of the rank that caused it.

    Raises:
        DistributedError: the collective failed.
    """
    if torch.compiler.is_compiling():
        return run(*arguments)
    try:
        return run(*arguments)
    except RuntimeError as error:
        ranks = _of_group.get(group)
        if ranks is None:
            raise
        raise ranks.lost(error) from error


def _differences(rank: int, call: Call, other: int, theirs: Call) -> str:
    """What differs; where one of two ranks is at an earlier step of a call, what both have."""
    differ = [name for name in {**call, **theirs} if call.get(name) != theirs.get(name)]
    differ = [name for name in differ if name in call and name in theirs] or differ
    (first, ours), (second, others) = sorted(
        [(rank, call), (other, theirs)], key=lambda one: one[0]
    )
    lines = [
        f"{name} is {ours.get(name, 'unknown')} on rank {first}, "
        f"{others.get(name, 'unknown')} on rank {second}"
        for name in differ
    ]
    return f"ranks call attention with different arguments: {'; '.join(lines)}."


def _timeout() -> float:
    return _get_default_store().timeout.total_seconds()  # pyright: ignore[reportAttributeAccessIssue]


def _has_store() -> bool:
    return dist.is_initialized() and dist.get_backend() != "fake"
