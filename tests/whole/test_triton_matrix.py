"""Tests of compiling the Triton kernels for every target, without a GPU.

Rules hold for every Triton; `golden/triton_kernels.json` has what one version made of both
profiles' kernels: registers, stack, shared memory and instructions of matrix products. Where
kernels or tiles change on purpose, `python tests/whole/test_triton_matrix.py --update` writes it
again, in about ten minutes on two cores; `--deep TARGET` prints what breaks a rule in the deep
profile, and `--times` compile times.

The quick profile has every kernel for every generation of instructions. The deep one has all that
`tiles.shipped` lists for each target: every tile for bfloat16, and one of everything else. The
file has it for one target of each generation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, product
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "instruments"))

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from sass_paths import Loop, Need, graph
from triton_compiler import FUNCTIONS, Case, Compiler, Report, binary, compiler, version

from nbattn.backends.triton import tiles as triton_tiles
from nbattn.backends.triton.tiles import EXTRA, SPILLED, TABLE, Build, Tiles
from nbattn.program.device import named

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "triton_kernels.json"
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")  # one of each generation of instructions
ALL_TARGETS = (*TARGETS, "sm_86", "sm_120", "gfx90a", "gfx950")
REGISTER_STEP = 8  # in which a thread's registers are allotted
INSTRUCTIONS = {
    "mma": "mma.sync",
    "wgmma": "wgmma.mma_async",
    "tcgen05": "tcgen05.mma",
    "mfma": "v_mfma",
    "wmma": "v_wmma",
}
KERNELS = ("fwd", "dq", "dkdv")
GROUP = (64, 4)  # rows and warps that one wgmma or tcgen05.mma takes together
QUICK = ("64x32", "16x16")  # rows and columns of the quick profile: tiles that compile fast


def build_of(kernel: str) -> Build:
    """The plain build of a kernel."""
    return Build("bfloat16", 64, 64, 2, extra=kernel == EXTRA, table=kernel == TABLE)


def quick() -> Iterator[Case]:
    """Every kernel for every generation."""
    for target in TARGETS:
        for kernel in FUNCTIONS:
            build = build_of(kernel)
            if kernel == "delta":
                yield Case(kernel, target, Tiles((1, 1, 64), (1, 1, 1), 4, 1), build, step=1)
                continue
            legal = triton_tiles.legal_tiles(kernel, build, named(target), (1, 2))
            counted = {f"{one.row_count}x{one.column_count}": one for one in reversed(legal)}
            yield Case(kernel, target, next(counted[n] for n in QUICK if n in counted), build)


def in_file() -> dict[str, Case]:
    """The kernels of the golden file, by name."""
    both = chain(quick(), *map(deep, TARGETS))
    return {case.id: case for case in both}


def deep(target: str) -> Iterator[Case]:
    """Everything that is shipped for a target."""
    for kernel, tiles, build, *others in triton_tiles.shipped(named(target)):
        yield Case(kernel, target, tiles, build, *others)


# Rules


def instruction(case: Case) -> str:
    """The instruction of matrix products that a kernel must use; empty if none."""
    kind = triton_tiles.instructions(named(case.target), case.build.dtype)
    tiles = case.tiles
    together = tiles.row_count >= GROUP[0] and tiles.warps >= GROUP[1]
    if kind in ("wgmma", "tcgen05") and not together:
        kind = "mma"
    return INSTRUCTIONS[kind] if kind and case.kernel != "delta" else ""


def problems(case: Case, report: Report) -> list[str]:
    """What the compiler's report shows that no kernel may have."""
    if report.error:
        return [report.error]
    faults: list[str] = []
    wanted = instruction(case)
    if wanted and not report.products.get(wanted):
        faults.append(f"no {wanted}: {report.products}")
    if not wanted and case.precision == "ieee" and report.products:
        faults.append(f"{report.products} in {case.build.dtype}")
    if report.spilled > SPILLED:
        faults.append(f"{report.spilled} bytes of stack")
    if report.atomics:
        faults.append(f"{report.atomics} atomic instructions")
    if case.kernel != "delta":
        device = named(case.target)
        most = triton_tiles.shared_bytes(case.kernel, case.tiles, case.build, device)
        if report.shared > most:
            faults.append(f"{report.shared} bytes of shared memory, counted as {most}")
    return faults


