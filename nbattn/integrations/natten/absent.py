"""Refuses what the drop-in has no equivalent of: an ImportError with what to write instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nbattn.errors import NbattnError
from nbattn.integrations.natten.fused import PER_SEQUENCE

# Modules that are about NATTEN's kernels: what they have, and what replaces it.
_INSTEAD = {
    "backends": ("chooses and configures NATTEN's kernels", "backend=None: nbattn chooses."),
    "libnatten": ("has NATTEN's compiled kernels", "import natten.functional."),
    "_libnatten": ("has NATTEN's compiled kernels", "import natten.functional."),
    "token_permute": (
        "orders tokens for NATTEN's kernels",
        "natten.functional.neighborhood_attention_generic, with tokens in their own order.",
    ),
    "utils.varlen": ("describes packed sequences", PER_SEQUENCE),
}
# The generations in the order in which a name is looked for.
_OTHERS = {"0.21": ("0.17", "0.14"), "0.17": ("0.21", "0.14"), "0.14": ("0.17", "0.21")}


class AbsentError(NbattnError, ModuleNotFoundError):
    """A module or a name of NATTEN that the drop-in does not have.

    `ImportError.name` stays None: Python replaces an error about the name that it asked for.
    """


class Finder:
    """Python asks it for a module `natten.X` that does not exist, and for a name that `from natten
    import` does not find; `hasattr` does not ask.

    Args:
        generation: the installed one.
        names: the names of every module, by generation.
    """

    def __init__(self, generation: str, names: Mapping[str, Mapping[str, Iterable[str]]]) -> None:
        self.generation = generation
        self.names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: Any = None
    ) -> None:
        """Raises an AbsentError for names below `natten`."""
        top, _, rest = fullname.partition(".")
        if top != "natten" or not rest:
            return
        problem = f"{fullname} is not in nbattn's natten, generation {self.generation!r}."
        for other in _OTHERS[self.generation]:
            if self._has(other, fullname):
                raise AbsentError(
                    problem,
                    f'nbattn.integrations.natten.install(generation="{other}") before natten is '
                    "imported.",
                )
        for name, (purpose, fix) in _INSTEAD.items():
            if f"{rest}.".startswith(f"{name}."):
                raise AbsentError(f"natten.{name} {purpose}.", fix)
        raise AbsentError(problem, f"one of {self._parent(fullname)}.__all__.")

    def _has(self, generation: str, name: str) -> bool:
        module, _, last = name.rpartition(".")
        return name in self.names[generation] or last in self.names[generation].get(module, ())

    def _parent(self, name: str) -> str:
        """The module nearest above a name that exists."""
        while name not in self.names[self.generation]:
            name = name.rpartition(".")[0]
        return name
