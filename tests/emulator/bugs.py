"""Bugs to put into a copy of the kernels, and the checks that catch each.

`cd tests && python -m emulator.bugs [name…]` prints the table and fails if a check misses a bug
that it should catch. With `--one`, each bug is tried with only one of its checks, in turn. A bug is
caught if the emulator reports a fault, a result is wrong by the rule that judges values, the
process dies, or shared memory has conflicts that the kernels do not have.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1] / "instruments"))

import torch

from emulator import build
from emulator.launcher import KernelError, Launcher, Mode
from emulator.problem import KERNELS, Problem, Tensors, expected_results, judge, make, run, variant
from nbattn import Axis, Mask

# The checks: values and faults in the three fast modes, the check build, bank conflicts.
CATCHERS: dict[str, Mode] = {"E": "eager", "L": "lazy", "R": "random", "C": "check", "B": "lazy"}
SECONDS = 20  # CPU time of one launch

PLAIN = Problem(Mask(Axis(21, 9)), (70,), (70,), stages=3)
WIDE = Problem(Mask(Axis(40, 46)), (100,), (100,), heads=1)
PADDED = Problem(Mask(Axis()), (40,), (60,), ranges=(((3, 41),), ((0, 60),)), batch=2, heads=1)
STRIDED = Problem(Mask(Axis(4, 3, stride=4, dilation=2)), (41,), (41,))
FAR = Problem(Mask(Axis(5, 3)), (40,), (40,), batch=2, heads=1, layout="far")
PLANE = Problem(
    Mask(Axis(2, 1, border="shift"), Axis(3, 4, stride=3, dilation=2, offset=-3)), (9, 13), (9, 13),
    rows=(1, 4, 8), columns=(1, 4, 4), heads=4, group=2, head_dim=24, value_dim=40,
)  # fmt: skip
CIRCLE = Problem(
    Mask(Axis(5, 4, border="wrap"), Axis(2, 1)), (12, 10), (12, 10),
    rows=(1, 4, 8), columns=(1, 4, 4), ranges=(((2, 11), (0, 9)), ((0, 12), (3, 10))), batch=2,
)  # fmt: skip
EXTRAS = Problem(
    Mask(Axis(4, causal=True, stride=2, prefix=3, align="bottom-right")), (40,), (50,),
    extra=21, sink=True, softcap=2.0, ranges=(((1, 43),), ((0, 50),)), batch=2,
)  # fmt: skip
CASES = {
    "plain": PLAIN, "wide": WIDE, "padded": PADDED, "far": FAR, "strided": STRIDED,
    "plane": PLANE, "circle": CIRCLE, "extras": EXTRAS,
}  # fmt: skip
CASES |= {
    f"{name}-simt": replace(
        case, family="simt", dtype=torch.float32,
        rows=(1, 1, 8) if len(case.queries) == 1 else (1, 2, 4),
        columns=(1, 1, 32) if len(case.queries) == 1 else (1, 4, 8),
    )
    for name, case in CASES.items()
}  # fmt: skip


@dataclass(frozen=True)
class Bug:
    """Replaces one text in one file of `cuda/`; `catch` lists the checks that must catch it."""

    name: str
    path: str
    old: str
    new: str
    kernel: str
    case: str
    catch: str


FWD, DQ, DKDV, MMA, VECTORS = "fwd_mma.cu", "dq_mma.cu", "dkdv_mma.cu", "mma.cuh", "vectors.cuh"
WINDOW, WALK, BLOCK = "window.cuh", "walk.cuh", "block.cuh"
SIMT, FWD_SIMT = "simt.cuh", "fwd_simt.cu"
# fmt: off
BARRIER = (
    "    __syncthreads();  "
    "// tile n is loaded for all threads, and all have used tile n - 1\n"
)
BUGS = [
    # copies and barriers
    Bug("no wait for the next tile", FWD, "    cp_async_wait<kStages - 2>();\n", "", "fwd", "plain",
        "LRC"),
    Bug("waits for one group too few", FWD, "cp_async_wait<kStages - 2>",
        "cp_async_wait<kStages - 1>", "fwd", "plain", "LRC"),
    Bug("waits for one group too few in dQ", DQ, "cp_async_wait<kStages - 2>",
        "cp_async_wait<kStages - 1>", "dq", "plain", "LRC"),
    Bug("no barrier after the wait", FWD, BARRIER, "", "fwd", "plain", "RC"),
    Bug("no barrier after the wait in dK/dV", DKDV, BARRIER, "", "dkdv", "plain", "RC"),
    Bug("the next tile is fetched before the barrier", FWD,
        BARRIER + "    fetch(n + kStages - 1);\n", "    fetch(n + kStages - 1);\n" + BARRIER, "fwd",
        "plain", "C"),
    Bug("one stage too few in memory", FWD,
        "n % kStages * kStageBytes)};\n  };\n  const auto value",
        "n % (kStages - 1) * kStageBytes)};\n  };\n  const auto value", "fwd", "plain", "ELRC"),
    Bug("the last tile is never fetched", FWD, "if (is_visit(n))\n", "if (is_visit(n + 1))\n",
        "fwd", "plain", "ELRC"),
    Bug("groups are not committed", DQ, "    cp_async_commit();\n", "", "dq", "plain", "LRC"),
    Bug("no barrier inside the walk", WALK,
        "    else begin_extra_axis<Rows, Columns>(walk, p.axis[thread], thread);\n  }\n"
        "  __syncthreads();\n",
        "    else begin_extra_axis<Rows, Columns>(walk, p.axis[thread], thread);\n  }\n", "fwd",
        "plain", "ELRC"),
    Bug("no __syncwarp before rows are stored", MMA,
        "sums.at[b][n][2 * h + 1] * factor[b][h]);\n  __syncwarp();\n",
        "sums.at[b][n][2 * h + 1] * factor[b][h]);\n", "fwd", "plain", "ELRC"),
    # fragments and shared memory
    Bug("rows of the wrong matrix", MMA, "chunk(row + lane % 16, k * 2 + lane / 16)",
        "chunk(row + lane % 16, k * 2 + lane / 8 % 2)", "fwd", "plane", "ELRC"),
    Bug("columns of the wrong vector", MMA,
        "n * 16 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2",
        "n * 16 + lane % 16, k * 2 + lane / 16", "fwd", "plane", "ELRC"),
    Bug("values are not transposed", MMA, "ldmatrix_x4_trans(b, ", "ldmatrix_x4(b, ", "fwd",
        "plane", "ELRC"),
    Bug("registers of a fragment swapped", MMA,
        "a[b][1] = pack2<Element>(w[2 * k][2], w[2 * k][3]);",
        "a[b][1] = pack2<Element>(w[2 * k + 1][0], w[2 * k + 1][1]);", "fwd", "plane", "ELRC"),
    Bug("the last channels are left out", MMA, "k < (kChannels + 15) / 16", "k < kChannels / 16",
        "fwd", "plane", "ELRC"),
    Bug("vectors without padding", MMA,
        "kPitch = kPadded + 8, kChunks = kPadded / 8;\n"
        "  static constexpr int kBytes = kVectors * kPitch * 2;",
        "kPitch = kPadded, kChunks = kPadded / 8;\n"
        "  static constexpr int kBytes = kVectors * (kPitch + 8) * 2;", "fwd", "plane", "B"),
    Bug("a row of the wrong half", MMA, "threadIdx.x % 32 / 4 + h * 8;",
        "threadIdx.x % 32 / 4 + h;", "fwd", "plane", "ELRC"),
    # what is read and written
    Bug("columns outside are read", VECTORS,
        "column_place<Columns>(walk, v, i);\n    return place.inside ? base",
        "column_place<Columns>(walk, v, i);\n    return true ? base", "fwd", "plain", "ELRC"),
    Bug("rows outside are written", FWD,
        "    if (!place.inside) return nullptr;\n    return static_cast<Element*>(p.out)",
        "    return static_cast<Element*>(p.out)", "fwd", "plain", "ELRC"),
    Bug("queries outside count for keys", DKDV,
        "lse[i] = place.inside ? in_log2(static_cast<const float*>(p.lse)[token]) : 0.f;",
        "lse[i] = in_log2(static_cast<const float*>(p.lse)[i]);", "dkdv", "plane", "ELRC"),
    Bug("values by the strides of keys", VECTORS,
        "walk, v, p.value, p.value_stride, sample, head);\n  }\n}",
        "walk, v, p.value, p.key_stride, sample, head);\n  }\n}", "fwd", "plane", "ELRC"),
    Bug("strides of two axes swapped", WALK, "at[1] * s.axis[1] + at[2] * s.axis[2]",
        "at[1] * s.axis[2] + at[2] * s.axis[1]", "fwd", "plane", "ELRC"),
    Bug("key heads dealt out in turn", FWD, "block.head / p.group",
        "block.head % (p.heads / p.group)", "fwd", "plane", "ELRC"),
    Bug("one query head of a group in dK/dV", DKDV, "const int visits = walk.total * p.group;",
        "const int visits = walk.total;", "dkdv", "plane", "ELRC"),
    Bug("the wrong query head in dK/dV", DKDV, "block.head * p.group + n / walk.total",
        "block.head + n / walk.total", "dkdv", "plane", "ELRC"),
    Bug("offsets of 32 bits", VECTORS,
        "static_cast<const Element*>(tensor) + sample * s.batch + head * s.head;\n"
        "  const auto source = [&](int i) -> const Element* {\n"
        "    const Place place = kKeys ? key_column_place",
        "static_cast<const Element*>(tensor) + static_cast<int>(sample * s.batch) + head * "
        "s.head;\n  const auto source = [&](int i) -> const Element* {\n"
        "    const Place place = kKeys ? key_column_place", "fwd", "far", "ELRC"),
    # windows, forward and inverse
    Bug("window one key too long", WINDOW, "hi = leader + a.right + 1,",
        "hi = leader + a.right + 2,", "fwd", "plain", "ELRC"),
    Bug("window one key too short", WINDOW, "int lo = leader - a.left,",
        "int lo = leader - a.left + 1,", "fwd", "plain", "ELRC"),
    Bug("leader beyond the last key", WINDOW,
        "  if (group < keys) leader = min_of(leader, keys - 1);\n", "", "fwd", "strided", "ELRC"),
    Bug("shifted one key too far", WINDOW, "clamp_to(lo, 0, max_of(0, keys - size))",
        "clamp_to(lo, 0, max_of(0, keys - size - 1))", "fwd", "plane", "ELRC"),
    Bug("a causal row reads the next key", WINDOW, "hi = min_of(hi, u + 1);",
        "hi = min_of(hi, u + 2);", "fwd", "extras", "ELRC"),
    Bug("the wrong residue class", WINDOW,
        "const int residue = query + a.offset - start * a.dilation;", "const int residue = query;",
        "fwd", "plane", "ELRC"),
    Bug("inverse window begins a key late", WINDOW,
        "int lo = ceil_div(t - a.right - step, a.stride)",
        "int lo = ceil_div(t - a.right - step + 1, a.stride)", "dkdv", "plain", "ELRC"),
    Bug("inverse window ends with its group's leader", WINDOW,
        "floor_div(t + a.left - step, a.stride) * a.stride + a.stride;\n  if",
        "floor_div(t + a.left - step, a.stride) * a.stride + 1;\n  if", "dkdv", "plane", "ELRC"),
    Bug("inverse window forgets the last leaders", WINDOW, "if (t + a.left >= keys - 1)",
        "if (t + a.left >= keys)", "dkdv", "strided", "ELRC"),
    Bug("inverse shift forgets the border", WINDOW, "    if (t < size) lo = -kFar;\n", "", "dkdv",
        "plane", "ELRC"),
    Bug("inverse of a prefix is one key short", WINDOW, "if (t < a.prefix) return",
        "if (t < a.prefix - 1) return", "dkdv", "extras", "ELRC"),
    # the walk
    Bug("a skipped tile", WALK,
        "ceil_div(max_of(0, w.run[run].hi - w.run[run].lo), Columns::of(axis));",
        "max_of(0, w.run[run].hi - w.run[run].lo) / Columns::of(axis);", "fwd", "plain", "ELRC"),
    Bug("hull of the first row only", WALK,
        "w.run[1] = cut({max_of(head.lo, tail.prefix), tail.hi}, w.valid);",
        "w.run[1] = cut({max_of(head.lo, tail.prefix), head.hi}, w.valid);", "fwd", "plain",
        "ELRC"),
    Bug("tiles taken for full", WALK, "v.full = v.full && v.count[axis] == extent &&",
        "v.full = v.full &&", "fwd", "padded", "ELRC"),
    Bug("what every row reads is one too long", WALK, "const Interval all = {tail.lo, head.hi};",
        "const Interval all = {tail.lo, head.hi + 1};", "fwd", "wide", "ELRC"),
    Bug("a wrapped position beyond the end", WALK, "x >= period ? -period", "x > period ? -period",
        "fwd", "circle", "ELRC"),
    Bug("the other side of a wrapped window", WALK, "runs.other.lo = runs.one.lo - keys;",
        "runs.other.lo = runs.one.lo;", "fwd", "circle", "ELRC"),
    Bug("columns of a wrapped row twice", WALK,
        "w.run[0] = {hull.lo, min_of(hull.hi, hull.lo + period)};", "w.run[0] = hull;", "fwd",
        "circle", "ELRC"),
    Bug("two tiles of rows overlap", WALK, "m = tile % per_class * Rows::of(axis);\n  const Class",
        "m = max_of(0, tile % per_class * Rows::of(axis) - 1);\n  const Class", "fwd", "plain",
        "C"),
    Bug("a class of rows taken twice", WALK, "const int number = tile / per_class,",
        "const int number = tile % 1,", "fwd", "plane", "ELRC"),
    Bug("key_range one key too long", WALK, "ceil_div(hi - c.residue, d)}",
        "ceil_div(hi + 1 - c.residue, d)}", "fwd", "circle", "ELRC"),
    Bug("key_range of the wrong sample", WALK, "(static_cast<long long>(sample) * p.rank + at) * 2",
        "at * 2", "fwd", "circle", "ELRC"),
    Bug("key_range forgotten where windows wrap", WALK,
        "inside = inside && x >= w.valid.lo && x < w.valid.hi;",
        "inside = inside && x < w.valid.hi;", "fwd", "circle", "ELRC"),
    Bug("columns outside key_range are loaded", WALK,
        "  place.inside = place.inside && in_key_range<Columns>(walk, v, index);\n", "", "fwd",
        "circle", "ELRC"),
    # softmax and its gradients
    Bug("the output is not rescaled", FWD, "        out.at[b][n][2 * h] *= shrink;\n", "", "fwd",
        "plain", "ELRC"),
    Bug("the sum is not rescaled", FWD, "float sum = state.sum[b][h] * shrink;",
        "float sum = state.sum[b][h];", "fwd", "plain", "ELRC"),
    Bug("logsumexp in units of log 2", FWD, "(state.max[b][h] + log2f(sum)) * kLn2",
        "(state.max[b][h] + log2f(sum))", "fwd", "plain", "ELRC"),
    Bug("every lane counts the sink", FWD, "sink != -NB_INFINITY && threadIdx.x % 4 == 0",
        "sink != -NB_INFINITY", "fwd", "extras", "ELRC"),
    Bug("gradients without the slope of the cap", DQ, "weight * scores.slope(x) * (", "weight * (",
        "dq", "extras", "ELRC"),
    Bug("gradients without delta", DKDV, "grads.at[b][n][e] - stage.delta[column_of(n, e % 2)]",
        "grads.at[b][n][e]", "dkdv", "plain", "ELRC"),
    Bug("gradients without the scale", DQ, "factor[b][1] = static_cast<float>(p.scale);",
        "factor[b][1] = 1.f;", "dq", "plain", "ELRC"),
    Bug("delta with the sign of grad_lse", "delta.cu", "sum -= ", "sum += ", "delta", "plain",
        "ELRC"),
    # extra keys
    Bug("extra keys lost", FWD, "walk.total + extra_tiles(p, kColumns);", "walk.total;", "fwd",
        "extras", "ELRC"),
    Bug("one extra key too many", WALK, "v.count[2] = min_of(Columns::size, extra - v.start[2]);",
        "v.count[2] = min_of(Columns::size, extra + 1 - v.start[2]);", "fwd", "extras", "ELRC"),
    Bug("extra keys of another head", BLOCK, "* heads + key_head) * channels;",
        "* heads) * channels;", "fwd", "extras", "ELRC"),
    Bug("an extra key's gradient in the wrong place", DKDV, "const int e = walk.extra + row;",
        "const int e = walk.extra + row + 1;", "dkdv", "extras", "ELRC"),
    # without tensor cores
    Bug("no barrier before chunks are replaced", SIMT,
        "      __syncthreads();  // all threads have used the previous chunks\n", "", "fwd",
        "plane-simt", "ELRC"),
    Bug("no barrier before a product", SIMT, "column_step);\n      __syncthreads();\n",
        "column_step);\n", "fwd", "plane-simt", "ELRC"),
    Bug("no barrier before values are replaced", SIMT,
        "      __syncthreads();\n      load(columns, kLanes, tensor",
        "      load(columns, kLanes, tensor", "dkdv", "plane-simt", "ELRC"),
    Bug("no barrier before values are used", SIMT,
        "i * kLanes, kChannels, step);\n      __syncthreads();\n",
        "i * kLanes, kChannels, step);\n", "fwd", "plane-simt", "ELRC"),
    Bug("channels beyond the last", SIMT, "offsets[vector] >= 0 && c < channels;",
        "offsets[vector] >= 0;", "fwd", "plane-simt", "ELRC"),
    Bug("a warp reduced by half", SIMT, "x += __shfl_xor_sync(~0u, x, step);",
        "x += __shfl_xor_sync(~0u, x, step / 2);", "fwd", "plain-simt", "ELRC"),
    Bug("a warp leaves before a barrier", FWD_SIMT, "  if (!has_rows(*arena.walk)) return;\n",
        "  if (!has_rows(*arena.walk) || threadIdx.x >= 96) return;\n", "fwd", "plain-simt",
        "ELRC"),
]
# fmt: on


@cache
def cached_case(case: str) -> tuple[Tensors, tuple[Tensors, Tensors]]:
    """Inputs with the correct kernels' outputs, and the expected outputs."""
    p = CASES[case]
    made = make(p)
    tensors = dict(made)
    for kernel in KERNELS:
        tensors |= run(p, Launcher("eager"), kernel, tensors)
    low, exact = expected_results(p, made)
    delta = (exact["out"] * made["grad_out"].double()).sum(-1) - made["grad_lse"].double()
    return tensors, (low | {"delta": delta}, exact | {"delta": delta})


