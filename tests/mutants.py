"""Small mistakes to put into a copy of the package, and which test files catch each.

`python tests/mutants.py [name…]` is run by hand: every mutant, or those named. It fails where a
mutant survives all of its files, its text is not there exactly once, or a file fails without it.

`python tests/mutants.py --index` runs nothing and prints the index from rule to test: for every
source file its mutants, what of the file each breaks and what stands there instead, and the files
of tests that catch it, the likeliest first. The last column of the table names those files by their
paths without `test_`: "planner/proof whole/support" is `tests/planner/test_proof.py` and
`tests/whole/test_support.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = 2
SEEN = frozenset({"fails", "hangs", "crashes"})
SECONDS = 300  # of one file; a mutant that hangs it is caught
GEOMETRY = "nbattn/geometry.py"
ROWS = "nbattn/rows.py"
ALIGNMENT = "nbattn/alignment.py"
PIECEWISE_SUM = "nbattn/piecewise_sum.py"
BANDS = "nbattn/program/bands.py"
PROGRAM = "nbattn/program/program.py"
DENSE_PIECES = "nbattn/program/dense_pieces.py"
BAND_PIECES = "nbattn/program/band_pieces.py"
CALLS = "nbattn/backends/calls.py"
INPUTS = "nbattn/backends/inputs.py"
SDPA = "nbattn/backends/dense/run.py"
TILED = "nbattn/backends/tiled/run.py"
SCHEDULE = "nbattn/backends/tiled/schedule.py"
TILED_ADDED = "nbattn/backends/tiled/added.py"
FLASH_MEANING = "nbattn/backends/flash/meaning.py"
FLASH_CANDIDATES = "nbattn/backends/flash/candidates.py"
FLASH_COSTS = "nbattn/backends/flash/costs.py"
FLASH_PACKING = "nbattn/backends/flash/packing.py"
FLASH_GRIDS = "nbattn/backends/flash/grids.py"
GRID_SIZES, GATHERED = "nbattn/grids.py", "nbattn/backends/gathered.py"
GATHERING, PACKED = "nbattn/planner/gathering.py", "nbattn/program/packed.py"
PACKED_PROOF = "nbattn/planner/packed_proof.py"
FLASH_SLOPES = "nbattn/backends/flash/slopes.py"
FLASH_RANGES = "nbattn/backends/flash/ranges.py"
SDPA_KERNELS = "nbattn/backends/dense/kernels.py"
CUDA_MEANING = "nbattn/backends/cuda/meaning.py"
CUDA_PIPES = "nbattn/backends/cuda/pipes.py"
CUDA_TILES = "nbattn/backends/cuda/tiles.py"
TILE_TRAVERSAL = "nbattn/program/tile_traversal.py"
NATIVE_MEANING = "nbattn/backends/native/meaning.py"
NATIVE_TILES = "nbattn/backends/native/tiles.py"
NATIVE_COSTS = "nbattn/backends/native/costs.py"
CUDA = "nbattn/backends/cuda/run.py"
LAYOUT = "nbattn/kernels/layout.py"
NATIVE = "nbattn/backends/native/run.py"
CPU_KERNELS, CPU_TILES, CPU_VISIT = "cpu/kernels.cpp", "cpu/tiles.h", "cpu/visit.h"
CPU_FORWARD, CPU_BACKWARD, CPU_WORKER = "cpu/forward.h", "cpu/backward.h", "cpu/worker.h"
CPU_VECTOR, CPU_ELEMENT, CPU_POOL = "cpu/vector.h", "cpu/element.h", "cpu/pool.h"
JOINT_PLAN = "nbattn/planner/joint_plan.py"
NOTEBOOK, NOTICES = "nbattn/notebook.py", "nbattn/planner/notices.py"
CPU_ITEMS, CPU_WALK = "cpu/items.h", "cpu/walk.h"
CUDA_GRIDS = "cuda/grids.cuh"
MEASURED_TILES = "nbattn/backends/cuda/measured_tiles.py"
KERNEL_TIMES = "nbattn/backends/cuda/kernel_times.py"
COST_TABLE = "nbattn/planner/cost_table.py"
TUNE = "nbattn/tune.py"
FLEX = "nbattn/backends/flex/run.py"
FLEX_MEANING = "nbattn/backends/flex/meaning.py"
PLANNER = "nbattn/planner/planner.py"
REMEDIES = "nbattn/planner/remedies.py"
SYNONYMS = "nbattn/synonyms.py"
NOTATION = "nbattn/config/notation.py"
ANSWERS = "nbattn/config/answers.py"
PROOF = "nbattn/planner/proof.py"
EXECUTE = "nbattn/execute.py"
OPS = "nbattn/ops.py"
AUTOGRAD = "nbattn/autograd.py"
FUNCTIONAL = "nbattn/functional.py"
GRAPH_MASKS = "nbattn/export/graph_masks.py"
JOINING = "nbattn/joining.py"
LAYER, PROJECTIONS, LAYER_INPUTS, LAYER_WORDS, PARALLEL = (
    f"nbattn/nn/{name}.py" for name in ("layer", "projections", "inputs", "words", "parallel")
)
DRAW = "nbattn/draw.py"
FILES = "nbattn/config/files.py"
GRAMMAR = "nbattn/config/grammar.py"
LOADER = "nbattn/config/__init__.py"
DEMO = "nbattn/demo/denoise.py"
HF = "nbattn/integrations/transformers.py"
HF_RULES = "nbattn/integrations/mask_functions.py"
ALIBI, SWIN = (f"nbattn/integrations/{name}.py" for name in ("alibi_models", "swin"))
FUSED, UNFUSED, NEIGHBORHOOD_GATHER, LEGACY, MODULES, PARAMETERS, DINAT = (
    f"nbattn/integrations/natten/{name}.py"
    for name in (
        *("fused", "unfused", "neighborhood_gather", "legacy", "modules", "parameters", "dinat"),
    )
)
SOURCES, NVRTC, CUBINS, LAUNCH, STORE, HOST, COMPILERS = (
    f"nbattn/kernels/{name}.py"
    for name in ("sources", "nvrtc", "cubins", "launch", "store", "host", "compilers")
)
WARP, MEMORY, COPIES, FIBERS, EMULATOR, TWINS = (
    f"tests/emulator/{name}"
    for name in (
        *("warp.cpp", "memory.cpp", "copies.cpp", "fibers.cpp", "emulator.h", "emulated_ptx.h"),
    )
)


class Mutant(NamedTuple):
    """A mistake: one text in one file becomes another, and these test files may see it."""

    name: str
    path: str
    old: str
    new: str
    files: str


# fmt: off
MUTANTS = [
    # borders
    Mutant("clip-left", ROWS, "lo, hi = ops.maximum(lo, 0)",
           "lo, hi = ops.maximum(lo + 1, 0)", "whole/literal_masks whole/natten_semantics"),
    Mutant("clip-right", ROWS, "ops.minimum(hi, keys)",
           "ops.minimum(hi - 1, keys)", "whole/literal_masks whole/natten_semantics"),
    Mutant("shift-start", ROWS, "ops.maximum(lo, 0), last)",
           "ops.maximum(lo, 1), last)", "whole/literal_masks whole/natten_semantics"),
    Mutant("shift-end", ROWS, "keys - window)",
           "keys - window - 1)", "whole/literal_masks whole/natten_semantics"),
    Mutant("wrap-start", ROWS, "start, length = lo % ops",
           "start, length = (lo + 1) % ops", "whole/literal_masks whole/metamorphic"),
    Mutant("wrap-length", ROWS, "ops.minimum(hi - lo, keys)",
           "ops.minimum(hi - lo + 1, keys)", "whole/literal_masks whole/metamorphic"),
    Mutant("wrap-seam", ROWS, "low = ops.maximum(start + length - keys, 0)",
           "low = ops.maximum(start + length - keys - 1, 0)",
           "whole/literal_masks whole/metamorphic"),
    # alignment
    Mutant("top-left", GEOMETRY, '"bottom-right" else 0', '"bottom-right" else 1',
           "whole/literal_masks"),
    Mutant("bottom-right", GEOMETRY, "corner = keys - queries if",
           "corner = keys - queries - 1 if", "whole/literal_masks whole/metamorphic"),
    Mutant("an alignment guessed", ALIGNMENT, "return queries != keys and axis.align is None",
           "return False and axis.align is None", "whole/messages alignment mask"),
    Mutant("offset-sign", GEOMETRY, "return corner + self.spec.offset",
           "return corner - self.spec.offset", "whole/literal_masks whole/metamorphic"),
    # leader of a stride group
    Mutant("leader-plain", ROWS, "else axis.stride // 2", "else (axis.stride - 1) // 2",
           "whole/literal_masks whole/natten_semantics"),
    Mutant("leader-causal", ROWS, "return axis.stride - 1 if axis.causal",
           "return axis.stride // 2 if axis.causal", "whole/literal_masks whole/natten_semantics"),
    Mutant("leader-unclamped", ROWS, "ops.minimum(leader, keys - 1), leader)",
           "leader, leader)", "whole/literal_masks whole/natten_semantics"),
    Mutant("leader-clamped-past-end", ROWS, "leader = ops.where(base < keys,",
           "leader = ops.where(base <= keys,", "whole/literal_masks geometry"),
    # causal bound, prefix
    Mutant("causal-bound", ROWS, "hi = ops.minimum(hi, u + 1)", "hi = ops.minimum(hi, u + 2)",
           "whole/literal_masks whole/natten_semantics"),
    Mutant("prefix-plain", ROWS, "prefix = ops.minimum(axis.prefix, keys)",
           "prefix = ops.minimum(max(axis.prefix - 1, 0), keys)",
           "whole/literal_masks whole/metamorphic"),
    Mutant("prefix-causal", ROWS, "ops.maximum(u + 1, 0), prefix)",
           "ops.maximum(u + 2, 0), prefix)",
           "whole/literal_masks whole/metamorphic"),
    Mutant("prefix-without-window", ROWS, "ops.where(empty, prefix,", "ops.where(empty, 0,",
           "whole/literal_masks whole/metamorphic"),
    # residue classes
    Mutant("residue-keys", GEOMETRY, "np.maximum(0, -((residue - self.lengths[1]) // d))",
           "np.maximum(0, (self.lengths[1] - residue) // d)",
           "whole/literal_masks whole/natten_semantics"),
    Mutant("class-keys", GEOMETRY,
           "max(0, _ceil_div(first + axis.keys - residue, d)) - skip",
           "max(0, (first + axis.keys - residue) // d) - skip",
           "program/dense_pieces whole/parts_of_axes"),
    Mutant("class-start", GEOMETRY, "start = _ceil_div(o - residue, d)",
           "start = (o - residue) // d", "geometry"),
    # queries of a key
    Mutant("inverse-since", ROWS, "since = -((t - right - c) // -s) * s",
           "since = (t - right - c) // s * s", "geometry whole/metamorphic"),
    Mutant("inverse-until", ROWS, "until = (t + left - c) // s * s + s",
           "until = (t + left - c) // s * s + 1", "geometry whole/metamorphic"),
    Mutant("inverse-clamp", ROWS, "ops.where(t + left >= keys - 1",
           "ops.where(t + left > keys - 1",
           "geometry"),
    Mutant("inverse-shift-first", ROWS, "ops.where(t < window, -FAR",
           "ops.where(t < window - 1, -FAR",
           "geometry whole/metamorphic"),
    Mutant("inverse-shift-last", ROWS, "ops.where(t >= keys - window, FAR",
           "ops.where(t > keys - window, FAR", "geometry whole/metamorphic"),
    Mutant("inverse-causal", ROWS, "since = ops.maximum(since, t)",
           "since = ops.maximum(since, t + 1)",
           "geometry whole/metamorphic"),
    Mutant("inverse-prefix", ROWS, "ops.where(t < axis.prefix, FAR",
           "ops.where(t <= axis.prefix, FAR",
           "geometry"),
    Mutant("inverse-wrap", GEOMETRY, "laps = (-keys, 0, keys)", "laps = (-keys, 0)",
           "geometry whole/metamorphic"),
    # hulls of tiles
    Mutant("totals-bends", GEOMETRY, "for u in self._bends(group)]",
           "for u in self._bends(group)[:1]]", "geometry_tiles"),
    Mutant("totals-last-tile", GEOMETRY, "size * keys + rows * end",
           "size * (keys + end)", "geometry_tiles"),
    Mutant("hull-first-row", GEOMETRY, "lo, _, _ = window_of(self.spec, first,",
           "lo, _, _ = window_of(self.spec, first + 1,",
           "planner/planner planner/proof planner/plan whole/support"),
    Mutant("hull-last-row", GEOMETRY, "np.minimum(first + size, stop) - 1",
           "np.minimum(first + size, stop) - 2",
           "planner/planner planner/proof planner/plan whole/support"),
    Mutant("hull-seam", GEOMETRY, "np.where(lo >= gap_end, gap, 0)",
           "np.where(lo > gap_end, gap, 0)",
           "planner/planner planner/proof planner/plan whole/support"),
    Mutant("hull-prefix-end", GEOMETRY, "_, hi, prefix = window_of(self.spec, last, group.length)",
           "hi = window_of(self.spec, last, group.length)[1]\n"
           "        prefix = window_of(self.spec, first, group.length)[2]", "geometry_tiles"),
    # number of pairs
    Mutant("bends-of-keys", GEOMETRY, "corners = {0, group.length}",
           "corners = {0}",
           "geometry"),
    Mutant("bends-of-sides", ROWS, "(left, right, left + right)", "(left + right,)",
           "geometry"),
    Mutant("bends-of-prefix", ROWS, "ends = {*corners, axis.prefix}", "ends = {*corners}",
           "geometry"),
    Mutant("bends-of-walks", TILE_TRAVERSAL, "for u in bends(self.axis.spec, corners)]",
           "for u in bends(self.axis.spec, {0})]", "program/tile_traversal"),
    Mutant("bends-of-held-walks", TILE_TRAVERSAL, "corners |= {end + lap for end in",
           "corners |= {0 * end * lap for end in", "whole/parts_of_axes"),
    Mutant("walk-held-keys", TILE_TRAVERSAL, "(group.first, group.skip) if keys",
           "(group.first, 0) if keys", "whole/parts_of_axes backends/native/meaning"),
    Mutant("walk-held-rows", TILE_TRAVERSAL, "(group.skip, group.keys) if self.inverse",
           "(0, group.keys) if self.inverse", "whole/parts_of_axes backends/native/meaning"),
    Mutant("walk-not-cut", TILE_TRAVERSAL, "return hull if self.axis.held is None else",
           "return hull if self.axis.held != () else", "whole/parts_of_axes"),
    Mutant("series-short", PIECEWISE_SUM,
           "(b - a) // 2 for n", "(b - a - 1) // 2 for n",
           "piecewise_sum program/tile_traversal geometry_tiles"),
    # walks of the CUDA kernels
    Mutant("walk-first-column", TILE_TRAVERSAL, "lo = np.maximum(lo, prefix)",
           "lo = np.maximum(lo + 1, prefix)", "program/tile_traversal"),
    Mutant("walk-lap", TILE_TRAVERSAL, "(lo, np.minimum(hi, lo + keys))", "(lo, hi)",
           "program/tile_traversal"),
    Mutant("walk-seam", TILE_TRAVERSAL, "(0 * lo, past))", "(0 * lo + 1, past))",
           "program/tile_traversal"),
    Mutant("walk-lap-end", TILE_TRAVERSAL, "span[1] + lap - keys)", "span[1] + lap - keys + 1)",
           "program/tile_traversal"),
    Mutant("held-of-the-whole-axis", LAYOUT, "return axis.queries, axis.first_key, axis.keys",
           "return axis.lengths[0], axis.first_key, axis.lengths[1]", "whole/window_sweep"),
    Mutant("walk-full-too-early", TILE_TRAVERSAL, "((tail, head), (zero, some))",
           "((lo, head), (zero, some))", "program/tile_traversal"),
    Mutant("walk-prefix-seam", TILE_TRAVERSAL, "np.where(prefixed & (last >= axis.prefix), after,",
           "np.where(prefixed, head,",
           "program/tile_traversal"),
    # the native kernels: tiles, costs, arguments
    Mutant("native-lanes-unfilled", NATIVE_TILES, "last * (LANES // math.prod(largest))", "last",
           "backends/native/tiles"),
    Mutant("native-scratch", NATIVE_TILES, "LANES * max(STATE", "LANES * max(8 * STATE",
           "backends/native/tiles"),
    Mutant("native-few-items", NATIVE_TILES, "_WAITING = 8 / 2", "_WAITING = 0",
           "backends/native/tiles"),
    Mutant("native-tiny-items", NATIVE_TILES, "WORTH = 20e-6", "WORTH = 1e-9",
           "backends/native/tiles"),
    Mutant("native-slopes-of-samples-cached", NATIVE,
           "        _slope_step(inputs),\n        inputs.scale,", "        inputs.scale,",
           "backends/native/run_added"),
    Mutant("native-table-dtype", NATIVE, '["relative_bias"].to(bias.dtype)', '["relative_bias"]',
           "backends/native/run_added"),
    Mutant("native-large-tables", NATIVE_MEANING, "if entries <= ENTRIES:",
           "if entries <= 2 * ENTRIES:", "backends/native/candidates"),
    Mutant("native-heads-of-columns", NATIVE_TILES, "Work(columns * times, summed * times",
           "Work(columns, summed * times", "backends/native/tiles"),
    Mutant("native-quarters-of-eight", NATIVE_TILES, "LANES // QUARTERS, []", "LANES // 2, []",
           "backends/native/tiles"),
    Mutant("native-lines-of-a-quarter", NATIVE_TILES, "(*quarter[1:-1], tile[-1])",
           "(*tile[1:-1], tile[-1])", "backends/native/tiles"),
    Mutant("native-inverse-by-queries", NATIVE_TILES, "Traversal(axis, inverse=True)",
           "Traversal(axis)", "backends/native/tiles"),
    Mutant("native-tiles-of-one-head", NATIVE_TILES, "of_heads = -(-self.heads // rows[0])",
           "of_heads = self.heads // rows[0]", "backends/native/tiles"),
    Mutant("native-products", NATIVE_COSTS, '"grad_key": keys + values',
           '"grad_key": keys', "backends/native/costs"),
    Mutant("native-pairs-of-lanes", NATIVE_COSTS, "per_head = LANES / request",
           "per_head = 1 / request", "backends/native/costs"),
    Mutant("native-free-extra-keys", NATIVE_COSTS, "(work.columns + work.extra)", "(work.columns)",
           "backends/native/costs"),
    Mutant("native-without-compiler", NATIVE_MEANING, "if not exceeded and PACKAGE",
           "if exceeded and PACKAGE", "backends/native/candidates"),
    Mutant("native-backward-unproved", NATIVE_MEANING,
           "self.grad_all or self.grad_query, self.grad_key)",
           "self.grad_all or self.grad_query, None)", "backends/native/meaning"),
    Mutant("native-blocks-inverse", NATIVE_MEANING, "*extents, inverse=inverse):\n            rows",
           "*extents, inverse=False):\n            rows", "backends/native/meaning"),
    Mutant("native-slabs-unproved", NATIVE_MEANING, "if times.size and times.max() > 1:",
           "if False:", "backends/native/meaning"),
    Mutant("native-slabs-of-all-classes", NATIVE_MEANING, "% axis.spec.dilation\n", "* 0\n",
           "backends/native/meaning"),
    Mutant("native-next-slabs", TILE_TRAVERSAL, "(hi[:-2] > lo[2:])", "(hi[:-2] > lo[2:] + 1)",
           "program/tile_traversal"),
    Mutant("native-slabs-of-a-ring", TILE_TRAVERSAL,
           'self.axis.spec.border == "wrap" or self.axis.spec.prefix:', "self.axis.spec.prefix:",
           "program/tile_traversal"),
    Mutant("native-slabs-of-a-prefix", TILE_TRAVERSAL,
           'self.axis.spec.border == "wrap" or self.axis.spec.prefix:',
           'self.axis.spec.border == "wrap":', "program/tile_traversal"),
    Mutant("native-sums-in-halves", NATIVE_TILES, 'ADDED = ("float32", "float64")',
           'ADDED = ("float32", "float64", "float16")', "backends/native/tiles"),
    Mutant("native-sums-of-extra-keys", NATIVE_TILES, "not in ADDED or request.extra_keys:",
           "not in ADDED:", "backends/native/tiles"),
    Mutant("native-few-long-slabs", NATIVE_TILES, "return chosen, self.classes * at_a_time",
           "return chosen, 1e6", "backends/native/tiles"),
    # the CUDA kernels: tiles, arguments, launches
    Mutant("cuda-shared-bytes", CUDA_TILES, "stage = columns * (head + value + 8 *",
           "stage = columns * (head + value + 4 *", "backends/cuda/run"),
    Mutant("cuda-accumulators", CUDA_TILES, "return tiles.row_blocks * (dv + columns) // 2",
           "return tiles.row_blocks * (dv + columns) // 4",
           "backends/cuda/tiles backends/cuda/candidates"),
    Mutant("cuda-l2-unread", CUDA_PIPES, "return mine * max(work, read)", "return mine * work",
           "backends/cuda/pipes"),
    Mutant("cuda-one-block", CUDA_PIPES, "min(on.memory // memory, REGISTERS // registers)",
           "1", "backends/cuda/pipes backends/cuda/choice"),
    Mutant("cuda-shared-memory-for-one", CUDA_PIPES, '"shared": SCHEDULERS * self.words',
           '"shared": self.words', "backends/cuda/pipes"),
    Mutant("cuda-nothing-masked", "nbattn/backends/cuda/choice.py",
           "min(1.0, 2 - 2 * useful / max(one.pairs, 1))", "0.0", "backends/cuda/choice"),
    Mutant("cuda-narrow-columns", CUDA_TILES, '"mma": (64, 32)', '"mma": (64,)',
           "backends/cuda/choice backends/cuda/tiles"),
    Mutant("cuda-memory", CUDA_MEANING, "dict.fromkeys((86, 89, 120, 121), 99 << 10)",
           "dict.fromkeys((86, 89, 120, 121), 163 << 10)",
           "backends/cuda/tiles"),
    Mutant("cuda-row-tiles", CUDA_TILES, "classes = min(axis.spec.dilation, length)",
           "classes = 1", "backends/cuda/run"),
    Mutant("cuda-extra-blocks", CUDA, "-(-extra // tiles.row_count) if inverse else 0)",
           "0)", "backends/cuda/run backends/cuda/run_grids"),
    Mutant("cuda-key-heads", CUDA, "tiles[2] * batch * kv_heads",
           "tiles[2] * batch", "backends/cuda/run"),
    Mutant("cuda-group", CUDA, "heads // packed // kv_heads, extra", "1, extra",
           "backends/cuda/run"),
    Mutant("cuda-two-runs", CUDA_MEANING, 'axis.spec.border == "wrap" or axis.spec.prefix',
           'axis.spec.border == "wrap"',
           "backends/cuda/run backends/cuda/meaning backends/cuda/candidates"),
    Mutant("cuda-offset", LAYOUT, "        axis.offset,\n", "        axis.spec.offset,\n",
           "backends/cuda/run whole/window_sweep"),
    Mutant("cuda-side", LAYOUT, "FAR if side is None else min(side, FAR)",
           "axis.keys if side is None else min(side, FAR)", "whole/window_sweep"),
    Mutant("cuda-strides", LAYOUT, "(0,) * (_RANK - len(axes)), *steps, head",
           "(0,) * (_RANK - len(axes)), *[*steps][::-1], head", "backends/cuda/run"),
    Mutant("cuda-vector-pointers", CUDA, "tensor.data_ptr() % _COPY", "0", "backends/cuda/run"),
    Mutant("cuda-vector-strides", CUDA, "vector = aligned and all(",
           "vector = aligned or all(", "backends/cuda/run"),
    Mutant("kernels-half-sinks", INPUTS, "tensor if tensor.dtype is exact else tensor.to(exact)",
           "tensor", "backends/cuda/run backends/native/run"),
    Mutant("cuda-slopes-of-samples", CUDA, "slopes.dim() == 2 else 0", "slopes.dim() == 3 else 0",
           "backends/cuda/run_added_scores"),
    Mutant("cuda-table-memory", CUDA, "cuda_tiles.TABLE_WARPS * heads * entries", "heads * entries",
           "backends/cuda/run_added_scores"),
    Mutant("cuda-table-size", CUDA_MEANING, "if entries <= TABLE:", "if entries < 2 * TABLE:",
           "backends/cuda/run_added_scores"),
    Mutant("cuda-lse-of-training", CUDA, "if return_lse or window.grad_key is not None:",
           "if return_lse:", "backends/cuda/run"),
    Mutant("cuda-grads-of-keys", CUDA, "2: _KEYS, 3", "2: _VALUES, 3", "backends/cuda/run"),
    Mutant("kernels-backward-unproved", TILE_TRAVERSAL, "if not np.array_equal(",
           "if 0 * np.array_equal(", "program/tile_traversal backends/cuda/meaning"
           " backends/cuda/candidates backends/native/meaning"),
    # the emulator of the CUDA kernels
    Mutant("ldmatrix-trans", WARP, "transpose ? matrix[c][r] : matrix[r][c]", "matrix[r][c]",
           "whole/emulator"),
    Mutant("mma-left", WARP, "left[g + r % 2 * 8][c + r / 2 * 8]",
           "left[g + r / 2 * 8][c + r % 2 * 8]", "whole/emulator"),
    Mutant("mma-sum", WARP, "result[g + r / 2 * 8][c + r % 2] = lane.d[r]",
           "result[g + r / 2 * 8][c + r % 2] = 0", "whole/emulator"),
    Mutant("bank-conflicts", WARP, "launch->bank_ways += *std::max_element(in_bank, in_bank + 8);",
           "launch->bank_ways += 1;", "whole/emulator"),
    Mutant("syncwarp-orders", WARP, "warp_passed(current->warp);", "", "whole/emulator"),
    Mutant("slowest-tile", MEASURED_TILES, "return min(measured, key",
           "return max(measured, key", "backends/cuda/measured_tiles"),
    Mutant("tiles-of-any-request", COST_TABLE, "for name in (*_SELECTION, *_PASSES):",
           'for name in (*_SELECTION, *_PASSES, "dtype"):', "backends/cuda/measured_tiles"),
    Mutant("tile-with-other-results", TUNE, "if bench.disagreement(ran.results, expected) <=",
           "if -bench.disagreement(ran.results, expected) <=", "backends/cuda/kernel_times"),
    Mutant("all-kernels-at-once", KERNEL_TIMES, 'one[0].entry.startswith(f"nb_{kernel}")',
           'one[0].entry.startswith("nb_")', "backends/cuda/kernel_times"),
    Mutant("tiles-forgotten", COST_TABLE, '_times(raw.get("tiles", [])),', "{},",
           "backends/cuda/kernel_times backends/cuda/measured_tiles"),
    Mutant("shuffle-later", EMULATOR, "return source <= last ? source : current->lane;",
           "return source & 31;", "whole/emulator"),
    Mutant("shuffle-earlier", EMULATOR, "const int source = emulator::current->lane ^ (bits & 31);",
           "const int inside = emulator::current->lane ^ (bits & 31 & (width - 1)),\n"
           "            source = bits < width ? inside : emulator::current->lane;",
           "whole/emulator"),
    Mutant("race-in-warp", MEMORY,
           "return warp != current->warp || access.warp_epoch == warp_epoch[warp];",
           "return warp != current->warp;", "whole/emulator"),
    Mutant("race-warps", MEMORY,
           "return warp != current->warp || access.warp_epoch == warp_epoch[warp];",
           "return access.warp_epoch == warp_epoch[warp];", "whole/emulator"),
    Mutant("race-reader", MEMORY,
           "    if (unordered(reader)) report_race(\"writes\", address, place, \"read\", reader);",
           "    ;", "whole/emulator"),
    Mutant("barrier-orders", MEMORY, "void barrier_passed() { ++epoch; }",
           "void barrier_passed() {}", "whole/emulator"),
    Mutant("bounds", MEMORY, "address + bytes <= buffer.begin + buffer.bytes",
           "address < buffer.begin + buffer.bytes + 16", "whole/emulator"),
    Mutant("read-only", MEMORY, "  if (write && !buffer->writable)", "  if (false)",
           "whole/emulator"),
    Mutant("unwritten", MEMORY, "  if (!write && !cell.written)", "  if (false)", "whole/emulator"),
    Mutant("two-blocks", MEMORY, "    if (cell.block && !shared)", "    if (false)",
           "whole/emulator"),
    Mutant("gaps", MEMORY, "  if (buffer->present)", "  if (false)", "whole/emulator"),
    Mutant("in-flight", MEMORY, "  if (cell.copy)", "  if (false)", "whole/emulator"),
    Mutant("copy-source", MEMORY,
           "  if (copy.valid) check_read(copy.from, copy.bytes, copy.place);", "",
           "whole/emulator"),
    Mutant("poison", MEMORY, "  std::memset(shared_memory, 0xff, launch->shared_bytes);", "",
           "whole/emulator"),
    Mutant("wait-all", COPIES, "copy.group >= fiber.groups - groups",
           "copy.group >= fiber.groups - groups - 1", "whole/emulator"),
    Mutant("wait-less", COPIES, "copy.group >= fiber.groups - groups",
           "copy.group > fiber.groups - groups", "whole/emulator"),
    Mutant("zero-fill", COPIES, "std::memset(copy.to, 0, copy.bytes)",
           "std::memcpy(copy.to, copy.from, copy.bytes)", "whole/emulator"),
    Mutant("random-copies", COPIES, "(launch->copies == kRandom && random_below(2))",
           "launch->copies == kRandom", "whole/emulator"),
    Mutant("copy-poison", COPIES, "  std::memset(shared, 0xff, bytes);", "", "whole/emulator"),
    Mutant("barrier-places", FIBERS, "  if (!same(barrier, site))", "  if (false)",
           "whole/emulator"),
    Mutant("deadlock", FIBERS, "if (!failed && finished < launch->threads) report_deadlock",
           "if (false) report_deadlock", "whole/emulator"),
    Mutant("unwaited", FIBERS, "!fiber.copies.empty() && launch->check", "false", "whole/emulator"),
    Mutant("ex2-subnormal", TWINS,
           "{ return std::isnormal(y) || std::isnan(y) || std::isinf(y) ? y : 0.f; }",
           "{ return y; }", "whole/emulator"),
    # loop over tiles
    Mutant("bias-dropped", TILED, "if bias is None or cap is not None:", "if True:",
           "whole/support whole/values whole/strides whole/derivatives"),
    Mutant("bias-dropped-with-softcap", TILED, "scores.add_(bias)", "pass",
           "whole/values whole/strides whole/derivatives"),
    Mutant("boxes-reversed", TILED, "*box)] for box in tile.boxes()]",
           "*box)] for box in [*tile.boxes()][::-1]]", "whole/support"),
    Mutant("some-keys-are-all", SCHEDULE, "self._is_whole(boxes[0], 1)", "True", "whole/support"),
    Mutant("some-queries-are-all", SCHEDULE, "self._is_whole(queries, 0)", "len(parts) == 1",
           "whole/support"),
    Mutant("mask-not-in-box-order", SCHEDULE, "return matrix[:, _in_boxes(tiles)]",
           "return matrix", "whole/support"),
    Mutant("entries-not-in-box-order", SCHEDULE, "flat[:, _in_boxes(tiles)]", "flat",
           "backends/tiled/run"),
    Mutant("entries-of-equal-windows-shared", SCHEDULE, "(*pattern, *_place(on, tile))", "pattern",
           "backends/tiled/run"),
    Mutant("distances-in-the-class", SCHEDULE, "* axis.spec.dilation", "", "backends/tiled/run"),
    Mutant("table-without-mask", TILED_ADDED, "added += tile.bias", "pass", "backends/tiled/run"),
    Mutant("table-of-the-last-tiles", TILED_ADDED, "heads[:, entries] += summed",
           "heads[:, entries] = summed", "backends/tiled/run"),
    Mutant("table-shared-by-heads", TILED_ADDED, "heads.start, tile.patterns)\n        if",
           "0, tile.patterns)\n        if", "backends/tiled/run"),
    Mutant("slopes-of-the-first-samples", TILED_ADDED, "is_shared else samples.start",
           "True else 0", "backends/tiled/run"),
    Mutant("steps-forbidden-unseen", TILED_ADDED, "bool(self._table.isinf().any())", "False",
           "backends/tiled/run"),
    Mutant("graph-steps-on-a-line", "nbattn/export/graph_steps.py", "- u % axis.stride", "",
           "export/standard_form"),
    Mutant("graph-steps-undilated", "nbattn/export/graph_steps.py", ".abs() * place.axis.dilation",
           ".abs()", "export/standard_form"),
    Mutant("slopes-of-samples-shared", "nbattn/ops.py", "return not is_slopes or tensor.dim()",
           "return True or tensor.dim()", "whole/added_inside_torch"),
    Mutant("extra-range-kept", TILED, "extra.masked_fill_(chunk.extra_outside, _NO_KEYS)", "pass",
           "backends/tiled/run"),
    Mutant("joined-unevenly", SCHEDULE, "and moved == last.repeat * shift * step", "",
           "backends/tiled/run"),
    Mutant("joined-shift-undilated", SCHEDULE, "move = self.shift * last.step",
           "move = self.shift", "whole/support whole/values whole/strides whole/derivatives"),
    Mutant("empty-rows-kept", TILED, "weights.masked_fill_(empty, 0)", "pass",
           "whole/support whole/values whole/strides whole/derivatives"),
    Mutant("empty-rows-unseen", SCHEDULE, "not bool(allowed.any(dim=1).all())", "False",
           "whole/support whole/values whole/strides whole/derivatives"),
    Mutant("sink-column", TILED, "whole[..., -1] = sink.reshape(self.count, -1)",
           "whole[..., -1] = sink.reshape(self.count, -1).abs()",
           "whole/values whole/strides whole/derivatives"),
    Mutant("key-range-unmasked", TILED, "scores.masked_fill_(self.outside, _NO_KEYS)", "pass",
           "whole/values whole/strides whole/derivatives"),
    Mutant("key-range-end", TILED, "(at < stop)", "(at <= stop)",
           "whole/values whole/strides whole/derivatives"),
    # backward
    Mutant("scale-of-dk", TILED, "_cast(work.query, dtype), self.scale)",
           "_cast(work.query, dtype), 1.0)", "whole/values whole/strides whole/derivatives"),
    Mutant("scale-of-dq", TILED, ".mul_(self.scale)", "",
           "whole/values whole/strides whole/derivatives"),
    Mutant("sign-of-dlse", TILED, "work.rows(self.grad_lse))",
           "work.rows(self.grad_lse), value=-1)", "whole/values whole/strides whole/derivatives"),
    Mutant("softcap-factor", TILED, "1 - work.capped.square()", "1 - work.capped.abs()",
           "whole/values whole/strides whole/derivatives"),
    Mutant("extra-keys-gradient", TILED, "-extra.shape[2] :]", ": extra.shape[2]]",
           "whole/values whole/strides whole/derivatives"),
    Mutant("sink-gradient-tiled", TILED, "self.sink.add_(", "self.sink.sub_(",
           "whole/values whole/strides whole/derivatives"),
    Mutant("sink-gradient-joined", "nbattn/backends/logsumexp.py", "return -(weight * delta)",
           "return (weight * delta)", "whole/values whole/strides whole/derivatives"),
    Mutant("merge-empty-part", JOINING, ".masked_fill(no_keys[..., None], 0)", "", "functional"),
    Mutant("merge-empty-row", JOINING, "safe = torch.where(empty, 0.0, stacked)",
           "safe = stacked", "functional"),
    Mutant("merge-in-halves", JOINING, ".to(torch.promote_types(exact, torch.float32))", "",
           "functional"),
    # the kernels that torch takes, and padding on Flash
    Mutant("flash-takes-two-lengths", SDPA_KERNELS, "if call.causal and call.queries != call.keys:",
           "if False:", "backends/dense/kernels"),
    Mutant("cudnn-one-version-early", SDPA_KERNELS, "device.cudnn > 91500", "device.cudnn >= 91500",
           "backends/dense/kernels"),
    Mutant("range-without-keys", FLASH_RANGES, "return start, torch.maximum(start, stop)",
           "return start, stop", "backends/flash/ranges"),
    Mutant("range-past-the-ends", FLASH_RANGES, ".clamp(0, keys)", "", "backends/flash/ranges"),
    Mutant("range-under-a-window", FLASH_PACKING, "if any(piece.band != FULL for piece in pieces):",
           "if False:", "backends/flash/ranges"),
    # rewrites for dense kernels
    Mutant("triangle-limited", DENSE_PIECES, "if last < min(group.keys, start + rows) or",
           "if", "program/dense_pieces planner/proof backends/dense/candidates whole/support"),
    Mutant("triangle-bottom-right", DENSE_PIECES, "if start > 0:", "if start > 1:",
           "program/dense_pieces planner/proof backends/dense/candidates"),
    Mutant("trim-start", DENSE_PIECES, "group.origin + d * (start - group.start)", "group.origin",
           "program/dense_pieces planner/proof backends/dense/candidates"),
    Mutant("group-step", DENSE_PIECES, "axis.spec.dilation * count)",
           "axis.spec.dilation * (key_stop - key))",
           "program/dense_pieces planner/proof backends/dense/candidates whole/support"),
    Mutant("blocks-uneven", DENSE_PIECES, "(lo[1:] - lo[:-1] == length[:-1])", "(lo[1:] > lo[:-1])",
           "program/dense_pieces planner/proof backends/dense/candidates"),
    # proof
    Mutant("proof-rows", PROOF, "if wrong.any():", "if False:", "planner/proof planner/plan"),
    Mutant("proof-total", PROOF, "if done != useful:", "if False:", "planner/proof planner/plan"),
    Mutant("proof-calls-apart", PROOF, "np.intersect1d(a, b).size", "False",
           "planner/proof planner/plan"),
    Mutant("proof-query-twice", PROOF, "if np.unique(positions).size != positions.size:",
           "if False:", "planner/proof planner/plan"),
    Mutant("proof-groups", PROOF, "if (query.groups, query.into) != (key.groups, key.into):",
           "if False:", "planner/proof planner/plan"),
    Mutant("proof-pair-twice", PROOF, "if times.max() > 1:", "if False:",
           "planner/proof planner/plan"),
    # Flash
    Mutant("band-compared-once", BANDS, "for step in (-1, 0, 1)}", "for step in (0,)}",
           "program/bands backends/flash/meaning"),
    Mutant("trim-keys", BANDS, "min(keys, row_stop + right)", "min(keys, row_stop + right + 1)",
           "program/bands backends/flash/meaning"),
    Mutant("override-length", FLASH_MEANING,
           "-1 if left >= length else left, -1 if right >= length",
           "-1 if left > length else left, -1 if right > length",
           "backends/flash/meaning backends/flash/candidates backends/flash/packing"),
    Mutant("override-order", FLASH_MEANING,
           "right = 0 if window.causal and rows > 1 else window.right",
           "right = 0 if window.causal else window.right", "backends/flash/meaning"),
    Mutant("window-unchecked", FLASH_CANDIDATES, "    if row is None:\n        return None",
           "    return None", "backends/flash/candidates backends/flash/packing"),
    Mutant("shift-last-edge", BAND_PIECES, "last = keys if axis.causal else keys - right",
           "last = keys if axis.causal else keys - right + 1",
           "backends/flash/candidates backends/flash/packing"),
    Mutant("wrap-corner", BAND_PIECES, "Band(left - keys, None)", "Band(left - keys + 1, None)",
           "backends/flash/candidates backends/flash/packing"),
    Mutant("join-overwrites", CALLS, "    if call.joins:\n        assert",
           "    if False:\n        assert",
           "backends/flash/run backends/flash/adapters backends/flash/model"),
    Mutant("own-lse-in-backward", CALLS, "_rows(call.query, all_rows)",
           "_rows(call.query, RowTensors(out, lse + 1, grad_out, grad_lse))",
           "backends/flash/run backends/flash/adapters backends/flash/model"),
    Mutant("backward-windows", "nbattn/backends/flash/providers.py",
           "if needs.training and not self.backward_windows:", "if False:",
           "backends/flash/providers backends/flash/meaning"),
    Mutant("backward-first", FLASH_MEANING, "(column - band.right) // tile[0]",
           "(column - band.right) // tile[0] + 1", "backends/flash/meaning"),
    Mutant("backward-end", FLASH_MEANING, "(-column - tile[1] - band.left)",
           "(-column - tile[1] - band.left + 1)", "backends/flash/meaning"),
    Mutant("backward-tiles", FLASH_COSTS, ", size, backward=backward)", ", size)",
           "backends/flash/candidates backends/flash/packing"),
    Mutant("cache-past-its-filling", FLASH_MEANING,
           "(self.window, queries, self.read(keys) + self.pad)",
           "(self.window, queries, keys + self.pad)",
           "backends/flash/meaning backends/flash/candidates backends/flash/packing"),
    Mutant("cache-of-training", FLASH_CANDIDATES,
           "    if request.training:\n        return Reason(\"back",
           "    if False:\n        return Reason(\"back",
           "backends/flash/candidates backends/flash/packing"),
    Mutant("cache-capacity", FLASH_CANDIDATES,
           "(request.key_space[number] - 1 - last) // axis.step + 1",
           "(request.key_space[number] - last) // axis.step + 1",
           "backends/flash/candidates backends/flash/packing"),
    Mutant("grids-first-token", GRID_SIZES, "np.concatenate([[0], np.cumsum(self.counts)])",
           "np.concatenate([[0], np.cumsum(self.counts)[::-1]])", "grids whole/packed_grids"),
    Mutant("grids-one-code", GRID_SIZES, "codes = codes * base + column", "codes = codes + column",
           "grids whole/packed_grids"),
    Mutant("grids-alignment", GRID_SIZES, "wrong |= queries != keys", "wrong |= queries > keys",
           "grids whole/packed_grids"),
    Mutant("grids-entries", GATHERED, "name: _taken(given, part.grids)",
           "name: given[: part.count]", "whole/packed_grids"),
    Mutant("grids-shared-gradient", GATHERED, "total.add_(grad)", "total.copy_(grad)",
           "whole/packed_grids"),
    Mutant("grids-copies", GATHERING, "copied = 2.0 * passes * tensor_bytes(request) * several",
           "copied = 0.0", "planner/gathering"),
    Mutant("grids-batch", GATHERING, ".bit_length())", ".bit_length() - 1)",
           "planner/gathering"),
    Mutant("grids-scale", PACKED, "scale = mean / float(tokens[nearest])", "scale = 1.0",
           "program/packed"),
    Mutant("grids-corner", FLASH_GRIDS, "axis.left - axis.offset", "axis.left",
           "backends/flash/grids"),
    Mutant("grids-top-left", FLASH_GRIDS, "(sizes.query != sizes.key).any()", "False",
           "backends/flash/grids"),
    Mutant("slopes-causal-kernel", FLASH_SLOPES, "left = longest - 1 if shifts else window.left",
           "left = longest if shifts else window.left", "backends/flash/slopes"),
    Mutant("slopes-anywhere", FLASH_SLOPES, "if first != key.length - query.length:", "if False:",
           "backends/flash/slopes"),
    Mutant("slopes-steps", FLASH_SLOPES,
           "if not all(view.step == 1 or view.length == 1 for view in (query, key)):",
           "if False:",
           "backends/flash/slopes"),
    Mutant("slopes-in-grids", FLASH_SLOPES,
           "if (np.broadcast_to(first, corner.shape) == corner).all():", "if True:",
           "backends/flash/slopes"),
    Mutant("slopes-of-samples", FLASH_SLOPES, "exact.repeat_interleave(times, dim=0)",
           "exact.repeat(times, 1)", "backends/flash/slopes"),
    Mutant("slopes-one-query", FLASH_MEANING, "(queries > 1 or self.slopes)", "queries > 1",
           "backends/flash/slopes"),
    Mutant("slopes-model", FLASH_MEANING, "-column if is_causal_kernel else distance", "distance",
           "backends/flash/slopes"),
    Mutant("slopes-folded", FLASH_CANDIDATES, "if query.groups > 1:", "if False:",
           "backends/flash/slopes"),
    Mutant("slopes-padded", FLASH_CANDIDATES,
           'if strategy == "pad" and request.alibi_slopes:', "if False:", "backends/flash/slopes"),
    Mutant("slopes-built-in-backward", "nbattn/backends/flash/providers.py",
           "backward_slopes=False", "backward_slopes=True", "backends/flash/slopes"),
    Mutant("slopes-not-passed-back", "nbattn/backends/flash/adapters.py",
           '"alibi_slopes": options.slopes,\n        "deterministic"',
           '"alibi_slopes": None,\n        "deterministic"', "backends/flash/slopes"),
    Mutant("grids-unproved", PACKED_PROOF, "(times != 1).any()", "False",
           "planner/packed_proof"),
    Mutant("pack-longest", FLASH_PACKING,
           "    lengths += [(run.queries, run.keys) for run in sequences]\n",
           "", "backends/flash/adapters backends/flash/run backends/flash/model"),
    Mutant("pack-shared-keys", FLASH_PACKING, "piece.query.start < row or piece.key.start < key",
           "piece.query.start < row", "backends/flash/packing backends/flash/candidates"),
    Mutant("pack-gap", FLASH_PACKING,
           "piece.key.start - key)", "0)",
           "backends/flash/packing backends/flash/candidates backends/flash/adapters "
           "backends/flash/run backends/flash/model"),
    Mutant("sequences-in-place", FLASH_MEANING, "lo + columns.start, 0)", "lo, 0)",
           "backends/flash/candidates backends/flash/packing"),
    Mutant("rows-copied", CALLS, "into = None if joins else call.query.rows_of(out)",
           "into = None", "backends/flash/run backends/flash/adapters backends/flash/model"),
    Mutant("rows-unwritten", CALLS, "if not program.writes_all(inputs.space):", "if False:",
           "backends/flash/run backends/flash/adapters backends/flash/model"),
    Mutant("rows-counted-twice", PROGRAM, "for call in self.calls if not call.joins)",
           "for call in self.calls)",
           "backends/flash/run backends/flash/adapters backends/flash/model"),
    # the layer
    Mutant("layer-parts", LAYER, 'queries = ("x", x, ALL if',
           'queries = ("x", x, keys if', "nn/layer nn/projections nn/layer_inside_torch"),
    Mutant("layer-biases", PROJECTIONS, "bias.split(rows)",
           "bias.flip(0).split(rows)", "nn/layer nn/projections nn/layer_inside_torch"),
    Mutant("layer-context", LAYER, '[("context", context, keys)]',
           '[("context", x, keys)]', "nn/layer nn/projections nn/layer_inside_torch"),
    Mutant("layer-key-range", LAYER, 'ranges = {"key_range": key_range, "extra',
           'ranges = {"extra', "nn/layer nn/projections nn/layer_inside_torch"),
    Mutant("layer-extra-key", LAYER, 'self._called(self.qk_transform, f"extra_{name}", part)',
           "part", "nn/layer nn/projections nn/layer_inside_torch"),
    Mutant("layer-layout", LAYER_INPUTS, "before.dtype).contiguous()",
           "before.dtype)", "nn/layer nn/projections nn/layer_inside_torch"),
    Mutant("layer-value-copied", LAYER, "value = value.contiguous()",
           "pass", "nn/layer"),
    Mutant("layer-packed-plan", LAYER, " and prod(queries) > 1",
           "", "nn/layer"),
    Mutant("layer-trains", LAYER, "[*self.projections(), *(module",
           "[*(module", "nn/layer nn/projections nn/layer_inside_torch"),
    Mutant("layer-drop", LAYER, "[self.proj_drop(part) for part in results]",
           "results", "nn/layer nn/projections nn/layer_inside_torch"),
    Mutant("layer-autocast", LAYER, "(projections.autocast_dtype(weight) or weight.dtype)",
           "weight.dtype", "nn/layer nn/projections nn/layer_inside_torch"),
    Mutant("layer-registers", LAYER, "part.expand(x.shape[0], -1, -1, -1)",
           "part", "nn/layer nn/projections nn/layer_inside_torch"),
    Mutant("layer-norm-of-extra-keys", LAYER, "part = self._normed(norm, part)",
           "pass", "nn/layer"),
    Mutant("layer-scale", LAYER, ', "scale": self.scale}', "}", "nn/layer"),
    Mutant("layer-table", LAYER, '"relative_bias": self._table()', '"relative_bias": None',
           "nn/layer_joint"),
    Mutant("layer-extra-views", LAYER, "parts[3:] = (part.contiguous() for part in parts[3:])",
           "pass", "nn/layer_joint"),
    Mutant("layer-called-twice", PROJECTIONS, "if len(tokens) == 1 or is_plain(linear):",
           "if True:", "nn/layer_joint"),
    Mutant("layer-table-values", "nbattn/nn/options.py", "std=0.02", "std=0.2", "nn/layer_joint"),
    # joint attention
    Mutant("joint-added", "nbattn/joint.py", "mask, **added, **packed", "mask, **packed", "joint"),
    Mutant("joint-mask", "nbattn/joint.py", "_FULL[rank - 1], **packed", "mask, **packed", "joint"),
    Mutant("joint-fix", "nbattn/joint.py", 'is_whole = "nbattn.attention(" in error.fix',
           "is_whole = False", "joint"),
    Mutant("joint-count", "nbattn/joint.py", "extra_query.shape[:2] != extra_key.shape[:2]",
           "False", "joint"),
    Mutant("joint-grids", "nbattn/joint.py", "grids if key_grids is None else key_grids",
           "[sizes] * batch", "joint"),
    Mutant("joint-plan-added", JOINT_PLAN, "        relative_bias=False,\n", "",
           "planner/joint_plan"),
    Mutant("joint-plan-layout", JOINT_PLAN, '"strided" if is_apart else signature.layout',
           "signature.layout", "nn/layer_joint"),
    Mutant("joint-plan-keys", JOINT_PLAN, "np.ones((len(rows)", "np.zeros((len(rows)",
           "planner/joint_plan"),
    Mutant("joint-plan-proof", JOINT_PLAN, "grid.verify() and extras.verify()", "grid.verify()",
           "planner/joint_plan"),
    Mutant("joint-plan-training", "nbattn/plan_runs.py", "autograd.trains((*tensors, beside))",
           "autograd.trains(tensors)", "planner/joint_plan"),
    Mutant("layer-hooks-skipped", PROJECTIONS, '        or own["_forward_hooks"]\n',
           "", "nn/projections"),
    Mutant("layer-own-forward", PROJECTIONS, '"forward" in own\n        or own',
           "own", "nn/projections"),
    Mutant("layer-weight-class", PROJECTIONS, "type(linear.weight) not in _PLAIN_WEIGHTS",
           "False", "nn/parallel whole/layer_tools"),
    Mutant("layer-calls", PROJECTIONS, "if len(sources) == 1:",
           "if False:", "nn/projections nn/layer"),
    Mutant("fix-circle-roll", "nbattn/axis.py", "key.roll({-offset}, 1) and",
           "key.roll({offset}, 1) and", "whole/advised_masks"),
    Mutant("fix-circle-line", "nbattn/circles.py", "not max(queries, left + right + 1) <= keys",
           "not left + right + 1 <= keys", "whole/advised_masks"),
    Mutant("fix-rank", "nbattn/fixes/masks.py", "size = size * rank if len(size) == 1 else size",
           "pass", "whole/fixes"),
    Mutant("fix-arity", "nbattn/fixes/signatures.py", "if missing or len(args) > most or",
           "if len(args) > most or", "whole/fixes"),
    Mutant("fix-key-range", "nbattn/key_ranges.py", "[[0, int(stop)] for stop in key_range], for",
           "[[0, stop] * 2 for stop in key_range], for", "whole/fixes"),
    Mutant("fix-plan", "nbattn/functional.py", "mask, query, key, value, in_plan=True)\n    else",
           "mask, query, key, value)\n    else", "whole/fixes"),
    Mutant("fix-plan-file", "nbattn/config/grammar.py",
           "key, value, in_plan=True)\n                axes", "key, value)\n                axes",
           "whole/fixes"),
    Mutant("fix-each-causal", "nbattn/mistaken_words.py", "said if len(said) == call.mask.rank",
           "said[:1] if False", "whole/fixes"),
    Mutant("fix-text", "nbattn/fixes/masks.py", "if code := from_text(given[0]):",
           "if code := False:", "whole/fixes"),
    Mutant("profile-known", "nbattn/known_calls.py", "if execute.is_profiled():", "if False:",
           "execute"),
    Mutant("signature", "nbattn/fixes/signatures.py", "p.replace(default=p.empty, annotation",
           "p.replace(annotation", "functional"),
    Mutant("layer-causal-word", "nbattn/fixes/masks.py", "left=axis.left + axis.right, border",
           "left=axis.left, border", "nn/words"),
    Mutant("ranks-rows", PARALLEL, "part.chunk(ranks)[rank]",
           "part[rank::ranks]", "nn/parallel"),
    Mutant("ranks-state", PARALLEL, "_InOrder(order.argsort())",
           "_InOrder(order)", "nn/parallel"),
    Mutant("ranks-gradients", PARALLEL, "to_local(grad_placements=(Partial(),))",
           "to_local()", "nn/parallel"),
    Mutant("ranks-wrapper", PARALLEL, 'if method == "__call__" else',
           'if method == "" else', "nn/parallel"),
    # configurations
    Mutant("config-unknown-keys", GRAMMAR, '{"extra": "forbid",', '{"extra": "ignore",',
           "config/grammar config/mistakes config/init"),
    Mutant("config-coercion", LOADER, "json.dumps(data), context",
           "json.dumps(data), strict=False, context", "config/init config/mistakes config/grammar"),
    Mutant("config-first-mistake", LOADER, "self.mistakes += mistakes",
           "self.mistakes = mistakes", "config/init config/mistakes config/grammar"),
    Mutant("config-broken-mask", GRAMMAR, "            elif self.mask:\n",
           "            else:\n", "config/grammar config/mistakes config/init"),
    Mutant("config-first-field", GRAMMAR, "errors += _each(Neigh",
           "errors = errors or _each(Neigh", "config/grammar config/mistakes config/init"),
    Mutant("config-overrides", GRAMMAR, "_values(self) | changes",
           "changes | _values(self)", "config/grammar config/mistakes config/init"),
    Mutant("config-shapes", GRAMMAR, 'values.pop("query"), values.pop("key")',
           'values.pop("key"), values.pop("query")', "config/grammar config/mistakes config/init"),
    Mutant("config-aliases", FILES, "self.check_event(yaml.AliasEvent)", "False",
           "config/files config/mistakes config/init"),
    Mutant("config-duplicates", FILES, "and key.value in seen", "and key.value in ()",
           "config/files config/mistakes config/init"),
    Mutant("config-yaml-1-1", FILES, "|False|FALSE)$", "|False|FALSE|no)$",
           "config/files config/mistakes config/init"),
    Mutant("config-depth", FILES, "len(path) > MAX_DEPTH", "len(path) > 3 * MAX_DEPTH",
           "config/files config/mistakes config/init"),
    # the demo
    Mutant("demo-squares", DEMO, "torch.cat([features, squares], -1)",
           "torch.cat([features, 0 * squares], -1)", "demo/denoise"),
    Mutant("demo-own-weight", DEMO, "excess = own * (1 - copy)", "excess = 0 * own",
           "demo/denoise"),
    Mutant("demo-width", DEMO, "means.patch**2 * noisy.shape[-1]", "means.patch**2",
           "demo/denoise"),
    Mutant("demo-components", DEMO, "basis[:, -components:]", "basis[:, :components]",
           "demo/denoise"),
    Mutant("demo-borders", DEMO, 'mode="reflect"', 'mode="replicate"', "demo/denoise"),
    # masks of transformers
    Mutant("hf-window", HF_RULES, 'left=values["sliding_window"] - 1',
           'left=values["sliding_window"]',
           "integrations/mask_functions integrations/transformers_eager integrations/transformers"),
    Mutant("hf-both-sides", HF_RULES, 'values["sliding_window"], values["sliding_window"]',
           'values["sliding_window"] - 1, values["sliding_window"] - 1',
           "integrations/mask_functions integrations/transformers_eager integrations/transformers"),
    Mutant("hf-and", HF_RULES, "(min((s for", "(max((s for",
           "integrations/mask_functions integrations/transformers_eager integrations/transformers"),
    Mutant("hf-or", HF_RULES, "return all((_FAR", "return any((FAR",
           "integrations/mask_functions integrations/transformers_eager integrations/transformers"),
    Mutant("hf-chunk", HF_RULES, "if longest > size else", "if longest > size + 1 else",
           "integrations/mask_functions integrations/transformers_eager integrations/transformers"),
    Mutant("hf-blocks", HF_RULES, '["block_sequence_ids"] >= 0', '["block_sequence_ids"] > 0',
           "integrations/mask_functions integrations/transformers_eager integrations/transformers"),
    Mutant("hf-packed", HF_RULES, ".diff(dim=-1) == 1", ".diff(dim=-1) > 0",
           "integrations/mask_functions integrations/transformers_eager integrations/transformers"),
    Mutant("hf-offset", HF, "int(q_offset) - kv_offset", "int(q_offset)",
           "integrations/transformers integrations/transformers_eager"),
    Mutant("hf-padding-offset", HF, "attention_mask[:, kv_offset : kv_offset + kv_length]",
           "attention_mask[:, :kv_length]",
           "integrations/transformers integrations/transformers_eager"),
    Mutant("hf-last-read", HF, "min(keys, rows + window.right)",
           "min(keys, rows + window.right - 1)",
           "integrations/transformers integrations/transformers_eager"),
    Mutant("hf-holes", HF, "if not torch.equal(run, valid):", "if False:",
           "integrations/transformers integrations/transformers_eager"),
    Mutant("hf-sink", HF, "sink=s_aux", "sink=None",
           "integrations/transformers integrations/transformers_eager"),
    Mutant("hf-softcap", HF, "softcap=softcap", "softcap=None",
           "integrations/transformers integrations/transformers_eager"),
    Mutant("hf-scale", HF, "scale=scaling", "scale=None",
           "integrations/transformers integrations/transformers_eager"),
    Mutant("hf-chunk-by-positions", HF_RULES, "int(positions.max()) + 1 if", "end if",
           "integrations/mask_functions integrations/transformers_eager integrations/transformers"),
    Mutant("hf-padding-rows", HF, " or attention_mask.shape[0] != batch", "",
           "integrations/transformers integrations/transformers_eager"),
    Mutant("hf-weights-by-configuration", HF, '"output_attentions", False):',
           '"output_attention", False):',
           "integrations/transformers integrations/transformers_eager"),
    Mutant("hf-chunk-padding", HF_RULES, "end - int(padding.min())", "end - int(padding.max())",
           "integrations/mask_functions integrations/transformers_eager "
           "integrations/transformers integrations/transformers_models"),
    Mutant("hf-cross-keys", HF, "query.shape[2], key.shape[2])", "query.shape[2], query.shape[2])",
           "integrations/transformers integrations/transformers_eager "
           "integrations/transformers_models"),
    Mutant("hf-sizes", HF, "if attention_mask.sizes != sizes:", "if False:",
           "integrations/transformers integrations/transformers_eager"),
    Mutant("alibi-slopes-of-mpt", ALIBI, "-position_bias[:, 0, -2]", "position_bias[:, 0, -2]",
           "integrations/alibi_models"),
    Mutant("alibi-padding-read", ALIBI, "None if valid is None else valid.to(query.device)", "None",
           "integrations/alibi_models"),
    Mutant("alibi-cache-left-out", ALIBI, "if layer_past is not None:", "if False:",
           "integrations/alibi_models"),
    Mutant("alibi-whole-bias", ALIBI, "self.pretraining_tp > 1 and", "False and",
           "integrations/alibi_models"),
    Mutant("alibi-dropout-ignored", ALIBI, "return probability if module.training else 0.0",
           "return 0.0", "integrations/alibi_models"),
    Mutant("swin-unflipped", SWIN, "return grid.flip([*range(1, grid.dim())])", "return grid",
           "integrations/swin"),
    Mutant("swin-shift-reversed", SWIN, "[-moved % size for", "[moved % size for",
           "integrations/swin"),
    Mutant("swin-padding-read", SWIN, "[[first, first + length] for", "[[0, first + length] for",
           "integrations/swin"),
    # the drop-in
    Mutant("natten-scale-of-zero", FUSED, "scale=scale,\n        extra_key",
           "scale=scale or None,\n        extra_key",
           "integrations/natten/fused integrations/natten/legacy"),
    Mutant("natten-older-order", FUSED, 'Any] = {"dilation": dilation',
           'Any] = {"stride": dilation',
           "integrations/natten/fused integrations/natten/legacy"),
    Mutant("natten-older-scale", FUSED, "scale=scale,\n        relative",
           "scale=None,\n        relative",
           "integrations/natten/fused integrations/natten/legacy"),
    Mutant("natten-older-without-table", FUSED, "relative_bias=rpb", "relative_bias=None",
           "integrations/natten/fused integrations/natten/modules"),
    Mutant("natten-module-scale", MODULES, "(query * self.scale, key, value)",
           "(query, key, value)", "integrations/natten/modules"),
    Mutant("natten-window-size", PARAMETERS, "if kernel * step > length:", "if kernel > length:",
           "integrations/natten/fused integrations/natten/modules integrations/natten/unfused"),
    Mutant("natten-0-14-padding", MODULES, "max(0, size * step - length)",
           "max(0, size - length)", "integrations/natten/modules"),
    Mutant("natten-0-14-bias", MODULES, "rel_pos_bias=bias", "rel_pos_bias=False",
           "integrations/natten/modules"),
    Mutant("natten-shadowed", "nbattn/integrations/natten/install.py",
           "sys.modules.update(_SHADOWED)", "pass", "integrations/natten/install"),
    Mutant("natten-submodules-left", "nbattn/integrations/natten/install.py",
           'n == "natten" or n.startswith("natten.")', 'n == "natten"',
           "integrations/natten/install"),
    Mutant("slots-vmap", NEIGHBORHOOD_GATHER, "else t.movedim(d, 0)", "else t",
           "integrations/natten/neighborhood_gather integrations/natten/unfused"),
    Mutant("slots-tangents-dropped", NEIGHBORHOOD_GATHER,
           "if forward_ad._current_level >= 0:", "if False:",
           "integrations/natten/neighborhood_gather integrations/natten/unfused"),
    Mutant("slots-tangents-misplaced", NEIGHBORHOOD_GATHER, "(b, tile.queries if name ==",
           "(b, tile.queries if name !=",
           "integrations/natten/neighborhood_gather integrations/natten/unfused"),
    # what others hand over
    Mutant("overlaps-read", SDPA, "return tensor if whole or rows_apart(tensor, shared=True) else",
           "return tensor if True else",
           "backends/dense/run whole/values whole/strides whole/derivatives"),
    Mutant("overlaps-of-flash", "nbattn/backends/flash/adapters.py",
           "whole = rows_apart(tensor) and",
           "whole = tensor.stride(-1) == 1 and",
           "backends/flash/adapters backends/flash/run backends/flash/model"),
    Mutant("tiny-scale", "nbattn/backends/logsumexp.py", "if inputs.scale >= TINY",
           "if inputs.scale > 0", "whole/values whole/strides whole/derivatives"),
    Mutant("sdpa-without-grid", "nbattn/backends/dense/meaning.py", "replace(SDPA, grid=GRID)",
           "replace(SDPA, grid=0)", "backends/dense/meaning backends/dense/candidates"),
    Mutant("tags-read", FILES, 'getattr(self.peek_event(), "tag", None)', "None",
           "config/files config/mistakes config/init"),
    Mutant("heads-never-tokens", "nbattn/shapes.py", "heads >= times * most", "False",
           "arguments"),
    Mutant("heads-always-tokens", "nbattn/shapes.py", "heads >= times * most", "heads > most",
           "arguments"),
    # fixes, and ranges of keys
    Mutant("range-of-holes", "nbattn/key_ranges.py", "!= padding.flatten(1).sum(1)",
           "< padding.flatten(1).sum(1)", "key_ranges whole/fixes"),
    Mutant("range-one-short", "nbattn/key_ranges.py", "count - places.flip(1).argmax(1)",
           "count - 1 - places.flip(1).argmax(1)", "key_ranges whole/fixes"),
    Mutant("circle-moved-by-offset", "nbattn/axis.py", "operator.index(axis.left) - offset",
           "operator.index(axis.left) + offset", "whole/fixes"),
    Mutant("circle-unrolled-short", "nbattn/circles.py", "{rows}{keys - left}:",
           "{rows}{keys - right}:", "whole/fixes"),
    Mutant("prefix-not-excluded", "nbattn/axis.py", "key_range=[[{count}, key",
           "key_range=[[0, key", "whole/fixes"),
    Mutant("matrix-not-compared", "nbattn/mistaken_masks.py", "if (m.dense(*_lengths(flat[0])) ==",
           "if (m.dense(*_lengths(flat[0])) >=", "whole/fixes"),
    Mutant("any-rate", "nbattn/planner/cost_table.py", "(1.0, 1e21)", "(5e-324, 1e308)",
           "planner/cost_table"),
    Mutant("packages-of-the-data", "nbattn/planner/cost_table.py",
           "entry.device(info) for entry in rated", "entry.device(DEVICES[info.name]) for entry in "
           "rated", "planner/cost_table"),
    Mutant("packages-make-it-yours", "nbattn/planner/cost_table.py",
           "if _bare(request.device) not in", "if request.device not in",
           "planner/cost_table"),
    Mutant("unfused-rounds", PARAMETERS, "torch.promote_types(tensor.dtype, exact) != exact",
           "False", "integrations/natten/unfused"),
    Mutant("dinat-scale", DINAT, "query * shape[1] ** -0.5", "query * shape[0] ** -0.5",
           "integrations/natten/dinat"),
    # unfused functions
    Mutant("rpb-mirrored", UNFUSED, "index = neighborhood_gather.steps(rpb",
           "index = -neighborhood_gather.steps(rpb",
           "integrations/natten/unfused"),
    Mutant("slot-after-query", UNFUSED, "space, axis) > 0", "space, axis) > 1",
           "integrations/natten/unfused"),
    Mutant("halves-summed-short", UNFUSED, "return torch.promote_types(dtype, torch.float32)",
           "return dtype", "integrations/natten/unfused"),
    Mutant("slots-overwritten", NEIGHBORHOOD_GATHER, "place += (matrix.mT", "place[:] = (matrix.mT",
           "integrations/natten/neighborhood_gather integrations/natten/unfused"),
    Mutant("slots-shared-column", NEIGHBORHOOD_GATHER,
           "put = matrix.scatter_ if tile.missing is None else matrix.scatter_add_",
           "put = matrix.scatter_",
           "integrations/natten/neighborhood_gather integrations/natten/unfused"),
    Mutant("slots-second-derivative", NEIGHBORHOOD_GATHER, "return products(b, grad, mask), sums",
           "return products(grad, b, mask), sums",
           "integrations/natten/neighborhood_gather integrations/natten/unfused"),
    Mutant("table-tells-kernel", LEGACY, "(rpb.shape[-1] + 1) // 2", "rpb.shape[-1] // 2",
           "integrations/natten/unfused integrations/natten/legacy integrations/natten/modules"),
    # FlexAttention
    Mutant("flex-nearly-full", FLEX_MEANING, "self.counts() == self.query_block * self.key_block",
           "self.counts() >= self.query_block * self.key_block - 1",
           "backends/flex/meaning backends/flex/candidates"),
    Mutant("flex-first-keys", FLEX_MEANING, "AxisTable(axis.spec.dilation, first,",
           "AxisTable(axis.spec.dilation, first * 0,",
           "backends/flex/meaning backends/flex/candidates"),
    # parts of an axis
    Mutant("held-first-query", GEOMETRY, "else self.held.first_query", "else 0",
           "whole/parts_of_axes"),
    Mutant("held-keys", GEOMETRY, "np.clip(side - skip, 0, keys)", "np.clip(side, 0, keys)",
           "whole/parts_of_axes"),
    Mutant("held-empty-rows", GEOMETRY, "np.where(some, lo, low)", "lo", "whole/parts_of_axes"),
    Mutant("held-bends", GEOMETRY, "for end in (0, group.keys) for lap in laps}",
           "for end in (0,) for lap in laps[:1]}", "whole/parts_of_axes"),
    Mutant("held-inverse", GEOMETRY, "divmod(key + self.first_key, d)", "divmod(key, d)",
           "whole/parts_of_axes"),
    Mutant("flex-prefix", FLEX, "inside = inside | (t < low[query])", "pass",
           "backends/flex/run backends/flex/meaning backends/flex/candidates"),
    Mutant("flex-rectangle", FLEX, "query // queries, key // keys", "query // keys, key // keys",
           "backends/flex/run backends/flex/meaning backends/flex/candidates"),
    Mutant("flex-class", FLEX, "(key % step == residue[query])", "(key % step == query % step)",
           "backends/flex/run backends/flex/meaning backends/flex/candidates"),
    # kernels: sources, compiler, cache
    Mutant("headers-twice", SOURCES, "seen.add(path)", "pass", "kernels/sources"),
    Mutant("line-after-header", SOURCES, "#line {number + 1}", "#line {number}", "kernels/sources"),
    Mutant("conditional-header", SOURCES, "        if depth:", "        if False:",
           "kernels/sources"),
    Mutant("foreign-package-first", SOURCES, "for place in places:",
           "for place in reversed(places):", "kernels/sources"),
    Mutant("option-begins-well", NVRTC, "if not form.fullmatch(text):", "if not form.match(text):",
           "kernels/nvrtc kernels/toolkit"),
    Mutant("own-instructions", NVRTC, '(9, 0): "90a", ', "", "kernels/nvrtc kernels/toolkit"),
    Mutant("facts-of-the-first-kernel", NVRTC, "_, _, text = log.partition",
           "text = log; log.partition", "kernels/nvrtc kernels/toolkit"),
    Mutant("files-outside-the-hash", NVRTC, ', "--no-source-include"', "",
           "kernels/nvrtc kernels/toolkit"),
    Mutant("key-without-source", CUBINS, "        sources.digest(variant.source),\n", "",
           "kernels/cubins"),
    Mutant("key-without-entry", CUBINS, "        variant.entry,\n", "", "kernels/cubins"),
    Mutant("key-without-compiler", CUBINS, "        nvrtc.identity(),\n", "", "kernels/cubins"),
    Mutant("key-without-headers", CUBINS, "        toolkit.headers_digest(),\n", "",
           "kernels/cubins"),
    Mutant("memory-of-one-target", CUBINS, "_memory.get((variant, arch))",
           "next((c for (v, _), c in _memory.items() if v == variant), None)", "kernels/cubins"),
    Mutant("cubin-not-hashed", STORE, "hashlib.sha256(rest)", "hashlib.sha256(rest[:200])",
           "kernels/cubins kernels/host"),
    Mutant("parts-are-evicted", STORE, 'if path.name.startswith("."):', "if False:",
           "kernels/cubins"),
    Mutant("youngest-go-first", STORE, "in sorted(files)", "in sorted(files, reverse=True)",
           "kernels/cubins"),
    Mutant("published-in-place", "nbattn/cache.py", "            part.replace(path)",
           "            part.unlink()\n            path.write_bytes(content)", "kernels/cubins"),
    Mutant("library-of-other-sources", HOST, "(STORE.form, VERSION, text,", "(STORE.form, VERSION,",
           "kernels/host"),
    Mutant("library-of-another-processor", HOST, "compilers.FLAGS, processor.identity())",
           "compilers.FLAGS)", "kernels/host"),
    Mutant("library-of-another-compiler", HOST, "{_base(text)}-{compiler.identity[:32]}",
           "{_base(text)}-", "kernels/host"),
    Mutant("all-processes-compile", HOST, "    with STORE.locked() as folder:\n        if (entry",
           "    folder = STORE.prepare()\n    if True:\n        if (entry", "kernels/host"),
    Mutant("waiting-processes-compile", HOST, "        if (entry := STORE.read(name)) is None:",
           "        if True:", "kernels/host"),
    Mutant("failures-are-tried-again", HOST, "                _failure = error\n", "",
           "kernels/host"),
    Mutant("loads-the-cached-path", HOST, "return ctypes.CDLL(file.name)",
           "return ctypes.CDLL(str(next(Path(folder).glob('[0-9a-f]*'))))", "kernels/host"),
    Mutant("wrong-cxx-falls-back", COMPILERS, "        return _named(named)\n",
           "        try:\n            return _named(named)\n"
           "        except BackendError:\n            pass\n",
           "kernels/compilers kernels/host"),
    Mutant("old-compilers-are-taken", COMPILERS, "if version[0] < _OLDEST[kind]:", "if False:",
           "kernels/compilers"),
    Mutant("kind-by-name", COMPILERS, 'if "__clang_major__" not in found:',
           'if "g++" in command[0]:', "kernels/compilers"),
    Mutant("identity-without-target", COMPILERS, ", *sorted(macros.splitlines())", "",
           "kernels/compilers kernels/host"),
    Mutant("tiles-that-spill", "nbattn/backends/cuda/tiles.py", '("fwd", 2, 64): 176',
           '("fwd", 2, 64): 192', "whole/compile_matrix"),
    # launches
    Mutant("legacy-stream", LAUNCH, "            argument.stream,\n", "", "kernels/launch"),
    Mutant("shared-memory-unasked", LAUNCH, "function.ptr, _MAX_DYNAMIC_SHARED_BYTES,",
           "function.ptr, 9,", "kernels/launch"),
    Mutant("one-module-for-all-devices", LAUNCH, "self._functions.get((device, variant))",
           "self._functions.get((0, variant))", "kernels/launch"),
    Mutant("no-device-guard", LAUNCH, "if device != self._torch._C._cuda_getDevice():", "if False:",
           "kernels/launch"),
    Mutant("loads-in-a-capture", LAUNCH, "if cuda.is_current_stream_capturing():", "if False:",
           "kernels/launch"),
    Mutant("threads-share-a-buffer", LAUNCH, "class _Argument(threading.local):",
           "class _Argument:", "kernels/launch"),
    Mutant("numbers-before-pointers", LAUNCH, "argument.buffer[_POINTERS.size :] = numbers",
           "argument.buffer[: -_POINTERS.size] = numbers", "kernels/launch"),
    # work in proportion to a length, and caches that miss
    Mutant("plans-key-by-key", PLANNER, "    offered = candidates(request, request.axes())\n",
           "    offered = candidates(request, request.axes())\n"
           "    for _ in range(min(request.key_space[0], 10**5)):\n        pass\n",
           "whole/planning_work whole/decode backends/cuda/candidates backends/cuda/meaning"),
    # one plan, and the logsumexp between plans that are made apart
    Mutant("lse-of-zeros", OPS, "fill_(math.nan) if lse is None else lse",
           "zero_()", "whole/one_plan"),
    Mutant("lse-unknown-as-zeros", EXECUTE, "math.nan, dtype", "0.0, dtype",
           "whole/one_plan execute"),
    Mutant("lse-not-kept", EXECUTE, "return_lse=return_lse or keep_lse)", "return_lse=return_lse)",
           "whole/one_plan execute"),
    Mutant("nan-trusted", EXECUTE, "and _is_unknown(lse)", "and False", "whole/one_plan execute"),
    Mutant("a-second-plan", AUTOGRAD, "computed = execute.backward(plan, inputs, *rows)",
           "computed = execute.backward(execute.planned(plan.request.mask, inputs, backend='auto', "
           "require=(), forbid=(), training=True, deterministic=False, return_lse=False), inputs, "
           "*rows)", "execute"),
    Mutant("saved-elsewhere", AUTOGRAD, "    if saved_dtype == dtype and all(",
           "    if True or all(", "whole/one_plan"),
    Mutant("batched-gradients", AUTOGRAD, "if batched or not is_plain", "if not is_plain",
           "whole/one_plan"),
    Mutant("tangents-dropped", AUTOGRAD, "    if has_tangent:\n        raise",
           "    if False:\n        raise", "autograd whole/inside_torch ops"),
    Mutant("graphs-without-gradients", AUTOGRAD, "    if trains(tensors):\n        return Operator",
           "    if False:\n        return Operator",
           "autograd whole/inside_torch ops whole/compiled_masks"),
    Mutant("packed-unseen", INPUTS, 'return "packed" if alone or _side_by_side(query, key)',
           'return "packed" if False', "backends/inputs whole/one_plan"),
    Mutant("another-program", "nbattn/bench.py", "variant = replace(plan, chosen=candidate)",
           "variant = plan", "bench cli/bench"),
    # numbers that tracers do not know
    Mutant("unlimited-is-a-side", "nbattn/axis.py", "_UNLIMITED = -(2**62)", "_UNLIMITED = -1",
           "whole/compiled_masks"),
    Mutant("pinned-numbers", "nbattn/symbolic.py", "return guard_or_true(condition)",
           "return bool(condition)", "whole/compiled_masks"),
    # calls that are known
    Mutant("known-values-unseen", "nbattn/known_calls.py", "        value.shape,\n", "",
           "known_calls"),
    Mutant("known-mask-unseen", "nbattn/known_calls.py", "        id(mask),\n", "",
           "known_calls"),
    Mutant("known-sink-unseen", "nbattn/known_calls.py",
           "_forms(optional) if has_optional else None", "has_optional", "known_calls"),
    Mutant("known-training-unseen", "nbattn/known_calls.py", "torch.is_grad_enabled()\n",
           "False\n", "known_calls"),
    Mutant("known-negated-views", "nbattn/known_calls.py", " and not tensor.is_neg()", "",
           "known_calls"),
    Mutant("known-nested", "nbattn/known_calls.py", "not tensor.is_nested and ", "",
           "known_calls"),
    Mutant("negated-views-are-plain", "nbattn/autograd.py",
           "return is_plain and not tensor.is_neg()", "return is_plain", "known_calls"),
    Mutant("known-numbers-unchecked", "nbattn/known_calls.py",
           "arguments.check_numbers(scale, softcap)", "pass", "known_calls"),
    Mutant("known-calls-unbounded", "nbattn/known_calls.py", "        KNOWN_CALLS.clear()\n",
           "        pass\n", "known_calls"),
    Mutant("folders-are-modules", "nbattn/lazy.py", " and spec.origin is not None", "", "lazy"),
    Mutant("two-suggestions", "nbattn/lazy.py", '{hint}", name=name)', '{hint}")', "lazy"),
    Mutant("names-by-case", "nbattn/lazy.py", "get_close_matches(name.lower(), ",
           "get_close_matches(name, ", "lazy"),
    Mutant("dir-of-everything", "nbattn/__init__.py", "return sorted(_API)",
           "return sorted(globals())", "lazy"),
    Mutant("names-not-escaped", NOTEBOOK, "return html.escape(str(value))", "return str(value)",
           "notebook"),
    Mutant("prefix-not-drawn", NOTEBOOK, "for start, stop in ends if",
           "for start, stop in ends[1:] if", "notebook"),
    Mutant("own-position-always", NOTEBOOK, "any(position in run for run in runs)", "True",
           "notebook"),
    Mutant("rings-of-any-length", NOTEBOOK, "axis.stride * -(-steps // axis.stride)", "steps",
           "notebook"),
    Mutant("shipped-before-files", "nbattn/config/shipped.py", "or _is(given.is_file)", "",
           "config/shipped"),
    Mutant("told-every-time", NOTICES, "_GIVEN.add(key)  # first", "pass  # first",
           "planner/notices"),
    Mutant("told-at-torchs-line", NOTICES, 'in ("nbattn", "torch")', 'in ("nbattn",)',
           "planner/notices"),
    Mutant("plans-not-told", PLANNER, "    plan = planned(signature)\n    notices.tell(plan)\n",
           "    plan = planned(signature)\n", "planner/notices"),
    Mutant("words-are-broken", "nbattn/cli/screen.py", "break_long_words=False",
           "break_long_words=True", "cli/screen"),
    Mutant("colours-in-pipes", "nbattn/cli/screen.py", "return is_terminal(stream) and",
           "return True or", "cli/screen cli/mask"),
    Mutant("fix-keeps-the-mistake", "nbattn/cli/parser.py",
           "near[0] + equals + value if other == word", "word if other == word", "cli/parser"),
    Mutant("interruption-loses-times", "nbattn/bench.py",
           "    except KeyboardInterrupt:\n        interrupted = True\n",
           "    except KeyboardInterrupt:\n        rows.clear()\n        raise\n", "cli/bench"),
    Mutant("advice-twice", "nbattn/doctor/verdict.py", "return list(dict.fromkeys(found))",
           "return found", "doctor/verdict"),
    Mutant("quick-report-compiles", "nbattn/doctor/probe.py", "if deep or is_ready", "if True",
           "doctor/init"),
    Mutant("picture-of-another-query", "nbattn/cli/mask_picture.py",
           "axis.key_intervals(query)", "axis.key_intervals(0)", "cli/mask_picture"),
    Mutant("hint-of-another-cuda", "nbattn/packages.py", '"cupy-cuda12x>=14.2,<15",',
           '"cupy-cuda13x>=14.2,<15",', "packages"),
    Mutant("faster-by-nothing", "nbattn/planner/explain.py", "_seconds(other) < min(",
           "_seconds(other) > min(", "planner/explain"),
    Mutant("windows-of-no-pairs", FLASH_CANDIDATES, "if all(per_axis) and (several",
           "if True and (several", "backends/flash/candidates"),
    Mutant("numbers-of-a-plan-unchecked", "nbattn/arguments.py",
           'check_numbers(named["scale"], named["softcap"])', "pass", "execute"),
    # graphs that leave torch
    Mutant("tiles-one-key-short", GRAPH_MASKS, "hull = axis.left + axis.right + 1 +",
           "hull = axis.left + axis.right +", "export/graph_masks"),
    Mutant("tiles-without-the-gap", GRAPH_MASKS, "column + gap)", "column)",
           "export/graph_masks"),
    Mutant("dense-without-classes", GRAPH_MASKS, "return inside if step == 1 else",
           "return inside if step else", "export/graph_masks"),
    Mutant("graph-lengths-unchecked", GRAPH_MASKS,
           "axis.is_full or has_one_length", "axis.is_full or True", "export/init whole/fixes"),
    Mutant("padding-is-read", "nbattn/export/standard_form.py",
           "t.masked_fill(absent, 0)", "t", "export/standard_form"),
    Mutant("empty-rows-divide-by-nothing", "nbattn/export/standard_form.py",
           "total.masked_fill(empty, 1)", "total", "export/standard_form"),
    Mutant("onnx-keeps-the-operator", "nbattn/export/__init__.py",
           "    return not is_captured or", "    return is_captured and", "export/init"),
    Mutant("vmap-of-nothing", OPS, "t.unflatten(0, (size, batch))",
           "t.unflatten(0, (size, t.shape[0] // max(size, 1)))", "whole/inside_torch"),
    Mutant("threads-forgotten", PLANNER, "return _make(request, cost_table.torch_threads())",
           "return _make(request, 1)", "planner/cost_table"),
    Mutant("sink-after-rounding", CALLS, "(inputs.extra_key is None or not inputs.has_extra)",
           "inputs.extra_key is None", "backends/flash/run"),
    Mutant("equal-called-slower", "nbattn/planner/explain.py", "if cost == cost_of(chosen):",
           "if False:", "planner/explain"),
    Mutant("plans-again", PLANNER, "@lru_cache(CACHE_SIZE)\ndef _make(",
           "@lru_cache(0)\ndef _make(", "planner/planner"),
    Mutant("calls-plan-again", PLANNER, "@lru_cache(CACHE_SIZE)\ndef planned(",
           "@lru_cache(0)\ndef planned(", "whole/planning_work"),
    Mutant("counts-rows", GEOMETRY, "allows, without visiting every row.\"\"\"\n",
           "allows.\"\"\"\n        np.zeros(min(self.queries, 10**7))\n", "geometry"),
    Mutant("counts-visits-by-rows", TILE_TRAVERSAL, "visit, in closed form.\"\"\"\n",
           "visit.\"\"\"\n        np.zeros(min(self.axis.queries, 10**7))\n",
           "program/tile_traversal"),
    Mutant("draws-row-by-row", DRAW, "    counts = axis.coverage(rows, columns)\n",
           "    counts = axis.coverage(rows, columns)\n"
           "    for _ in range(axis.queries):\n        pass\n", "draw"),
    Mutant("proves-row-by-row", PROOF, "    calls = _program(candidate).calls\n    for call",
           "    calls = _program(candidate).calls\n"
           "    for _ in range(request.query_count):\n        pass\n    for call",
           "planner/proof planner/plan config/init"),
    Mutant("reads-a-cubin-line-by-line", STORE, '    first, _, rest = content.partition(b"\\n")\n',
           '    for _ in content.split(b"\\n"):\n        pass\n'
           '    first, _, rest = content.partition(b"\\n")\n', "kernels/cubins"),
    Mutant("launches-made-again", CUDA, "@lru_cache(1024)\ndef _launches(",
           "@lru_cache(0)\ndef _launches(", "backends/cuda/run"),
    Mutant("packs-pointer-by-pointer", LAUNCH,
           "        _POINTERS.pack_into(argument.buffer, 0, *pointers)\n",
           "        for number, pointer in enumerate(pointers):\n"
           '            struct.pack_into("<Q", argument.buffer, 8 * number, pointer)\n',
           "kernels/launch"),
    # kernels of CPUs
    Mutant("native-old-columns", CPU_TILES, "    if (count == 0) return {};\n    return {{t.run[0]",
           "    return {{t.run[0]",
           "whole/native_sweep"),
    Mutant("native-one-interval", CPU_TILES,
           "tile.two = tile.two || cut(runs.other, run).size() > 0", "tile.two = false",
           "whole/native_sweep"),
    Mutant("native-reads-invalid-keys", CPU_TILES,
           "if (!kKeyRows || t.valid.has(t.first + x)) ", "",
           "whole/native_sweep backends/native/run"),
    Mutant("native-lanes-in-another-order", CPU_TILES, "lane /= tile[later];",
           "lane /= tile[later] + (later == 2 && tile[1] > 1);", "whole/native_sweep"),
    Mutant("native-hides-a-prefix", CPU_VISIT, "((at < size) | (at_2 < size_2))", "(at < size)",
           "whole/native_sweep"),
    Mutant("native-full-on-one-axis", CPU_VISIT, "z_full && in_full(y_axis.full, {y, y + 1})",
           "z_full", "whole/native_sweep"),
    Mutant("native-full-piece", CPU_VISIT, "in_full(within_full, {x, x + size})",
           "in_full(within_full, {x, x + 1})", "whole/native_sweep"),
    Mutant("native-large-boxes", CPU_WALK, "          room /= step[axis];\n", "",
           "whole/native_sweep"),
    Mutant("native-group-of-another-sample", CPU_KERNELS,
           "w.p.key_range ? place.sample : 0;", "0;", "backends/native/run whole/native_sweep"),
    Mutant("packed-steps", CUDA_GRIDS, "s.axis[2] * length[2];", "s.axis[2];",
           "backends/native/run_grids"),
    Mutant("packed-delta", CUDA_GRIDS, "move(p.delta, query * of.number * 2);",
           "move(p.delta, query * of.number);", "backends/native/run_grids"),
    Mutant("packed-extra-keys", CUDA_GRIDS, "extra = number * (p.extra * kv_heads)", "extra = 0",
           "backends/native/run_grids"),
    Mutant("packed-key-range", CUDA_GRIDS, "number * (p.rank * 2ll", "number * (p.rank * 1ll",
           "backends/native/run_grids"),
    Mutant("packed-slopes", CUDA_GRIDS, "(static_cast<long long>(p.slope_step) * of.number)", "0",
           "backends/native/run_grids"),
    Mutant("packed-offset", CUDA_GRIDS, "p.axis[axis].offset = grid.offset[axis];", "",
           "backends/native/run_grids"),
    Mutant("packed-alike", "cpu/queue.h", "before >= 0 && !job.params.key_range && same_lengths",
           "before >= 0 && !job.params.key_range; (void)same_lengths", "backends/native/run_grids"),
    Mutant("packed-alike-ranges", "cpu/queue.h", "before >= 0 && !job.params.key_range &&",
           "before >= 0 &&", "backends/native/run_grids"),
    Mutant("packed-table-of-one", "cpu/table.h", "  if (p.grids) return axis;",
           "  if (false) return axis;", "backends/native/run_grids"),
    Mutant("packed-barrier", "cuda/block.cuh", "    __syncthreads();\n    run(own.params",
           "    run(own.params", "backends/cuda/run_grids"),
    Mutant("packed-search", "cuda/block.cuh", "first_tile[kKernel] <= tile;",
           "first_tile[kKernel] < tile;", "backends/cuda/run_grids"),
    Mutant("packed-shorter-search", "cuda/block.cuh", "count = min_of(step, count - skipped);",
           "count = step;", "backends/cuda/run_grids"),
    Mutant("packed-first-block", "cuda/block.cuh", "blockIdx.x - own.first_block", "blockIdx.x",
           "backends/cuda/run_grids"),
    Mutant("packed-classes", "nbattn/backends/cuda/tiles.py", "np.minimum(axis.dilation, length)",
           "axis.dilation", "backends/cuda/run_grids"),
    Mutant("packed-first-tile", "nbattn/kernels/grid_table.py", "np.cumsum(tiles)[:-1]",
           "np.cumsum(tiles)[1:]", "backends/cuda/run_grids kernels/grid_table"),
    Mutant("packed-corner", "nbattn/program/parts.py", "corner * end", "0 * end",
           "backends/native/run_grids program/parts"),
    Mutant("native-same-slabs-in-both-phases", CPU_ITEMS, "2 * share + call.phase", "2 * share",
           "whole/native_sweep"),
    Mutant("native-slabs-beyond-their-class", CPU_ITEMS, "min_of(first + slab, call.groups[axis])",
           "first + slab", "whole/native_sweep"),
    Mutant("native-all-slabs-at-a-time", CPU_ITEMS,
           "axis == alternating ? (slabs[axis] + 1 - phase) / 2 : slabs[axis]", "slabs[axis]",
           "whole/native_sweep"),
    Mutant("native-sums-of-the-box-before", CPU_KERNELS,
           "    if (w.adds_to_columns()) w.clear_column_sums(box);\n", "", "backends/native/run"),
    Mutant("native-gradients-from-nothing", CPU_KERNELS,
           "  if (job->pass == kGradAll) clear_gradients(*job);\n", "", "backends/native/run"),
    Mutant("native-weights-of-another-lane", CPU_BACKWARD, "numbers() + lane, kLanes, 1}",
           "numbers() + lane, 1, kLanes}", "backends/native/run"),
    Mutant("native-same-extra-keys", CPU_KERNELS,
           "kv_head * a.stride.head + (first + i) * a.stride.axis[2]",
           "kv_head * a.stride.head + i * a.stride.axis[2]", "backends/native/run"),
    Mutant("native-one-head-of-the-group", CPU_KERNELS, "head < first + p.group; ++head)",
           "head < first + 1; ++head)", "backends/native/run"),
    Mutant("native-sums-keep-their-size", CPU_FORWARD, "exp2_of(t.top - base);", "wide(F(1));",
           "backends/native/run"),
    Mutant("native-rows-without-keys", CPU_FORWARD, "where_below(top, -Exp2Most(), wide(F(0)))",
           "top", "backends/native/run"),
    Mutant("native-sink-of-the-first-head", CPU_FORWARD,
           "min_of(t.head + w.coordinate[0][lane], w.p.heads - 1)", "t.head",
           "backends/native/run"),
    Mutant("native-unread-logsumexp", CPU_BACKWARD,
           "if (empty) t.total.lane(lane) = 0;\n      else if", "if", "backends/native/run"),
    Mutant("native-slope-of-softcap", CPU_BACKWARD, "ds[m] = ds[m] * slope[m]", "ds[m] = ds[m]",
           "backends/native/run"),
    Mutant("native-scale-of-keys", CPU_BACKWARD,
           "w.store(t, grad_a, a, w.d, sample, t.sum_a, w.row_a, wide(F(w.p.scale)));",
           "w.store(t, grad_a, a, w.d, sample, t.sum_a, w.row_a, wide(F(1)));",
           "backends/native/run"),
    Mutant("native-value-heads", CPU_WALK, "head * stride[i].head;",
           "head * stride[0].head;", "backends/native/run"),
    Mutant("native-delta-of-the-first-head", CPU_WORKER, "contiguous(p, p.heads, 1, false)}};",
           "contiguous(p, p.heads, 0, false)}};", "whole/native_sweep backends/native/run"),
    Mutant("native-nan-becomes-a-number", CPU_VECTOR,
           "p * (V)(((U)t << E::kShift) + (U)splat<F>(F(1)))",
           "(V)((U)p + ((U)t << E::kShift))",
           "backends/native/run"),
    Mutant("native-short-tanh", CPU_VECTOR, "splat<F>(F(0.625))", "splat<F>(F(1.5))",
           "backends/native/run"),
    Mutant("native-short-exponential", CPU_VECTOR, "5.550328777e-02f", "5.560328777e-02f",
           "backends/native/run"),
    Mutant("native-ties", CPU_ELEMENT, "0x7fffu + (bits >> 16 & 1u)", "0x8000u",
           "backends/native/run"),
    Mutant("native-half-ties", CPU_ELEMENT, "0xc8000fffu + (size >> 13 & 1u)", "0xc8001000u",
           "backends/native/run"),
    Mutant("native-small-halves", CPU_ELEMENT, "size < 0x400u ? small", "size < 1u ? small",
           "backends/native/run"),
    Mutant("native-rounds-small-halves", CPU_ELEMENT, "y = size < 0x38800000u ? small : size",
           "y = size < 0x33800000u ? small : size", "backends/native/run"),
    Mutant("native-child-without-helpers", CPU_POOL,
           "  pthread_atfork(nullptr, nullptr, reset_pool);\n", "", "backends/native/run"),
    Mutant("native-returns-before-helpers", CPU_POOL,
           "  while (task.active) pthread_cond_wait(&pool.done, &pool.mutex);\n", "",
           "backends/native/run"),
    Mutant("native-strided-gradients-of-lse", NATIVE, "grad_lse.contiguous()", "grad_lse",
           "backends/native/run"),
    Mutant("native-strided-extra-keys", INPUTS, "inputs.extra_key.contiguous()",
           "inputs.extra_key", "backends/native/run"),
    # fixes
    Mutant("fix-is-not-tried", REMEDIES, "if ask(change.request).chosen:", "if True:",
           "planner/remedies"),
    Mutant("fix-moves-back", REMEDIES, "may_move=is_here", "may_move=True", "planner/remedies"),
    Mutant("fix-relaxes-all", REMEDIES, "if n != left_out", "if False", "planner/remedies"),
    Mutant("synonyms-are-unknown", SYNONYMS, "in (_plain(name), *synonyms.get(name, ())):",
           "in (_plain(name),):", "synonyms whole/fixes"),
    Mutant("newer-device-is-meant", SYNONYMS, "int(name[3:]) <= wanted", "int(name[3:]) >= wanted",
           "synonyms whole/fixes"),
    Mutant("toml-has-null", NOTATION, "if value is None and not self._words[2]", "if False",
           "config/notation config/mistakes"),
    Mutant("tensors-in-a-file", "nbattn/fixes/code.py", "if not _TENSORS.search(parts[n])",
           "if parts[n]", "config/notation config/mistakes"),
    Mutant("windows-are-replaced", ANSWERS, '("mask" in table and "causal" in entries[0])',
           "False", "config/answers"),
    Mutant("window-counts-the-query", ANSWERS,
           'return Answer(why, notation.entries({"left": value - 1}))',
           'return Answer(why, notation.entries({"left": value}))', "config/answers whole/fixes"),
    Mutant("octal-is-decimal", ANSWERS, 'r"-?(0|[1-9][0-9]*)"', 'r"-?[0-9]+"',
           "config/answers config/mistakes"),
    Mutant("native-no-warmup", NATIVE, "    host.library()\n\n\ndef forward",
           "    return\n\n\ndef forward", "backends/native/run"),
    Mutant("native-logsumexp-for-nobody", NATIVE,
           "if return_lse or window.grad_key or window.grad_all:", "if True:",
           "backends/native/run"),
    Mutant("imports-a-compiler", FUNCTIONAL, "import torch\nfrom torch import Tensor\n",
           "import torch\nimport torch._dynamo\nfrom torch import Tensor\n", "whole/imports"),
]
# fmt: on


def copied(source: Path, target: Path) -> None:
    """What the tests need, without caches."""
    for name in ("nbattn", "tests", "configs", "cuda", "cpu"):
        shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(source / name, target)


def mutated(root: Path, mutant: Mutant) -> str:
    """The file with the mistake, or an end that says that the table is out of date."""
    text = (root / mutant.path).read_text()
    if (found := text.count(mutant.old)) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.old!r} is {found} times in {mutant.path}, not 1")
    return text.replace(mutant.old, mutant.new)


def place(file: str) -> str:
    """Where a file of tests lies that the table calls "planner/proof"."""
    folder, _, name = f"tests/{file}".rpartition("/")
    return f"{folder}/test_{name}.py"


def outcome(root: Path, file: str) -> str:
    """What becomes of a test file: it passes, fails, hangs, crashes, or ends in an error."""
    options = ["-x", "-q", "-p", "no:cacheprovider"]
    env = {"PYTHONPATH": str(root), "HYPOTHESIS_PROFILE": "quick", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", place(file), *options],
            cwd=root, env=os.environ | env, capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode < 0:  # a mistake in C++ may end the process
        return "crashes"
    if done.returncode not in (0, 1):
        return f"error {done.returncode}: {(done.stdout + done.stderr).strip()[-300:]}"
    return "fails" if done.returncode else "passes"


def tried(base: Path, mutant: Mutant) -> tuple[str, ...]:
    """The outcome of the files of one mutant, in order, up to the first that sees it."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        copied(base, root)
        if mutant.path:
            (root / mutant.path).write_text(mutated(root, mutant))
        found: list[str] = []
        for file in mutant.files.split():  # those after the first that sees it would add nothing
            if not found or found[-1] not in SEEN:
                found.append(outcome(root, file))
        return tuple(found)


