"""Puts the drop-in where `import natten` finds it, and takes it away again."""

from __future__ import annotations

import importlib.util
import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from nbattn.errors import InputError
from nbattn.integrations.natten import fused, legacy, modules, parameters
from nbattn.integrations.natten.context import switches
from nbattn.version import __version__

_RELEASES = {"0.21": "0.21.7", "0.17": "0.17.5", "0.14": "0.14.6"}
_CLASSES = {"0.21": "", "0.17": "Older", "0.14": "Oldest"}
_SHADOWED: dict[str, ModuleType] = {}  # modules of the real natten, while the drop-in stands there


def install(*, replace: bool = False, generation: str = "0.21") -> ModuleType:
    """Make nbattn importable as `natten`, with its submodules of functions, classes, types and
    switches.

    Call it before what imports natten: names that a module has already taken stay what they are.

    Args:
        replace: stand in front of an installed natten, too.
        generation: "0.21"; "0.17", whose `na2d` and modules take dilation where stride is today; or
            "0.14" (to 0.15), whose modules have a bias table unless told otherwise. The unfused
            functions, with every older order of arguments, are part of all, switches as well.

    Returns:
        The module that `import natten` then gives.

    Raises:
        InputError: natten is installed and replace is False; or an unknown generation.

    >>> module = install(replace=True)
    >>> from natten.functional import na2d, natten2dqkrpb
    >>> uninstall()
    """
    if generation not in _RELEASES:
        names = " or ".join(map(repr, _RELEASES))
        raise InputError(f"generation={generation!r} is not known.", f"{names}.")
    if not is_installed() and not replace and importlib.util.find_spec("natten") is not None:
        raise InputError(
            "natten is installed; two modules cannot have one name.",
            "install(replace=True) puts nbattn in its place until uninstall().",
        )
    uninstall()
    _SHADOWED.update(_loaded())
    for name in _SHADOWED:
        del sys.modules[name]
    top = _build(generation)
    _forget_availability()
    return top


def uninstall() -> None:
    """Take the drop-in away; an installed natten is found again. Nothing happens without one."""
    if not is_installed():
        return
    for name in _loaded():
        del sys.modules[name]
    sys.modules.update(_SHADOWED)
    _SHADOWED.clear()
    _forget_availability()


def _loaded() -> dict[str, ModuleType]:
    """Natten and its submodules, whosever they are."""
    return {n: m for n, m in sys.modules.items() if n == "natten" or n.startswith("natten.")}


def is_installed() -> bool:
    """Whether `import natten` gives the drop-in."""
    return getattr(sys.modules.get("natten"), "__nbattn__", False)


def _build(generation: str) -> ModuleType:
    """The modules, registered."""
    contents = _contents(generation)
    for name, content in contents.items():
        words = f"nbattn in the place of {name} {_RELEASES[generation]}."
        module = sys.modules[name] = ModuleType(name, words)
        package = any(other.startswith(f"{name}.") for other in contents)
        module.__spec__ = ModuleSpec(name, None, origin="nbattn", is_package=package)
        module.__dict__.update(content, __nbattn__=True, __all__=sorted(content))
        if package:
            module.__path__ = []
        parent, _, child = name.rpartition(".")
        if parent and child not in contents[parent]:
            setattr(sys.modules[parent], child, module)
    return sys.modules["natten"]


def _contents(generation: str) -> dict[str, dict[str, Any]]:
    """What stands in every module, parents first."""
    functions, classes, changes = _functions(generation), _classes(generation), switches()
    checks = {"check_all_args": _checker(generation)}
    facts = {
        "__version__": f"{_RELEASES[generation]}+nbattn.{__version__}",
        "HAS_LIBNATTEN": True,
    }
    found = {
        "natten": functions | classes | changes | facts,
        "natten.functional": functions,
        "natten.modules": classes,
        "natten.context": changes,
        "natten.types": parameters.types(),
        "natten.utils": checks,
        "natten.utils.checks": checks,
        "natten.utils.log": {"get_logger": logging.getLogger},
    }
    if generation != "0.21":  # a module for each rank, beside functions of the same names
        for name, kind in classes.items():
            for start in ("na", "natten"):
                found[f"natten.{start}{name[-2:].lower()}"] = {name: kind}
    return found


def _functions(generation: str) -> dict[str, Any]:
    unfused = {name: getattr(legacy, name) for name in dir(legacy) if name.startswith("na")}
    unfused.pop("natten", None)
    if generation == "0.14":
        return unfused
    if generation == "0.17":
        return unfused | {f"na{n}d": getattr(fused, f"older_na{n}d") for n in (1, 2, 3)}
    names = ("na1d", "na2d", "na3d", "neighborhood_attention_generic", "attention")
    return unfused | {name: getattr(fused, name) for name in (*names, "merge_attentions")}


def _classes(generation: str) -> dict[str, Any]:
    names = [f"NeighborhoodAttention{n}D" for n in (1, 2, 3)]
    found = {name: getattr(modules, _CLASSES[generation] + name, None) for name in names}
    return {name: kind for name, kind in found.items() if kind is not None}


def _checker(generation: str) -> Any:
    """`natten.utils.check_all_args`: parameters as one tuple each."""
    names = ("kernel_size", "stride", "dilation", "is_causal")
    names = names if generation == "0.21" else (names[0], *names[2:])

    def check_all_args(na_dim: int, *values: Any) -> tuple[Any, ...]:
        return tuple(
            parameters.per_axis(name, value, na_dim)
            for name, value in zip(names, values, strict=True)
        )

    return check_all_args


def _forget_availability() -> None:
    """Transformers remembers whether it has seen natten."""
    known = sys.modules.get("transformers.utils.import_utils")
    for probe in filter(None, (getattr(known, "is_natten_available", None),)):
        if hasattr(probe, "cache_clear"):
            probe.cache_clear()
