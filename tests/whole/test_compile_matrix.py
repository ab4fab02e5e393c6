"""Tests of compiling the kernels for every target with NVRTC, without a GPU or a driver.

Rules hold for every NVRTC; budgets are those of one (`golden/kernels.json`): registers, shared
memory, and the instructions of one visit (`instruments/sass_paths.py`), where nvdisasm is there.
Where kernels change on purpose, `python tests/whole/test_compile_matrix.py --update` writes it
again; read its diff before you commit it. `--path NAME TARGET` prints the instructions of a visit,
`--model` what they cost in clocks, and `--fit` the planner's coefficients for them: counts and
models, nothing measured.

The quick profile has the forward kernel for every generation of instructions, the others for two,
and each feature with every kernel for one target: where kernels differ, in all that they add, and
where features meet, in one build that has all of them. The deep one has every target, features
alone, wide heads, the tiles of `TABLE`, and every tile for two targets. All but the last have
budgets, which is checked in the quick profile.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "instruments"))

import counted_visits
import pytest
import sass_paths
from counted_visits import TABLE, Budget, over
from disassembly import disassembled, instructions, nvdisasm
from probe_kernel import needs_nvrtc, skip_where_unknown

from nbattn.backends.cuda import tiles as cuda_tiles
from nbattn.backends.cuda.tiles import KERNELS, Build, Tiles
from nbattn.kernels import nvrtc, sources
from nbattn.kernels.nvrtc import Compiled
from nbattn.kernels.variant import Variant

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "kernels.json"
RELEASE = "13.0.88"  # of NVRTC, whose registers are recorded
# Targets, and the shared memory that a block may have there.
TARGETS = {
    "75": 64 << 10,
    "80": 163 << 10,
    "86": 99 << 10,
    "89": 99 << 10,
    "90a": 227 << 10,
    "100a": 227 << 10,
    "103a": 227 << 10,
    "120": 99 << 10,
}
ANYWHERE = 99 << 10  # bytes that every target of tensor cores has
TWO = ("80", "90a")
WIDE = ("90a",)  # the quick profile has the widest heads here
GENERATIONS = ("75", "80", "90a", "100a", "120")  # of instructions, each by a target of it
DISASSEMBLED = GENERATIONS[:-1]
SPILL_FREE = 128  # channels up to which tensor-core kernels hold all they need in registers
REGISTER_STEP = 8  # in which a thread's registers are allotted
SIZES = (
    *((size, size) for size in (16, 32, 48, 64, 72, 80, 88, 96, 104, 112, 120, 128, 192, 256)),
    (24, 40),
    (64, 128),
    (128, 64),
    (192, 128),
)
GRIDS = ((2, False, TWO), (2, True, TWO), (1, False, ("90a",)), (3, False, ("90a",)))


GROUP_SIZES = (64, 80, 96, 128, 192, 256)


@dataclass(frozen=True)
class Case:
    """A variant for one target."""

    variant: Variant
    target: str
    family: str  # "mma", "simt", "wgmma", or "" of the kernel without tiles
    channels: int
    vector: bool

    @property
    def name(self) -> str:
        """What differs between cases, but for the target."""
        return self.variant.entry.removeprefix("nb_") + "".join(
            f" {name.removeprefix('NB_').lower()}={value}"
            for name, value in self.variant.constants
            if value != _USUAL.get(name)
        )

    @property
    def id(self) -> str:
        return f"{self.name} sm_{self.target}"

    @property
    def kernel(self) -> str:
        return self.variant.source.partition("_")[0]

    @property
    def is_counted(self) -> bool:
        """Whether the instructions of its visits are counted."""
        tensor_cores = self.family == "wgmma" or (self.family == "mma" and self.vector)
        return tensor_cores and self.target in DISASSEMBLED


_USUAL = {
    **dict.fromkeys(("NB_TWO_RUNS", "NB_SOFTCAP", "NB_KEY_RANGE"), 0),
    **dict.fromkeys(("NB_VECTOR", "NB_ROW_BLOCKS", "NB_QUERY_TILE_0", "NB_KEY_TILE_0"), 1),
    **{"NB_STAGES": 2, "NB_WARPS": 4},
}


def variants_of(
    kernel: str, tiles: Tiles, build: Build, target: str, vector: bool = True
) -> Iterator[Case]:
    """A kernel's variants: gradients of keys and values may be two."""
    vector = vector and tiles.instructions == "mma"
    for grads in cuda_tiles.grads_of(kernel, build):
        variant = cuda_tiles.variant(kernel, tiles, build, grads=grads, vector=vector)
        yield Case(
            variant, target, tiles.instructions, max(build.head_dim, build.value_dim), vector
        )


