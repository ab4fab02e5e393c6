"""The cost table: what `nbattn tune` has measured, which parts of it are valid for this process,
and why others are not.

The table is `costs.json` in the cache directory (`nbattn.cache`), read once per process when the
first plan is made. It never changes what is computed: its times reorder accepted candidates, and
its rates replace those of `program/device.py`; its times of tiles choose among the tiles of a
candidate's kernels. An entry is valid for one device model, number of
threads, torch and nbattn version; a time is valid for one request. No content of the table can make
planning fail.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nbattn import cache, machine
from nbattn.cache import CacheError
from nbattn.errors import counted
from nbattn.program.device import CUDNN, DEVICES, TORCH, TRITON, DeviceInfo
from nbattn.program.request import Request
from nbattn.version import __version__

FORMAT = 1
_RATES, _TIMES = (1.0, 1e21), (1e-12, 1e6)  # of a table, else it is damaged; DeviceInfo allows more
NAME = "costs.json"
SHIPPED = Path(__file__).with_name(NAME)  # the package may include measured tables
# Fields of a request that select among candidates or name the device, and do not change times.
_SELECTION = ("device", "backend", "require", "forbid")
# Fields that select among passes, and do not change the time of one kernel.
_PASSES = ("training", "deterministic", "return_lse", "layout", "sink")
Times = Mapping[str, float]  # candidate, or kernel with its tile → seconds


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What must be equal for a measurement to be valid.

    Args:
        device: "cpu", "sm_90" …
        model: the name of the processor or the GPU.
        threads: torch's threads on the CPU; 0 on other devices.
        torch, nbattn: versions.
    """

    device: str
    model: str
    threads: int
    torch: str
    nbattn: str

    def other_than(self, here: Fingerprint) -> str:
        """Describes the fields that differ; empty if none does."""
        pairs = ((f.name, getattr(self, f.name), getattr(here, f.name)) for f in fields(self))
        return ", ".join(f"{name} {a} (here {b})" for name, a, b in pairs if a != b)


@dataclass(frozen=True, slots=True)
class Rates:
    """Speeds of a device: FLOP/s of matrix products by dtype, bytes per second, seconds a call."""

    flops: tuple[tuple[str, float], ...]
    bandwidth: float
    launch: float


@dataclass(frozen=True, slots=True)
class Entry:
    """What was measured on one device: its rates, the times of candidates by request (`key`), and
    those of the tiles of kernels (`tile_key`).
    """

    fingerprint: Fingerprint
    date: str
    rates: Rates | None = None
    times: Mapping[str, Times] = field(default_factory=dict[str, Times])
    tiles: Mapping[str, Times] = field(default_factory=dict[str, Times])

    def device(self, info: DeviceInfo) -> DeviceInfo:
        """Returns the planner's data of the device, with the measured rates.

        The CPU's estimates are a model that was fitted as a whole: all of its rates change by one
        factor, the one measured for float32 products, so that rates alone never reorder candidates.
        """
        rates = self.rates
        if rates is None:
            return info
        measured_on = self.fingerprint
        source = f"nbattn tune, {self.date}, {measured_on.model}"
        if info.kind != "cpu":
            flops = tuple({**dict(info.flops), **dict(rates.flops)}.items())
            return replace(
                info, flops=flops, bandwidth=rates.bandwidth, launch=rates.launch, source=source
            )
        factor = dict(rates.flops)["float32"] / info.peak("float32")
        return replace(
            info,
            flops=tuple((name, rate * factor) for name, rate in info.flops),
            bandwidth=info.bandwidth * factor,
            launch=info.launch / factor,
            source=f"{source}, {counted(measured_on.threads, 'thread')}, float32 products",
        )


@dataclass(frozen=True, slots=True)
class Table:
    """All entries that could be read, and the problem with the rest."""

    entries: tuple[Entry, ...] = ()
    problem: str = ""


def path() -> Path | None:
    """Returns the path of this user's table, which may not exist; None if the cache is off.

    Raises:
        CacheError: the environment variables do not name an absolute path.
    """
    folder = cache.directory()
    return None if folder is None else folder / NAME


def decode(content: bytes | str) -> tuple[Entry, ...]:
    """Returns the entries of a table's text.

    Raises:
        CacheError: the text is anything but a table of this format.
    """
    try:
        raw = json.loads(content)
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            actual = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
            raise CacheError(f"has format {actual!r}, this version reads {FORMAT}")
        return tuple(_entry(entry) for entry in raw["devices"])
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise CacheError(f"is damaged: {type(error).__name__}: {str(error)[:80]}") from None


