"""The table of kernel families: their names, the packages they need, the modules that run them.

A family is a folder with `candidates.py` (its candidates for a request) and the modules that run
its backends. All other code finds families in this table.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nbattn import synonyms
from nbattn.errors import InputError
from nbattn.packages import install_line, install_triton

if TYPE_CHECKING:
    from nbattn.backends.inputs import Attempt
    from nbattn.geometry import Axes
    from nbattn.program.candidate import Candidate
    from nbattn.program.request import Request

AUTO = "auto"
GATHER = "gather"  # the strategy of `backends/gathered.py`, for packed grids
_REFERENCE = ("backend", "runs only if requested: backend='reference'")
_MODEL = ("backend", "runs only if requested: backend='flash-model'")
_FLEX = ("compile", "takes seconds to compile, runs only if requested: backend='flex'")
_NATTEN = ("unproven", "not yet run on a GPU, runs only if requested: backend='natten'")
_FLASH_PROVIDERS = ("aten", "fa2", "fa3", "fa4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One value of `backend=`.

    Args:
        name: the name, "flash".
        module: the module of the family's folder that runs it, with `forward` and `backward`.
        providers: names that may follow a colon, "flash:aten".
        by_name: why `backend="auto"` never chooses it, as the limit and the text of a `Reason`;
            None if it may.
        gives_lse_on: device types on which its forward returns a logsumexp; None means all.
        needs_lse_on: device types on which its backward needs the true logsumexp; None means all.
        example_dtype: a dtype that it supports, in which `nbattn doctor` tries it.
        is_model: whether it only models another backend: then it is not timed, and doctor tries it
            without its providers.
    """

    name: str
    module: str = "run"
    providers: tuple[str, ...] = ()
    by_name: tuple[str, str] | None = None
    gives_lse_on: tuple[str, ...] | None = None
    needs_lse_on: tuple[str, ...] | None = None
    example_dtype: str = "float32"
    is_model: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The name without a provider, and with each provider."""
        return (self.name, *(f"{self.name}:{provider}" for provider in self.providers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kernel family.

    Args:
        name: the family's name.
        backends: its values of `backend=`.
        strategies: the names of its candidates' strategies and rewrites, for `require=`.
        packages: optional distributions that it needs on a device, or "c++" for a compiler, as
            `DeviceInfo.providers` lists them.
        packages_on: the device types on which it needs them.
        missing: "module:function", which returns why its packages do not work on this machine, or
            None if they do; default: a package works if it is installed.
        has_tiles: whether its kernels have tiles that are measured, by its `measured_tiles.py` and
            `kernel_times.py`.
        takes_grids: whether it has candidates for packed grids (`request.grids`, without axes);
            others run grids of one size after another.
    """

    name: str
    backends: tuple[Backend, ...]
    strategies: tuple[str, ...]
    packages: tuple[str, ...] = ()
    packages_on: tuple[str, ...] = ("cuda",)
    missing: str = ""
    has_tiles: bool = False
    takes_grids: bool = False

    @property
    def folder(self) -> str:
        """The package that contains its modules."""
        return f"nbattn.backends.{self.name}"

    def problem(self) -> str | None:
        """Returns why its packages do not work on this machine, if it has a way to find out; None
        if they do.
        """
        return _function(self.missing)() if self.missing else None

    def candidates(self, request: Request, axes: Axes) -> Sequence[Candidate]:
        """Returns the family's candidates for a request, including refused ones."""
        return _module(f"{self.folder}.candidates").candidates(request, axes)

    def retiled(
        self, candidate: Candidate, request: Request, axes: Axes, times: Mapping[str, float]
    ) -> Candidate:
        """Returns a candidate of the family with the tiles that were measured fastest."""
        if not self.has_tiles or not times:
            return candidate
        return _module(f"{self.folder}.measured_tiles").retiled(candidate, request, axes, times)

    def attempts(
        self, candidate: Candidate, request: Request, axes: Axes, *on: Any
    ) -> Iterator[Iterator[Attempt]]:
        """Returns the tiles of every kernel of a candidate, to be measured; for a family with
        tiles, by `attempts` of its `kernel_times.py`.
        """
        return _module(f"{self.folder}.kernel_times").attempts(candidate, request, axes, *on)


FAMILIES: tuple[Family, ...] = (
    Family(
        name="dense",
        backends=(
            Backend(name="reference", module="reference", by_name=_REFERENCE),
            Backend(name="sdpa", gives_lse_on=("cpu",), needs_lse_on=("cpu",)),
        ),
        strategies=("dense", "causal", "mask", "fold", "trim", "split", "merge"),
    ),
    Family(
        name="tiled",
        backends=(Backend(name="tiled", needs_lse_on=()),),
        strategies=("tile",),
    ),
    Family(
        name="flash",
        backends=(
            Backend(
                name="flash",
                module="adapters",
                providers=_FLASH_PROVIDERS,
                example_dtype="float16",
            ),
            Backend(
                name="flash-model",
                module="model",
                providers=_FLASH_PROVIDERS,
                by_name=_MODEL,
                is_model=True,
            ),
        ),
        strategies=(
            *("translate", "trim", "split", "virtual-pad", "pack", "pad", "zero-pad", "kv-cache"),
            *("key-range", "fold", "merge"),
        ),
        packages=("flash-attn", "flash-attn-3", "flash-attn-4"),
        takes_grids=True,
    ),
    Family(
        name="cuda",
        backends=(Backend(name="cuda"),),
        strategies=("window", "mma", "simt", "wgmma"),
        packages=("cupy",),
        missing="nbattn.kernels.launch:missing",  # CuPy runs kernels with NVRTC only
        has_tiles=True,
        takes_grids=True,
    ),
    Family(
        name="triton",
        backends=(Backend(name="triton"),),
        strategies=("window",),
        packages=("triton",),
        packages_on=("cuda", "xpu"),
        missing="nbattn.backends.triton.launch:missing",
        has_tiles=True,
        takes_grids=True,
    ),
    Family(
        name="native",
        backends=(Backend(name="native"),),
        strategies=("window",),
        packages=("c++",),
        packages_on=("cpu",),
        missing="nbattn.kernels.host:missing",  # a compiler, or a library that one has built
        takes_grids=True,
    ),
    Family(
        name="flex",
        backends=(Backend(name="flex", by_name=_FLEX, gives_lse_on=(), needs_lse_on=()),),
        strategies=("blocks",),
    ),
    Family(
        name="natten",
        backends=(Backend(name="natten", by_name=_NATTEN, needs_lse_on=()),),
        strategies=("window",),
        packages=("natten",),
    ),
)


