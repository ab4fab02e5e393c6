"""`nbattn doctor`: report what works on this machine: a verdict, what to do, then the facts."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from nbattn.cli import screen
from nbattn.cli.parser import Parser
from nbattn.errors import counted

_DESCRIPTION = """
Report whether nbattn works on this machine, and what to do where it does not: first a verdict, then
the facts: machine, torch, kernels, packages, and the files that nbattn has written. Works where
torch is missing or broken.

It takes a second or two, compiles nothing and writes nothing. With --deep it also compiles and
caches kernels, runs every backend on every device, and imports every optional package: up to a
minute the first time.
"""
_EPILOG = """
examples:
  nbattn doctor
  nbattn doctor --deep
  nbattn doctor --json > report.json

exit status:
  0  at least one backend is usable
  1  no backend is usable
"""
_PEERS = ("flex", "natten")
_OPTIONAL = {  # extra → what its packages are or serve
    "yaml": "YAML files",
    "viz": "figures",
    "demo": "nbattn demo",
    "native": "C++ compiler",
    "cuda12": "CUDA kernels",
    "cuda13": "CUDA kernels",
    "triton": "Triton kernels",
    "flash": "flash-attn 4",
    "natten": "NATTEN",
    "transformers": "transformers",
    "diffusers": "diffusers",
}
_PARTS = {  # of the kernels for GPUs: their rows
    "Triton": ("Triton", "{version}, for GPUs of {vendor}"),
    "launcher": ("CuPy", "ready"),
    "compiler": ("NVRTC", "{version}, {path}; headers in {headers}"),
    "compile": ("compilation", "{kernel} for {target} in {seconds} s, {registers} registers"),
    "cubins": ("cubins", "kept in the cache, loaded in {seconds} s"),
}
Row = tuple[str, str]  # name, text


def parser() -> Parser:
    """Return the parser of the command."""
    found = Parser("doctor", "report what works on this machine", _DESCRIPTION, _EPILOG)
    add = found.add_argument
    add("--deep", action="store_true", help="also compile kernels and run every backend")
    add("--json", action="store_true", help="the same facts as JSON")
    return found


def run(options: argparse.Namespace) -> int:
    """Print the report."""
    from nbattn import doctor

    with _spinner() as at:
        facts = doctor.report(deep=options.deep, at=at)
    if options.json:
        screen.show(json.dumps(facts, indent=2))
    else:
        screen.show("\n".join(lines(facts)))
    return 0 if facts["usable"] else 1


@contextlib.contextmanager
def _spinner() -> Generator[Callable[[str], None]]:
    """Shows on a terminal what is being tried; nothing where rich does not work."""
    try:
        console = importlib.import_module("rich.console").Console(stderr=True)
    except Exception:
        yield lambda part: None
        return
    if not console.is_terminal:
        yield lambda part: None
        return
    with console.status("looking at this machine") as status:
        yield lambda part: status.update(f"looking at this machine: {part}")


def lines(facts: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the report."""
    yield from _conclusion(facts)
    for title, rows in groups(facts).items():
        yield ""
        yield screen.styled(title, "bold")
        yield from screen.columns(rows)
    yield ""
    if not facts["deep"]:
        yield screen.wrapped(
            "`nbattn doctor --deep` also compiles kernels, runs every backend on every device and "
            "imports every optional package."
        )


def _conclusion(facts: dict[str, Any]) -> Iterator[str]:
    """Yield the verdict, and what to do."""
    verdict, advice = facts["verdict"], facts["advice"]
    if not isinstance(advice, list):
        yield screen.wrapped(f"The facts are incomplete: {verdict.get('error') or advice['error']}")
        return
    text = f"{verdict['cpu']} {verdict['gpu']}" + " Nothing to do." * (not advice)
    yield screen.styled(screen.wrapped(text), "bold", "green" if facts["usable"] else "red")
    if advice:
        yield "To do:"
        yield from (screen.wrapped_command(line, f"  {n}. ") for n, line in enumerate(advice, 1))


