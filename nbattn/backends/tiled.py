"""The CPU engine: tiles of queries against the hull of their keys, forward and backward, on any
torch device.

A tile holds whole rows, so an ordinary softmax is exact and the backward recomputes it from q, k
and v alone. Scores are float32 (float64 for float64); products with values stay in bfloat16;
float16 is upcast tile by tile. Gradients of keys gather in float32. Batches of (sample, key head)
are sized so that temporaries stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from nbattn.backends.contract import Gradients, Inputs, accumulate_dtype, new_lse, new_output
from nbattn.dialects.tiled import SCORE_BYTES, Tiled
from nbattn.geometry import AxisTile
from nbattn.planner.programs import Program

_BIAS_BYTES = 16 << 20  # of one schedule's additive masks
_NO_KEYS = float("-inf")
_EVERY = slice(None)


class AxisPart(NamedTuple):
    """One tile of one axis as slices: queries, key runs, extents, and the number of its pattern."""

    queries: slice
    keys: tuple[slice, ...]
    rows: int
    width: int
    pattern: int


class Tile(NamedTuple):
    """A tile of the space: slices of q and of k (several where windows wrap), extents and additive
    mask.
    """

    queries: tuple[slice, ...]
    keys: tuple[tuple[slice, ...], ...]
    rows: int
    width: int
    bias: Tensor | None
    has_empty_rows: bool


class Schedule:
    """The tiles of a mask at its lengths, with the additive masks they share."""

    def __init__(self, call: Tiled) -> None:
        """Cut every axis; tiles of the space are combinations, made when iterated."""
        self._patterns: list[dict[tuple[object, ...], int]] = [{} for _ in call.lines]
        self._samples: list[list[AxisTile]] = [[] for _ in call.lines]
        self._axes = [
            [self._part(axis, tile, line.axis.dilation) for tile in line.tiles(size)]
            for axis, (line, size) in enumerate(zip(call.lines, call.tile, strict=True))
        ]
        self._bias: dict[tuple[object, ...], tuple[Tensor | None, bool]] = {}
        self._bias_bytes = 0
        self.max_rows = math.prod(
            max((part.rows for part in axis), default=0) for axis in self._axes
        )
        self.max_width = math.prod(
            max((part.width for part in axis), default=0) for axis in self._axes
        )

    def _part(self, axis: int, tile: AxisTile, step: int) -> AxisPart:
        known = self._patterns[axis]
        number = known.setdefault(tile.pattern, len(known))
        if number == len(self._samples[axis]):
            self._samples[axis].append(tile)
        keys = tuple(_slice(start, count, step) for start, count in tile.keys)
        return AxisPart(_slice(*tile.queries, step), keys, tile.queries[1], tile.width, number)

    def tiles(self, like: Tensor, group: int) -> Iterator[Tile]:
        """Every tile, with additive masks in the dtype and on the device of `like`, for `group`
        heads a row.
        """
        for parts in product(*self._axes):
            bias, has_empty_rows = self._mask(tuple(part.pattern for part in parts), like, group)
            yield Tile(
                tuple(part.queries for part in parts),
                tuple(product(*(part.keys for part in parts))),
                math.prod(part.rows for part in parts),
                math.prod(part.width for part in parts),
                bias,
                has_empty_rows,
            )

    def _mask(
        self, patterns: tuple[int, ...], like: Tensor, group: int
    ) -> tuple[Tensor | None, bool]:
        key = (patterns, like.dtype, like.device, group)
        if key in self._bias:
            return self._bias[key]
        samples = [self._samples[axis][number] for axis, number in enumerate(patterns)]
        found: tuple[Tensor | None, bool] = (None, math.prod(tile.width for tile in samples) == 0)
        if not all(tile.is_full for tile in samples):
            allowed = _allowed(samples).repeat(group, 1).to(like.device)
            bias = like.new_zeros(allowed.shape).masked_fill_(~allowed, _NO_KEYS)
            found = (bias, not bool(allowed.any(dim=1).all()))
        size = 0 if found[0] is None else found[0].nbytes
        if self._bias_bytes + size <= _BIAS_BYTES:
            self._bias[key] = found
            self._bias_bytes += size
        return found


def _slice(start: int, count: int, step: int) -> slice:
    return slice(start, start + (count - 1) * step + 1, step)


def _allowed(tiles: list[AxisTile]) -> Tensor:
    """The mask inside a tile of the space `[rows, width]`, columns in the order of its key
    boxes.
    """
    matrix = torch.ones((1, 1), dtype=torch.bool)
    order = torch.zeros(1, dtype=torch.int64)
    for tile in tiles:
        matrix = torch.kron(matrix, torch.from_numpy(tile.allowed()))
    if any(len(tile.keys) > 1 for tile in tiles):
        boxes: list[Tensor] = []
        for runs in product(*(_column_runs(tile) for tile in tiles)):
            order = torch.zeros(1, dtype=torch.int64)
            for tile, run in zip(tiles, runs, strict=True):
                order = (order[:, None] * tile.width + torch.arange(run[0], run[1])).flatten()
            boxes.append(order)
        matrix = matrix[:, torch.cat(boxes)]
    return matrix


def _column_runs(tile: AxisTile) -> list[tuple[int, int]]:
    """The columns of every key run."""
    ends = [sum(count for _, count in tile.keys[: n + 1]) for n in range(len(tile.keys))]
    return [(end - count, end) for end, (_, count) in zip(ends, tile.keys, strict=True)]


@lru_cache(64)
def schedule(call: Tiled) -> Schedule:
    """The schedule of a call, kept for the next run."""
    return Schedule(call)


def warmup(program: Program) -> None:
    """Cut the tiles of a program before its first run."""
    for call in program.calls:
        if isinstance(call.arguments, Tiled):
            schedule(call.arguments)


def forward(program: Program, inputs: Inputs, *, return_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Output, and the logsumexp where it is wanted."""
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
    """Gradients of every input; out and lse are not needed, since a tile's softmax is recomputed
    whole.
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
    for chunk in _chunks(program, inputs):
        grads = _ChunkGradients(chunk, sums, grad_out, grad_lse)
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
    return Gradients(query, final[0], final[1], final[2], final[3], final[4])


class Chunk:
    """Some samples and key heads of the inputs, as heads-first views: `[b, hk, group, *space, D]`,
    `[b, hk, *space, D]`.
    """

    def __init__(self, inputs: Inputs, cut: tuple[slice, slice], plan: Schedule) -> None:
        """Views of one chunk; nothing is copied."""
        self.inputs, self.cut = inputs, cut
        self.group = inputs.query.shape[-2] // inputs.key.shape[-2]
        self.exact = accumulate_dtype(inputs.query.dtype)
        # products with values and gradients: half precision only where the hardware has it
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
        self.sink = None if inputs.sink is None else self.of_heads(inputs.sink)
        self.key_range = None if inputs.key_range is None else inputs.key_range[cut[0]]
        self.tiles = plan.tiles(inputs.query.new_empty(0, dtype=self.exact), self.group)

    def of_queries(self, tensor: Tensor) -> Tensor:
        """`[B, *space, H, D]` as this chunk's `[b, hk, group, *space, D]`."""
        split = tensor.unflatten(-2, (-1, self.group))
        return split.permute(0, -3, -2, *range(1, split.dim() - 3), -1)[self.cut[0], self.cut[1]]

    def of_keys(self, tensor: Tensor) -> Tensor:
        """`[B, *space, Hk, D]` as this chunk's `[b, hk, *space, D]`."""
        return tensor.movedim(-2, 1)[self.cut[0], self.cut[1]]

    def of_heads(self, tensor: Tensor) -> Tensor:
        """`[H]` as this chunk's `[hk, group]`."""
        return tensor.unflatten(0, (-1, self.group))[self.cut[1]]


