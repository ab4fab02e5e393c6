"""Fixes that the library writes as Python arguments, rewritten as options of the command line."""

from __future__ import annotations

import re
import shlex
from ast import literal_eval

_TEXTS = re.compile(r"\b(backend|dtype|device)=([\"'])([\w:-]+)\2\.?")
_TUPLES = re.compile(r"\b(require|forbid|query_space|key_space)=(\([^()]*\))\.?")
_MASK = re.compile(r"(?:\bmask=)?\b(Mask(?:\.\w+)?\()")


def in_options(fix: str, *, has_mask: bool = True) -> str:
    """Returns the fix with options in the place of arguments; other text stays as it is.

    Args:
        fix: of an error of the library.
        has_mask: whether the command line gives the mask; one of a file is not changed by options.

    >>> print(in_options('device="sm_90", which plans for an H100 without one'))
    --device sm_90, which plans for an H100 without one
    >>> print(in_options("query_space=(8, 8, 8)."), in_options("mask=Mask.neighborhood((7, 7))."))
    --query 8,8,8 --mask 'neighborhood((7, 7))'
    """
    fix = _with_masks(fix) if has_mask else fix
    fix = _TEXTS.sub(lambda found: f"--{found[1]} {found[3]}", fix)
    fix = fix.replace("device=None is", "without --device it is")
    fix = re.sub(r"^device=None$", "leave out --device", fix)
    return _TUPLES.sub(_listed, fix)


def _with_masks(fix: str) -> str:
    """Returns the fix with `--mask` in the place of every call that makes a mask."""
    found = _MASK.search(fix)
    if found is None:
        return fix
    end, depth = found.end(), 1
    while depth and end < len(fix):
        depth += {"(": 1, ")": -1}.get(fix[end], 0)
        end += 1
    code = fix[found.start(1) : end].removeprefix("Mask.")
    quoted = f'"{code}"' if "'" in code else shlex.quote(code)
    return f"{fix[: found.start()]}--mask {quoted}{_with_masks(fix[end:].removesuffix('.'))}"


def _listed(found: re.Match[str]) -> str:
    option, values = found[1].removesuffix("_space"), literal_eval(found[2])
    return f"--{option} {','.join(map(str, values))}" if values else f"without --{option}"