def mutated(bug: Bug, folder: Path) -> None:
    """Copy the kernels and put the bug into the copy."""
    shutil.copytree(build.CUDA, folder, dirs_exist_ok=True)
    text = (folder / bug.path).read_text("utf-8")
    if text.count(bug.old) != 1:
        raise SystemExit(
            f"{bug.name}: {bug.path} has its text {text.count(bug.old)} times, not once"
        )
    (folder / bug.path).write_text(text.replace(bug.old, bug.new), "utf-8")


def report_of_check(bug: Bug, catcher: str, folder: Path) -> str:
    """The report of one check on a bug; empty if the check misses it."""
    tensors, expected = cached_case(bug.case)
    p, launcher = CASES[bug.case], Launcher(CATCHERS[catcher], seconds=SECONDS, folder=folder)
    try:
        outputs = run(p, launcher, bug.kernel, tensors)
        if catcher != "B":
            judge(p, outputs, expected)
    except (KernelError, AssertionError) as error:
        return "" if catcher == "B" else str(error).splitlines()[0]
    if catcher == "B" and launcher.counts.bank_ways > launcher.counts.matrices:
        return f"{launcher.counts.bank_ways / launcher.counts.matrices:.1f} passes a matrix"
    return ""


def in_child(bug: Bug, catcher: str, folder: Path) -> str:
    """Runs `report_of_check` in a child process, which the bug may kill."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, report_of_check(bug, catcher, folder).encode()[:4000])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        report = pipe.read()
    _, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else report


def reports_by_check(bug: Bug, catchers: Iterable[str] = CATCHERS) -> dict[str, str]:
    """Check → its report, of the checks that catch the bug."""
    p = CASES[bug.case]
    cached_case(bug.case)
    with tempfile.TemporaryDirectory() as scratch:
        mutated(bug, Path(scratch))
        # before the fork, since a compiler error does not count as a catch
        for checked in {CATCHERS[catcher] == "check" for catcher in catchers}:
            build.kernel(variant(p, bug.kernel), checked=checked, folder=Path(scratch))
        reports = {catcher: in_child(bug, catcher, Path(scratch)) for catcher in catchers}
    return {catcher: report for catcher, report in reports.items() if report}


def reports_on_correct_kernels(bugs: list[Bug]) -> list[str]:
    """The reports of all checks on the correct kernels; there should be none."""
    clean = {(bug.case, bug.kernel): bug for bug in bugs}.values()
    reports = [
        (bug, catcher, report_of_check(bug, catcher, build.CUDA))
        for bug in clean
        for catcher in CATCHERS
    ]
    return [
        f"{bug.case}, {bug.kernel}, {catcher}: {text}" for bug, catcher, text in reports if text
    ]


def main(names: list[str], *, one: bool) -> int:
    """Print the table and return the number of bugs that a check misses but should catch."""
    torch.set_num_threads(1)
    chosen = [bug for bug in BUGS if not names or bug.name in names]
    if wrong := reports_on_correct_kernels(chosen):
        raise SystemExit("without a bug:\n" + "\n".join(wrong))
    missed = 0
    for place, bug in enumerate(chosen):
        wanted = bug.catch[place % len(bug.catch)] if one else bug.catch
        reports = reports_by_check(bug, wanted if one else CATCHERS)
        missing = "".join(catcher for catcher in wanted if catcher not in reports)
        missed += bool(missing or not reports)
        text = reports.get("C") or next(iter(reports.values()), "nothing")
        flag = f"MISSED BY {missing or 'ALL'}: " if missing or not reports else ""
        print(f"{bug.name:45} {''.join(reports):5} {flag}{text}", flush=True)
    return missed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help="bugs; default: all")
    parser.add_argument("--one", action="store_true", help="try one check per bug, in turn")
    arguments = parser.parse_args()
    sys.exit(bool(main(arguments.names, one=arguments.one)))