# How to install each optional package that a plan can use.
INSTALL = {
    "c++": install_line("native"),
    "cupy": install_line("cuda13"),
    "flash-attn": "pip install flash-attn --no-build-isolation",
    "flash-attn-3": "pip install "
    '"git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper"',
    "flash-attn-4": install_line("flash"),
    "natten": install_line("natten"),
    "triton": install_line("triton"),
}


def install(package: str, kind: str = "cuda") -> str:
    """The command that installs a package for a device type; CuPy for the CUDA of the torch that is
    loaded.
    """
    if package == "triton":
        return install_triton(kind)
    torch: Any = sys.modules.get("torch")
    if package == "cupy" and torch is not None and str(torch.version.cuda).startswith("12."):
        return install_line("cuda12")
    return INSTALL[package]


_ROWS = {row.name: (family, row) for family in FAMILIES for row in family.backends}
# Every value of `backend=`, every strategy and rewrite, every optional package.
BACKENDS = (AUTO, *(name for _, row in _ROWS.values() for name in row.names))
STRATEGIES = tuple(
    dict.fromkeys([*(name for family in FAMILIES for name in family.strategies), GATHER])
)
PACKAGES = tuple(name for family in FAMILIES for name in family.packages)
_NAMED = tuple(name for name in BACKENDS if ":" not in name)  # short enough for a message
_PROVIDERS = f"flash and flash-model also with {', '.join(f':{p}' for p in _FLASH_PROVIDERS)}"


def backend(name: str) -> Backend:
    """Returns the row of a backend, whose name may include a provider.

    >>> backend("flash:fa2").module
    'adapters'
    """
    return _row(name)[1]


def runner(name: str) -> Any:
    """Returns the module that runs a backend; the first call imports it."""
    family, row = _row(name)
    return _module(f"{family.folder}.{row.module}")


def family_of(name: str) -> Family:
    """Returns the family of a backend, whose name may include a provider."""
    return _row(name)[0]


def runner_of(candidate: Candidate) -> Any:
    """Returns the module that runs a candidate."""
    if candidate.strategy == GATHER:
        return _module("nbattn.backends.gathered")
    return runner(candidate.runner)


def packages_on(kind: str) -> tuple[str, ...]:
    """Returns the optional packages that families need on devices of a type.

    >>> packages_on("cpu")
    ('c++',)
    """
    return tuple(name for row in FAMILIES if kind in row.packages_on for name in row.packages)


def packages_of(name: str) -> tuple[str, ...]:
    """Returns the optional packages of a backend's family, of which a backend may need one.

    >>> packages_of("native"), packages_of("tiled")
    (('c++',), ())
    """
    return _row(name)[0].packages


def installed(kind: str) -> tuple[str, ...]:
    """Returns the optional packages for devices of a type that work on this machine, sorted,
    without importing them.
    """
    from importlib import metadata

    working: set[str] = set()
    for family in FAMILIES:
        if kind not in family.packages_on:
            continue
        if not family.missing:
            working |= {name for name in family.packages if [*metadata.distributions(name=name)]}
        elif family.problem() is None:
            working |= {*family.packages}
    return tuple(sorted(working))


def is_missing(name: str) -> bool:
    """Returns whether the packages of a backend's family turned out not to work on this machine."""
    return family_of(name).problem() is not None


def check_names(name: str, require: tuple[str, ...], forbid: tuple[str, ...]) -> None:
    """Checks the names of backends and strategies.

    Raises:
        InputError: no family has such a name; the error lists the names that exist.
    """
    if name not in BACKENDS:
        raise InputError(
            f"backend={name!r} is not known: one of {', '.join(_NAMED)} ({_PROVIDERS}).",
            f'backend="{synonyms.meant(name, BACKENDS, synonyms.BACKENDS) or AUTO}"',
        )
    known = (*STRATEGIES, *BACKENDS[1:])
    for argument, traits in (("require", require), ("forbid", forbid)):
        for trait in traits:
            if trait not in known:
                raise InputError(
                    f"{argument} names {trait!r}, which is neither a strategy "
                    f"({', '.join(STRATEGIES)}) nor a backend.",
                    f"{argument}={_mended(traits, trait, known)}",
                )


def _mended(traits: tuple[str, ...], wrong: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The names with the one that was probably meant in place of a wrong one, or without it."""
    guess = synonyms.meant(wrong, known, {**synonyms.STRATEGIES, **synonyms.BACKENDS})
    mended = (guess if trait == wrong else trait for trait in traits)
    return tuple(dict.fromkeys(filter(None, mended)))


def _row(name: str) -> tuple[Family, Backend]:
    return _ROWS[name.partition(":")[0]]


@cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(name)


def _function(path: str) -> Callable[[], str | None]:
    module, _, name = path.partition(":")
    return getattr(_module(module), name)
