"""Random problems for the native kernels, run in any tiles, and judged by the definition.

A seed gives a mask, shapes, strides, what else attention() takes, and tiles of every kernel that
the planner need not choose. The mask's matrix is the enumerator's, outputs and gradients are those
of `dense_attention.py`: nothing that judges is in the package. As a program it runs seeds:

    python tests/instruments/native_problems.py 0 20000
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import dense_attention
import torch
from oracle import axis_matrix, axis_steps, box, distances, is_legal
from torch import Tensor

from nbattn import Axis, Mask, biases
from nbattn.backends.inputs import TENSORS, Inputs
from nbattn.backends.native import run
from nbattn.backends.native.meaning import NativeArguments
from nbattn.backends.native.tiles import Tiles
from nbattn.errors import MaskError
from nbattn.geometry import Axes, Held, bind
from nbattn.program.program import Call, Program, whole
from nbattn.program.tile_traversal import Traversal

Space = tuple[int, ...]
LANES, RANK = 16, 3
FIELDS: dict[str, tuple[Any, ...]] = {
    "left": (None, 0, 1, 2, 3, 5, 8),
    "right": (None, 0, 1, 2, 4, 7),
    "dilation": (1, 1, 2, 3),
    "stride": (1, 1, 2, 3),
    "causal": (False, False, True),
    "align": ("top-left", "bottom-right"),
    "offset": (0, 0, -3, -1, 2, 5),
    "border": ("clip", "clip", "shift", "wrap"),
    "prefix": (0, 0, 0, 2, 5),
}
LONGEST = {1: 40, 2: 12, 3: 7}
SIZES = (1, 2, 3, 4, 7, 8, 16, 20, 33, 64, 65)
WIDE = (500, 1030)  # of which few columns fit into a box
DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass
class Problem:
    """Whole lengths of each axis, and the parts of them that the tensors hold."""

    mask: Mask
    lengths: list[tuple[int, int]]
    rows: list[slice]
    columns: list[slice]
    dtype: torch.dtype
    tiles: list[Tiles | None]  # of the kernels in the order of NativeArguments
    tensors: dict[str, Tensor] = field(default_factory=dict)
    scale: float = 1.0
    softcap: float | None = None
    pairs: Tensor | None = None  # those of long axes, which the enumerator takes long for

    @property
    def queries(self) -> Space:
        return tuple(part.stop - part.start for part in self.rows)

    @property
    def keys(self) -> Space:
        return tuple(part.stop - part.start for part in self.columns)

    @property
    def allowed(self) -> Tensor:
        """The pairs, by the enumerator unless they are known."""
        if self.pairs is not None:
            return self.pairs
        parts = zip(self.mask.axes, self.lengths, self.rows, self.columns, strict=True)
        blocks = [axis_matrix(axis, *n)[row, column] for axis, n, row, column in parts]
        return torch.from_numpy(box(blocks))

    @property
    def positions(self) -> dict[str, Tensor]:
        """What pairs read of the table, and how far apart they are, by the enumerator."""
        parts = [*zip(self.mask.axes, self.lengths, self.rows, self.columns, strict=True)]
        found = {}
        if "relative_bias" in self.tensors:
            entries = torch.zeros((1, 1), dtype=torch.int64)
            for axis, n, row, column in parts:
                most = axis.left + axis.right
                own = torch.from_numpy(axis_steps(axis, *n)[row, column] + most)
                joined = entries[:, None, :, None] * (2 * most + 1) + own[None, :, None]
                entries = joined.flatten(2).flatten(0, 1)
            found["entries"] = entries
        if "alibi_slopes" in self.tensors:
            ((axis, n, row, column),) = parts
            found["distances"] = torch.from_numpy(distances(axis, *n)[row, column])
        return found

    @property
    def axes(self) -> Axes:
        held = [
            None if (n, m) == (q, k) else Held(row.start, n, column.start, m)
            for (n, m), q, k, row, column in zip(
                self.lengths, self.queries, self.keys, self.rows, self.columns, strict=True
            )
        ]
        return bind(self.mask, self.queries, self.keys, held if any(held) else None)

    @property
    def program(self) -> Program:
        forward, *others = self.tiles
        assert forward is not None
        arguments = NativeArguments(self.axes, forward, *others)
        return Program((Call(whole(self.queries), whole(self.keys), arguments),))

    def __str__(self) -> str:
        shapes = {name: [*t.shape] for name, t in self.tensors.items()}
        strides = {name: t.stride() for name, t in self.tensors.items()}
        return (
            f"{self.mask} lengths {self.lengths} rows {self.rows} columns {self.columns} "
            f"{self.dtype} {self.tiles} scale {self.scale} softcap {self.softcap} "
            f"shapes {shapes} strides {strides}"
        )


# Random parts


def drawn_axis(random: Random, longest: int, *, table: bool) -> tuple[Axis, int, int]:
    """A legal axis with lengths it may be bound to, by rejection; with `table` one that has it."""
    while True:
        fields = {name: random.choice(values) for name, values in FIELDS.items()}
        if table:
            sides = {
                name: 4 if fields[name] is None else fields[name] for name in ("left", "right")
            }
            fields |= {**sides, "prefix": 0}
        queries = random.randrange(1, longest + 1)
        keys = queries if random.random() < 0.5 else random.randrange(longest + 1)
        if fields["border"] == "wrap":
            fields |= {"causal": False, "align": "top-left", "offset": 0, "prefix": 0}
            circle = fields["dilation"] * fields["stride"]
            keys = queries = circle * random.randrange(1, max(longest // circle, 1) + 1)
        if fields["causal"]:
            fields["right"] = 0
        if not is_legal(fields, queries, keys):
            continue
        axis = Axis(**fields)
        if not table or has_table(Mask(axis), bind(Mask(axis), [queries], [keys])):
            return axis, queries, keys


def has_table(mask: Mask, axes: Axes) -> bool:
    try:
        biases.check_table(mask, axes)
    except MaskError:
        return False
    return True


def drawn_part(random: Random, length: int) -> slice:
    return slice(*sorted((random.randrange(length + 1), random.randrange(length + 1))))


def drawn_tiles(random: Random, rank: int, heads: int) -> Tiles:
    """Sixteen rows, cut in any way, and any number of tiles."""
    axes = [*range(1 + RANK - rank, 1 + RANK)] + ([0] if heads > 1 else [])
    tile, group = [1] * (1 + RANK), [1] * (1 + RANK)
    for _ in range(4):
        tile[random.choice(axes)] *= 2
    for axis in axes:
        group[axis] = random.choice((1, 1, 2, 3))
    return Tiles(tuple(tile), tuple(group))  # pyright: ignore


def drawn_slab(random: Random, axes: Axes, tiles: Tiles) -> Tiles:
    """The same tiles in slabs: of one axis as many as share no key with the next but one."""
    whole = [1] * RANK
    extents = tiles.rows[1 + RANK - len(axes) :]
    for number, (axis, rows) in enumerate(zip(axes, extents, strict=True)):
        longest = max((group.queries for group in axis.classes()), default=0)
        whole[RANK - len(axes) + number] = max(-(-longest // rows), 1)
    number = random.randrange(len(axes))
    place, axis = RANK - len(axes) + number, axes[number]
    for groups in range(1, whole[place]):
        if Traversal(axis).separate(groups * extents[number]) and random.random() < 0.8:
            whole[place] = groups
            break
    return tiles._replace(slab=tuple(whole))  # pyright: ignore


def laid_out(random: Random, tensor: Tensor) -> Tensor:
    """The numbers of a tensor, or fewer that repeat, in other memory with NaN between."""
    if random.random() < 0.4:
        return tensor
    order = [*range(tensor.dim())]
    if random.random() < 0.6:
        random.shuffle(order)
    gaps = [random.choice((1, 1, 1, 2)) for _ in order]
    sizes = [tensor.shape[n] * gaps[n] for n in order]
    memory = torch.full(sizes, float("nan"), dtype=tensor.dtype)
    view = memory.permute([order.index(n) for n in range(tensor.dim())])
    view = view[tuple(slice(None, None, gap) for gap in gaps)].copy_(tensor)
    if random.random() < 0.2 and tensor.numel():
        repeated = random.randrange(tensor.dim())
        view = view.narrow(repeated, 0, 1).expand(tensor.shape)
    return view


def drawn_ranges(random: Random, batch: int, keys: Space) -> Tensor:
    ends = [
        [sorted((random.randrange(-1, n + 2), random.randrange(-1, n + 2))) for n in keys]
        for _ in range(batch)
    ]
    return torch.tensor(ends, dtype=torch.int32).reshape(batch, len(keys), 2)


def problem(seed: int) -> Problem:
    """The problem of a seed."""
    random = Random(seed)
    rank = random.choice((1, 1, 2, 2, 3))
    unusual = random.random()
    longest = LONGEST[rank]
    if unusual < 0.04 and rank == 1:
        longest = 900  # more scores than are kept at once
    table = random.random() < 0.4
    drawn = (drawn_axis(random, longest, table=table) for _ in range(rank))
    axes, *lengths = zip(*drawn, strict=True)
    rows, columns = ([slice(0, n) for n in side] for side in lengths)
    if random.random() < 0.15:
        rows, columns = ([drawn_part(random, n) for n in side] for side in lengths)
    groups, key_heads = random.choice((1, 1, 2, 3, 5)), random.choice((1, 2))
    made = Problem(
        Mask(*axes),
        [*zip(*lengths, strict=True)],
        rows,
        columns,
        random.choice(DTYPES),
        [drawn_tiles(random, rank, heads) for heads in (groups, groups, 1)],
        softcap=random.choice((None, None, None, 5.0, 0.7)),
    )
    dim, value_dim = random.choice(SIZES), random.choice(SIZES)
    if 0.04 < unusual < 0.08:
        dim, value_dim = random.choice(WIDE), random.choice((*WIDE, 3))
    if longest > 99:
        dim, value_dim, groups = min(dim, 4), min(value_dim, 3), min(groups, 2)
    made.scale = random.choice((dim**-0.5,) * 4 + (0.0, -0.3))
    sizes = (random.choice((1, 2)), groups * key_heads, key_heads, dim, value_dim)
    made.tensors = drawn_tensors(random, made, sizes)
    made.tensors |= drawn_additions(random, made, table=table)
    if made.dtype.itemsize >= 4 and "extra_key" not in made.tensors and random.random() < 0.6:
        one = drawn_slab(random, made.axes, drawn_tiles(random, rank, groups))
        made.tiles[1:] = [None, None, one]
    return made


def line(length: int) -> Tiles:
    """Tiles of sixteen neighbours on the last axis, and so many of them."""
    return Tiles((1, 1, 1, LANES), (1, 1, 1, length))


def problem_of(
    mask: Mask, queries: Space, keys: Space, sizes: Sequence[int], *,
    dtype: torch.dtype = torch.float32, tiles: Sequence[Tiles] = (line(1),) * 3,
    extra: int = 0, sink: bool = False, softcap: float | None = None,
    pairs: Tensor | None = None,
) -> Problem:  # fmt: skip
    """A problem with sizes batch, heads, key heads, D and Dv; all else is as usual."""
    lengths = [*zip(queries, keys, strict=True)]
    rows, columns = ([slice(0, n) for n in side] for side in (queries, keys))
    made = Problem(mask, lengths, rows, columns, dtype, [*tiles], softcap=softcap, pairs=pairs)
    batch, heads, key_heads, dim, value_dim = sizes
    made.scale = dim**-0.5
    generator = torch.Generator().manual_seed(dim + 7 * value_dim)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = {
        "query": (*queries, heads, dim), "key": (*keys, key_heads, dim),
        "value": (*keys, key_heads, value_dim), "grad_out": (*queries, heads, value_dim),
    }  # fmt: skip
    if extra:
        shapes |= {"extra_key": (extra, key_heads, dim)}
        shapes |= {"extra_value": (extra, key_heads, value_dim)}
    for name, shape in shapes.items():
        made.tensors[name] = torch.randn(batch, *shape, generator=generator).to(dtype)
    made.tensors["grad_lse"] = torch.randn(batch, *queries, heads, generator=generator).to(exact)
    if sink:
        made.tensors["sink"] = torch.randn(heads, generator=generator).to(exact)
    return made


def drawn_tensors(random: Random, made: Problem, sizes: Sequence[int]) -> dict[str, Tensor]:
    batch, heads, key_heads, dim, value_dim = sizes
    generator = torch.Generator().manual_seed(random.randrange(1 << 30))
    exact = torch.float64 if made.dtype == torch.float64 else torch.float32

    def normal(*shape: int, dtype: torch.dtype = made.dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    tensors = {
        "query": normal(batch, *made.queries, heads, dim),
        "key": normal(batch, *made.keys, key_heads, dim),
        "value": normal(batch, *made.keys, key_heads, value_dim),
    }
    if extra := random.choice((0, 0, 1, 3, 20)):
        tensors["extra_key"] = normal(batch, extra, key_heads, dim)
        tensors["extra_value"] = normal(batch, extra, key_heads, value_dim)
    tensors["grad_out"] = normal(batch, *made.queries, heads, value_dim)
    if random.random() < 0.3:
        tensors["sink"] = normal(heads, dtype=random.choice((exact, made.dtype)))
        tensors["sink"][random.randrange(heads)] = random.choice((0.5, -torch.inf))
    if random.random() < 0.5:
        tensors["grad_lse"] = normal(batch, *made.queries, heads, dtype=exact)
    tensors = {name: laid_out(random, tensor) for name, tensor in tensors.items()}
    if random.random() < 0.3 and all(made.keys):
        tensors["key_range"] = drawn_ranges(random, batch, made.keys)
        outside = ~dense_attention.inside(tensors["key_range"], made.keys)
        for name in ("key", "value"):
            tensors[name] = tensors[name].clone(memory_format=torch.contiguous_format)
            tensors[name][outside.reshape(batch, *made.keys)] = torch.nan
    return tensors


def drawn_additions(random: Random, made: Problem, *, table: bool) -> dict[str, Tensor]:
    """A table, slopes, and a range of the extra keys: those outside of it are NaN."""
    generator = torch.Generator().manual_seed(random.randrange(1 << 30))
    batch, heads = made.tensors["query"].shape[0], made.tensors["query"].shape[-2]
    exact = torch.float64 if made.dtype == torch.float64 else torch.float32
    added = {}
    if table and has_table(made.mask, made.axes):
        sizes = biases.table_sizes(made.mask.axes)
        entries = torch.randn((heads, *sizes), generator=generator)
        added["relative_bias"] = laid_out(random, entries.to(random.choice((exact, made.dtype))))
    one_line = made.mask.rank == 1 and made.mask.axes[0].border != "wrap"
    if one_line and random.random() < 0.4:
        shape = random.choice(((heads,), (batch, heads)))
        added["alibi_slopes"] = torch.rand(shape, generator=generator)
    extra = made.tensors.get("extra_key")
    if extra is not None and random.random() < 0.5:
        added["extra_range"] = drawn_ranges(random, batch, extra.shape[1:2])[:, 0]
        outside = ~dense_attention.inside(added["extra_range"][:, None], extra.shape[1:2])
        for name in ("extra_key", "extra_value"):
            added[name] = made.tensors[name].clone(memory_format=torch.contiguous_format)
            added[name][outside] = torch.nan
    return added


# Solving and judging

GRADIENTS = ("query", "key", "value", "sink", "extra_key", "extra_value", "relative_bias")


def solved(made: Problem, *, return_lse: bool = True) -> dict[str, Tensor]:
    """Output, logsumexp and gradients by the kernels."""
    given = made.tensors
    named = {name: given[name] for name in TENSORS if name in given}
    inputs = Inputs(**named, scale=made.scale, softcap=made.softcap)
    program = made.program
    out, lse = run.forward(program, inputs, return_lse=return_lse)
    assert lse is not None
    grad_lse = given.get("grad_lse")
    if grad_lse is not None and lse.isinf().any():  # whatever comes back for a row without keys
        grad_lse = torch.where(lse.isinf(), torch.nan, grad_lse)
    grads = run.backward(program, inputs, out, lse, given["grad_out"], grad_lse)
    found = {f"d{name}": getattr(grads, name) for name in GRADIENTS}
    return {"out": out, "lse": lse} | {n: t for n, t in found.items() if t is not None}


def wanted(made: Problem) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The same by definition, in float64; and the sizes of what gradients add up."""
    wide = {
        n: t.double() if t.is_floating_point() else t
        for n, t in made.tensors.items()
        if not n.startswith("grad")
    }
    leaves = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in wide.items()}
    numbers = {"scale": made.scale} | ({} if made.softcap is None else {"softcap": made.softcap})
    pairs = {"allowed": made.allowed, **made.positions}
    out, lse = dense_attention.attend(**leaves, **pairs, **numbers)
    grad_out, grad_lse = made.tensors["grad_out"].double(), made.tensors.get("grad_lse")
    ends, upward = [out], [grad_out]
    if grad_lse is not None:
        grad_lse = grad_lse.double().masked_fill(lse.isinf(), 0)
        ends, upward = [*ends, lse], [*upward, grad_lse]
    names = [name for name in GRADIENTS if name in leaves]
    grads = torch.autograd.grad(ends, [leaves[name] for name in names], upward)
    terms = dense_attention.score_gradients(wide, pairs, grad_out, grad_lse, numbers)
    return {"out": out, "lse": lse} | {
        f"d{name}": grad for name, grad in zip(names, grads, strict=True)
    }, terms


