"""`nbattn plan --mesh`: what ranks send each other, and the attention of one of them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbattn.cli import arguments, plan_model, screen
from nbattn.cli.parser import Kind, Parser
from nbattn.errors import InputError, counted

if TYPE_CHECKING:
    from nbattn.config import PlanConfig
    from nbattn.distributed.halos import Halo, RankHalo
    from nbattn.distributed.traffic import Traffic
    from nbattn.planner.plan import Plan

BATCH, HEADS, NONE = "batch", "heads", "none"
_OPTIONS = ("--mesh", "--shard")
_SIDES = ("queries", "keys")
_LABEL = 11  # columns


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) for part in text.split(","))
    if min(sizes) < 1:
        raise ValueError
    return sizes


def _places(text: str) -> tuple[str, ...]:
    places = tuple(part.strip() for part in text.split(","))
    if not all(place.isdecimal() or place in (BATCH, HEADS, NONE) for place in places):
        raise ValueError
    return places


sizes = Kind("a list of mesh sizes from 1", "4,2", _sizes)
places = Kind(f"a list of axes, {BATCH}, {HEADS} or {NONE}", "0,1", _places)


@dataclass(frozen=True)
class Cut:
    """One request, cut over a mesh.

    Args:
        mesh: its sizes.
        shard: what each dimension cuts: an axis, "batch", "heads", or "none".
        halo: of the ranks that share a space.
        rank: the one that receives the most.
        traffic: bytes of all of them.
        request: the attention of that rank.
    """

    mesh: tuple[int, ...]
    shard: tuple[str, ...]
    halo: Halo
    rank: RankHalo
    traffic: Traffic
    request: PlanConfig

    def plan(self) -> Plan:
        """The plan of the rank's attention."""
        return self.request.plan()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        mesh = {"mesh": list(self.mesh), "shard": list(self.shard), "rank": self.rank.number}
        return mesh | {"halo": self.halo.to_dict(**_tensors(self.request))}


def add_options(parser: Parser) -> None:
    """Add the options of meshes; `cuts` evaluates them."""
    add = parser.add_argument_group("across ranks, by nbattn.distributed.attention").add_argument
    text = "sizes of a device mesh: plan the halo, and the attention of one rank"
    add("--mesh", metavar="N,...", type=sizes, help=text)
    text = (
        "for each size what is cut: the number of an axis, batch, heads or none; default: 0,1,..."
    )
    add("--shard", metavar="AXIS,...", type=places, help=text)


def cuts(options: argparse.Namespace) -> dict[str, Cut]:
    """Return the requests as they are cut over the mesh, by name; empty without --mesh.

    Raises:
        InputError: the mesh does not fit a request, or the picture cannot be written.
    """
    if options.mesh is None:
        if options.shard is not None:
            sizes = ",".join("2" * len(options.shard))
            problem = "--shard says what a mesh cuts, and --mesh is missing."
            raise InputError(problem, arguments.line(options, *options.words, "--mesh", sizes))
        return {}
    found = {name: _cut(options, request) for name, request in arguments.requests(options)}
    if options.plot is not None:
        if len(found) > 1:
            problem = f"--plot draws one halo, and {len(found)} plans are selected."
            others = [word for word in options.words if word != options.config]
            words = [options.config, next(iter(found)), *others]
            raise InputError(problem, arguments.line(options, *words))
        plan_model.check_picture(options)
    return found


def draw(options: argparse.Namespace, found: dict[str, Cut]) -> None:
    """Draw the halo if --plot asks for it."""
    if options.plot is not None:
        (cut,) = found.values()
        ending = options.plot.suffix[1:].lower()
        cut.halo.plot(cut.rank.number).savefig(options.plot, format=ending)


def text(name: str, cut: Cut) -> str:
    """Return the halo as text: the mesh, and what the rank receives, sends and keeps."""
    from nbattn.distributed import halo_text

    rows = [("mesh", _mesh(cut)), ("mask", repr(cut.halo.mask))]
    rows += halo_text.of_rank(cut.halo, cut.rank, cut.traffic)
    if cut.request.training and cut.traffic.total:
        rows.append(
            ("backward", "sends the gradients of these keys and values back: as many bytes")
        )
    lines = (screen.wrapped(content, f"  {label:<{_LABEL}}") for label, content in rows)
    return "\n".join([screen.styled(name, "bold"), *lines])


def _mesh(cut: Cut) -> str:
    parts = [
        f"{what if not what.isdecimal() else f'axis {what}'} in {size}"
        for size, what in zip(cut.mesh, cut.shard, strict=True)
        if what != NONE
    ]
    copies = [str(size) for size, what in zip(cut.mesh, cut.shard, strict=True) if what == NONE]
    same = f"; {' x '.join(copies)} times the same" * bool(copies)
    return f"{' x '.join(map(str, cut.mesh))} ranks: {', '.join(parts) or 'nothing is cut'}{same}"