def _chunks(program: Program, inputs: Inputs) -> Iterator[Chunk]:
    """Batches of (sample, key head) whose scores fit `SCORE_BYTES`."""
    (call,) = program.calls
    assert isinstance(call.arguments, Tiled)
    plan = schedule(call.arguments)
    batch, heads = inputs.key.shape[0], inputs.key.shape[-2]
    extra = 0 if inputs.extra_key is None else inputs.extra_key.shape[1]
    group = inputs.query.shape[-2] // heads
    scores = 4 * group * plan.max_rows * (plan.max_width + extra)
    fit = max(1, SCORE_BYTES // max(scores, 1))
    b, h = (min(batch, fit // heads), heads) if fit >= heads else (1, fit)
    for at in range(0, batch, max(b, 1)):
        for head in range(0, heads, h):
            yield Chunk(inputs, (slice(at, at + b), slice(head, head + h)), plan)


class _TileWork:
    """The tensors of one tile of a chunk: rows `[n, group * rows, D]` and columns `[n, width,
    D]`.
    """

    def __init__(self, chunk: Chunk, tile: Tile, *, keep_capped: bool = False) -> None:
        self.chunk, self.tile, self.keep_capped = chunk, tile, keep_capped
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
        """This tile of a `[b, hk, group, *space, D]` view, as `[n, group * rows, D]`."""
        part = tensor[(_EVERY, _EVERY, _EVERY, *self.tile.queries)]
        return part.reshape(self.chunk.count, self.chunk.group * self.tile.rows, tensor.shape[-1])

    def _columns(self, tensor: Tensor, extra: Tensor | None) -> Tensor:
        """The tile's keys, box after box, then the extra keys, as `[n, width, D]`."""
        count, size = self.chunk.count, tensor.shape[-1]
        parts = [tensor[(_EVERY, _EVERY, *box)].reshape(count, -1, size) for box in self.tile.keys]
        if extra is not None:
            parts.append(extra.reshape(count, -1, size))
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, dim=1) if parts else tensor.new_empty((count, 0, size))

    def _drop_outside(self, key_range: Tensor) -> None:
        """Zero the keys outside the range, whatever they hold, and remember which they are."""
        boxes = [_outside(key_range, box, self.chunk.key.shape[2:-1]) for box in self.tile.keys]
        extra = self.key.shape[1] - sum(box.shape[1] for box in boxes)
        boxes.append(key_range.new_zeros((key_range.shape[0], extra), dtype=torch.bool))
        outside = torch.cat(boxes, dim=1)
        self.outside = (
            outside[:, None].expand(-1, self.chunk.heads[1], -1).reshape(self.chunk.count, 1, -1)
        )
        self.key, self.value = (t.masked_fill(self.outside.mT, 0) for t in (self.key, self.value))

    def weights(self, *, want_lse: bool) -> tuple[Tensor, Tensor | None]:
        """Softmax of the scores `[n, rows, width (+ 1 for the sink)]`, and the logsumexp `[n, rows,
        1]`.
        """
        scores = self._scores()
        empty = None
        if self.chunk.inputs.may_be_empty and (
            self.tile.has_empty_rows or self.outside is not None
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
        """Scaled, capped and masked scores, with the sink as a last column."""
        chunk, exact = self.chunk, self.chunk.exact
        query, key = self.query.to(exact), self.key.to(exact)
        width = self.width + (chunk.sink is not None)
        whole = query.new_empty((query.shape[0], query.shape[1], width))
        scores = whole[..., : self.width]
        cap, bias = chunk.inputs.softcap, self._bias()
        scale = chunk.inputs.scale if cap is None else chunk.inputs.scale / cap
        start = query.new_zeros(()) if bias is None or cap is not None else bias
        beta = 0 if start.dim() == 0 else 1
        torch.baddbmm(start, query, key.mT, beta=beta, alpha=scale, out=scores)
        if cap is not None:
            scores.tanh_()
            self.capped = scores.clone() if self.keep_capped else None
            scores.mul_(cap)
            if bias is not None:
                scores.add_(bias)
        if self.outside is not None:
            scores.masked_fill_(self.outside, _NO_KEYS)
        if chunk.sink is not None:
            sink = chunk.sink[None, :, :, None].expand(*chunk.heads, chunk.group, self.tile.rows)
            whole[..., -1] = sink.reshape(chunk.count, -1)
        return whole

    def _bias(self) -> Tensor | None:
        """The tile's additive mask, with zeros for the extra keys."""
        bias = self.tile.bias
        extra = 0 if bias is None else self.width - bias.shape[1]
        return torch.nn.functional.pad(bias, (0, extra)) if bias is not None and extra else bias

    def times_values(self, weights: Tensor) -> Tensor:
        """Weights times values; the sink has none."""
        part = weights[..., : self.width].to(self.chunk.product)
        return torch.bmm(part, self.value.to(self.chunk.product))


def _outside(key_range: Tensor, box: tuple[slice, ...], space: torch.Size) -> Tensor:
    """Keys of a box outside the range of their sample, bool `[b, width]`."""
    inside = key_range.new_ones((key_range.shape[0], 1), dtype=torch.bool)
    for axis, (cut, length) in enumerate(zip(box, space, strict=True)):
        at = torch.arange(*cut.indices(length), device=key_range.device)
        start, stop = (key_range[:, axis, side, None] for side in (0, 1))
        one = (at >= start) & (at < stop)
        inside = (inside[:, :, None] & one[:, None, :]).flatten(1)
    return ~inside


def _store(view: Tensor, tile: Tile, part: Tensor) -> None:
    """Write a tile's rows where its queries are."""
    target = view[(_EVERY, _EVERY, _EVERY, *tile.queries)]
    target.copy_(part.reshape(target.shape))


class _ChunkGradients:
    """The gradients of one chunk, as views into the sums of all."""

    def __init__(
        self, chunk: Chunk, sums: Gradients, grad_out: Tensor, grad_lse: Tensor | None
    ) -> None:
        self.chunk, self.scale = chunk, chunk.inputs.scale
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
        """Add what one tile contributes; its queries are its own."""
        work = _TileWork(self.chunk, tile, keep_capped=True)
        weights, _ = work.weights(want_lse=False)
        dtype = self.chunk.product
        upstream = work.rows(self.grad_out).to(dtype)
        grad_scores = self._grad_scores(work, weights, upstream)
        self._add(
            work, self.value, self.extra_value, weights[..., : work.width].to(dtype), upstream, 1.0
        )
        if self.sink is not None:
            column = grad_scores[..., -1].reshape(*self.chunk.heads, self.chunk.group, -1)
            self.sink.add_(column.sum(dim=(0, 3)))
        products = grad_scores[..., : work.width].to(dtype)
        zero = products.new_zeros(())
        _store(
            self.query,
            tile,
            torch.baddbmm(zero, products, work.key.to(dtype), beta=0, alpha=self.scale),
        )
        self._add(work, self.key, self.extra_key, products, work.query.to(dtype), self.scale)

    def _grad_scores(self, work: _TileWork, weights: Tensor, upstream: Tensor) -> Tensor:
        """Gradient of the masked scores: weights x (dP - sum(dP x weights)), through the cap."""
        grad = torch.bmm(upstream, work.value.to(upstream.dtype).mT).to(weights.dtype)
        if self.sink is not None:
            grad = torch.nn.functional.pad(grad, (0, 1))
        grad = torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)
        if self.grad_lse is not None:
            grad.addcmul_(weights, work.rows(self.grad_lse))
        if work.capped is not None:
            grad[..., : work.width].mul_(1 - work.capped.square())
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
        """Add alpha x left^T x right `[n, width, D]` to the columns' places."""
        boxes = [view[(_EVERY, _EVERY, *box)] for box in work.tile.keys]
        boxes += [] if extra is None else [extra]
        if (
            len(boxes) == 1
            and boxes[0].dim() == 4
            and boxes[0].shape[0] == 1
            and left.dtype == view.dtype
        ):
            boxes[0][0].baddbmm_(left.mT, right, alpha=alpha)
            return
        part, at = torch.bmm(left.mT, right), 0
        for box in boxes:
            width = math.prod(box.shape[2:-1])
            box.add_(part[:, at : at + width].reshape(box.shape), alpha=alpha)
            at += width