def judge(made: Problem, found: dict[str, Tensor]) -> None:
    """Within a few roundings of the sums that each number is."""
    exact, terms = wanted(made)
    assert found.keys() == exact.keys()
    double = made.dtype == torch.float64
    scores = largest_score(made)
    long = made.queries[-1] / 32  # as many roundings one way, where terms repeat
    sums = 5e-11 if double else (16 + scores + long) * torch.finfo(torch.float32).eps
    for name, tensor in found.items():
        own = 0.0 if name == "lse" else torch.finfo(made.dtype).eps
        least = torch.finfo(tensor.dtype).smallest_normal  # below it, digits do not become smaller
        size = max(terms.get(name, 0.0), least)
        dense_attention.judge(name, tensor, exact[name], exact[name], sums + own, size)
    if made.tensors.get("key_range") is not None:
        outside = ~dense_attention.inside(made.tensors["key_range"], made.keys)
        for name in ("dkey", "dvalue"):
            assert not found[name].flatten(1, -3)[outside].any(), name
    if "extra_range" in made.tensors:
        extra = found["dextra_key"].shape[1:2]
        outside = ~dense_attention.inside(made.tensors["extra_range"][:, None], extra)
        for name in ("dextra_key", "dextra_value"):
            assert not found[name][outside].any(), name