def _cut(options: argparse.Namespace, request: PlanConfig) -> Cut:
    from nbattn.distributed import halo

    shard = _shard(options, request)
    sizes = dict(zip(shard, options.mesh, strict=True))
    key = request.key or request.query
    rank = request.mask.rank
    parts = tuple(sizes.get(str(axis), 1) for axis in range(rank))
    found = halo(request.mask, request.query[1:-2], parts, key_space=key[1:-2])
    most = found.largest
    local = _local(request, found, most, sizes)
    traffic = found.bytes(**_tensors(local))
    return Cut(options.mesh, shard, found, most, traffic, local)


def _tensors(request: PlanConfig) -> dict[str, Any]:
    """The arguments of `Halo.bytes` for the attention of a rank."""
    batch, *_, heads, dim = request.key or request.query
    named = {"batch": batch, "kv_heads": heads, "head_dim": dim}
    return named | {"value_dim": request.value_dim, "dtype": request.dtype}


def _local(request: PlanConfig, found: Halo, rank: RankHalo, sizes: dict[str, int]) -> PlanConfig:
    """The request of one rank: its queries, and the keys that these attend to."""
    from dataclasses import replace

    from nbattn.distributed import shards
    from nbattn.mask import Mask

    axes = [replace(axis, table=request.relative_bias) for axis in found.axes]
    unit = shards.unit_of(axes, rank.place, rank.queries)
    batch, cut = -(-request.query[0] // sizes.get(BATCH, 1)), sizes.get(HEADS, 1)
    (heads, dim), (kv_heads, _) = request.query[-2:], (request.key or request.query)[-2:]
    queries, keys = ([getattr(axis.bound(), side) for axis in unit.axes] for side in _SIDES)
    return replace(
        request,
        mask=Mask(*[axis.spec for axis in unit.axes]),
        query=(batch, *queries, heads // cut, dim),
        key=(batch, *keys, kv_heads // cut, dim),
    )


def _shard(options: argparse.Namespace, request: PlanConfig) -> tuple[str, ...]:
    """What each dimension of the mesh cuts.

    Raises:
        InputError: another number than the mesh has, an axis that is not there, one that is cut
            twice, heads that cannot be cut alike, or a request that has no space to cut.
    """
    rank, mesh = request.mask.rank, options.mesh
    _check_request(options, request)
    free = [str(axis) for axis in range(rank)]
    shard = options.shard or tuple(free[: len(mesh)])
    named = [place for place in shard if place in (*free, BATCH, HEADS)]
    doubled = len(set(named)) < len(named)
    unknown = any(place not in (*free, BATCH, HEADS, NONE) for place in shard)
    if len(shard) != len(mesh) or doubled or unknown:
        given, axes = counted(len(mesh), "size"), counted(rank, "axis", "axes")
        problem = f"--mesh has {given} and the mask {axes}, so --shard has to say what is cut."
        if options.shard:
            known = f"one of {', '.join(free)}, {BATCH}, {HEADS}, none of them twice, or {NONE}"
            problem = f"--mesh has {given} and --shard {','.join(shard)}: for each size {known}."
        raise InputError(problem, _line(options, mesh, _fixed(shard, free, len(mesh))))
    heads = (request.query[-2], (request.key or request.query)[-2])
    cut = dict(zip(shard, mesh, strict=True)).get(HEADS, 1)
    if any(number % cut for number in heads):
        fit = math.gcd(cut, *heads)
        fixed = [fit if place == HEADS else n for n, place in zip(mesh, shard, strict=True)]
        raise InputError(
            f"{heads[0]} heads, {heads[1]} of them of keys, are not cut into {cut} alike parts.",
            _line(options, fixed, shard),
        )
    return shard


def _check_request(options: argparse.Namespace, request: PlanConfig) -> None:
    """Check that a request has a space of its own.

    Raises:
        InputError: it has packed grids, or extra queries.
    """
    is_packed = request.grids is not None or request.key_grids is not None
    if is_packed or request.extra_queries:
        what = "packed grids" if is_packed else "extra queries"
        problem = f"--mesh cuts the axes of one grid, and this request has {what}."
        raise InputError(problem, arguments.line(options, *_without(options.words)))


def _fixed(shard: tuple[str, ...], free: list[str], count: int) -> list[str]:
    """What is right of a --shard, and more of it that is."""
    fixed: list[str] = []
    for place in (*shard, *free, BATCH):
        if place == NONE or (place in (*free, BATCH, HEADS) and place not in fixed):
            fixed.append(place)
    return [*fixed, *[NONE] * count][:count]


def _line(options: argparse.Namespace, mesh: Any, shard: Any) -> str:
    """The command line with another mesh."""
    new = ("--mesh", ",".join(map(str, mesh)), "--shard", ",".join(shard))
    return arguments.line(options, *_without(options.words), *new)


def _without(words: list[str]) -> Iterator[str]:
    """The words of the command line but those of the mesh."""
    is_value = False
    for word in words:
        if is_value or word.split("=")[0] in _OPTIONS:
            is_value = word in _OPTIONS
            continue
        yield word