def largest(kernel: str, family: str, build: Build) -> Tiles:
    """The most rows, and the most columns with them: what large problems get."""
    memory = TARGETS["90a"] if family == "wgmma" else ANYWHERE
    legal = cuda_tiles.legal_tiles(kernel, family, (1, 2), build, memory)
    return max(legal, key=lambda tiles: (tiles.row_count, tiles.area))


def quick() -> Iterator[Case]:
    """Every kernel for two generations, one for all, and each feature with every kernel."""
    for kernel in KERNELS:
        for size in (64, 128):
            build = Build("bfloat16", size, size)
            for target in (GENERATIONS[1:] if kernel == "fwd" else TWO) if size == 64 else WIDE:
                yield from variants_of(kernel, largest(kernel, "mma", build), build, target)
        odd, double = Build("float16", 24, 40), EVERYTHING._replace(dtype="float64", head_dim=32)
        yield from variants_of(kernel, largest(kernel, "mma", odd), odd, "80", vector=False)
        yield from variants_of(kernel, largest(kernel, "simt", double), double, "90a")
    yield from added()
    yield from of_warpgroups(((128, 128),))
    for target in ("75", "90a", "120"):
        yield delta(target)


EVERYTHING = Build("bfloat16", 64, 64, two_runs=True, softcap=True, key_range=True)
PACKED = Build("bfloat16", 64, 64, grids=True)


def delta(target: str) -> Case:
    """The kernel without tiles."""
    return Case(cuda_tiles.delta("bfloat16", 64, vector=True), target, "", 64, vector=True)


def alone() -> Iterator[Case]:
    """What the quick profile has together with other features, or with one of the kernels."""
    for kernel in KERNELS:
        plain, single = Build("bfloat16", 64, 64), Build("float32", 64, 64)
        for build, target in (
            (plain, "100a"),
            (plain, "120"),
            (EVERYTHING, "90a"),
            (PACKED, "90a"),
        ):
            yield from variants_of(kernel, largest(kernel, "mma", build), build, target)
        for build in (single, single._replace(grids=True)):
            yield from variants_of(kernel, largest(kernel, "simt", build), build, "75")
        table = plain._replace(table=True)
        yield from variants_of(kernel, largest(kernel, "mma", table), table, "90a")
    yield from map(delta, TARGETS)


def added() -> Iterator[Case]:
    """Kernels that add to scores by position, read extra keys in a range, or find their grid."""
    table = Build("bfloat16", 64, 64, table=True)
    everything = table._replace(
        two_runs=True, softcap=True, extra=True, extra_range=True, slopes=True
    )
    packed = EVERYTHING._replace(grids=True, extra=True)
    for kernel in KERNELS:
        for build in (everything, packed):
            yield from variants_of(kernel, largest(kernel, "mma", build), build, "80")
        single = table._replace(dtype="float32", slopes=True)
        yield from variants_of(kernel, largest(kernel, "simt", single), single, "75")
    tight = Build("float16", 112, 112, two_runs=True, table=True)  # larger tiles would spill
    yield from variants_of("fwd", largest("fwd", "mma", tight), tight, "90a")
    for build, target in ((table, "90a"), (everything._replace(dtype="float32"), "75")):
        tiles = largest(cuda_tiles.TABLE, "simt", build)
        yield from variants_of(cuda_tiles.TABLE, tiles, build, target)


def of_warpgroups(sizes: Iterable[tuple[int, int]], **options: bool) -> Iterator[Case]:
    """The largest tiles of two and of three warpgroups."""
    for (head, value), kernel in product(sizes, KERNELS):
        build = Build("bfloat16", head, value, **options)
        legal = cuda_tiles.legal_tiles(kernel, "wgmma", (1, 2), build, TARGETS["90a"])
        for groups in (2, 3):
            tiles = [tiles for tiles in legal if tiles.warpgroups == groups]
            if tiles:
                most = max(tiles, key=lambda tiles: (tiles.area, tiles.stages))
                yield from variants_of(kernel, most, build, "90a")