def largest_score(made: Problem) -> float:
    """The last digit of a weight that is recomputed as exp(score - lse) is that of the score; a
    cap does not shrink the digits of a score near 0 that is a sum of large numbers.
    """
    norms = [
        made.tensors[name].double().nan_to_num(0).norm(dim=-1).flatten().tolist()
        for name in ("query", "key", "extra_key")
        if name in made.tensors
    ]
    query, *keys = (max([0.0, *norm]) for norm in norms)
    table, slopes = (made.tensors.get(name) for name in ("relative_bias", "alibi_slopes"))
    added = 0.0 if table is None else dense_attention.largest(table)
    if slopes is not None:
        added += float(slopes.max()) * dense_attention.largest(made.positions["distances"])
    return abs(made.scale) * query * max(keys) + added


def check(seed: int) -> None:
    """Raises AssertionError, with the problem, if the kernels are wrong for a seed."""
    made = problem(seed)
    try:
        judge(made, solved(made))
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}: {made}") from error


def main(first: int, last: int) -> int:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # new tensors hold NaN
    wrong = 0
    for seed in range(first, last):
        try:
            check(seed)
        except Exception as error:
            wrong += 1
            print(f"seed {seed}: {type(error).__name__} {error}", flush=True)
        if seed % 500 == 499:
            print(f"{seed + 1 - first} problems, {wrong} wrong", flush=True)
    print(f"end: {last - first} problems, {wrong} wrong", flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
