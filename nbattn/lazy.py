"""Loads the submodules of a package when they are first used, and says which name was meant."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import NoReturn


def submodule(package: str, name: str, meant: Mapping[str, str]) -> ModuleType:
    """Imports a submodule that an expression such as `nbattn.nn.HeadParallel` names.

    Args:
        package: the full name of a loaded package.
        name: the attribute that the package does not have.
        meant: what can be suggested: names, as they are looked for, and the expressions to write.

    Raises:
        AttributeError: there is no such submodule; with a suggestion where one name is similar.

    >>> submodule("nbattn", "axis", {}).__name__
    'nbattn.axis'
    """
    full = f"{package}.{name}"
    if name.isidentifier() and not name.startswith("_") and _exists(full):
        return importlib.import_module(full)
    refuse(f"module {package!r}", name, meant)


def refuse(owner: str, name: str, meant: Mapping[str, str]) -> NoReturn:
    """Raises the AttributeError of a name, with what was meant where one name is similar.

    Args:
        owner: what does not have it, as Python calls it: "module 'nbattn'".
        name: the attribute.
        meant: names, as they are looked for, and the expressions to write.
    """
    guess = "" if name.startswith("_") else _similar(name, meant)
    hint = f". Did you mean {guess}?" if guess else ""
    # with a name, so that Python does not append a suggestion of its own
    raise AttributeError(f"{owner} has no attribute {name!r}{hint}", name=name)


def _exists(module: str) -> bool:
    """Whether it is a module; a wheel has folders of kernels beside them."""
    import importlib.util

    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def _similar(name: str, meant: Mapping[str, str]) -> str:
    import difflib

    plain = {known.lower(): expression for known, expression in meant.items()}
    (best,) = difflib.get_close_matches(name.lower(), plain, n=1, cutoff=0.75) or ("",)
    return plain.get(best, "")