ALL = {"two_runs": True, "softcap": True, "extra": True, "extra_range": True}


def others() -> Iterator[Case]:
    """What has a budget and is not in the quick profile."""
    known = {case.id for case in quick()}
    cases = {case.id: case for case in (*alone(), *other_targets(), *table(), *wide_groups())}
    yield from (case for name, case in cases.items() if name not in known)


def wide_groups() -> Iterator[Case]:
    """The other sizes of heads, and all features at once."""
    sizes = ((64, 64), (80, 80), (96, 96), (192, 192), (256, 256), (192, 128), (64, 128))
    yield from of_warpgroups(sizes)
    yield from of_warpgroups(((64, 64), (128, 128)), **ALL)


def table() -> Iterator[Case]:
    """The tiles that large problems get on most devices, for the model of pipes."""
    for kernel, tiles, build in TABLE:
        for target in TWO:
            yield from variants_of(kernel, tiles, build, target)


def other_targets() -> Iterator[Case]:
    """The targets that the quick profile leaves out, the widest heads without spills as well."""
    for size, known in ((64, GENERATIONS), (SPILL_FREE, WIDE)):
        build = Build("bfloat16", size, size)
        for kernel, target in product(KERNELS, [*TARGETS][1:]):
            if target not in known:
                yield from variants_of(kernel, largest(kernel, "mma", build), build, target)
    build = Build("float32", 64, 64)
    for kernel, target in product(KERNELS, ("80", "90a", "120")):
        yield from variants_of(kernel, largest(kernel, "simt", build), build, target)
    tight = Build("bfloat16", 96, 96)  # where the largest tiles would spill
    for kernel in KERNELS:
        yield from variants_of(kernel, largest(kernel, "mma", tight), tight, "80")


def deep() -> Iterator[Case]:
    """Every size of tile at every size of head: grids of two axes with all features and with none,
    of one and three with none.
    """
    for (rank, features, targets), kernel, size in product(GRIDS, KERNELS, SIZES):
        build = Build("float16", *size, features, features, features)
        for target in targets:
            tiles_by_size: dict[tuple[int, int, int], Tiles] = {}
            for tiles in cuda_tiles.legal_tiles(
                kernel, "mma", (0, 1, 2)[-rank:], build, TARGETS[target]
            ):
                tiles_by_size.setdefault((tiles.row_count, tiles.area, tiles.warps), tiles)
            for tiles in tiles_by_size.values():
                yield from variants_of(kernel, tiles, build, target, vector=not features)
    yield from deep_added()
    yield from deep_groups()


def deep_groups() -> Iterator[Case]:
    """Every size of tile of warpgroups at every pair of sizes of heads, without features and with
    all.
    """
    for kernel, head, value in product(KERNELS, GROUP_SIZES, GROUP_SIZES):
        for options in ({}, ALL):
            build = Build("float16", head, value, **options)
            legal = cuda_tiles.legal_tiles(kernel, "wgmma", (1, 2), build, TARGETS["90a"])
            by_size = {(tiles.row_count, tiles.area): tiles for tiles in legal}
            for tiles in by_size.values():
                yield from variants_of(kernel, tiles, build, "90a")


def deep_added() -> Iterator[Case]:
    """The largest tiles with a table or slopes, of every size of head that registers hold."""
    sizes = [size for size in SIZES if max(size) <= SPILL_FREE]
    options = ({"table": True}, {"slopes": True, "softcap": True}, {"table": True, "softcap": True})
    for size, option, two_runs, kernel in product(sizes, options, (False, True), KERNELS):
        build = Build("float16", *size, two_runs, **option)
        for rank in (2, 3):
            legal = cuda_tiles.legal_tiles(kernel, "mma", (0, 1, 2)[-rank:], build, ANYWHERE)
            tiles = max(legal, key=lambda tiles: (tiles.row_count, tiles.area))
            yield from variants_of(kernel, tiles, build, "90a")


# Rules


