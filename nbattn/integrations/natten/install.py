"""Installs the drop-in as the module `natten`, and removes it."""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from nbattn.errors import InputError
from nbattn.integrations.natten import (
    absent,
    checks,
    flops,
    fused,
    legacy,
    modules,
    parameters,
    testing,
)
from nbattn.integrations.natten.context import OLDEST, switches
from nbattn.version import __version__

_RELEASES = {"0.21": "0.21.7", "0.17": "0.17.5", "0.14": "0.14.6"}
_CLASSES = {"0.21": "", "0.17": "Older", "0.14": "Oldest"}
_FLOPS = (
    *("add_natten_handle", "fna_flop_count", "get_flops"),
    *("na_av_flop_count", "na_qk_flop_count"),
)
_SHADOWED: dict[str, ModuleType] = {}  # modules of the real natten, while the drop-in replaces them


def install(*, replace: bool = False, generation: str = "0.21") -> ModuleType:
    """Makes nbattn importable as `natten`, with its submodules of functions, classes, types and
    switches.

    Call it before modules that import natten: names that they have imported do not change.

    Args:
        replace: whether to replace an installed natten as well.
        generation: "0.21"; "0.17", whose `na2d` and modules take dilation in the place of stride;
            or "0.14" (to 0.15), whose modules have a bias table by default, without
            `natten.context`. All generations have the unfused functions, with every older order
            of arguments.

    Returns:
        The module that `import natten` then gives.

    Raises:
        InputError: natten is installed and replace is False, or the generation is unknown.

    >>> module = install(replace=True)
    >>> from natten.functional import na2d, natten2dqkrpb
    >>> uninstall()
    """
    if generation not in _RELEASES:
        raise InputError(
            f"generation={generation!r} is not known: {', '.join(map(repr, _RELEASES))}.",
            f"install(generation={_nearest(generation)!r}).",
        )
    if not is_installed() and not replace and importlib.util.find_spec("natten") is not None:
        raise InputError(
            "natten is installed; two modules cannot have one name.",
            f"install(replace=True, generation={generation!r}): nbattn, until uninstall().",
        )
    uninstall()
    _SHADOWED.update(_loaded())
    for name in _SHADOWED:
        del sys.modules[name]
    top = _build(generation)
    names = {one: _contents(one) for one in _RELEASES}
    sys.meta_path.append(absent.Finder(generation, names))
    _forget_availability()
    return top


def uninstall() -> None:
    """Removes the drop-in, if there is one; then `import natten` gives an installed natten."""
    if not is_installed():
        return
    for name in _loaded():
        del sys.modules[name]
    sys.meta_path[:] = [one for one in sys.meta_path if not isinstance(one, absent.Finder)]
    sys.modules.update(_SHADOWED)
    _SHADOWED.clear()
    _forget_availability()


def _nearest(generation: object) -> str:
    """The generation of a release: "0.20.1" has the arguments of "0.21", "0.16" those of "0.17"."""
    found = re.match(r"v?0\.(\d+)", str(generation))
    number = int(found[1]) if found else 21
    return "0.21" if number >= 20 else "0.17" if number >= 16 else "0.14"


def _loaded() -> dict[str, ModuleType]:
    """The loaded modules of that name, of NATTEN or of the drop-in."""
    return {n: m for n, m in sys.modules.items() if n == "natten" or n.startswith("natten.")}


def is_installed() -> bool:
    """Whether `import natten` gives the drop-in."""
    return getattr(sys.modules.get("natten"), "__nbattn__", False)


def _build(generation: str) -> ModuleType:
    """Makes and registers the modules; returns `natten`."""
    contents = _contents(generation)
    for name, content in contents.items():
        text = f"nbattn in the place of {name} {_RELEASES[generation]}."
        module = sys.modules[name] = ModuleType(name, text)
        module.__spec__ = ModuleSpec(name, None, origin="nbattn", is_package=True)
        module.__dict__.update(content, __nbattn__=True, __all__=sorted(content))
        module.__path__ = []  # of a package, Python asks absent.Finder for names that are missing
        parent, _, child = name.rpartition(".")
        if parent and child not in contents[parent]:
            setattr(sys.modules[parent], child, module)
    return sys.modules["natten"]


def _contents(generation: str) -> dict[str, dict[str, Any]]:
    """The contents of every module, parents first; 0.14 has fewer, by which code knows it."""
    functions, classes, changes = _functions(generation), _classes(generation), switches(generation)
    if generation == "0.14":
        changes = {name: changes[name] for name in OLDEST}
        functions |= changes | legacy.AUTOGRAD_FUNCTIONS
    checked = checks.names(generation)
    facts = {"__version__": f"{_RELEASES[generation]}+nbattn.{__version__}"}
    contents: dict[str, dict[str, Any]] = {
        "natten": functions | classes | changes | facts,
        "natten.functional": functions,
        "natten.flops": {name: getattr(flops, name) for name in _FLOPS},
        "natten.utils": checked,
        "natten.utils.checks": checked,
        "natten.utils.log": {"get_logger": logging.getLogger},
        "natten.utils.testing": testing.names(),
    }
    if generation != "0.14":
        contents |= {"natten.context": changes, "natten.types": parameters.types()}
    if generation == "0.21":
        library = {"HAS_LIBNATTEN": True}
        contents["natten"] |= library
        generic = {"NeighborhoodAttentionGeneric": modules.NeighborhoodAttentionGeneric}
        return contents | {"natten._libnatten": library, "natten.modules": classes | generic}
    if generation == "0.17":
        fused_only = {f"na{n}d": functions[f"na{n}d"] for n in (1, 2, 3)}
        contents["natten.experimental"] = fused_only
    for name, kind in classes.items():  # also one module per rank, named like its function
        for start in ("natten",) if generation == "0.14" else ("na", "natten"):
            contents[f"natten.{start}{name[-2:].lower()}"] = {name: kind}
    return contents


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
    return {name: getattr(modules, _CLASSES[generation] + name) for name in names}


def _forget_availability() -> None:
    """Clears transformers' cached answer to whether natten is installed."""
    imports = sys.modules.get("transformers.utils.import_utils")
    probe: Any = getattr(imports, "is_natten_available", None)
    if hasattr(probe, "cache_clear"):
        probe.cache_clear()
