"""The tiled engine as a candidate: one call on whole tensors, with the cheapest tile."""

from __future__ import annotations

from nbattn import geometry
from nbattn.backends.tiled import costs
from nbattn.backends.tiled.costs import Item
from nbattn.backends.tiled.meaning import TILED, TiledArguments
from nbattn.geometry import Axes
from nbattn.program.candidate import Candidate
from nbattn.program.program import Call, Program, whole
from nbattn.program.request import Request


def candidates(request: Request, axes: Axes) -> list[Candidate]:
    """Returns one candidate: tiles of queries against the hull of their keys."""
    item = Item(
        request.batch * request.kv_heads,
        request.heads_per_key_head,
        request.head_dim,
        request.value_dim,
        request.extra_keys,
        request.relative_bias + request.alibi_slopes,
    )
    arguments = TiledArguments(axes, costs.choose_tile(axes, item), item.added > 0)
    cost = costs.of(request, arguments, item, geometry.pairs(axes))
    program = Program((Call(whole(request.query_space), whole(request.key_space), arguments),))
    reasons = tuple(TILED.reasons(request.needs))
    return [Candidate("tiled", "tile", (), program, cost, reasons)]
