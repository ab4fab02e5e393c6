"""The command `doctor`: what works on this machine, as a table or as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any

_DESCRIPTION = """
Says what of nbattn works on this machine, and what to do where it does not: versions, devices,
optional packages, and every backend, each tried with a small attention forward and backward.
Works where torch is missing or broken. Takes some seconds.
"""
_EPILOG = """
examples:
  nbattn doctor
  nbattn doctor --json > report.json

exit status:
  0  at least one backend is usable
  1  none is
"""
Row = tuple[str, str, str]  # part, name, what was found


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "doctor",
        help="say what works on this machine",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="the same facts as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the report."""
    from nbattn import doctor

    facts = doctor.report()
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        show(list(rows(facts)))
    return 0 if facts["usable"] else 1


def rows(facts: dict[str, Any]) -> Iterator[Row]:
    """The report line by line."""
    for part in ("nbattn", "python", "machine", "torch"):
        for name, found in facts[part].items():
            if name == "devices":
                for device in found:
                    name, *rest = device.items()
                    yield part, f"device {name[1]}", _words(dict(rest)) or "no further facts"
            else:
                yield part, name, _amount(name, found)
    yield from _listed("package", facts["packages"], _package)
    yield from _listed("backend", facts["backends"], _backend)
    for name, found in facts["kernels"].items():
        yield "kernels", name, _words(found)
    for name, value in facts["environment"].items():
        yield "environment", name, "not set" if value is None else value
    for name, found in facts["cache"].items():
        yield "cache", name, _amount(name, found)


def _listed(part: str, found: Any, line: Any) -> Iterator[Row]:
    if isinstance(found, dict):
        yield part, "error", found["error"]
        return
    for one in found:
        yield part, *line(one)


def _package(package: dict[str, Any]) -> tuple[str, str]:
    extras = " or ".join(f'pip install "nbattn[{extra}]"' for extra in package["extras"])
    if package["installed"] is None:
        return package["name"], f"not installed; {extras or 'pip install ' + package['name']}"
    notes = [package["installed"]]
    if package["fits"] is False:
        notes.append(f"outside {package['wanted']}")
    if package["importable"] is False:
        notes.append(f"does not load: {package['error']}")
    return package["name"], "; ".join(notes)


def _backend(backend: dict[str, Any]) -> tuple[str, str]:
    name = f"{backend['name']} on {backend['device']}"
    if backend["usable"]:
        return name, f"usable; off from the reference by {backend['max_error']:.2g}"
    fix = f"; {backend['fix']}" if backend.get("fix") else ""
    return name, f"not usable: {backend.get('reason') or backend.get('error')}{fix}"


def _amount(name: str, found: Any) -> str:
    if name.endswith("bytes") and isinstance(found, int):
        return f"{found / 2**30:.3g} GiB" if found >= 2**20 else f"{found} bytes"
    return _words(found)


def _words(found: Any) -> str:
    """A value in words; a table as its pairs."""
    if isinstance(found, dict):
        return ", ".join(f"{key} {_amount(key, value)}" for key, value in found.items())
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, list):
        return ".".join(map(str, found))
    return "none" if found is None else str(found)


def show(table: list[Row]) -> None:
    """The rows: a table on a terminal, plain columns in a pipe or where rich does not load."""
    if sys.stdout.isatty():
        try:
            _show_rich(table)
            return
        except Exception as error:
            print(f"(plain: rich does not work here: {type(error).__name__})")
    last = ""
    for part, name, found in table:
        text = f"{part if part != last else '':<12} {name:<22} {found}".rstrip()
        encoding = sys.stdout.encoding or "ascii"
        print(text.encode(encoding, "replace").decode(encoding))
        last = part


def _show_rich(table: list[Row]) -> None:
    drawn = importlib.import_module("rich.table").Table()
    for column in ("part", "name", "found"):
        drawn.add_column(column, overflow="fold")
    text = importlib.import_module("rich.text").Text
    last = table[0][0]
    for part, name, found in table:
        if part != last:
            drawn.add_section()
        style = "red" if found.startswith("not usable") else ""
        drawn.add_row(part, name, text(found, style=style))
        last = part
    importlib.import_module("rich.console").Console().print(drawn)