def problems(case: Case, compiled: Compiled) -> list[str]:
    """What the compiler's report shows that no kernel may have."""
    facts, faults = compiled.usage, []
    tight = case.family == "wgmma" or (case.family == "mma" and case.channels <= SPILL_FREE)
    if tight and (facts.stack or facts.spill_stores or facts.spill_loads):
        faults.append(
            f"{facts.stack} bytes of stack, {facts.spill_stores} and {facts.spill_loads} of spills"
        )
    if facts.shared:
        faults.append(f"{facts.shared} bytes of static shared memory")
    if case.variant.shared_bytes > TARGETS[case.target]:
        faults.append(f"{case.variant.shared_bytes} bytes of shared memory: {TARGETS[case.target]}")
    if facts.registers * case.variant.threads > 65536:
        faults.append(f"{facts.registers} registers of {case.variant.threads} threads")
    # ptxas only informs where it makes products wait for each other, or ignores setmaxnreg.
    bad = re.compile("warning|serializ|setmaxnreg", re.IGNORECASE)
    faults += [line for line in compiled.log.splitlines() if bad.search(line)]
    return faults


def instruction_problems(case: Case, sass: Counter[str]) -> list[str]:
    """What the instructions lack or should not have."""

    def some(start: str) -> int:
        return sum(count for name, count in sass.items() if name.startswith(start))

    faults: list[str] = []
    constants = dict(case.variant.constants)
    mma = {0: "HMMA.16816.F32", 1: "HMMA.16816.F32.BF16"}.get(constants["NB_DTYPE"], "")
    if case.family == "mma":
        wanted = [mma, "LDSM.16.M88.4", "LDSM.16.MT88.4", *["LDGSTS"] * case.vector]
        faults += [f"no {name}" for name in wanted if not some(name)]
        faults += [f"{name} rounds" for name in sass if re.match(r"HMMA\.\d+\.F16", name)]
        if case.channels <= SPILL_FREE:
            faults += [f"{some(name)} {name}" for name in ("LDL", "STL") if some(name)]
    elif case.family == "wgmma":
        dtype = mma.removeprefix("HMMA.16816")
        of_type = [name for name in sass if re.fullmatch(rf"HGMMA\.64x\d+x16{dtype}", name)]
        faults += [] if of_type else [f"no HGMMA of {dtype}"]
        faults += [f"{name} rounds" for name in sass if re.match(r"HGMMA\.\w+\.F16", name)]
        wanted = ["UTMALDG.5D", "STSM.16.M88.4", "SYNCS", "USETMAXREG"]
        faults += [f"no {name}" for name in wanted if not some(name)]
        faults += [f"{some(name)} {name}" for name in ("LDL", "STL", "HMMA") if some(name)]
        # One wait for groups after each of few products: more of them make products wait in turn.
        if some("WARPGROUP.DEPBAR") >= some("HGMMA") // 2:
            faults.append(f"{some('WARPGROUP.DEPBAR')} waits for {some('HGMMA')} HGMMAs")
    else:
        wanted = "DFMA" if constants["NB_DTYPE"] == 3 else "FFMA"
        faults += [] if some(wanted) else [f"no {wanted}"]
        faults += [f"{name} is not exact" for name in sass if re.match("[HIB]MMA", name)]
    # Sums of a row belong to one block: nothing is atomic, so that results repeat bit by bit.
    faults += [name for name in sass if re.match(r"(ATOM|ATOMG|ATOMS|RED|REDG)\b", name)]
    return faults


def visit_of(case: Case, text: str) -> sass_paths.Visit:
    """The paths of a visit of a tensor-core kernel."""
    need = sass_paths.need_of(case.kernel, dict(case.variant.constants))
    return sass_paths.visit(text, need)


