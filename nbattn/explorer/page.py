"""Makes the explorer's page: one HTML file with its data, styles and scripts, and writes it."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from nbattn.errors import InputError, described
from nbattn.explorer import data
from nbattn.pictures.files import unwritable
from nbattn.planner.plan import Plan

# In this order they are one script.
SCRIPTS = ("lookup.js", "scene.js", "picture.js", "panels.js", "explorer.js")
_ESCAPED = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}


def of_plan(plan: Plan, name: str = "plan") -> str:
    """The page of one plan; the same text for equal plans.

    >>> import nbattn
    >>> plan = nbattn.plan(nbattn.Mask.causal(), (1, 4, 2, 32), dtype="float32", device="cpu")
    >>> of_plan(plan)[:15]
    '<!doctype html>'
    """
    return of_plans({name: plan})


def of_plans(plans: Mapping[str, Plan]) -> str:
    """The page of several plans by name, one of which is chosen on the page."""
    found = data.of_plans(plans)
    words = "\n\n".join(plan["explain"] for plan in found["plans"])
    masks = dict.fromkeys(plan["mask"] for plan in found["plans"])
    parts = {
        "title": html.escape(", ".join(masks)),
        "words": html.escape(words),
        "style": _asset("explorer.css"),
        "data": as_script(found),
        "script": "\n".join(map(_asset, SCRIPTS)),
    }
    page = _asset("explorer.html")
    before, *rest = page.split("{{")
    for piece in rest:
        name, _, after = piece.partition("}}")
        before += parts[name] + after
    return before


def as_script(plain: Any) -> str:
    r"""Plain data as JSON that may stand in a `<script>` element, whatever its texts are.

    >>> as_script({"mask": "</script>\u2028"})
    '{"mask":"\\u003c/script\\u003e\\u2028"}'
    """
    return json.dumps(plain, ensure_ascii=True, separators=(",", ":")).translate(_ESCAPED)


def write(plans: Mapping[str, Plan], path: str | Path) -> None:
    """Writes the page of plans by name.

    Raises:
        InputError: it is no path, or cannot be written.
    """
    if not isinstance(path, (str, os.PathLike)) or "\0" in os.fspath(path):
        raise InputError(f"path={described(path)}, not the path of a file.", "path='plan.html'")
    place = Path(path)
    try:
        place.write_text(of_plans(plans), "utf-8", newline="\n")
    except OSError as error:
        raise unwritable(place, error, "plan.html") from None


@cache
def _asset(name: str) -> str:
    """The text of a file beside this module."""
    return (resources.files("nbattn.explorer") / "assets" / name).read_text("utf-8").rstrip("\n")
