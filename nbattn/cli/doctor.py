"""`nbattn doctor`: report what works on this machine, as a table or as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any

_DESCRIPTION = """
Reports which parts of nbattn work on this machine and how to repair the others: versions, devices,
optional packages, and every backend, tested with a small attention forward and backward.
Works where torch is missing or broken. Takes some seconds.
"""
_EPILOG = """
examples:
  nbattn doctor
  nbattn doctor --json > report.json

exit status:
  0  at least one backend is usable
  1  no backend is usable
"""
Row = tuple[str, str, str]  # part, name, value


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "doctor",
        help="report what works on this machine",
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
    """Return the report as rows (part, name, value)."""
    for part in ("nbattn", "python", "machine", "torch"):
        for name, value in facts[part].items():
            if name == "devices":
                for device in value:
                    name, *rest = device.items()
                    yield part, "device", ", ".join(filter(None, [name[1], _text(dict(rest))]))
            else:
                yield part, _label(name), _amount(name, value)
    yield from _listed("package", facts["packages"], _package)
    yield from _listed("backend", facts["backends"], _backend)
    for name, value in facts["kernels"].items():
        is_ready = value == {"missing": None}
        yield "kernels", name, "ready" if is_ready else _text(value)
    for name, value in facts["environment"].items():
        yield "environment", name, "not set" if value is None else value
    for name, value in facts["cache"].items():
        yield "cache", _label(name), _amount(name, value)


def _listed(part: str, items: Any, line: Any) -> Iterator[Row]:
    if isinstance(items, dict):
        yield part, "error", items["error"]
        return
    for item in items:
        yield part, *line(item)


def _package(package: dict[str, Any]) -> tuple[str, str]:
    for_users = [extra for extra in package["extras"] if extra != "oracles"] or package["extras"]
    extras = " or ".join(f'pip install "nbattn[{extra}]"' for extra in for_users)
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
        return name, f"usable; largest difference from the reference {backend['max_error']:.2g}"
    fix = f"; {backend['fix']}" if backend.get("fix") else ""
    return name, f"not usable: {backend.get('reason') or backend.get('error')}{fix}"


def _label(name: str) -> str:
    """Names a fact: "memory_bytes" is the memory, "bytes" the size."""
    return "size" if name == "bytes" else name.removesuffix("_bytes").replace("_", " ")


def _amount(name: str, value: Any) -> str:
    if name.endswith("bytes") and isinstance(value, int):
        return f"{value / 2**30:.3g} GiB" if value >= 2**20 else f"{value} bytes"
    return _text(value)


def _text(value: Any) -> str:
    """Format a value as text, a dict as its key value pairs."""
    if isinstance(value, dict):
        return ", ".join(f"{_label(key)} {_amount(key, item)}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ".".join(map(str, value))
    return "none" if value is None else str(value)


def show(table: list[Row]) -> None:
    """Print the rows: a table on a terminal, plain columns in a pipe or where rich fails."""
    if sys.stdout.isatty():
        try:
            _show_rich(table)
            return
        except Exception as error:
            print(f"(plain: rich does not work here: {type(error).__name__})")
    last = ""
    width = max(len(name) for _, name, _ in table)
    for part, name, value in table:
        text = f"{part if part != last else '':<12} {name:<{width}} {value}".rstrip()
        encoding = sys.stdout.encoding or "ascii"
        print(text.encode(encoding, "replace").decode(encoding))
        last = part


def _show_rich(table: list[Row]) -> None:
    drawn = importlib.import_module("rich.table").Table()
    for column in ("part", "name", "found"):
        drawn.add_column(column, overflow="fold")
    text = importlib.import_module("rich.text").Text
    last = table[0][0]
    for part, name, value in table:
        if part != last:
            drawn.add_section()
        style = "red" if value.startswith("not usable") else ""
        drawn.add_row(part, name, text(value, style=style))
        last = part
    importlib.import_module("rich.console").Console().print(drawn)
