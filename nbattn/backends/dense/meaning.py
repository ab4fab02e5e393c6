"""The masks that `reference` and `sdpa` support: none, top-left causal, or an explicit matrix.

Torch's `scaled_dot_product_attention` documents `is_causal` as a lower triangle from the top-left
corner. Its CPU kernel takes one head size, divides by zero without keys, and gives rows without
keys a logsumexp of 0. On CUDA it takes one of four kernels (`kernels.py`). Samples and heads are
the second and third dimension of the grids of its Flash and memory-efficient kernels, and cuDNN
takes fewer than 65,536 samples: PyTorch's issues 142228, 146704, 181085. Newer versions split the
batch for one of the three. The math kernel has no grid of its own; it keeps all scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nbattn.backends.dense.kernels import TILES, Taken
from nbattn.geometry import Axes, Ints
from nbattn.program.blocks import Block, blocks_of_groups
from nbattn.program.limits import GRID, READS_ALL_EXTRAS, Limits
from nbattn.program.program import Call
from nbattn.program.request import Request

REFERENCE = Limits(name="reference", extra_range=True, relative_bias=True, alibi_slopes=True)
_MATRIX = "torch adds a matrix of all pairs of every head, whose gradient is as large"
_WHY = (READS_ALL_EXTRAS, ("relative_bias", _MATRIX), ("alibi_slopes", _MATRIX))
SDPA_CPU = Limits(
    name="sdpa", softcap=False, key_range=False, value_dim=False, lse_gradient=False, why=_WHY
)
SDPA = Limits(
    name="sdpa", softcap=False, key_range=False, lse=False, deterministic=False, why=_WHY
)  # the public function
SDPA_CUDA = replace(SDPA, grid=GRID)
SCORES_LIMIT = 1 << 34  # bytes of scores of the math kernel: all memory of a T4, the smallest GPU
_CPU_KEYS = 512  # keys per block of torch's CPU kernel
MASK_LIMIT = 1 << 22  # pairs of an explicit matrix: 16 MiB in float32


@dataclass(frozen=True, slots=True)
class NoMask:
    """Every query attends to every key.

    `taken` is, here and below, what torch runs on CUDA.
    """

    taken: Taken | None = None

    def key_runs(self, number: int, queries: int, keys: int) -> tuple[Ints, Ints, int]:
        """Returns all keys, per query."""
        counts = np.zeros((queries, 2), dtype=np.int64)
        counts[:, 1] = keys
        return np.zeros_like(counts), counts, 1

    def allowed(self, queries: tuple[int, ...], keys: tuple[int, ...]) -> NDArray[np.bool_]:
        """Returns a matrix of True."""
        return np.ones((math.prod(queries), math.prod(keys)), dtype=np.bool_)

    def computed(self, queries: int, keys: int) -> int:
        """Returns the pairs that the kernel computes."""
        return queries * keys

    def blocks(self, request: Request, call: Call, *, backward: bool) -> Iterator[Block]:
        """Yields one block per group."""
        return blocks_of_groups(call.query, call.key, full=True)

    def describe(self) -> str:
        """Describes the arguments in words."""
        return _described("no mask", self.taken)


@dataclass(frozen=True, slots=True)
class TopLeftCausal:
    """Query i attends to keys 0 … i (top-left). Only `axis` is longer than one position."""

    axis: int
    taken: Taken | None = None

    def key_runs(self, number: int, queries: int, keys: int) -> tuple[Ints, Ints, int]:
        """Returns the first i + 1 keys on the causal axis, all keys on the others."""
        starts, counts, step = NoMask().key_runs(number, queries, keys)
        if number == self.axis:
            counts[:, 1] = np.minimum(np.arange(queries) + 1, keys)
        return starts, counts, step

    def allowed(self, queries: tuple[int, ...], keys: tuple[int, ...]) -> NDArray[np.bool_]:
        """Returns the lower triangle."""
        return np.tri(math.prod(queries), math.prod(keys), dtype=np.bool_)

    def computed(self, queries: int, keys: int) -> int:
        """Returns the pairs that the kernel computes: for every block of queries, whole blocks of
        keys up to the last query's; all pairs in torch's math kernel.
        """
        rows, columns = 256 if queries >= 768 else 64 if queries >= 192 else 32, _CPU_KEYS
        if self.taken is not None:
            if self.taken.forward not in TILES:
                return queries * keys
            rows, columns = TILES[self.taken.forward]
        ends = np.minimum(np.arange(rows, queries + rows, rows), queries)
        reach = np.minimum(-(-ends // columns) * columns, keys)
        return int((np.diff(ends, prepend=0) * reach).sum())

    def blocks(self, request: Request, call: Call, *, backward: bool) -> Iterator[Block]:
        """Yields one block per group."""
        return blocks_of_groups(call.query, call.key, full=False)

    def describe(self) -> str:
        """Describes the arguments in words."""
        return _described("is_causal, top-left", self.taken)


@dataclass(frozen=True, slots=True)
class DenseMask:
    """The mask itself, as a matrix."""

    axes: Axes
    taken: Taken | None = None

    def key_runs(self, number: int, queries: int, keys: int) -> tuple[Ints, Ints, int]:
        """Returns the mask's rows."""
        starts, counts = self.axes[number].key_runs()
        return starts, counts, self.axes[number].spec.dilation

    def allowed(self, queries: tuple[int, ...], keys: tuple[int, ...]) -> NDArray[np.bool_]:
        """Returns the mask as a matrix."""
        matrix = np.ones((1, 1), dtype=np.bool_)
        for axis in self.axes:
            matrix = np.kron(matrix, axis.dense())
        return matrix

    def computed(self, queries: int, keys: int) -> int:
        """Returns the pairs that the kernel computes."""
        return queries * keys

    def blocks(self, request: Request, call: Call, *, backward: bool) -> Iterator[Block]:
        """Yields one block per group."""
        return blocks_of_groups(call.query, call.key, full=False)

    def describe(self) -> str:
        """Describes the arguments in words."""
        return _described("explicit mask", self.taken)


def _described(arguments: str, taken: Taken | None) -> str:
    """Returns a call's arguments in words, with the kernels that torch takes for them."""
    return arguments if taken is None else f"{arguments}, {taken.describe()}"


DenseArguments = NoMask | TopLeftCausal | DenseMask