def run(base: Path, mutants: list[Mutant]) -> list[str]:
    """Try mutants, print a line for each, and return the names of those that no file sees."""
    survivors: list[str] = []
    with ThreadPoolExecutor(PROCESSES) as pool:
        for mutant, found in zip(mutants, pool.map(lambda m: tried(base, m), mutants), strict=True):
            caught = not SEEN.isdisjoint(found)
            results = " · ".join(map(" ".join, zip(mutant.files.split(), found, strict=False)))
            print(f"{'caught' if caught else 'SURVIVES':9} {mutant.name:26} {results}", flush=True)
            survivors += [] if caught else [mutant.name]
    return survivors


def index() -> str:
    """From rule to test: source files, their mutants, and the files of tests that catch each."""
    lines: list[str] = []
    for path in sorted({mutant.path for mutant in MUTANTS}):
        lines += ["", path]
        for mutant in (mutation for mutation in MUTANTS if mutation.path == path):
            lines.append(f"  {mutant.name}")
            lines += [f"    - {line}" for line in mutant.old.strip("\n").splitlines()]
            lines += [f"    + {line}" for line in mutant.new.strip("\n").splitlines()]
            lines += [f"    caught by {' or '.join(map(place, mutant.files.split()))}"]
    return "\n".join(lines[1:])


def main(names: list[str]) -> int:
    """Every mutant, or those named."""
    if unknown := set(names) - {mutant.name for mutant in MUTANTS}:
        raise SystemExit(f"no mutant is called {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    with TemporaryDirectory() as folder:
        base = Path(folder)
        copied(ROOT, base)  # once: the files may change meanwhile
        for mutant in chosen:
            mutated(base, mutant)
        files = sorted({file for mutant in chosen for file in mutant.files.split()})
        with ThreadPoolExecutor(PROCESSES) as pool:
            sound = pool.map(lambda file: tried(base, Mutant("", "", "", "", file)), files)
            if broken := [f for f, found in zip(files, sound, strict=True) if found != ("passes",)]:
                raise SystemExit(f"without a mutation these do not pass: {', '.join(broken)}")
        survivors = run(base, chosen)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} are caught.")
    return 1 if survivors else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--index"]:
        print(index())
    else:
        sys.exit(main(sys.argv[1:]))
