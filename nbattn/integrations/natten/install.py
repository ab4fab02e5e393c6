"""Puts the drop-in where `import natten` finds it, and takes it away again."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from nbattn.errors import InputError
from nbattn.integrations.natten import fused, legacy, modules
from nbattn.version import __version__

GENERATIONS = ("0.21", "0.17")
_RELEASES = {"0.21": "0.21.7", "0.17": "0.17.5"}
_SHADOWED: dict[str, ModuleType] = {}  # modules of the real natten, while the drop-in stands there
_OURS = ("natten", "natten.functional", "natten.modules")


def install(*, replace: bool = False, generation: str = "0.21") -> ModuleType:
    """Make nbattn importable as `natten`, `natten.functional` and `natten.modules`.

    Call it before what imports natten: names that a module has already taken stay what they are.

    Args:
        replace: stand in front of an installed natten, too.
        generation: "0.21", or "0.17", whose `na2d` and modules take dilation where stride is today.
            The unfused functions, with every older order of arguments, are part of both.

    Returns:
        The module that `import natten` then gives.

    Raises:
        InputError: natten is installed and replace is False; or an unknown generation.

    >>> module = install(replace=True)
    >>> from natten.functional import na2d, natten2dqkrpb
    >>> uninstall()
    """
    if generation not in GENERATIONS:
        names = " or ".join(map(repr, GENERATIONS))
        raise InputError(f"generation={generation!r} is not known.", fix=f"{names}.")
    if not is_installed() and not replace and importlib.util.find_spec("natten") is not None:
        raise InputError(
            "natten is installed; two modules cannot have one name.",
            fix="install(replace=True) puts nbattn in its place until uninstall().",
        )
    uninstall()
    _SHADOWED.update(
        {n: m for n, m in sys.modules.items() if n == "natten" or n.startswith("natten.")}
    )
    for name in _SHADOWED:
        del sys.modules[name]
    top = _build(generation)
    _forget_availability()
    return top


def uninstall() -> None:
    """Take the drop-in away; an installed natten is found again. Nothing happens without one."""
    if not is_installed():
        return
    for name in _OURS:
        sys.modules.pop(name, None)
    sys.modules.update(_SHADOWED)
    _SHADOWED.clear()
    _forget_availability()


def is_installed() -> bool:
    """Whether `import natten` gives the drop-in."""
    return getattr(sys.modules.get("natten"), "__nbattn__", False)


def _build(generation: str) -> ModuleType:
    """The modules, registered."""
    functions, classes = _functions(generation), _classes(generation)
    release = f"{_RELEASES[generation]}+nbattn.{__version__}"
    contents = {
        "natten": functions | classes | {"__version__": release},
        "natten.functional": functions,
        "natten.modules": classes,
    }
    for name, content in contents.items():
        module = ModuleType(name, f"nbattn in the place of {name} {_RELEASES[generation]}.")
        module.__spec__ = ModuleSpec(name, None, origin="nbattn", is_package=name == "natten")
        module.__dict__.update(content, __nbattn__=True, __all__=sorted(content))
        sys.modules[name] = module
    top = sys.modules["natten"]
    top.__path__ = []
    for name in _OURS[1:]:
        setattr(top, name.partition(".")[2], sys.modules[name])
    return top


def _functions(generation: str) -> dict[str, Any]:
    older = {name: getattr(legacy, name) for name in dir(legacy) if name.startswith("na")}
    older.pop("natten", None)
    if generation == "0.17":
        return older | {f"na{n}d": getattr(fused, f"older_na{n}d") for n in (1, 2, 3)}
    names = ("na1d", "na2d", "na3d", "neighborhood_attention_generic", "attention")
    return older | {name: getattr(fused, name) for name in (*names, "merge_attentions")}


def _classes(generation: str) -> dict[str, Any]:
    prefix = "Older" if generation == "0.17" else ""
    names = (f"NeighborhoodAttention{n}D" for n in (1, 2, 3))
    return {name: getattr(modules, prefix + name) for name in names}


def _forget_availability() -> None:
    """Transformers remembers whether it has seen natten."""
    known = sys.modules.get("transformers.utils.import_utils")
    for probe in filter(None, (getattr(known, "is_natten_available", None),)):
        if hasattr(probe, "cache_clear"):
            probe.cache_clear()