def measured(report: Report) -> dict[str, object]:
    """What the golden file has."""
    registers = -(-report.registers // REGISTER_STEP) * REGISTER_STEP
    return {
        "registers": registers,
        "stack": report.spilled,
        "shared": report.shared,
        **report.products,
    }


@pytest.fixture(scope="module")
def compiled() -> Iterator[Compiler]:
    """A process that compiles."""
    with compiler() as made:
        yield made


@pytest.mark.parametrize("case", [*quick()], ids=lambda case: case.id)
def test_a_kernel_for_a_target(case: Case, compiled: Compiler, cases):
    report = compiled(case)
    assert not problems(case, report)
    golden = json.loads(GOLDEN.read_text())
    assert case.id in golden["kernels"]
    if golden["triton"] == version():
        assert measured(report) == golden["kernels"][case.id]
    cases("compiled Triton kernels", 1)


@pytest.mark.deep
@pytest.mark.parametrize("target", ALL_TARGETS)
def test_everything_that_is_shipped(target: str, compiled: Compiler, cases):
    golden = json.loads(GOLDEN.read_text())
    known = golden["kernels"] if golden["triton"] == version() else {}
    found: dict[str, object] = {}
    for case in deep(target):
        report = compiled(case)
        found[case.id] = problems(case, report)
        if case.id in known and measured(report) != known[case.id]:
            found[case.id] = [measured(report), known[case.id]]
    assert {name: faults for name, faults in found.items() if faults} == {}
    cases("compiled Triton kernels", len(found))


def test_golden_file_has_all_that_is_shipped():
    kernels = json.loads(GOLDEN.read_text())["kernels"]
    assert [*kernels] == [*in_file()]
    assert len(kernels) > 800
    for name, case in in_file().items():
        found = kernels[name]
        assert found["stack"] <= SPILLED, name
        if case.kernel != "delta":
            device = named(case.target)
            most = triton_tiles.shared_bytes(case.kernel, case.tiles, case.build, device)
            assert found["shared"] <= most <= triton_tiles.memory(device), name
        assert not instruction(case) or found[instruction(case)] > 0, name


# The rules can fail


CASE = Case("fwd", "sm_90", Tiles((1, 8, 8), (1, 8, 8), 4, 2), Build("bfloat16", 64, 64, 2))
FINE = Report(168, 0, 40960, {"wgmma.mma_async": 8})


@pytest.mark.parametrize(
    ("case", "change", "expected"),
    [
        ({}, {}, []),
        ({}, {"error": "words"}, ["words"]),
        ({}, {"spilled": SPILLED}, []),
        ({}, {"spilled": SPILLED + 8}, ["112 bytes of stack"]),
        ({}, {"atomics": 1}, ["1 atomic instructions"]),
        ({}, {"shared": 45313}, ["45313 bytes of shared memory, counted as 45312"]),
        ({}, {"products": {"mma.sync": 4}}, ["no wgmma.mma_async: {'mma.sync': 4}"]),
        (
            {"tiles": Tiles((1, 4, 8), (1, 8, 8), 2, 2)},
            {"products": {"mma.sync": 4}, "shared": 24576},
            [],
        ),
        ({"target": "sm_100"}, {"products": {"tcgen05.mma": 4}}, []),
        ({"target": "gfx942"}, {"products": {}, "shared": 24576}, ["no v_mfma: {}"]),
        (
            {"build": Build("float32", 64, 64, 2)},
            {"products": {"mma.sync": 2}},
            ["{'mma.sync': 2} in float32"],
        ),
        (
            {"build": Build("float32", 64, 64, 2), "precision": "tf32"},
            {"products": {"mma.sync": 2}},
            [],
        ),
    ],
)
def test_problems_are_reported(
    case: dict[str, object], change: dict[str, object], expected: list[str]
):
    report = replace(FINE, **change)
    assert problems(replace(CASE, **case), report) == expected


def update() -> None:
    """Write the golden file again, with what breaks a rule on the screen."""
    cases_of, own = in_file(), threading.local()
    with ExitStack() as stack, ThreadPoolExecutor(os.cpu_count()) as pool:

        def report_of(case: Case) -> Report:
            if not hasattr(own, "compile_one"):
                own.compile_one = stack.enter_context(compiler())
            report = own.compile_one(case)
            faults = problems(case, report)
            print("FAULT" if faults else "ok", case.id, *faults, flush=True)
            return report

        reports = dict(zip(cases_of, pool.map(report_of, cases_of.values()), strict=True))
    lines = [f"{json.dumps(n)}: {json.dumps(measured(r))}" for n, r in reports.items()]
    body = ",\n  ".join(lines)
    GOLDEN.write_text(f'{{\n "triton": "{version()}",\n "kernels": {{\n  {body}\n }}\n}}\n')


def print_problems(target: str, words: list[str]) -> None:
    """What breaks a rule, of the cases whose name has all of some words."""
    with compiler() as compile_one:
        for case in deep(target):
            if all(word in case.id.split() for word in words):
                report = compile_one(case)
                faults = problems(case, report)
                print("FAULT" if faults else "ok", case.id, measured(report), faults, flush=True)


def print_visits() -> None:
    """The instructions that a warp issues in an interior visit, for the two largest tiles, and how
    many HMMAs of 16 x 8 x 16 would compute its part of the products.
    """
    with tempfile.TemporaryDirectory() as folder, compiler(folder) as compile_one:
        for target, size, kernel in product(("sm_80", "sm_90"), (64, 128), KERNELS):
            build = build_of(kernel)._replace(head_dim=size, value_dim=size)
            for tiles in largest(triton_tiles.legal_tiles(kernel, build, named(target), (1, 2))):
                report = compile_one(Case(kernel, target, tiles, build))
                command = [binary("nvdisasm"), "--print-code", "--no-dataflow", report.code]
                text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                loop = Loop(graph(text.replace("HGMMA", "HMMA")))
                count = min(number for number, _ in loop.totals(1000, 1000) if number)
                path = loop.path(Need(count, None, 0, 0), lambda block: 0, 0)
                assert path is not None
                each = tiles.area * triton_tiles.products(kernel, build) // 2048 // tiles.warps
                print(
                    f"{kernel} D {size} {tiles.row_count}x{tiles.column_count} {tiles.warps} warps "
                    f"{target}: {path.length}, {path.length / each:.1f} per HMMA of {each}; "
                    f"{report.registers} registers, {report.spilled} of stack; {path.kinds}",
                    flush=True,
                )


def largest(legal: Iterable[Tiles]) -> list[Tiles]:
    """The two largest numbers of rows and columns, each once."""
    by_size: dict[tuple[int, int], Tiles] = {}
    for tiles in legal:
        by_size.setdefault((tiles.row_count, tiles.column_count), tiles)
    return [*by_size.values()][:2]


def print_times() -> None:
    """Seconds of compiling the largest tiles for head sizes 64 and 128."""
    with compiler() as compile_one:
        for target, kernel in product(TARGETS, KERNELS):
            builds = [build_of(kernel)._replace(head_dim=n, value_dim=n) for n in (64, 128)]
            tiles = [
                triton_tiles.legal_tiles(kernel, build, named(target), (1, 2)) for build in builds
            ]
            times = [
                compile_one(Case(kernel, target, legal[0], build)).seconds
                for build, legal in zip(builds, tiles, strict=True)
            ]
            print(f"{kernel} {target}: {times}", flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--update"]:
            update()
        case ["--deep", target, *words]:
            print_problems(target, words)
        case ["--times"]:
            print_times()
        case ["--visits"]:
            print_visits()
        case _:
            sys.exit("--update, --deep TARGET, --times or --visits")
