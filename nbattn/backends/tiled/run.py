"""The CPU engine: tiles of queries against the hull of their keys, forward and backward, on any
torch device.

A tile has whole rows, so an ordinary softmax is exact and the backward recomputes it from q, k
and v alone. Scores are float32 (float64 for float64 inputs). Products with bfloat16 values are
computed in bfloat16; float16 is converted to float32 tile by tile. Gradients of keys are
accumulated in float32. Batches of (sample, key head) are small enough for temporaries to stay in
the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from nbattn.backends.inputs import Gradients, Inputs, accumulate_dtype, new_lse, new_output
from nbattn.backends.tiled.added import AddedScores, TableGradient
from nbattn.backends.tiled.costs import SCORE_BYTES, WORK_BYTES
from nbattn.backends.tiled.meaning import TiledArguments
from nbattn.backends.tiled.schedule import Schedule, Tile, schedule
from nbattn.program.program import Program

_NO_KEYS = float("-inf")
_EVERY = slice(None)


def warmup(program: Program) -> None:
    """Computes the tiles of a program before its first run."""
    for call in program.calls:
        if isinstance(call.arguments, TiledArguments):
            schedule(call.arguments)


def forward(program: Program, inputs: Inputs, *, return_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the output, and the logsumexp if `return_lse`."""
    out = new_output(inputs.query, inputs.value)
    lse = new_lse(inputs.query) if return_lse else None
    for chunk in _chunks(program, inputs):
        chunk_out, chunk_lse = (
            chunk.of_queries(out),
            None if lse is None else chunk.of_queries(lse[..., None]),
        )
        for tile in chunk.tiles:
            work = _TileWork(chunk, tile)
            weights, tile_lse = work.weights(want_lse=lse is not None)
            _store(chunk_out, tile, work.times_values(weights))
            if chunk_lse is not None and tile_lse is not None:
                _store(chunk_lse, tile, tile_lse)
    return out, lse


