"""The proof that a plan for packed grids is its mask: size by size as for other plans, and that the
grids, gathered or in a row, have every token once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nbattn.errors import InputError
from nbattn.grids import Grids
from nbattn.planner import proof
from nbattn.program.blocks import Block
from nbattn.program.candidate import Candidate
from nbattn.program.packed import PackedArguments
from nbattn.program.request import Request


def support(request: Request, candidate: Candidate) -> NDArray[np.bool_]:
    """The pairs that a candidate computes, `[T, Tk]`: those of each grid alone."""
    assert request.grids is not None
    query, key = request.grids.query, request.grids.key
    if query.tokens * key.tokens > proof.SUPPORT_LIMIT:
        raise InputError(
            f"{query.tokens} x {key.tokens} pairs are over the limit of {proof.SUPPORT_LIMIT}.",
            "plan.verify()",
        )
    _check_tokens(request)
    pairs = np.zeros((query.tokens, key.tokens), dtype=np.bool_)
    sizes = request.grids.sizes
    blocks = {n: proof.support(*_of_size(request, candidate, n)) for n in _sizes(request)}
    for grid, number in enumerate(sizes.which.tolist()):
        if number not in blocks:
            continue
        rows, columns = (slice(s[grid], s[grid + 1]) for s in (query.starts, key.starts))
        pairs[rows, columns] = blocks[number]
    return pairs


def verify(request: Request, candidate: Candidate) -> bool:
    """Whether a candidate computes exactly the mask on each of the grids."""
    assert request.grids is not None
    _check_tokens(request)
    for number in _sizes(request):
        try:
            proof.verify(*_of_size(request, candidate, number))
        except AssertionError as error:
            size = request.grids.sizes.query[number].tolist()
            raise AssertionError(f"grids of {'x'.join(map(str, size))}: {error}") from None
    return True


def schedule(request: Request, candidate: Candidate, *, backward: bool) -> Iterator[Block]:
    """The blocks of all grids, one grid after another, in positions of each grid."""
    assert request.grids is not None
    some = {*_sizes(request)}
    for grid, number in enumerate(request.grids.sizes.which.tolist()):
        if number not in some:
            continue
        of_size, one = _of_size(request, candidate, number)
        assert one.program is not None
        for call in one.program.calls:
            for block in call.arguments.blocks(of_size, call, backward=backward):
                yield replace(block, grid=grid)


def _sizes(request: Request) -> list[int]:
    """The sizes that have queries; nothing is computed for others."""
    assert request.grids is not None
    return np.flatnonzero(request.grids.sizes.query.all(axis=1)).tolist()


def _of_size(request: Request, candidate: Candidate, number: int) -> tuple[Request, Candidate]:
    """The request of the grids of one size, and the candidate with their program."""
    assert request.grids is not None
    assert candidate.program is not None
    (call,) = candidate.program.calls
    assert isinstance(call.arguments, PackedArguments)
    count = int(request.grids.sizes.count[number])
    program = call.arguments.of_size(number)
    return request.of_size(number, count), replace(candidate, program=program)


def _check_tokens(request: Request) -> None:
    """Every row of the tensors is a token of one grid."""
    assert request.grids is not None
    sides: tuple[tuple[str, Grids, int], ...] = (
        ("queries", request.grids.query, request.query_count),
        ("keys", request.grids.key, request.key_count),
    )
    which = request.grids.sizes.which
    order = np.argsort(which, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(which[order])) + 1) if len(order) else []
    for name, grids, tokens in sides:
        rows = [grids.rows(group) for group in groups]
        times = np.bincount(np.concatenate([[], *rows]).astype(np.int64), minlength=tokens)
        if len(times) != tokens or (times != 1).any():
            raise AssertionError(f"the grids of the {name} do not have each of {tokens} once")
