"""The exceptions of nbattn, whose messages all have one form: problem, where, fix."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import NamedTuple


class NbattnError(Exception):
    """Base class of every error that nbattn raises on purpose."""

    def __init__(self, problem: str, fix: str = "", where: str = "") -> None:
        """Stores the parts, so that a public function can add what an inner one does not have. They
        are positional: of an error raised during tracing, torch.compile shows only these.

        Args:
            problem: what is wrong, with both numbers.
            fix: what to write instead, as code.
            where: the mask, shapes and arguments of the call.
        """
        self.problem, self.fix, self.where = problem, fix, where
        self.args = (problem, fix, where)  # torch.compile cannot trace super().__init__ here

    def __str__(self) -> str:
        parts = [self.problem]
        if self.where:
            parts.append(f"  given: {self.where}")
        if self.fix:
            parts.append(f"  fix:   {self.fix}")
        return "\n".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.problem, self.fix, self.where)


def _rebuild(kind: type[NbattnError], problem: str, fix: str, where: str) -> NbattnError:
    return kind(problem, fix=fix, where=where)


class MaskError(NbattnError, ValueError):
    """A mask breaks a rule of masks, or does not fit the shape that it is used with."""


class InputError(NbattnError, ValueError):
    """An argument does not fit: rank, heads, dtype, device, an unknown name."""


class BackendError(NbattnError, RuntimeError):
    """No backend supports the request; the message lists every reason."""


class DistributedError(NbattnError, RuntimeError):
    """Another rank has raised an error, has ended, is late, or calls with other arguments."""


class Mistake(NamedTuple):
    """One mistake of a configuration.

    Args:
        path: its key path; empty for the whole file.
        found: what is wrong.
        legal: what is allowed at this path.
        fix: what to write instead, as code.
        guess: what was probably meant.
    """

    path: str
    found: str
    legal: str = ""
    fix: str = ""
    guess: str = ""

    def __str__(self) -> str:
        named = (("legal", self.legal), ("fix", self.fix))
        parts = [self.found.rstrip("."), *(f"{name}: {text}" for name, text in named if text)]
        where = f"{self.path}: " if self.path else ""
        guess = f" Did you mean {self.guess}?" if self.guess else ""
        return f"{where}{'; '.join(parts).rstrip('.')}.{guess}"


class ConfigError(NbattnError, ValueError):
    """A configuration has mistakes; the message lists all of them, one per line.

    Args:
        source: the file, or "mapping".
        mistakes: all of them, also as the attribute `mistakes`.
    """

    def __init__(self, source: str, mistakes: Sequence[Mistake]) -> None:
        self.source, self.mistakes = source, tuple(mistakes)
        super().__init__("\n".join(f"{source}: {mistake}" for mistake in self.mistakes))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.source, self.mistakes)


def kind(value: object) -> str:
    """Returns the type of a value with its article: "an int", "a float", "a numpy.bool"."""
    module, name = type(value).__module__, type(value).__name__
    name = f"{module}.{name}" if module == "numpy" else name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def described(value: object, verb: str = " is") -> str:
    """Returns a value and its type, as messages have them; what is long, as tensors are, without
    its content.

    >>> described("3"), described([0] * 99)
    ("'3' is a str", 'a list')
    """
    text = repr(value)
    return kind(value) if len(text) > 60 or "\n" in text else f"{text}{verb} {kind(value)}"


def similar(word: str, known: Collection[str], cutoff: float = 0.6) -> str:
    """Returns the known name that is most like a word, or an empty string.

    >>> similar("retrun_lse", ["return_lse", "scale"])
    'return_lse'
    """
    # all matches are asked for, since compilers cannot trace how Python finds the best one
    matches = get_close_matches(word, known, n=max(1, len(known)), cutoff=cutoff)
    return matches[0] if matches else ""


def counted(number: int, one: str, many: str = "") -> str:
    """Returns a number and its noun: "1 axis", "2 axes"."""
    return f"{number} {one if number == 1 else many or one + 's'}"
