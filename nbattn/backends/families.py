"""Every kernel family once, as a row: what it is called, which packages it needs, who runs it.

A family is a folder with `candidates.py` (what it offers for a request) and the modules that run
its backends. Everything else that has to know families asks this table.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nbattn.errors import InputError
from nbattn.program.limits import Reason

if TYPE_CHECKING:
    from nbattn.geometry import Axes
    from nbattn.program.candidate import Candidate
    from nbattn.program.request import Request

AUTO = "auto"
_REFERENCE = Reason("backend", "runs only by name: backend='reference'")
_MODEL = Reason("backend", "runs only by name: backend='flash-model'")
_FLEX = Reason("compile", "compiles for seconds: runs only by name: backend='flex'")
_NATTEN = Reason("unproven", "not yet run on a GPU: runs only by name: backend='natten'")
_FLASH_PROVIDERS = ("aten", "fa2", "fa3", "fa4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One name that `backend=` takes.

    Args:
        name: the name, "flash".
        module: the module of the family's folder that runs it, with `forward` and `backward`.
        providers: names that may follow a colon, "flash:aten".
        by_name: why `backend="auto"` never chooses it; None where it may.
        gives_lse_on: device types on which its forward returns a logsumexp; None is all.
        needs_lse_on: device types on which its backward needs the true logsumexp; None is all.
    """

    name: str
    module: str = "run"
    providers: tuple[str, ...] = ()
    by_name: Reason | None = None
    gives_lse_on: tuple[str, ...] | None = None
    needs_lse_on: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The name alone, and with each provider."""
        return (self.name, *(f"{self.name}:{provider}" for provider in self.providers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kernel family.

    Args:
        name: of the family.
        folder: the package that holds its modules.
        backends: the names by which it is asked for.
        strategies: names of its candidates' strategies and rewrites, as `require=` takes them.
        packages: optional distributions that it needs on a device, as `DeviceInfo.providers` lists
            them.
        missing: "module:function" that says why its packages do not work on this machine, None
            where they do; default: a package works if it is installed.
    """

    name: str
    folder: str
    backends: tuple[Backend, ...]
    strategies: tuple[str, ...]
    packages: tuple[str, ...] = ()
    missing: str = ""

    def candidates(self, request: Request, axes: Axes) -> Sequence[Candidate]:
        """What the family offers for a request, refused candidates too."""
        return _module(f"{self.folder}.candidates").candidates(request, axes)


FAMILIES: tuple[Family, ...] = (
    Family(
        name="dense",
        folder="nbattn.backends.dense",
        backends=(
            Backend(name="reference", module="reference", by_name=_REFERENCE),
            Backend(name="sdpa", gives_lse_on=("cpu",), needs_lse_on=("cpu",)),
        ),
        strategies=("dense", "causal", "mask", "fold", "trim", "split", "merge"),
    ),
    Family(
        name="tiled",
        folder="nbattn.backends.tiled",
        backends=(Backend(name="tiled", needs_lse_on=()),),
        strategies=("tile",),
    ),
    Family(
        name="flash",
        folder="nbattn.backends.flash",
        backends=(
            Backend(name="flash", module="adapters", providers=_FLASH_PROVIDERS),
            Backend(name="flash-model", module="model", providers=_FLASH_PROVIDERS, by_name=_MODEL),
        ),
        strategies=(
            *("translate", "trim", "split", "virtual-pad", "pack", "pad", "zero-pad", "kv-cache"),
            *("fold", "merge"),
        ),
        packages=("flash-attn", "flash-attn-3", "flash-attn-4"),
    ),
    Family(
        name="cuda",
        folder="nbattn.backends.cuda",
        backends=(Backend(name="cuda"),),
        strategies=("window", "mma", "simt"),
        packages=("cupy",),
        missing="nbattn.kernels.launch:missing",  # CuPy runs kernels with NVRTC only
    ),
    Family(
        name="flex",
        folder="nbattn.backends.flex",
        backends=(Backend(name="flex", by_name=_FLEX, gives_lse_on=(), needs_lse_on=()),),
        strategies=("blocks",),
    ),
    Family(
        name="natten",
        folder="nbattn.backends.natten",
        backends=(Backend(name="natten", by_name=_NATTEN, needs_lse_on=()),),
        strategies=("window",),
        packages=("natten",),
    ),
)


# How each optional package that a plan can use is installed.
INSTALL = {
    "cupy": 'pip install "cupy-cuda13x>=14.2,<15" "nvidia-cuda-nvrtc>=13.0,<14" '
    '"nvidia-cuda-runtime>=13.0,<14"',
    "flash-attn": "pip install flash-attn",
    "flash-attn-3": "flash-attn 3, built from its hopper folder",
    "flash-attn-4": "pip install --pre flash-attn-4",
}
_ROWS = {row.name: (family, row) for family in FAMILIES for row in family.backends}
# Every name that `backend=` takes; every strategy and rewrite; every optional package.
BACKENDS = (AUTO, *(name for _, row in _ROWS.values() for name in row.names))
STRATEGIES = tuple(dict.fromkeys(name for family in FAMILIES for name in family.strategies))
PACKAGES = tuple(name for family in FAMILIES for name in family.packages)


def backend(name: str) -> Backend:
    """The row of a backend, with or without its provider.

    >>> backend("flash:fa2").module
    'adapters'
    """
    return _row(name)[1]


def runner(name: str) -> Any:
    """The module that runs a backend, loaded when it is first asked for."""
    family, row = _row(name)
    return _module(f"{family.folder}.{row.module}")


def installed() -> tuple[str, ...]:
    """The optional packages that work on this machine, none of them imported, sorted."""
    from importlib import metadata

    found: set[str] = set()
    for family in FAMILIES:
        if not family.missing:
            found |= {name for name in family.packages if [*metadata.distributions(name=name)]}
        elif _function(family.missing)() is None:
            found |= {*family.packages}
    return tuple(sorted(found))


def check_names(name: str, require: tuple[str, ...], forbid: tuple[str, ...]) -> None:
    """Refuse names of backends and strategies that no family has.

    Raises:
        InputError: with the names that are known.
    """
    if name not in BACKENDS:
        raise InputError(
            f"backend={name!r} is not known.", f"one of {', '.join(map(repr, BACKENDS))}."
        )
    known = (*STRATEGIES, *BACKENDS[1:])
    for argument, traits in (("require", require), ("forbid", forbid)):
        for trait in traits:
            if trait not in known:
                raise InputError(
                    f"{argument} names {trait!r}, which is neither a strategy nor a backend.",
                    f"one of {', '.join(map(repr, known))}.",
                )


def _row(name: str) -> tuple[Family, Backend]:
    return _ROWS[name.partition(":")[0]]


@cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(name)


def _function(path: str) -> Callable[[], str | None]:
    module, _, name = path.partition(":")
    return getattr(_module(module), name)
