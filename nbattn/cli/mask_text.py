"""Parse masks and lengths of the command line as literals, without evaluating code."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import shlex
from collections.abc import Callable
from typing import Any

from nbattn.axis import Axis
from nbattn.errors import InputError
from nbattn.mask import Mask
from nbattn.mask_tables import CONSTRUCTORS

MAKERS: dict[str, Callable[..., Any]] = {
    "Axis": Axis,
    "Mask": Mask,
    **CONSTRUCTORS,
}
LONGEST_TEXT = 2000
_CALLS = {  # constructors by their bare names
    "causal": "causal()",
    "full": "full()",
    "neighborhood": "neighborhood((7, 7))",
    "sliding_window": "sliding_window(511)",
}
_EXAMPLE = "--mask 'Axis(3, 3)'  # an Axis per axis, or neighborhood((7, 7)), sliding_window(511)"


def parse_mask(text: str) -> Mask:
    """Return the mask of a text: axes, a `Mask`, or a constructor call with literal arguments.

    Args:
        text: Python syntax: `Axis(8, 0), Axis(3, 3, border="shift")`, `neighborhood((7, 7))`, or
            the output of `repr(mask)`.

    Raises:
        InputError: the text is not such a call, or an argument is not a literal or is unknown.
        MaskError: the arguments are invalid.

    >>> parse_mask('Axis(8, 0), Axis(3, 3, border="shift")')
    Mask(Axis(8, 0), Axis(3, 3, border='shift'))
    """
    text = text.strip()
    tree = _tree(text)
    made = [_call(node, text) for node in (tree.elts if isinstance(tree, ast.Tuple) else [tree])]
    if len(made) == 1 and isinstance(made[0], Mask):
        return made[0]
    for part in made:
        if isinstance(part, Mask):
            raise _wrong(f"a Mask is one of {len(made)} parts; only axes can be combined", text)
    return Mask(*made)


# Numbers with other separators, or in brackets: 8x24x24, (8, 24, 24).
_LENGTHS = re.compile(r"[\[(]?\d{1,9}(?:[x*;, ]+\d{1,9})*[\])]?", re.ASCII)


def parse_lengths(option: str, text: str) -> tuple[int, ...]:
    """Return the lengths of a comma-separated text.

    >>> parse_lengths("--query", "8,24,24")
    (8, 24, 24)
    """
    parts = [part.strip() for part in text.split(",")]
    numbers = re.findall(r"\d+", text) if _LENGTHS.fullmatch(text) else ["8"] * len(parts)
    for part in parts:
        if not (part.isascii() and part.isdigit() and len(part) <= 10):
            raise InputError(
                f"{option} {text!r:.200}: {part!r:.50} is not a whole number >= 0, one per axis.",
                f"{option} {','.join(numbers)}",
            )
    return tuple(map(int, parts))


def _wrong(problem: str, text: str, fix: str = "") -> InputError:
    return InputError(f"{problem}.", fix or _EXAMPLE, text[:200])


def _tree(text: str) -> ast.expr:
    """Return the syntax tree of the text; broken or too deep text raises InputError."""
    if not text:
        raise _wrong("the mask is empty", text)
    if len(text) > LONGEST_TEXT:
        raise _wrong(f"the mask has {len(text)} characters, the limit is {LONGEST_TEXT}", text)
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise _wrong(f"the mask is not valid Python syntax: {error.msg}", text) from None
    except (ValueError, RecursionError, MemoryError):
        raise _wrong("the mask is not valid Python syntax", text) from None


def _written(node: ast.expr, text: str) -> str:
    """Return the node's source text, at most 50 characters."""
    return (ast.get_source_segment(text, node) or "")[:50]


def _call(node: ast.expr, text: str) -> Any:
    """Build an axis or a mask from one call."""
    if not isinstance(node, ast.Call):
        shown = _written(node, text)
        instead = _CALLS.get(shown) or (f"neighborhood({text})" if text.isdigit() else "")
        fix = f"--mask {shlex.quote(instead)}" if instead else ""
        raise _wrong(f"{shown!r} is neither an axis nor a mask", text, fix)
    name = _written(node.func, text)
    plain = name.removeprefix("nbattn.")
    plain = plain if plain == "Mask" else plain.removeprefix("Mask.")
    if plain not in MAKERS:
        raise _wrong(f"{name!r} is not a mask constructor", text, _names(plain, list(MAKERS)))
    if plain == "Mask":
        axes = [_call(inner, text) for inner in node.args]
        if node.keywords or not all(isinstance(axis, Axis) for axis in axes):
            raise _wrong(
                "the arguments of Mask must be axes", text, "Mask(Axis(3, 3), Axis(3, 3))."
            )
        return Mask(*axes)
    arguments = [_literal(plain, inner, text) for inner in node.args]
    named = {
        key.arg or "**": _literal(f"{plain}, {key.arg or '**'}", key.value, text)
        for key in node.keywords
    }
    places = [*inspect.signature(MAKERS[plain]).parameters][: len(arguments)]
    for twice in (name for name in places if name in named):
        raise _wrong(f"{plain} has {twice!r} twice", text, f"{twice} once.")
    return MAKERS[plain](*arguments, **named)


def _literal(where: str, node: ast.expr, text: str) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        source = _written(node, text)
        fix = "numbers, strings, True, False, None and tuples of them."
        if re.fullmatch(r"[A-Za-z_-]+", source) and "," in where:
            quoted = re.sub(rf"=\s*{source}\b", f'="{source}"', text)
            fix = f"--mask {shlex.quote(quoted)}"
        raise _wrong(f"{where}: {source!r} is not a literal", text, fix) from None


def _names(name: str, known: list[str]) -> str:
    """Return a hint with the legal names, the most similar one first."""
    near = difflib.get_close_matches(name, known, 1)
    return "".join(f"did you mean {guess!r}? " for guess in near) + f"One of {', '.join(known)}."