def allotted(registers: int) -> int:
    """Registers that a thread takes."""
    return -(-registers // REGISTER_STEP) * REGISTER_STEP


def measured(case: Case, compiled: Compiled, text: str | None) -> Budget:
    """What has a budget: of a path, its instructions by kind, and all of them."""
    facts = compiled.usage
    resources: Budget = {
        "registers": allotted(facts.registers),
        "shared": case.variant.shared_bytes,
    }
    resources |= {"stack": facts.stack} if facts.stack else {}
    if text and case.is_counted:
        for name, path in visit_of(case, text)._asdict().items():
            if path is not None:
                resources[name] = {"all": path.length} | path.kinds
    return resources


def text_of(case: Case, compiled: Compiled) -> str | None:
    """nvdisasm's text, where there is one."""
    return disassembled(compiled.cubin) if case.target in DISASSEMBLED and nvdisasm() else None


def judge(case: Case) -> None:
    skip_where_unknown(case.target)
    compiled = nvrtc.compile(case.variant, case.target)
    faults = problems(case, compiled)
    text = text_of(case, compiled)
    faults += instruction_problems(case, instructions(text)) if text else []
    assert not faults
    budgets = json.loads(GOLDEN.read_text())
    if budgets["nvrtc"] != nvrtc.identity():
        return
    budget = budgets["kernels"].get(case.name, {}).get(case.target)
    if budget is not None:
        assert not over(budget, measured(case, compiled, text)), f"over the budget of {case.id}"


QUICK, OTHERS = list(quick()), list(others())


@needs_nvrtc
@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.id)
def test_a_kernel_for_a_target(case: Case, cases):
    judge(case)
    cases("compiled kernels", 1)


@pytest.mark.deep
@needs_nvrtc
@pytest.mark.parametrize("case", [*OTHERS, *deep()], ids=lambda case: case.id)
def test_a_kernel_for_every_tile(case: Case, cases):
    judge(case)
    cases("compiled kernels", 1)


def test_every_case_has_a_budget_and_nothing_else():
    budgets = json.loads(GOLDEN.read_text())["kernels"]
    found = {name: set(targets) for name, targets in budgets.items()}
    wanted: dict[str, set[str]] = {}
    for case in (*QUICK, *OTHERS):
        wanted.setdefault(case.name, set()).add(case.target)
    assert found == wanted


def test_budgets_are_of_the_release_that_development_installs():
    found = json.loads(GOLDEN.read_text())
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    assert found["release"] == RELEASE
    assert f'"nvidia-cuda-nvrtc=={RELEASE}"' in project.read_text()


def test_nvdisasm_is_there():
    """Where it is not, no instruction is looked at."""
    if nvdisasm() is None:
        pytest.skip("no nvdisasm: instructions are not checked")


# Each rule finds its violation


@pytest.fixture
def plain_case() -> Case:
    build = Build("bfloat16", 64, 64)
    (case,) = variants_of("fwd", largest("fwd", "mma", build), build, "80")
    return case


