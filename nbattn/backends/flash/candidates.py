"""Builds Flash programs: the window arguments of a mask, for each provider by each strategy, or the
reason why they cannot express it.

`translate` counts the window from the bottom-right corner. `trim` first removes rows and keys
without pairs. `split` cuts the rows where a side stops excluding keys. `virtual-pad` passes a
longer `max_seqlen_k` to the varlen entry. `pack` passes the pieces of an axis as sequences of one
varlen call. `pad` appends keys until the window is square and masks them with one more channel per
head; `zero-pad`, without that channel, is never exact, and its reason gives the error. `kv-cache`
passes the whole cache and the number of keys in use; slicing the keys means the same with one
launch less. `key-range` passes the keys that `key_range` leaves of each sample as sequences of one
varlen call, if no window would move with them. A call is accepted only if its kernel computes, by
`nbattn.backends.flash.meaning`, exactly the band that the call was built for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import product

import numpy as np

from nbattn import geometry
from nbattn.backends.flash import costs, grids, packing, slopes
from nbattn.backends.flash.meaning import FlashArguments, flash_arguments
from nbattn.backends.flash.providers import ON_NVIDIA, PROVIDERS, limits_of_model
from nbattn.geometry import Axes
from nbattn.program.band_pieces import band_pieces
from nbattn.program.bands import FULL, Band, Slice, first_difference, sliced, split_points
from nbattn.program.candidate import Candidate, refused
from nbattn.program.dense_pieces import Piece, dense_pieces, fold_into_heads
from nbattn.program.limits import Reason, over_grid
from nbattn.program.program import Call, Program, View
from nbattn.program.request import Needs, Request

_ONE_AXIS = "Flash has one-dimensional windows"
_COPIES = 4  # folding may copy at most this many times the keys
_Pieces = list[list[Piece]]  # the pieces of each axis


def candidates(request: Request, axes: Axes) -> list[Candidate]:
    """One candidate per provider and strategy; one per provider that cannot run."""
    family, needs = request.backend.partition(":")[0], request.needs
    if family == "flash-model":
        reasons = {name: limits_of_model(name, needs) for name in PROVIDERS}
        return [refused("flash", "translate"), *_all(request, axes, "flash-model", reasons)]
    model = refused("flash-model", "translate")
    if family not in ("auto", "flash"):
        return [refused("flash", "translate"), model]
    if wrong := ON_NVIDIA.wrong_device(request.device):
        return [refused("flash", "translate", wrong), model]
    reasons = {name: _limits(name, needs) for name in PROVIDERS}
    return [*_all(request, axes, "flash", reasons), model]


@lru_cache(256)
def _limits(name: str, needs: Needs) -> tuple[Reason, ...]:
    """The limits of a provider that a request exceeds whatever its lengths."""
    return tuple(PROVIDERS[name].reasons(needs))


def _all(
    request: Request, axes: Axes, family: str, reasons: Mapping[str, tuple[Reason, ...]]
) -> Iterator[Candidate]:
    """The candidates of all providers; cuts the mask into pieces once, and only if one can run."""
    if request.grids is not None:
        yield from _of_grids(request, family, reasons)
        return
    can_run = [name for name, limits in reasons.items() if not limits]
    per_axis = _pieces(request, axes) if can_run else []
    useful = geometry.pairs(axes) if can_run else 0
    for name, limits in reasons.items():
        backend = f"{family}:{name}"
        if isinstance(per_axis, Reason) or limits:
            all_reasons = (*limits, per_axis) if isinstance(per_axis, Reason) else limits
            yield refused(backend, "translate", *all_reasons)
            continue
        for strategy, parts in _strategies(request, name, per_axis).items():
            program = _made(request, axes, name, strategy, parts)
            if isinstance(program, Reason):
                yield refused(backend, strategy, program)
                continue
            traits = _traits(request, strategy, program)
            cost = costs.cost(request, PROVIDERS[name], program, useful)
            yield Candidate(backend, strategy, traits, program, cost)


def _of_grids(
    request: Request, family: str, reasons: Mapping[str, tuple[Reason, ...]]
) -> Iterator[Candidate]:
    """The candidates of all providers for packed grids."""
    for name, limits in reasons.items():
        backend = f"{family}:{name}"
        call = grids.call(request, name, varlen=PROVIDERS[name].varlen)
        if limits or isinstance(call, Reason):
            against = (*limits, call) if isinstance(call, Reason) else limits
            yield refused(backend, "pack", *against)
            continue
        program, useful = Program((call,)), grids.useful_pairs(request)
        cost = costs.cost(request, PROVIDERS[name], program, useful)
        yield Candidate(backend, "pack", (), program, cost)


def _pieces(request: Request, axes: Axes) -> _Pieces | Reason:
    """Cuts each axis into bands; folds residues of the last one into heads where this is a view."""
    per_axis: _Pieces = []
    for number, axis in enumerate(axes):
        # with several axes, pieces without a window come first: they fold into batch or heads
        pieces = dense_pieces(axis) if len(axes) > 1 else "one axis"
        pieces = band_pieces(axis) if isinstance(pieces, str) else pieces
        if isinstance(pieces, str):
            return Reason("mask", f"axis {number}: {pieces}")
        per_axis.append(pieces)
    if request.layout == "contiguous":
        per_axis[-1] = [
            fold_into_heads(piece) if piece.query.group_step == 1 else piece
            for piece in per_axis[-1]
        ]
    return per_axis


# Strategies: turn each piece into pieces that one call each can compute.


def _strategies(request: Request, provider: str, per_axis: _Pieces) -> dict[str, _Pieces | Reason]:
    """The pieces by strategy, or the reason why a strategy does not apply."""
    plain = [[_translate(piece) for piece in pieces] for pieces in per_axis]
    if request.key_range:
        no_varlen = Reason("key_range", "has no key_range: it is not run by a varlen entry")
        return {"key-range": plain if PROVIDERS[provider].varlen else no_varlen}
    trimmed = [[part for piece in pieces for part in _trim(piece)] for pieces in per_axis]
    divided = [[part for piece in pieces for part in _split(provider, piece)] for pieces in trimmed]
    strategies: dict[str, _Pieces | Reason] = {
        "translate": plain,
        "trim": trimmed
        if trimmed != plain
        else Reason("trim", "every query and key has a pair: nothing to trim"),
        "split": divided
        if divided != trimmed
        else Reason("split", "no side stops excluding keys between two rows: nothing to split"),
    }
    if PROVIDERS[provider].varlen:
        strategies |= {"virtual-pad": trimmed, "pack": trimmed}
    if PROVIDERS[provider].kvcache:
        strategies["kv-cache"] = _no_cache(request) or trimmed
    return strategies | _padding(trimmed)


def _no_cache(request: Request) -> Reason | None:
    """Why the kv-cache entry does not support a request; None if it does."""
    if request.training:
        return Reason("backward", "the kv-cache entry has no backward")
    if request.alibi_slopes:
        return Reason("alibi_slopes", "no slopes are passed to the kv-cache entry")
    if sum(length > 1 for length in request.key_space) > 1:
        return Reason("kv-cache", "a cache has one axis of keys longer than 1")
    why = request.mask.decodes()
    return (
        None if why is None else Reason("decodes", f"the kv-cache entry does not support it: {why}")
    )


def _padding(trimmed: _Pieces) -> dict[str, _Pieces | Reason]:
    """Padding keys to a square: exact with masked keys; without, the reason gives the error."""
    rows, missing = max(
        ((p.query.length, _missing(p)) for axis in trimmed for p in axis),
        key=lambda sizes: sizes[1],
        default=(0, 0),
    )
    if not missing:
        return {"pad": Reason("pad", "no window has fewer keys than queries: nothing to pad")}
    text = (
        f"{missing} keys of zeros have score 0, not weight 0: with scores of 0 they take up to "
        f"{missing / rows:.0%} of a row"
    )
    return {"pad": trimmed, "zero-pad": Reason("zero-pad", text)}


def _missing(piece: Piece) -> int:
    """The number of keys to append until a window is square."""
    return 0 if piece.band == FULL else max(0, piece.query.length - piece.key.length)


def _translate(piece: Piece) -> Piece:
    """The whole piece, its band without sides that exclude nothing."""
    band = piece.band.limits(piece.query.length, piece.key.length)
    return Piece(piece.query, piece.key, band, piece.joins)


def _trim(piece: Piece) -> list[Piece]:
    """The rows that have keys, with the keys that they attend to."""
    return _sliced(piece, sliced(piece.band, piece.query.length, piece.key.length, ()))


def _split(provider: str, whole: Piece) -> list[Piece]:
    """A trimmed piece with the fewest cuts after which a dense call computes each part exactly."""
    rows, keys = whole.query.length, whole.key.length
    for cuts in split_points(whole.band, keys):
        parts = sliced(whole.band, rows, keys, cuts)
        calls = (flash_arguments(provider, part.band, part.rows, part.keys) for part in parts)
        differences = (
            first_difference(call.band(part.rows, part.keys), part.band, part.rows, part.keys)
            for call, part in zip(calls, parts, strict=True)
        )
        if len(parts) > 1 and all(row is None for row in differences):
            return _sliced(whole, parts)
    return [whole]


def _sliced(piece: Piece, slices: list[Slice]) -> list[Piece]:
    return [
        Piece(
            piece.query.part(part.row, part.rows),
            piece.key.part(part.key, part.keys),
            part.band,
            piece.joins,
        )
        for part in slices
    ]


# Programs


def _made(
    request: Request, axes: Axes, provider: str, strategy: str, per_axis: _Pieces | Reason
) -> Program | Reason:
    """The program of a strategy's pieces, or why there is none."""
    if isinstance(per_axis, Reason):
        return per_axis
    if request.alibi_slopes and (wrong := slopes.misplaced(axes[0], per_axis[0])):
        return wrong
    make = _packed if strategy in ("pack", "key-range") else _program
    return make(request, provider, strategy, per_axis)


