"""Compiles the Triton kernels for a target, without its device, and reads what the compiler made.

Compilation is in a process of its own: there the kernels are never those of Triton's interpreter,
and where the compiler ends its process, only that one ends. As a program, this file reads a case
from each line of its input and writes a report for each.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any

from nbattn.backends.triton import tiles as triton_tiles
from nbattn.backends.triton.kernels import numbers
from nbattn.backends.triton.tiles import Build, Tiles

# By kernel: its module and function, and the name of their file.
FUNCTIONS = {
    "fwd": "forward",
    "delta": "delta",
    "dq": "grad_query",
    "dkdv": "grad_key",
    "dextra": "grad_extra",
    "dbias": "grad_table",
}
ELEMENTS = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}
_ATOMIC = re.compile(r"^\s*(?:@\S+\s+)?(?:atom|red)\.|(?:global|buffer|flat)_atomic|ds_add", re.M)
ROOT = Path(__file__).resolve().parents[2]
PRODUCTS = ("mma.sync", "wgmma.mma_async", "tcgen05.mma", "v_mfma", "v_wmma")
_TENSORS = ("query", "key", "value", "extra_key", "extra_value", "out", "grad_out", "grad")
_SUMS = ("lse", "sink", "relative_bias", "alibi_slopes", "grad_lse", "terms", "grad_tables")
_INTEGERS = {"key_range": "*i32", "extra_range": "*i32", "grids": "*i64"}
_ALIGNED = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Case:
    """A kernel with its tiles, for a target.

    Args:
        target: "sm_90", "gfx942" …
        step, wide, precision: as of `tiles.variant`.
    """

    kernel: str
    target: str
    tiles: Tiles
    build: Build
    step: int = 8
    wide: bool = False
    precision: str = "ieee"

    @property
    def name(self) -> str:
        """What differs between cases, but for the target."""
        build, tiles = self.build, self.tiles
        extents = ["x".join(map(str, side)) for side in (tiles.rows, tiles.columns)]
        options = [name for name, on in zip(build._fields[4:], build[4:], strict=True) if on]
        options += [f"step={self.step}"] * (self.step != 8) + ["wide"] * self.wide
        options += [self.precision] * (self.precision != "ieee")
        sizes = f"{build.head_dim}" + f"/{build.value_dim}" * (build.value_dim != build.head_dim)
        shape = [f"rank{build.rank}", *extents, f"w{tiles.warps}", f"s{tiles.stages}"]
        return " ".join([self.kernel, build.dtype, f"D{sizes}", *shape, *options])

    @property
    def id(self) -> str:
        return f"{self.name} {self.target}"

    @classmethod
    def of(cls, text: str) -> Case:
        """The case of a line."""
        given = json.loads(text)
        for side in ("rows", "columns"):
            given["tiles"][side] = tuple(given["tiles"][side])
        return cls(**given | {"tiles": Tiles(**given["tiles"]), "build": Build(*given["build"])})


@dataclass(frozen=True)
class Report:
    """What the compiler made.

    Args:
        registers: of a thread; on AMD's, those of vectors and of accumulators.
        spilled: bytes of a thread's stack.
        shared: bytes of shared memory of a program.
        products: how often each instruction of matrix products is in the text.
        atomics: atomic instructions in the text.
        seconds: of the process and of those that it started, on a core.
        error: the compiler's words, where it made nothing.
        code: a file with NVIDIA's machine code, if asked for.
    """

    registers: int = 0
    spilled: int = 0
    shared: int = 0
    products: dict[str, int] = field(default_factory=dict)
    atomics: int = 0
    seconds: float = 0.0
    error: str = ""
    code: str = ""


def _signature(case: Case) -> tuple[Any, dict[str, Any], dict[Any, Any], dict[Any, Any]]:
    """A kernel and the types, constants and alignments of its arguments, by their names."""
    module = f"nbattn.backends.triton.kernels.{FUNCTIONS[case.kernel]}"
    function = getattr(import_module(module), FUNCTIONS[case.kernel])
    build = case.build
    element = f"*{ELEMENTS[build.dtype]}"
    sums = "*fp64" if build.dtype == "float64" else "*fp32"
    pointers = dict.fromkeys(_TENSORS, element) | dict.fromkeys(_SUMS, sums) | _INTEGERS
    grads = sums if case.kernel == "dextra" else element
    pointers |= {"grad_keys": grads, "grad_values": grads}
    absent = {
        "extra_key": build.extra,
        "extra_value": build.extra,
        "extra_range": build.extra_range,
        "key_range": build.key_range,
        "sink": build.sink,
        "relative_bias": build.table,
        "alibi_slopes": build.slopes,
        "grids": build.grids,
        "grad_lse": True,
    }
    integer = "i64" if case.wide else "i32"
    others = {
        "axes": (numbers.Axis(*["i32"] * len(numbers.Axis._fields)),) * 3,
        "counts": numbers.Counts(*["i32"] * len(numbers.Counts._fields)),
        "space": ("i32",) * 3,
        "scale": "fp64",
        "softcap": "fp64",
        "V": "constexpr",
    }
    strides = numbers.Strides(*[integer] * len(numbers.Strides._fields))
    types: dict[str, Any] = {}
    constants: dict[Any, Any] = {}
    aligned: dict[Any, Any] = {}
    for at, name in enumerate(function.arg_names):
        if name in pointers and absent.get(name, True):
            types[name] = pointers[name]
            aligned[at,] = _ALIGNED
        elif name in pointers:
            types[name] = "constexpr"
            constants[at,] = None
        else:
            types[name] = strides if name.endswith("strides") else others.get(name, "i32")
    constants[function.arg_names.index("V"),] = triton_tiles.variant(
        case.tiles, build, step=case.step, wide=case.wide, precision=case.precision
    )
    return function, types, constants, aligned


def _target(name: str) -> Any:
    from triton.backends.compiler import GPUTarget

    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name[3:]), 32)
    return GPUTarget("hip", name, 64 if name.startswith("gfx9") else 32)


def version() -> str:
    """Triton's version."""
    return metadata.version("triton")