def groups(facts: dict[str, Any]) -> dict[str, list[Row]]:
    """Return the facts as named groups of rows."""
    found = {
        "This machine": _machine(facts),
        "torch": _torch(facts["torch"]),
        "CPU kernels": [*_backends(facts, ("cpu",)), *_host(facts["kernels"])],
        "GPU kernels": [*_backends(facts, None), *_cuda(facts["kernels"])],
        "Other libraries as backends": _backends(facts, None, _PEERS),
        "Optional packages": list(_packages(facts)),
        "Files that nbattn writes": _files(facts),
    }
    return {title: rows for title, rows in found.items() if rows}


def _machine(facts: dict[str, Any]) -> list[Row]:
    machine, python = facts["machine"], facts["python"]
    rows = [("nbattn", f"{facts['nbattn']['version']}, {facts['nbattn']['path']}")]
    if "error" in python:
        rows.append(("python", python["error"]))
    else:
        rows.append(("python", f"{python['version']}, {python['executable']}"))
    if "error" in machine:
        return [*rows, ("machine", machine["error"])]
    cores = f"{machine['usable_cores'] or machine['cores']} of {machine['cores']} cores usable"
    memory = _size(machine["memory_limit_bytes"] or machine["memory_bytes"] or 0)
    rows += [("system", machine["platform"]), ("processor", f"{machine['cpu']}, {cores}")]
    return [*rows, ("memory", memory)]


def _torch(torch: dict[str, Any]) -> list[Row]:
    if "error" in torch:
        return [("error", torch["error"])]
    builds = {"CUDA": torch["cuda_build"], "ROCm": torch["hip_build"], "XPU": torch["xpu_build"]}
    build = next((f"built for {k} {v}" for k, v in builds.items() if v), "built for CPUs")
    rows = [
        ("version", f"{torch['version']}, {build}"),
        ("threads", str(torch["threads"])),
        ("deterministic", "yes" if torch["deterministic"] else "no"),
    ]
    states = (f"{name.replace('_', ' ')} {_text(v)}" for name, v in torch["backends"].items())
    rows.append(("switches", ", ".join(states)))
    for device in torch["devices"]:
        facts = [device["name"]]
        if "model" in device:
            arch = "".join(map(str, device.get("capability", ())))
            names = [f"sm_{arch}" if arch else device.get("architecture", "")]
            facts += [device["model"], *filter(None, names), _size(device["memory_bytes"])]
        rows.append(("device", ", ".join(facts)))
    return rows


def _backends(
    facts: dict[str, Any], devices: Sequence[str] | None, names: Sequence[str] = ()
) -> list[Row]:
    """Return rows of backends with the same state, which share a row.

    Args:
        devices: their devices; None: all but the CPU, or with `names` all.
        names: only these backends; default: all others.
    """
    if not isinstance(facts["backends"], list):
        return [("error", facts["backends"]["error"])] if devices else []
    states: dict[str, list[str]] = {}
    for one in facts["backends"]:
        is_cpu, is_named = one["device"] == "cpu", one["name"] in (names or _PEERS)
        is_here = bool(names) or is_cpu == (devices is not None)
        if is_here and is_named == bool(names) and not (is_cpu and _is_of_gpus(one)):
            name = one["name"] if is_cpu else f"{one['name']} on {one['device']}"
            states.setdefault(_state(one), []).append(name)
    return [(", ".join(grouped), state) for state, grouped in states.items()]


def _is_of_gpus(backend: dict[str, Any]) -> bool:
    return bool(re.match(r"runs on cuda(, \w+)*, not on cpu", str(backend.get("reason", ""))))


def _state(backend: dict[str, Any]) -> str:
    if backend.get("forward_only"):
        return f"forward only: {backend['reason']}"
    if not backend["usable"]:
        return f"not usable: {backend.get('reason') or backend.get('error')}"
    if not backend.get("tried"):
        return "ready, not run; --deep compiles and runs it"
    if not backend["max_error"]:
        return "ready; the others are compared with it"
    return f"ready; within {backend['max_error']:.1g} of the reference"


