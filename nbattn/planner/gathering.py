"""Candidates for packed grids by families that take one grid per sample: grids of one size are
gathered into a batch, which an ordinary program of that size computes.

Costs are those of at most a few sizes (`program.packed.buckets`). The program of each size is made
when it is needed, and kept by the planner's cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from nbattn.backends import families
from nbattn.errors import BackendError, counted
from nbattn.program.candidate import Candidate, refused
from nbattn.program.costs import Cost, tensor_bytes
from nbattn.program.limits import Reason
from nbattn.program.packed import BUCKETS, Bucket, buckets
from nbattn.program.program import Call, Program, whole
from nbattn.program.request import Request

_REFERENCE = "reference"
_NAMED = 32
_NONE = Bucket(0, 0, 0, 0.0)
_LAUNCHES = 4  # copies of q, k, v and of the output


@dataclass(frozen=True, slots=True)
class GatheredArguments:
    """The grids of one size after another, each size by its own program.

    Args:
        request: of the packed grids.
        backend: what runs the programs.
    """

    request: Request
    backend: str

    def candidate(self, number: int) -> Candidate:
        """Returns what runs the grids of one size; for `backend="auto"` the tile loop where the
        backend does not take that size, which costs of other sizes do not tell.
        """
        from nbattn.planner import planner

        try:
            return planner.make(_of_size(self.request, number, self.backend)).chosen
        except BackendError:
            if self.request.backend != families.AUTO:
                raise
            return planner.make(_of_size(self.request, number, "tiled")).chosen

    def of_size(self, number: int) -> Program:
        """Returns the program of the grids of one size."""
        program = self.candidate(number).program
        assert program is not None
        return program

    def describe(self) -> str:
        """The number of sizes, and what runs most grids, in a few words."""
        assert self.request.grids is not None
        count, some = self.request.grids.sizes.count, _buckets(self.request)
        how = f", most by {self.candidate(int(count.argmax())).name}" if len(count) else ""
        by = f" (costs are those of {len(some)})" if any(b.sizes > 1 for b in some) else ""
        return f"{counted(len(count), 'size')} of grids{by}, each gathered into a batch{how}"


def candidates(request: Request, own: Iterable[Candidate]) -> list[Candidate]:
    """Returns one candidate for each backend, but those of families that have an accepted one among
    their `own`.
    """
    from nbattn.planner import planner

    assert request.grids is not None
    runs = (c.runner for c in own if c.program is not None and not c.reasons)
    taken = {families.family_of(runner).name for runner in runs}
    some = _buckets(request)
    offers: dict[str, list[Candidate | tuple[Reason, ...]]] = {}
    # names of backends are against the whole candidate, and said there
    strategies = [name for name in request.forbid if name in families.STRATEGIES]
    sizes = [_batched(request, bucket.number, bucket.grids) for bucket in some]
    for size in sizes or [_without_tokens(request)]:
        of_size = replace(size, require=(), forbid=())
        offered: dict[str, list[Candidate]] = {}
        for candidate in planner.offered(of_size, of_size.axes(), taken):
            offered.setdefault(candidate.backend, []).append(candidate)
        for backend, of_backend in offered.items():
            offers.setdefault(backend, []).append(_best(of_backend, strategies))
    return [
        _gathered(request, backend, list(zip(some or [_NONE], parts, strict=True)))
        for backend, parts in offers.items()
    ]


def _buckets(request: Request) -> list[Bucket]:
    """The sizes that are looked at: more of them for a named backend, which has to take all, and
    which no other family's candidates slow down.
    """
    assert request.grids is not None
    most = BUCKETS if request.backend == families.AUTO else _NAMED
    return buckets(request.grids, most)


def _without_tokens(request: Request) -> Request:
    """A request for a sample without tokens, for what has no grid with queries."""
    space = (0,) * request.mask.rank
    return replace(request, grids=None, query_space=space, key_space=space)


def _batched(request: Request, number: int, grids: int) -> Request:
    """The request of grids of one size, which are copied where sizes differ."""
    assert request.grids is not None
    layout = request.layout if len(request.grids.sizes.first) == 1 else "contiguous"
    return replace(request.of_size(number, grids), layout=layout)


def _of_size(request: Request, number: int, backend: str) -> Request:
    """The request of all grids of one size, which only this backend takes."""
    assert request.grids is not None
    # a power of two, so that sizes which come again, more or less often, have a plan already
    grids = 1 << (int(request.grids.sizes.count[number]) - 1).bit_length()
    one = _batched(request, number, grids)
    return replace(one, backend=backend, require=(), forbid=request.forbid)


def _best(candidates: list[Candidate], forbid: list[str]) -> Candidate | tuple[Reason, ...]:
    """The cheapest accepted candidate of a backend, or the reasons against its first one; against
    the first that is only forbidden, where there is one.
    """
    able = [c for c in candidates if not c.reasons and c.cost is not None]
    accepted = [c for c in able if not c.forbidden(forbid)]
    if accepted:
        return min(accepted, key=lambda c: c.cost.seconds if c.cost else 0.0)
    return tuple(able[0].forbidden(forbid)) if able else candidates[0].reasons


def _gathered(
    request: Request,
    backend: str,
    parts: list[tuple[Bucket, Candidate | tuple[Reason, ...]]],
) -> Candidate:
    """The candidate of one backend: refused if a size is, whose size its reasons name."""
    assert request.grids is not None
    against = [(bucket, part) for bucket, part in parts if not isinstance(part, Candidate)]
    if against:
        bucket, reasons = against[0]
        if len({part for _, part in parts}) > 1:
            size = "x".join(map(str, request.grids.sizes.query[bucket.number].tolist()))
            reasons = tuple(Reason(r.limit, f"grids of {size}: {r.text}") for r in reasons)
        return refused(backend, families.GATHER, *reasons)
    arguments = GatheredArguments(request, backend)
    views = whole(request.query_space), whole(request.key_space)
    program = Program((Call(*views, arguments),))  # pyright: ignore[reportArgumentType]
    costs = [(b, c.cost) for b, c in parts if isinstance(c, Candidate) and c.cost is not None]
    return Candidate(backend, families.GATHER, (), program, _cost(request, costs))


def _cost(request: Request, parts: list[tuple[Bucket, Cost]]) -> Cost:
    """The sum of the costs of all sizes, and of copies if there are several."""
    assert request.grids is not None
    launch, several = request.device.launch, sum(bucket.sizes for bucket, _ in parts) > 1
    passes = 1 + 2 * request.training
    copied = 2.0 * passes * tensor_bytes(request) * several
    calls = sum(cost.calls * bucket.sizes for bucket, cost in parts)
    seconds = sum(c.seconds * b.scale + c.calls * launch * (b.sizes - 1) for b, c in parts)
    launches = _LAUNCHES * passes * several * sum(bucket.sizes for bucket, _ in parts)
    return Cost(
        useful_pairs=round(sum(c.useful_pairs * b.scale for b, c in parts)),
        computed_pairs=round(sum(c.computed_pairs * b.scale for b, c in parts)),
        backward_pairs=round(sum(c.backward_pairs * b.scale for b, c in parts)),
        flops=sum(c.flops * b.scale for b, c in parts),
        bytes=sum(c.bytes * b.scale for b, c in parts) + copied,
        calls=calls,
        estimate=seconds + copied / request.device.bandwidth + launches * launch,
    )