def backward(
    program: Program,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Gradients:
    """Returns the gradients of every input. `out` is not needed, since every tile recomputes its
    softmax.
    """
    exact = accumulate_dtype(inputs.query.dtype)
    if grad_lse is not None:
        grad_lse = grad_lse.masked_fill(lse == _NO_KEYS, 0)
    query = torch.empty_like(inputs.query, memory_format=torch.contiguous_format)
    key, value, extra_key, extra_value, sink = (
        None if t is None else torch.zeros(t.shape, dtype=exact, device=t.device)
        for t in (inputs.key, inputs.value, inputs.extra_key, inputs.extra_value, inputs.sink)
    )
    assert key is not None
    assert value is not None
    sums = Gradients(query, key, value, sink, extra_key, extra_value)
    table = None if inputs.relative_bias is None else TableGradient(inputs)
    for chunk in _chunks(program, inputs):
        grads = _ChunkGradients(chunk, sums, table, grad_out, grad_lse)
        for tile in chunk.tiles:
            grads.add(tile)
    final = [
        None if total is None or like is None else total.to(like.dtype)
        for total, like in zip(
            (key, value, sink, extra_key, extra_value),
            (inputs.key, inputs.value, inputs.sink, inputs.extra_key, inputs.extra_value),
            strict=True,
        )
    ]
    assert final[0] is not None
    assert final[1] is not None
    bias = None if table is None else table.total()
    return Gradients(query, final[0], final[1], final[2], final[3], final[4], bias)


class Chunk:
    """A part of the samples and key heads of the inputs, as heads-first views: queries
    `[b, hk, group, *space, D]`, keys and values `[b, hk, *space, D]`.
    """

    def __init__(
        self,
        inputs: Inputs,
        items: tuple[slice, slice],
        plan: Schedule,
        most: int,
        added: AddedScores | None,
    ) -> None:
        """Creates the views of one chunk; only extra keys with a range are copied."""
        self.inputs, self.items, self.plan, self.added = inputs, items, plan, added
        samples, heads = items  # most calls have one chunk, for which no slice is needed
        self.is_all = samples.start == heads.start == 0 and (
            samples.stop >= inputs.key.shape[0] and heads.stop >= inputs.key.shape[-2]
        )
        self.group = inputs.query.shape[-2] // inputs.key.shape[-2]
        self.exact = accumulate_dtype(inputs.query.dtype)
        # of products with values and gradients: CPUs compute in bfloat16, but not in float16
        self.product = torch.float32 if inputs.query.dtype == torch.float16 else inputs.query.dtype
        self.query, self.key, self.value = (
            self.of_queries(inputs.query),
            self.of_keys(inputs.key),
            self.of_keys(inputs.value),
        )
        self.heads = self.query.shape[:2]
        self.count = self.heads[0] * self.heads[1]
        self.extra_key, self.extra_value = (
            None if t is None or t.shape[1] == 0 else self.of_keys(t)
            for t in (inputs.extra_key, inputs.extra_value)
        )
        self.extra_outside: Tensor | None = None
        if inputs.extra_range is not None and self.extra_key is not None:
            self._drop_extra(inputs.extra_range[samples])
        self.sink = None if inputs.sink is None else self.of_heads(inputs.sink)
        self.key_range = None if inputs.key_range is None else inputs.key_range[items[0]]
        self.tiles = plan.tiles(self.exact, inputs.query.device, self.group, most)

    def of_queries(self, tensor: Tensor) -> Tensor:
        """Returns this chunk of `[B, *space, H, D]` as `[b, hk, group, *space, D]`."""
        split = torch.unflatten(tensor, -2, (-1, self.group))
        view = split.permute(0, -3, -2, *range(1, split.dim() - 3), -1)
        return view if self.is_all else view[self.items]

    def of_keys(self, tensor: Tensor) -> Tensor:
        """Returns this chunk of `[B, *space, Hk, D]` as `[b, hk, *space, D]`."""
        view = tensor.movedim(-2, 1)
        return view if self.is_all else view[self.items]

    def _drop_extra(self, extra_range: Tensor) -> None:
        """Sets extra keys and values outside the range to 0, as they may be NaN, and keeps which,
        `[b, 1, 1, 1, E]`.
        """
        assert self.extra_key is not None
        assert self.extra_value is not None
        extra = self.extra_key.shape[2]
        outside = _outside(extra_range[:, None], (slice(0, extra),), torch.Size([extra]))
        self.extra_key, self.extra_value = (
            t.masked_fill(outside[:, None, :, None], 0) for t in (self.extra_key, self.extra_value)
        )
        self.extra_outside = outside[:, None, None, None]

    def of_heads(self, tensor: Tensor) -> Tensor:
        """Returns this chunk of `[H, …]` as `[hk, group, …]`."""
        return tensor.unflatten(0, (-1, self.group))[self.items[1]]


def _chunks(program: Program, inputs: Inputs) -> Iterator[Chunk]:
    """Yields batches of (sample, key head) with scores, keys and values that stay in the cache."""
    (call,) = program.calls
    assert isinstance(call.arguments, TiledArguments)
    plan = schedule(call.arguments)
    batch, heads = inputs.key.shape[0], inputs.key.shape[-2]
    extra = 0 if inputs.extra_key is None else inputs.extra_key.shape[1]
    width = plan.max_width + extra
    scores = 4 * inputs.query.shape[-2] // heads * plan.max_rows * width
    columns = 4 * width * (inputs.key.shape[-1] + inputs.value.shape[-1])
    fit = min(SCORE_BYTES // max(scores, 1), WORK_BYTES // max(scores + columns, 1))
    fit = max(1, fit)
    b, h = (min(batch, fit // heads), heads) if fit >= heads else (1, -(-heads // -(-heads // fit)))
    # equal tiles in one call: faster for small calls, but keys are copied for every tile
    most = 1 if inputs.key_range is not None else max(1, fit // max(2 * b * h, 1))
    adds = inputs.relative_bias is not None or inputs.alibi_slopes is not None
    assert call.arguments.adds_by_step or not adds
    added = AddedScores(inputs) if adds else None
    for at in range(0, batch, max(b, 1)):
        for head in range(0, heads, h):
            yield Chunk(inputs, (slice(at, at + b), slice(head, head + h)), plan, most, added)


class _TileWork:
    """The tensors of a chunk's tile: queries `[n, group * rows, D]`, keys and values
    `[n, width, D]`, for n = samples x key heads x repeats.
    """

    def __init__(self, chunk: Chunk, tile: Tile, *, keep_capped: bool = False) -> None:
        self.chunk, self.tile, self.keep_capped = chunk, tile, keep_capped
        self.count = chunk.count * tile.repeat
        self.query = self.rows(chunk.query)
        self.key, self.value = (
            self._columns(chunk.key, chunk.extra_key),
            self._columns(chunk.value, chunk.extra_value),
        )
        self.outside: Tensor | None = None
        if chunk.key_range is not None:
            self._drop_outside(chunk.key_range)
        self.width = self.key.shape[1]
        self.capped: Tensor | None = None

    def rows(self, tensor: Tensor) -> Tensor:
        """Returns the tile's part of `[b, hk, group, *space, D]`, as `[n, group * rows, D]`."""
        part = _split(tensor, self.tile)
        return part.reshape(self.count, self.chunk.group * self.tile.rows, tensor.shape[-1])

    def _columns(self, tensor: Tensor, extra: Tensor | None) -> Tensor:
        """Returns the tile's keys, box after box, then the extra keys, as `[n, width, D]`."""
        size, repeat = tensor.shape[-1], self.tile.repeat
        if repeat > 1:
            span = tensor[(_EVERY, _EVERY, *self.tile.span())]
            windows = span.unfold(-2, self.tile.last_width(), self.tile.shift)
            parts = [windows.movedim(-3, 2).mT.reshape(self.count, -1, size)]
        else:
            parts = [box.reshape(self.count, -1, size) for box in _boxes(tensor, self.tile)]
        if extra is not None:
            copies = extra[:, :, None].expand(-1, -1, repeat, -1, -1)
            parts.append(copies.reshape(self.count, -1, size))
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, dim=1) if parts else tensor.new_empty((self.count, 0, size))

    def _drop_outside(self, key_range: Tensor) -> None:
        """Sets keys and values outside the range to 0, since they may be NaN, and keeps which."""
        boxes = [_outside(key_range, box, self.chunk.key.shape[2:-1]) for box in self.tile.keys]
        extra = self.key.shape[1] - sum(box.shape[1] for box in boxes)
        boxes.append(key_range.new_zeros((key_range.shape[0], extra), dtype=torch.bool))
        outside = torch.cat(boxes, dim=1)
        self.outside = (
            outside[:, None].expand(-1, self.chunk.heads[1], -1).reshape(self.count, 1, -1)
        )
        self.key, self.value = (t.masked_fill(self.outside.mT, 0) for t in (self.key, self.value))

    def weights(self, *, want_lse: bool) -> tuple[Tensor, Tensor | None]:
        """Returns the softmax of the scores, `[n, rows, width (+ 1 for the sink)]`, and the
        logsumexp `[n, rows, 1]`.
        """
        scores = self._scores()
        empty = None
        if not self.chunk.inputs.always_has_key and (
            self.tile.has_empty_rows
            or self.outside is not None
            or (self.chunk.added is not None and self.chunk.added.may_forbid)
        ):
            if scores.shape[-1] == 0:
                none = scores.new_full((*scores.shape[:-1], 1), _NO_KEYS)
                return scores, none if want_lse else None
            empty = scores.amax(dim=-1, keepdim=True) == _NO_KEYS
        largest = scores.amax(dim=-1, keepdim=True) if want_lse else None
        weights = torch.softmax(scores, dim=-1, out=scores)
        if empty is not None:
            weights.masked_fill_(empty, 0)
        if largest is None:
            return weights, None
        lse = largest - weights.amax(dim=-1, keepdim=True).log_()  # the largest weight is 1 / sum
        return weights, lse if empty is None else lse.masked_fill_(empty, _NO_KEYS)

    def _scores(self) -> Tensor:
        """Computes the scaled, capped and masked scores, with the sink as the last column."""
        chunk, exact = self.chunk, self.chunk.exact
        query, key = _cast(self.query, exact), _cast(self.key, exact)
        width = self.width + (chunk.sink is not None)
        whole = query.new_empty((query.shape[0], query.shape[1], width))
        scores = self.without_sink(whole)
        cap, bias = chunk.inputs.softcap, self._bias() if chunk.added is None else None
        scale = chunk.inputs.scale if cap is None else chunk.inputs.scale / cap
        if bias is None or cap is not None:
            scores.baddbmm_(query, key.mT, beta=0, alpha=scale)
        else:
            torch.baddbmm(bias, query, key.mT, alpha=scale, out=scores)
        if cap is not None:
            scores.tanh_()
            self.capped = scores.clone() if self.keep_capped else None
            scores.mul_(cap)
            if bias is not None:
                scores.add_(bias)
        if chunk.added is not None and self.tile.width:
            grid = self.by_heads(scores)[..., : self.tile.width]
            grid.add_(chunk.added.of(chunk, self.tile))
        if self.outside is not None:
            scores.masked_fill_(self.outside, _NO_KEYS)
        if chunk.extra_outside is not None:
            extra = self.by_heads(scores)[..., -chunk.extra_outside.shape[-1] :]
            extra.masked_fill_(chunk.extra_outside, _NO_KEYS)
        if chunk.sink is not None:
            sizes = (*chunk.heads, self.tile.repeat, chunk.group, self.tile.rows)
            sink = chunk.sink[None, :, None, :, None].expand(sizes)
            whole[..., -1] = sink.reshape(self.count, -1)
        return whole

    def by_heads(self, scores: Tensor) -> Tensor:
        """Returns a view of `[n, rows, width]` as `[b, hk, repeat, rows, width]`."""
        return scores.unflatten(0, (*self.chunk.heads, self.tile.repeat))

    def _bias(self) -> Tensor | None:
        """Returns the tile's additive mask, with zeros for the extra keys."""
        bias = self.tile.bias
        extra = 0 if bias is None else self.width - bias.shape[1]
        return torch.nn.functional.pad(bias, (0, extra)) if bias is not None and extra else bias

    def times_values(self, weights: Tensor) -> Tensor:
        """Returns weights times values."""
        dtype = self.chunk.product
        return torch.bmm(_cast(self.without_sink(weights), dtype), _cast(self.value, dtype))

    def without_sink(self, columns: Tensor) -> Tensor:
        """Returns the columns of the keys; the last column is the sink's, if there is one."""
        return columns if self.chunk.sink is None else columns[..., : self.width]


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype is dtype else tensor.to(dtype)  # torch's own check costs a call


def _boxes(view: Tensor, tile: Tile) -> list[Tensor]:
    """Returns the tile's keys in `[b, hk, *space, D]`, box after box."""
    if tile.has_all_keys:
        return [view]
    return [view[(_EVERY, _EVERY, *box)] for box in tile.boxes()]


def _outside(key_range: Tensor, box: tuple[slice, ...], space: torch.Size) -> Tensor:
    """Returns whether a key of a box is outside the range of its sample, bool `[b, width]`."""
    inside = key_range.new_ones((key_range.shape[0], 1), dtype=torch.bool)
    for axis, (part, length) in enumerate(zip(box, space, strict=True)):
        at = torch.arange(*part.indices(length), device=key_range.device)
        start, stop = (key_range[:, axis, side, None] for side in (0, 1))
        on_axis = (at >= start) & (at < stop)
        inside = (inside[:, :, None] & on_axis[:, None, :]).flatten(1)
    return ~inside


def _split(view: Tensor, tile: Tile) -> Tensor:
    """Returns the tile's part of `[b, hk, group, *space, D]`, with repeats after the heads."""
    part = view if tile.has_all_queries else view[(_EVERY, _EVERY, _EVERY, *tile.queries)]
    return part.unflatten(-2, (tile.repeat, -1)).movedim(-3, 2) if tile.repeat > 1 else part


def _store(view: Tensor, tile: Tile, part: Tensor) -> None:
    """Writes the tile's rows at the positions of its queries."""
    target = _split(view, tile)
    target.copy_(part.reshape(target.shape))


class _ChunkGradients:
    """The gradients of one chunk, as views of the sums over all chunks."""

    def __init__(
        self,
        chunk: Chunk,
        sums: Gradients,
        table: TableGradient | None,
        grad_out: Tensor,
        grad_lse: Tensor | None,
    ) -> None:
        self.chunk, self.scale, self.table = chunk, chunk.inputs.scale, table
        self.query, self.key, self.value = (
            chunk.of_queries(sums.query),
            chunk.of_keys(sums.key),
            chunk.of_keys(sums.value),
        )
        self.extra_key, self.extra_value = (
            None if t is None or t.shape[1] == 0 else chunk.of_keys(t)
            for t in (sums.extra_key, sums.extra_value)
        )
        self.sink = None if sums.sink is None else chunk.of_heads(sums.sink)
        self.grad_out = chunk.of_queries(grad_out)
        self.grad_lse = None if grad_lse is None else chunk.of_queries(grad_lse[..., None])

    def add(self, tile: Tile) -> None:
        """Adds the gradients of one tile; those of its queries are written, not added, since no
        other tile has them.
        """
        work = _TileWork(self.chunk, tile, keep_capped=True)
        weights, _ = work.weights(want_lse=False)
        dtype = self.chunk.product
        upstream = _cast(work.rows(self.grad_out), dtype)
        grad_scores = self._grad_scores(work, weights, upstream)
        self._add(
            work,
            self.value,
            self.extra_value,
            _cast(work.without_sink(weights), dtype),
            upstream,
            1.0,
        )
        if self.sink is not None:
            sizes = (*self.chunk.heads, tile.repeat, self.chunk.group, -1)
            self.sink.add_(grad_scores[..., -1].reshape(sizes).sum(dim=(0, 2, 4)))
        products = _cast(work.without_sink(grad_scores), dtype)
        _store(
            self.query,
            tile,
            torch.bmm(products, _cast(work.key, dtype)).mul_(self.scale),
        )
        self._add(work, self.key, self.extra_key, products, _cast(work.query, dtype), self.scale)

    def _grad_scores(self, work: _TileWork, weights: Tensor, upstream: Tensor) -> Tensor:
        """Returns the gradient of the scores before cap and mask: weights x (dP - sum(dP x
        weights)), times the derivative of the cap. The table, which is added after the cap, gets
        its gradient before that.
        """
        grad = _cast(torch.bmm(upstream, _cast(work.value, upstream.dtype).mT), weights.dtype)
        if self.sink is not None:
            grad = torch.nn.functional.pad(grad, (0, 1))
        grad = torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)
        if self.grad_lse is not None:
            grad.addcmul_(weights, work.rows(self.grad_lse))
        if self.table is not None and work.tile.width:
            self.table.add(self.chunk, work.tile, work.by_heads(grad)[..., : work.tile.width])
        if work.capped is not None:
            work.without_sink(grad).mul_(1 - work.capped.square())
        return grad

    def _add(
        self,
        work: _TileWork,
        view: Tensor,
        extra: Tensor | None,
        left: Tensor,
        right: Tensor,
        alpha: float,
    ) -> None:
        """Adds alpha x left^T x right `[n, width, D]` at the positions of the tile's keys."""
        boxes = _boxes(view, work.tile)
        alone = len(boxes) == 1 and extra is None
        if alone and view.dim() == 4 and view.shape[0] == 1 and left.dtype == view.dtype:
            boxes[0][0].baddbmm_(left.mT, right, alpha=alpha)
            return
        part = torch.bmm(left.mT, right)
        split = part.view(*self.chunk.heads, work.tile.repeat, *part.shape[1:])
        tile, at = 0, 0
        for box in boxes:
            width = math.prod(box.shape[2:-1])
            box.add_(split[:, :, tile, at : at + width].reshape(box.shape), alpha=alpha)
            tile, at = (tile + 1, 0) if work.tile.repeat > 1 else (0, at + width)
        if extra is not None:
            extra.add_(split[:, :, :, -extra.shape[2] :].sum(dim=2), alpha=alpha)
