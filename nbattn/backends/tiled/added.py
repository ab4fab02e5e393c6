"""What the tiled engine adds to scores by position: the table of relative positions, ALiBi's
distances, and the gradient of the table.

Tiles with equal steps from queries to keys read the same entries. The gradient is summed over
them pair by pair, and then by entry with a list of each entry's pairs: in the same order on every
run, on every device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nbattn.backends.inputs import Inputs, accumulate_dtype
from nbattn.backends.tiled.schedule import Tile

if TYPE_CHECKING:
    from nbattn.backends.tiled.run import Chunk

_KEPT_BYTES = 8 << 20  # of added scores, and of sums over equal tiles


class AddedScores:
    """What one call adds to the scores of its tiles, kept for equal ones."""

    def __init__(self, inputs: Inputs) -> None:
        """Converts the table and the slopes to the dtype of scores."""
        exact, slopes, table = (
            accumulate_dtype(inputs.query.dtype),
            inputs.alibi_slopes,
            inputs.relative_bias,
        )
        self._table = None if table is None else table.to(exact).flatten(1)
        # entries of -inf forbid steps, perhaps all of a query; other devices would have to wait
        self.may_forbid = self._table is not None and (
            self._table.device.type != "cpu" or bool(self._table.isinf().any())
        )
        self._slopes = None if slopes is None else -torch.atleast_2d(slopes).to(exact).mT
        self._kept: dict[tuple[object, ...], Tensor] = {}
        self._bytes = 0

    def of(self, chunk: Chunk, tile: Tile) -> Tensor:
        """Returns what is added to a tile's scores, its mask included: `[b or 1, hk, 1, group x
        rows, width]`.
        """
        samples, heads = chunk.items
        is_shared = self._slopes is None or self._slopes.shape[1] == 1
        key = (None if is_shared else samples.start, heads.start, tile.patterns)
        if key in self._kept:
            return self._kept[key]
        sizes = (chunk.heads[1], chunk.group, tile.rows, tile.width)
        device = chunk.query.device
        added: Tensor | None = None
        if self._table is not None:
            entries = chunk.plan.entries(tile.patterns, device)
            rows = chunk.of_heads(self._table).flatten(0, 1)
            added = rows.index_select(1, entries).view(1, *sizes)
        if self._slopes is not None:
            slopes = chunk.of_heads(self._slopes).movedim(-1, 0)
            slopes = slopes if is_shared else slopes[samples]
            linear = slopes[..., None, None] * chunk.plan.distances(tile.patterns, device)
            added = linear if added is None else added + linear
        assert added is not None
        added = added.flatten(2, 3)
        if tile.bias is not None:
            added += tile.bias
        added = added[:, :, None]
        if self._bytes + added.nbytes <= _KEPT_BYTES:
            self._kept[key] = added
            self._bytes += added.nbytes
        return added


class TableGradient:
    """The gradient of the table: sums over equal tiles, and from time to time by entry."""

    def __init__(self, inputs: Inputs) -> None:
        """Starts at zero."""
        table = inputs.relative_bias
        assert table is not None
        self._like = table
        self._sum = torch.zeros(
            table.shape, dtype=accumulate_dtype(inputs.query.dtype), device=table.device
        ).flatten(1)
        self._tiles: dict[tuple[int, tuple[int, ...]], tuple[Tensor, Chunk]] = {}
        self._bytes = 0

    def add(self, chunk: Chunk, tile: Tile, grad: Tensor) -> None:
        """Adds the gradient of a tile's scores, `[b, hk, repeat, group x rows, width]`."""
        key = (chunk.items[1].start, tile.patterns)
        part = grad.sum((0, 2))
        if key in self._tiles:
            self._tiles[key][0].add_(part)
            return
        if self._bytes + part.nbytes > _KEPT_BYTES:
            self._sum_by_entry()
        self._tiles[key] = (part, chunk)
        self._bytes += part.nbytes

    def total(self) -> Tensor:
        """Returns the gradient in the table's shape and dtype."""
        self._sum_by_entry()
        return self._sum.view(self._like.shape).to(self._like.dtype)

    def _sum_by_entry(self) -> None:
        for (_, patterns), (part, chunk) in self._tiles.items():
            lists = chunk.plan.pairs_by_entry(patterns, part.device)
            entries, pairs = lists[:, 0], lists[:, 1:]
            by_head = part.view(*part.shape[:1], chunk.group, -1).flatten(0, 1)
            padded = torch.nn.functional.pad(by_head, (0, 1))  # what fills the lists
            summed = padded.index_select(1, pairs.flatten()).unflatten(1, pairs.shape).sum(-1)
            heads = chunk.of_heads(self._sum).flatten(0, 1)
            heads[:, entries] += summed
        self._tiles.clear()
        self._bytes = 0