@needs_nvrtc
def test_fragments_that_are_indexed_at_run_time_are_found(
    plain_case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They live in local memory."""
    folder = tmp_path / "cuda"
    shutil.copytree(sources.directory(), folder)
    header = folder / "mma.cuh"
    header.write_text(header.read_text().replace("#pragma unroll\n", "#pragma unroll 1\n"))
    monkeypatch.setattr(sources, "directory", lambda: folder)
    compiled = nvrtc.compile(plain_case.variant, plain_case.target)
    (fault,) = problems(plain_case, compiled)
    assert re.fullmatch(r"[1-9]\d* bytes of stack, \d+ and \d+ of spills", fault)
    assert problems(replace(plain_case, channels=SPILL_FREE + 1), compiled) == []
    if nvdisasm():
        sass = instructions(disassembled(compiled.cubin))
        faults = instruction_problems(plain_case, sass)
        assert [text.split()[-1] for text in faults] == ["LDL", "STL"]


@needs_nvrtc
def test_copies_that_wait_are_found(plain_case: Case):
    if nvdisasm() is None:
        pytest.skip("no nvdisasm")
    constants = tuple((n, 0 if n == "NB_VECTOR" else v) for n, v in plain_case.variant.constants)
    slow = nvrtc.compile(replace(plain_case.variant, constants=constants), "80")
    sass = instructions(disassembled(slow.cubin))
    assert instruction_problems(plain_case, sass) == ["no LDGSTS"]
    assert instruction_problems(replace(plain_case, vector=False), sass) == []


FINE = Counter(
    {"HMMA.16816.F32.BF16": 8, "LDSM.16.M88.4": 8, "LDSM.16.MT88.4": 4, "LDGSTS.E.128": 2}
)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"HMMA.16816.F32.BF16": 0, "HMMA.16816.F32": 8}, ["no HMMA.16816.F32.BF16"]),
        ({"LDSM.16.M88.4": 0}, ["no LDSM.16.M88.4"]),
        ({"LDGSTS.E.128": 0}, ["no LDGSTS"]),
        ({"HMMA.16816.F16": 1}, ["HMMA.16816.F16 rounds"]),
        ({"LDL.64": 3}, ["3 LDL"]),
        ({"STL": 1}, ["1 STL"]),
        ({"RED.E.ADD.F32": 1}, ["RED.E.ADD.F32"]),
        ({"ATOMG.E.ADD": 1}, ["ATOMG.E.ADD"]),
        ({"REDUX.SUM": 1}, []),
    ],
)
def test_instruction_problems_are_reported(
    plain_case: Case, change: dict[str, int], expected: list[str]
):
    assert instruction_problems(plain_case, +Counter({**FINE, **change})) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"FFMA": 9}, []),
        ({"DFMA": 9}, ["no FFMA"]),
        ({"FFMA": 9, "HMMA.1688.F32.TF32": 1}, ["HMMA.1688.F32.TF32 is not exact"]),
    ],
)
def test_instruction_problems_without_tensor_cores(
    plain_case: Case, change: dict[str, int], expected: list[str]
):
    constants = tuple((n, 2 if n == "NB_DTYPE" else v) for n, v in plain_case.variant.constants)
    case = replace(
        plain_case, family="simt", variant=replace(plain_case.variant, constants=constants)
    )
    assert instruction_problems(case, Counter(change)) == expected


FACTS = nvrtc.Usage(64, 0, 0, 0, 0, 1, 0.1)


@pytest.mark.parametrize(
    ("facts", "log", "expected"),
    [
        ({}, "ptxas info : fine", []),
        ({"stack": 8}, "", ["8 bytes of stack, 0 and 0 of spills"]),
        ({"spill_loads": 4}, "", ["0 bytes of stack, 0 and 4 of spills"]),
        ({"shared": 16}, "", ["16 bytes of static shared memory"]),
        ({"registers": 513}, "", ["513 registers of 128 threads"]),
        ({}, "warning: x", ["warning: x"]),
    ],
)
def test_kernel_problems_are_reported(
    plain_case: Case, facts: dict[str, int], log: str, expected: list[str]
):
    assert problems(plain_case, Compiled(b"", replace(FACTS, **facts), log)) == expected


def test_shared_memory_beyond_a_target(plain_case: Case):
    case = replace(plain_case, variant=replace(plain_case.variant, shared_bytes=(163 << 10) + 1))
    assert problems(case, Compiled(b"", FACTS, "")) == ["166913 bytes of shared memory: 166912"]
    assert problems(replace(case, target="90a"), Compiled(b"", FACTS, "")) == []


@pytest.mark.parametrize(("registers", "taken"), [(1, 8), (8, 8), (161, 168), (255, 256)])
def test_registers_are_allotted_in_eights(registers: int, taken: int):
    assert allotted(registers) == taken


def update() -> None:
    """Write the budgets again."""
    kernels: dict[str, dict[str, Budget]] = {}
    for case in (*QUICK, *OTHERS):
        compiled = nvrtc.compile(case.variant, case.target)
        resources = measured(case, compiled, text_of(case, compiled))
        kernels.setdefault(case.name, {})[case.target] = resources
    lines = [f"{json.dumps(n)}: {json.dumps(k)}" for n, k in kernels.items()]
    head = json.dumps({"release": RELEASE, "nvrtc": nvrtc.identity()}, indent=1)
    body = ",\n  ".join(lines)
    GOLDEN.write_text(f'{head[:-2]},\n "kernels": {{\n  {body}\n }}\n}}\n')


def show_path(name: str, target: str) -> None:
    """Print the instructions of an interior, a masked and a rescaling visit."""
    for case in (*QUICK, *OTHERS):
        if case.target == target and case.name == name and case.is_counted:
            text = disassembled(nvrtc.compile(case.variant, target).cubin)
            for kind, path in visit_of(case, text)._asdict().items():
                print(f"{kind}: {sass_paths.listing(path) if path else 'none'}\n")
            return
    names = dict.fromkeys(case.name for case in (*QUICK, *OTHERS) if case.is_counted)
    sys.exit("\n".join([f"no {name!r} for {target!r}; names:", *names]))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--update"]:
            update()
        case ["--path", name, target]:
            show_path(name, target)
        case ["--model"]:
            counted_visits.print_model()
        case ["--fit"]:
            counted_visits.print_fit()
        case _:
            sys.exit("--update, --path NAME TARGET, --model or --fit")