def _program(request: Request, provider: str, strategy: str, per_axis: _Pieces) -> Program | Reason:
    """One call per combination of pieces, or why a call does not compute its piece exactly."""
    if strategy == "pad" and request.softcap:
        return Reason("softcap", "a softcap would raise the scores that mask padded keys")
    if strategy == "pad" and request.alibi_slopes:
        return Reason("alibi_slopes", "a slope may raise the scores that mask padded keys")
    if all(per_axis) and (several := _windows_on_axes(per_axis)):  # an axis without pieces: no call
        return several
    calls: list[Call] = []
    for pieces in product(*per_axis):
        axis = _window_axis(pieces)
        if isinstance(axis, Reason):
            return axis
        query, key = View(tuple(p.query for p in pieces)), View(tuple(p.key for p in pieces))
        band = pieces[axis].band
        pad = _missing(pieces[axis]) if strategy == "pad" else 0
        varlen = strategy == "virtual-pad"
        capacity = _capacity(request, key, axis) if strategy == "kv-cache" else None
        arguments = flash_arguments(
            provider, band, query.count, key.count, varlen=varlen, pad=pad, capacity=capacity
        )
        if request.alibi_slopes:
            if query.groups > 1:
                return Reason("alibi_slopes", "a call that folds groups has other heads or samples")
            arguments = slopes.added_to(arguments, key.count)
        wrong = _wrong(arguments, band, query.count, key.count) or _too_large(request, query)
        if wrong:
            return wrong
        if capacity is not None:
            key = key.with_part(axis, slice(0, capacity))
        calls.append(Call(query, key, replace(arguments, axis=axis), any(p.joins for p in pieces)))
    if request.extra_keys and not calls:
        return Reason(
            "extra_keys", "the mask has no pairs: no call that extra keys could be merged with"
        )
    return _inflated(request, calls) or Program(tuple(calls))


