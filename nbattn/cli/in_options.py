"""Fixes that the library writes as Python arguments, rewritten as options of the command line."""

from __future__ import annotations

import re
import shlex
from ast import literal_eval

from nbattn.fixes.code import closing, without_tensors

_TEXTS = re.compile(r"\b(backend|dtype|device|model)=([\"'])([\w:.-]+)\2\.?")
_TUPLES = re.compile(r"\b(require|forbid|query_space|key_space)=(\([^()]*\))\.?")
_SIZE, _COUNT = re.compile(r"\bsize=\((\d+), (\d+)\)"), re.compile(r"\b(frames|text)=(\d+|None)\b")
_MASK = re.compile(r"(?:\bmask=)?(?<![\w.('])Mask(?:\.\w+)?\(")


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
    kept = without_tensors(fix)
    if not kept and fix.startswith("nbattn.attention("):
        return ""  # the command line has no tensors
    fix = _masks(kept) if kept and has_mask else kept or fix
    fix = _TEXTS.sub(lambda found: f"--{found[1]} {found[3]}", fix)
    fix = fix.replace("device=None is", "without --device it is")
    fix = re.sub(r"^device=None$", "leave out --device", fix)
    fix = _SIZE.sub(r"--size \1x\2", fix)
    fix = _COUNT.sub(
        lambda found: f"without --{found[1]}" if found[2] == "None" else f"--{found[1]} {found[2]}",
        fix,
    )
    return _TUPLES.sub(_listed, fix)


def _masks(fix: str) -> str:
    """The fix with its masks as options; a mask inside a call of a function stays."""
    done, start = "", 0
    for found in _MASK.finditer(fix):
        if found.start() < start:
            continue
        end = closing(fix, found.end())
        code = fix[found.start() : end].removeprefix("mask=").replace("'", '"')
        code = code.removeprefix("Mask.")
        stop = end + (fix[end:] == ".")
        done += f"{fix[start : found.start()]}--mask {shlex.quote(code)}"
        start = stop
    return done + fix[start:]


def _listed(found: re.Match[str]) -> str:
    values = ",".join(map(str, literal_eval(found[2])))
    if not values:
        return f"without --{found[1]}"
    return f"--{found[1].removesuffix('_space')} {values}"
