"""The tensor maps of a problem for the kernels of sm_90a, computed without the code that the
backend uses, so that a mistake of either shows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING

from torch import Tensor

from nbattn.kernels.tensor_maps import TensorMap

if TYPE_CHECKING:
    from emulator.problem import Problem

Three = tuple[int, int, int]
KERNEL_TENSORS = {  # in the order of cuda/boxes.cuh; "any" ones are by position
    "fwd": ("query", "", "key", "value", "extra_key", "extra_value"),
    "dq": ("query", "grad_out", "key", "value", "extra_key", "extra_value"),
    "dkdv": ("query", "grad_out", "key", "value", "extra_key", "extra_value", "query", "grad_out"),
}
PLACES, BOXES_BYTES = 8, 400  # boxes of each place, and padding up to the maps


def maps_of(
    p: Problem, kernel: str, made: dict[str, Tensor]
) -> tuple[tuple[TensorMap, ...], bytes]:
    """The maps of a launch, and the bytes that say where boxes are in them."""
    maps: list[TensorMap] = []
    boxes: list[int] = []
    query_tile, key_tile = (p.columns, p.rows) if kernel == "dkdv" else (p.rows, p.columns)
    for place, name in enumerate(KERNEL_TENSORS[kernel]):
        if name not in made:
            boxes += [0] * 12
            continue
        tensor, extra = made[name], name.startswith("extra")
        tile: Three = query_tile if name in ("query", "grad_out") else key_tile
        if extra:
            tensor = tensor.unsqueeze(1).unsqueeze(1)
            tile = (1, 1, key_tile[0] * key_tile[1] * key_tile[2])
        plain = extra or place > 5
        dilations = [1 if plain else axis.dilation for axis, _, _ in p.axes(kernel)]
        while tensor.dim() < 6:
            tensor = tensor.unsqueeze(1)
        made_maps, ints = of_tensor(name, tensor, tile, dilations, p.ways, len(maps))
        maps += made_maps
        boxes += ints
    boxes += [0] * (12 * PLACES - len(boxes))
    return tuple(maps), struct.pack(f"<{12 * PLACES}i", *boxes).ljust(BOXES_BYTES, b"\0")


def of_tensor(
    name: str, tensor: Tensor, tile: Three, dilations: list[int], ways: str, first: int
) -> tuple[list[TensorMap], list[int]]:
    """The maps of `[B, a0, a1, a2, H, D]`, and its 12 numbers of `Boxes`."""
    batch, *space, heads, channels = tensor.shape
    batch_step, *steps, head_step, _ = tensor.stride()
    item = tensor.element_size()
    atom = next(n for n in (64, 32, 16) if channels % n == 0)
    outer_heads = head_step > max(steps[axis] for axis in range(3) if space[axis] > 1)
    inner = channels if outer_heads else (heads - 1) * head_step + channels
    outer, outer_step = (batch * heads, head_step) if outer_heads else (batch, batch_step)
    divide, map_steps, fold = [0, 0, 0], [0, 0, 0], 0
    traversal = [1, 1, 1]
    classes: list[list[tuple[int, int]]] = []  # per axis: (offset, length) of each map
    for axis in range(3):
        d, n = dilations[axis], space[axis]
        whole = [(0, n)]
        if d > 1 and ways == "fold" and axis == 2 and n % d == 0:
            divide[axis], fold = 1, steps[axis]
            inner += (d - 1) * steps[axis]
            steps[axis] *= d
            whole = [(0, n // d)]
        elif d > 1 and ways == "classes":
            whole = [(r * steps[axis], -(-(n - r) // d)) for r in range(min(d, n))]
            divide[axis] = 1
            steps[axis] *= d
        else:
            traversal[axis] = d
        classes.append(whole)
    for axis in (2, 1, 0):
        later = [len(classes[other]) for other in range(axis + 1, 3)]
        count = 1
        for size in later:
            count *= size
        map_steps[axis] = count if divide[axis] and len(classes[axis]) > 1 else 0
    known = list(_maps(name, classes, steps, traversal, tile, inner, outer, outer_step, atom, item))
    ints = [*divide, fold, *map_steps, first]
    ints += [0, 1, heads, 0] if outer_heads else [head_step, 0, 1, 0]
    return known, ints


def _maps(
    name: str,
    classes: list[list[tuple[int, int]]],
    steps: list[int],
    traversal: list[int],
    tile: Three,
    inner: int,
    outer: int,
    outer_step: int,
    atom: int,
    item: int,
) -> Iterator[TensorMap]:
    for axes in product(*classes):
        yield TensorMap(
            tensor=name,
            offset=sum(offset for offset, _ in axes) * item,
            sizes=(inner, *(length for _, length in axes[::-1]), outer),
            strides=tuple(max(n, 8) * item for n in (*steps[::-1], outer_step)),
            box=(atom, *(t * n for t, n in zip(tile[::-1], traversal[::-1], strict=True)), 1),
            steps=(1, *traversal[::-1], 1),
            swizzle=2 * atom,
        )