def encode(entries: tuple[Entry, ...]) -> str:
    """Returns the text of a table; `decode` is the inverse."""
    devices = [
        {
            "fingerprint": asdict(entry.fingerprint),
            "date": entry.date,
            "rates": None
            if entry.rates is None
            else {
                "flops": dict(entry.rates.flops),
                "bandwidth": entry.rates.bandwidth,
                "launch": entry.rates.launch,
            },
            "times": _listed(entry.times),
            **({"tiles": _listed(entry.tiles)} if entry.tiles else {}),
        }
        for entry in entries
    ]
    return json.dumps({"format": FORMAT, "devices": devices}, indent=1) + "\n"


def _listed(times: Mapping[str, Times]) -> list[dict[str, Any]]:
    return [
        {"request": json.loads(request), "seconds": dict(seconds)}
        for request, seconds in times.items()
    ]


def key(request: Request) -> str:
    """Returns the key of a request's times: all of its fields but the device and the selection.

    >>> from nbattn import Mask, plan
    >>> request = plan(Mask.causal(), (1, 64, 2, 16), device="cpu").request
    >>> key(request) == key(replace(request, backend="tiled"))
    True
    """
    plain = request.to_dict()
    for name in _SELECTION:
        del plain[name]
    return json.dumps(plain, sort_keys=True)


def tile_key(request: Request) -> str:
    """Returns the key of the times of a request's tiles, which its forward and training share.

    >>> from nbattn import Mask, plan
    >>> request = plan(Mask.causal(), (1, 64, 2, 16), device="cpu").request
    >>> tile_key(request) == tile_key(replace(request, training=True))
    True
    """
    plain = request.to_dict()
    for name in (*_SELECTION, *_PASSES):
        del plain[name]
    return json.dumps(plain, sort_keys=True)


@lru_cache(1)
def table() -> Table:
    """Returns the user's table and the shipped one, read once per process. It never raises; the
    `problem` of a table that exists and cannot be used is a warning of the first `look_up`.
    """
    shipped = decode(SHIPPED.read_bytes()) if SHIPPED.exists() else ()
    where = None
    try:
        where = path()
        content = None if where is None else cache.read(where)
        return Table((*(decode(content) if content is not None else ()), *shipped))
    except CacheError as error:
        problem = (
            str(error) if where is None or str(where.parent) in str(error) else f"{where} {error}"
        )
    return Table(shipped, problem)


def device(info: DeviceInfo) -> DeviceInfo:
    """Returns a device with the rates that were measured on this machine, if there are any."""
    return _rated(info, torch_threads()) if table_names(info.name) else info


@lru_cache(64)
def _rated(info: DeviceInfo, threads: int) -> DeviceInfo:
    rated = (entry for entry in _valid_entries(info.name, threads)[0] if entry.rates is not None)
    return next((entry.device(info) for entry in rated), info)


def look_up(request: Request) -> tuple[Times, str]:
    """Returns the measured seconds of a request's candidates, by name, or why there are none.

    The reason is empty if nothing was ever measured for such a device.
    """
    pending = _warnings()
    while pending:  # removed first, so that it is shown once even if warnings are errors
        warnings.warn(f"nbattn plans without measured costs: {pending.pop()}", stacklevel=2)
    entries, why = _entries(request)
    if not entries:
        return {}, why
    of_request = key(request)
    times = _joined(entry.times.get(of_request, {}) for entry in entries)
    return times, "" if times else "the cost table has no times for this request"


def tiles(request: Request) -> Times:
    """Returns the measured seconds of the tiles of a request's kernels, by kernel and tile, as the
    `measured_tiles.py` of their families names them; empty if there are none.
    """
    entries = [entry for entry in _entries(request)[0] if entry.tiles]
    if not entries:
        return {}
    of_request = tile_key(request)
    return _joined(entry.tiles.get(of_request, {}) for entry in entries)


def _entries(request: Request) -> tuple[tuple[Entry, ...], str]:
    """Returns the entries that are valid for a request's device, or why there are none."""
    name = request.device.name
    if not table_names(name):
        return (), table().problem
    if _bare(request.device) not in _devices(name):
        return (), "the device is your own DeviceInfo"
    return _valid_entries(name, torch_threads())


def _joined(times: Iterable[Times]) -> Times:
    """Returns all times; of several of the same name the first."""
    return {name: seconds for one in reversed([*times]) for name, seconds in one.items()}


def table_names(name: str) -> bool:
    """Whether the table has an entry for a device of this name."""
    return any(entry.fingerprint.device == name for entry in table().entries)