def _host(kernels: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of the C++ compiler and of the compiled library."""
    compiler, library = kernels["CPU compiler"], kernels["CPU library"]
    if "error" in compiler:
        yield "compiler", compiler["error"]
    else:
        yield "compiler", f"{compiler['version']}, {compiler['path']}"
    if library.get("works"):
        how = f"compiled by {library['compiler']} in {library['seconds']:.0f} s"
        yield "library", f"{how}, {_size(library['bytes'])} in the cache"
    elif "error" in library:
        if library["error"] != compiler.get("error"):
            yield "library", library["error"]
    else:
        text = library.get("problem") or "not compiled yet; the first call does, once, in seconds"
        yield "library", text if library["path"] else "compiled by every process: the cache is off"


def _cuda(kernels: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of Triton, CuPy, NVRTC, a compilation and the cache of kernels."""
    for part, (name, text) in _PARTS.items():
        facts = kernels[part]
        problem = next(
            (facts[key] for key in ("missing", "error", "problem") if facts.get(key)), ""
        )
        if problem != "was not tried":
            yield name, problem or text.format(**facts)


def _packages(facts: dict[str, Any]) -> Iterator[Row]:
    """Yield packages with what is wrong with them, then the optional ones by what they are for."""
    from nbattn.packages import EXTRAS, install_line

    packages = facts["packages"]
    if not isinstance(packages, list):
        yield "error", packages["error"]
        return
    for package in packages:
        if package["fits"] is False or package["importable"] is False:
            yield package["name"], _package(package)
    triton = facts["kernels"]["Triton"]["installed"]
    other_cuda = "cuda13" if _is_of_cuda_12(facts["torch"]) else "cuda12"
    for extra, texts in EXTRAS.items():
        own = [p for p in packages if any(_is(p["name"], text) for text in texts)]
        if all(package["installed"] for package in own):
            versions = ", ".join(f"{p['name']} {p['installed']}" for p in own)
            yield _OPTIONAL[extra], versions
        elif extra == "native" and "version" in (compiler := facts["kernels"]["CPU compiler"]):
            yield _OPTIONAL[extra], f"no package needed: {compiler['version']} is here"
        elif extra == "triton" and isinstance(triton, str):
            yield _OPTIONAL[extra], f"no package needed: Triton {triton} is here"
        elif extra != other_cuda:
            yield _OPTIONAL[extra], f"not installed; {install_line(extra)}"


def _is_of_cuda_12(torch: dict[str, Any]) -> bool:
    return str(torch.get("cuda_build")).startswith("12")


def _is(name: str, requirement: str) -> bool:
    return requirement == name or requirement.startswith((f"{name}>", f"{name}="))


def _package(package: dict[str, Any]) -> str:
    """What is wrong with an installed package."""
    notes = [package["installed"] or "not installed"]
    if package["fits"] is False:
        notes.append(f"outside {package['wanted']}")
    if package["importable"] is False:
        notes.append(f"does not load: {package['error']}")
    return "; ".join(notes)


def _files(facts: dict[str, Any]) -> list[Row]:
    """Return where nbattn writes and what is there."""
    cache = facts["cache"]
    variables = [
        (name, "not set" if value is None else value)
        for name, value in facts["environment"].items()
    ]
    if "error" in cache:
        return [("error", cache["error"]), *variables]
    if cache["path"] is None:
        return [("cache", "off: nbattn writes nothing"), *variables]
    if not cache["exists"]:
        return [("cache", f"{cache['path']}, not written yet"), *variables]
    size = f"{_size(cache['bytes'])} in {counted(cache['files'], 'file')}"
    access = "others can write it" if cache["others_may_write"] else cache["mode"]
    rows = [("cache", cache["path"]), ("", f"{size}, {access}; safe to delete")]
    for name, part in cache["contents"].items():
        rows.append((name, f"{_size(part['bytes'])} in {counted(part['files'], 'file')}"))
    return [*rows, ("measurements", cache["costs"]), *variables]


def _size(number: int) -> str:
    """Returns a number of bytes in the unit that fits."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 1 << power:
            return f"{number / (1 << power):.3g} {unit}"
    return f"{number} bytes"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(map(str, value.values()))
    return "none" if value is None else str(value)