def binary(name: str) -> str:
    """A program of NVIDIA's that is inside of Triton's wheel."""
    found = util.find_spec("triton")
    (root,) = (found and found.submodule_search_locations) or ("",)
    return str(Path(root, "backends", "nvidia", "bin", name))


def compile_here(case: Case, keep: str = "") -> Report:
    """Compile in this process.

    Args:
        keep: a folder where NVIDIA's machine code is left.
    """
    import triton
    from triton.compiler import ASTSource

    function, types, constants, aligned = _signature(case)
    options = {"num_warps": case.tiles.warps, "num_stages": case.tiles.stages}
    start = sum(os.times()[:4])
    source = ASTSource(function, types, constants, aligned)
    made = triton.compile(source, target=_target(case.target), options=options)
    seconds = sum(os.times()[:4]) - start
    text = made.asm.get("ptx") or made.asm["amdgcn"]
    products = {name: text.count(name) for name in PRODUCTS if name in text}
    report = Report(
        shared=made.metadata.shared,
        products=products,
        atomics=len(_ATOMIC.findall(text)),
        seconds=round(seconds, 2),
    )
    if "cubin" not in made.asm:
        sizes = {
            name: int(re.search(rf"\.{name}:\s+(\d+)", text)[1])  # type: ignore[index]
            for name in ("vgpr_count", "private_segment_fixed_size")
        }
        return replace(report, registers=sizes["vgpr_count"], spilled=[*sizes.values()][1])
    with tempfile.NamedTemporaryFile(suffix=".cubin", dir=keep or None, delete=not keep) as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [binary("cuobjdump"), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()  # type: ignore
        code = file.name if keep else ""
        return replace(report, registers=int(registers), spilled=int(stack), code=code)


class Compiler:
    """A process that compiles; it starts with the first case, and again after it ended."""

    def __init__(self, cache: str, keep: str = "") -> None:
        self.environment = {**os.environ, "TRITON_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
        self.environment.pop("TRITON_INTERPRET", None)
        self.keep = keep
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, case: Case) -> Report:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, __file__, *[self.keep] * bool(self.keep)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=self.environment,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asdict(case)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            return Report(error=f"the compiler's process ended: {self.process.wait()}")
        return Report(**json.loads(answer))

    def close(self) -> None:
        if self.process is not None:
            self.process.communicate()


@contextmanager
def compiler(keep: str = "") -> Iterator[Compiler]:
    """A compiler with a cache of its own."""
    with tempfile.TemporaryDirectory() as cache:
        made = Compiler(cache, keep)
        try:
            yield made
        finally:
            made.close()


def main() -> None:
    """Answer the cases of the input."""
    answers, keep = os.fdopen(os.dup(1), "w"), "".join(sys.argv[1:])
    os.dup2(2, 1)  # compilers print
    for line in sys.stdin:
        try:
            report = compile_here(Case.of(line), keep)
        except Exception as error:  # a report's words
            report = Report(error=f"{type(error).__name__}: {str(error)[-600:]}")
        answers.write(json.dumps(asdict(report)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