def state() -> dict[str, Any]:
    """Returns the table's path, entries and problem as plain data for reports; never raises.

    >>> sorted(state())
    ['devices', 'path', 'problem']
    """
    try:
        where = path()
    except CacheError:
        where = None  # `problem` has the error
    devices = [
        {**asdict(entry.fingerprint), "date": entry.date, "requests": len(entry.times)}
        for entry in table().entries
    ]
    return {"path": where and str(where), "devices": devices, "problem": table().problem}


def forget() -> None:
    """Clears the caches, so that the table is read again when it is needed."""
    for cached in (table, _rated, _valid_entries, _devices, _warnings):
        cached.cache_clear()


def fingerprint(name: str) -> Fingerprint | None:
    """Returns the fingerprint of this machine's device of that name; None if the machine has no
    such device, or several models of it.
    """
    import torch

    kind = DEVICES[name].kind if name in DEVICES else ""
    models: set[str] = set()
    if kind == "cpu":
        models = {f"{machine.cpu_model()} {machine.cpu_family()}"}
    elif kind:
        from nbattn.planner import gpus

        models = gpus.models(kind, name)
    if len(models) != 1:
        return None
    threads = torch.get_num_threads() if kind == "cpu" else 0
    return Fingerprint(name, models.pop(), threads, torch.__version__, __version__)


def torch_threads() -> int:
    """Returns the number of threads that torch uses on the CPU."""
    import torch

    return torch.get_num_threads()


@lru_cache(64)
def _valid_entries(name: str, threads: int) -> tuple[tuple[Entry, ...], str]:
    """Returns the entries that are valid for this machine's device of that name, or why there are
    none.
    """
    same_name = [entry for entry in table().entries if entry.fingerprint.device == name]
    here = fingerprint(name)
    if here is None:
        return (), f"the cost table is for another machine's {name}"
    valid = tuple(entry for entry in same_name if entry.fingerprint == here)
    why = "; or ".join(sorted({entry.fingerprint.other_than(here) for entry in same_name} - {""}))
    return valid, "" if valid else f"the cost table is for {why}"


@lru_cache(64)
def _devices(name: str) -> frozenset[DeviceInfo]:
    """Returns all data that the planner may have of a device of that name, with and without
    measured rates; bare.
    """
    info = DEVICES[name]
    same_name = [entry for entry in table().entries if entry.fingerprint.device == name]
    return frozenset(map(_bare, [info, *(entry.device(info) for entry in same_name)]))


def _bare(info: DeviceInfo) -> DeviceInfo:
    """Returns a device's data without packages, versions and words, which machines differ in."""
    versions: Any = {"torch": TORCH, "cudnn": CUDNN, "triton": TRITON}
    return replace(info, providers=(), source="", architecture="", **versions)


@lru_cache(1)
def _warnings() -> list[str]:
    """Returns the list of warnings that were not shown yet."""
    return [table().problem] * bool(table().problem)


def _entry(raw: dict[str, Any]) -> Entry:
    values = raw["fingerprint"]
    kinds = {"device": str, "model": str, "threads": int, "torch": str, "nbattn": str}
    for name, kind in kinds.items():
        if type(values[name]) is not kind:
            raise ValueError(f"{name} is {values[name]!r}")
    if values["device"] not in DEVICES:
        raise ValueError(f"device {values['device']!r} is not known")
    return Entry(
        Fingerprint(**{name: values[name] for name in kinds}),
        str(raw["date"]),
        None if raw["rates"] is None else _rates(raw["rates"]),
        _times(raw["times"]),
        _times(raw.get("tiles", [])),  # tables of earlier versions have none
    )


def _times(raw: list[dict[str, Any]]) -> dict[str, Times]:
    return {
        json.dumps(times["request"], sort_keys=True): {
            str(name): _number(seconds, _TIMES) for name, seconds in times["seconds"].items()
        }
        for times in raw
    }


def _rates(raw: dict[str, Any]) -> Rates:
    flops = {str(name): _number(rate, _RATES) for name, rate in raw["flops"].items()}
    if "float32" not in flops:  # the rate of dtypes without one
        raise ValueError("float32 has no rate")
    return Rates(
        tuple(flops.items()),
        _number(raw["bandwidth"], _RATES),
        _number(raw["launch"], _TIMES),
    )


def _number(number: object, legal: tuple[float, float]) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{number!r} is not a number")
    if not legal[0] <= number <= legal[1]:
        raise ValueError(f"{number!r} is not between {legal[0]:.0e} and {legal[1]:.0e}")
    return float(number)