def _packed(request: Request, provider: str, strategy: str, per_axis: _Pieces) -> Program | Reason:
    """One varlen call with one sequence per piece, or why this is impossible."""
    pack = packing.call_by_range if strategy == "key-range" else packing.call
    call = pack(request, provider, per_axis)
    if isinstance(call, Reason):
        return call
    arguments = call.arguments
    assert isinstance(arguments, FlashArguments)
    wrong = (
        _wrong(arguments, p.band, p.query.length, p.key.length) for p in per_axis[arguments.axis]
    )
    return next((reason for reason in wrong if reason), Program((call,)))


def _capacity(request: Request, key: View, number: int) -> int:
    """The number of keys in the cache from a view's first key on, the same in all its groups."""
    axis = key.axes[number]
    last = axis.start + axis.group_step * (axis.groups - 1)
    return (request.key_space[number] - 1 - last) // axis.step + 1


def _windows_on_axes(per_axis: _Pieces) -> Reason | None:
    """Why windows on several axes are not supported, in some combination of their pieces."""
    windows = [
        axis
        for axis, pieces in enumerate(per_axis)
        if any(packing.is_long(piece) and piece.band != FULL for piece in pieces)
    ]
    if len(windows) < 2:
        return None
    return Reason("mask", f"{_ONE_AXIS}; this mask has windows on {len(windows)} axes")


def _window_axis(pieces: tuple[Piece, ...]) -> int | Reason:
    """The axis of the window arguments; every other axis must have length 1. Without a window it is
    the axis with the most keys.
    """
    long = [n for n, piece in enumerate(pieces) if packing.is_long(piece)]
    windows = [n for n in long if pieces[n].band != FULL]
    if not windows:
        return max(range(len(pieces)), key=lambda n: pieces[n].key.length)
    if long == windows[:1]:
        return long[0]
    second = next(n for n in long if n != windows[0])
    text = f"{_ONE_AXIS}; axis {second} is long beside the window on axis {windows[0]}"
    return Reason("mask", text)


def _wrong(call: FlashArguments, band: Band, queries: int, keys: int) -> Reason | None:
    """Why a call does not compute its band: the first query whose keys would differ."""
    computed = call.band(queries, keys)
    row = first_difference(computed, band, queries, keys)
    if row is None:
        return None
    at = np.array([row])
    wanted, actual = ([int(side[0]) for side in b.rows(at, keys)] for b in (band, computed))
    text = f"{call.dialect.name} with {call.describe()} on {queries} queries and {keys} keys lets"
    return Reason(
        "window",
        f"{text} query {row} attend to keys {actual[0]}:{actual[1]}, not {wanted[0]}:{wanted[1]}",
    )


def _too_large(request: Request, view: View) -> Reason | None:
    """Why batch or heads after folding exceed the kernel's grid; None if they fit."""
    return over_grid(*view.batch_and_heads(request.batch, request.heads))


def _inflated(request: Request, calls: list[Call]) -> Reason | None:
    """Why a program copies too much: overlapping windows would copy a key once per window."""
    copied = sum(call.key.groups * call.key.count for call in calls if costs.copies(request, call))
    times = copied / max(request.key_count, 1)
    if times <= _COPIES:
        return None
    return Reason("copy", f"its overlapping windows would copy the keys {times:.1f} times over")


def _traits(request: Request, strategy: str, program: Program) -> tuple[str, ...]:
    """The rewrites that a program uses besides its strategy."""
    calls = program.calls
    traits = {"fold"} if any(call.query.groups > 1 for call in calls) else set[str]()
    traits |= {"split"} if len(calls) > 1 and strategy != "split" else set()
    traits |= {"merge"} if request.extra_keys or any(call.joins for call in calls) else set()
    return tuple(sorted(traits))
