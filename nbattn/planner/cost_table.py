"""What `nbattn tune` has measured: the cost table, which parts of it hold for this process, and why
others do not.

The table is `costs.json` in the cache directory (`nbattn.cache`), read once per process when the
first plan is made. It never changes what is computed: its times reorder accepted candidates, its
rates replace those of `program/device.py`. An entry counts for exactly one device model, number of
threads, torch and nbattn; a time for exactly one request. Nothing in it can make planning fail.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nbattn import cache, machine
from nbattn.cache import CacheError
from nbattn.program.device import DEVICES, DeviceInfo
from nbattn.program.request import Request
from nbattn.version import __version__

FORMAT = 1
_RATES, _TIMES = (1.0, 1e21), (1e-12, 1e6)  # of a table: beyond is damage; devices have some room
NAME = "costs.json"
SHIPPED = Path(__file__).with_name(NAME)  # measured tables may come with the package
# Of a request: these select among candidates or name the device, and do not change their times.
_SELECTION = ("device", "backend", "require", "forbid")
Times = Mapping[str, float]  # candidate → seconds


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What must be the same for a measurement to hold.

    Args:
        device: "cpu", "sm_90" …
        model: the processor's or the GPU's own name.
        threads: of torch on the CPU; 0 on other devices.
        torch, nbattn: versions.
    """

    device: str
    model: str
    threads: int
    torch: str
    nbattn: str

    def other_than(self, here: Fingerprint) -> str:
        """The fields that differ, in words; empty if none does."""
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
    """What was measured on one device: its rates, and the times of candidates by request."""

    fingerprint: Fingerprint
    date: str
    rates: Rates | None = None
    times: Mapping[str, Times] = field(default_factory=dict[str, Times])

    def device(self) -> DeviceInfo:
        """The planner's data of the device, with the measured rates.

        The CPU's bounds are a model that was fitted as a whole: there all rates move by the one
        factor by which float32 products differ, so that rates alone never reorder candidates.
        """
        known, rates = DEVICES[self.fingerprint.device], self.rates
        if rates is None:
            return known
        here = self.fingerprint
        source = f"nbattn tune, {self.date}, {here.model}"
        if known.kind != "cpu":
            flops = tuple({**dict(known.flops), **dict(rates.flops)}.items())
            return replace(
                known, flops=flops, bandwidth=rates.bandwidth, launch=rates.launch, source=source
            )
        factor = dict(rates.flops)["float32"] / known.peak("float32")
        return replace(
            known,
            flops=tuple((name, rate * factor) for name, rate in known.flops),
            bandwidth=known.bandwidth * factor,
            launch=known.launch / factor,
            source=f"{source}, {here.threads} thread(s), float32 products",
        )


@dataclass(frozen=True, slots=True)
class Table:
    """All entries that could be read, and what was wrong with the rest."""

    entries: tuple[Entry, ...] = ()
    problem: str = ""


def path() -> Path | None:
    """Where this user's table lies, whether or not it exists; None when it is switched off.

    Raises:
        CacheError: the variables name no absolute path.
    """
    folder = cache.directory()
    return None if folder is None else folder / NAME


def decode(content: bytes | str) -> tuple[Entry, ...]:
    """The entries of a table's text.

    Raises:
        CacheError: it is not a table of this format, whatever it is.
    """
    try:
        raw = json.loads(content)
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
            raise CacheError(f"has format {found!r}, this version reads {FORMAT}")
        return tuple(_entry(one) for one in raw["devices"])
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
    """The text of a table; `decode` gives the entries back."""
    devices = [
        {
            "fingerprint": asdict(one.fingerprint),
            "date": one.date,
            "rates": None
            if one.rates is None
            else {
                "flops": dict(one.rates.flops),
                "bandwidth": one.rates.bandwidth,
                "launch": one.rates.launch,
            },
            "times": [
                {"request": json.loads(facts), "seconds": dict(times)}
                for facts, times in one.times.items()
            ],
        }
        for one in entries
    ]
    return json.dumps({"format": FORMAT, "devices": devices}, indent=1) + "\n"


def key(request: Request) -> str:
    """What a time is kept under: everything of a request but its device and what only selects.

    >>> from nbattn import Mask, plan
    >>> request = plan(Mask.causal(), (1, 64, 2, 16), device="cpu").request
    >>> key(request) == key(replace(request, backend="tiled"))
    True
    """
    facts = request.to_dict()
    for name in _SELECTION:
        del facts[name]
    return json.dumps(facts, sort_keys=True)


@lru_cache(1)
def table() -> Table:
    """The user's table and the shipped one, read once per process. Never raises; a table that
    exists and cannot be used is warned of once.
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
    """A device of the planner's data with the rates measured on this machine, where there are."""
    return _rated(info, torch_threads()) if table_names(info.name) else info


@lru_cache(64)
def _rated(info: DeviceInfo, threads: int) -> DeviceInfo:
    rated = (one for one in _holding(info.name, threads)[0] if one.rates is not None)
    return next((one.device() for one in rated), info)


def look_up(request: Request) -> tuple[Times, str]:
    """Measured seconds of a request's candidates, by name; and, without any, why not.

    The reason is empty where nothing was ever measured for such a device.
    """
    pending = _warnings()
    while pending:  # taken off first, so that it is said once even where warnings are errors
        warnings.warn(f"nbattn plans without measured costs: {pending.pop()}", stacklevel=2)
    name = request.device.name
    if not table_names(name):
        return {}, table().problem
    if request.device not in _devices(name):
        return {}, "the device's data are your own"
    found, why = _holding(name, torch_threads())
    if not found:
        return {}, why
    facts = key(request)
    times = {c: s for one in reversed(found) for c, s in one.times.get(facts, {}).items()}
    return times, "" if times else "the cost table does not have this request"


def table_names(name: str) -> bool:
    """Whether any entry is of a device of this name."""
    return any(one.fingerprint.device == name for one in table().entries)


def state() -> dict[str, Any]:
    """Where the table is and what it holds, as plain data for reports; never raises.

    >>> sorted(state())
    ['devices', 'path', 'problem']
    """
    try:
        where = path()
    except CacheError:
        where = None  # which the problem says
    devices = [
        {**asdict(one.fingerprint), "date": one.date, "requests": len(one.times)}
        for one in table().entries
    ]
    return {"path": where and str(where), "devices": devices, "problem": table().problem}


def forget() -> None:
    """Read the table again when it is needed."""
    for kept in (table, _rated, _holding, _devices, _warnings):
        kept.cache_clear()


def fingerprint(name: str) -> Fingerprint | None:
    """This machine's device of that name; None where it has none, or several models of it."""
    import torch

    kind = DEVICES[name].kind if name in DEVICES else ""
    models: set[str] = set()
    if kind == "cpu":
        models = {f"{machine.cpu_model()} {machine.cpu_family()}"}
    elif kind == "cuda" and torch.cuda.is_available():
        from nbattn.program.device import cuda

        numbers = range(torch.cuda.device_count())
        same = [n for n in numbers if cuda(*torch.cuda.get_device_capability(n)).name == name]
        models = {torch.cuda.get_device_name(n) for n in same}
    if len(models) != 1:
        return None
    threads = torch.get_num_threads() if kind == "cpu" else 0
    return Fingerprint(name, models.pop(), threads, torch.__version__, __version__)


def torch_threads() -> int:
    """Threads that torch computes with on the CPU."""
    import torch

    return torch.get_num_threads()


@lru_cache(64)
def _holding(name: str, threads: int) -> tuple[tuple[Entry, ...], str]:
    """Entries for this machine's device of that name; and, without any, why not."""
    mine = [one for one in table().entries if one.fingerprint.device == name]
    here = fingerprint(name)
    if here is None:
        return (), f"the cost table is of another machine's {name}"
    found = tuple(one for one in mine if one.fingerprint == here)
    why = "; or ".join(sorted({one.fingerprint.other_than(here) for one in mine} - {""}))
    return found, "" if found else f"the cost table is for {why}"


@lru_cache(64)
def _devices(name: str) -> frozenset[DeviceInfo]:
    """All data that a device of that name may have here, measured rates or not."""
    mine = [one for one in table().entries if one.fingerprint.device == name]
    return frozenset([DEVICES[name], *(one.device() for one in mine)])


@lru_cache(1)
def _warnings() -> list[str]:
    """What was not said yet."""
    return [table().problem] * bool(table().problem)


def _entry(raw: dict[str, Any]) -> Entry:
    facts = raw["fingerprint"]
    kinds = {"device": str, "model": str, "threads": int, "torch": str, "nbattn": str}
    for name, kind in kinds.items():
        if type(facts[name]) is not kind:
            raise ValueError(f"{name} is {facts[name]!r}")
    if facts["device"] not in DEVICES:
        raise ValueError(f"device {facts['device']!r} is not known")
    return Entry(
        Fingerprint(**{name: facts[name] for name in kinds}),
        str(raw["date"]),
        None if raw["rates"] is None else _rates(raw["rates"]),
        {
            json.dumps(one["request"], sort_keys=True): {
                str(name): _number(seconds, _TIMES) for name, seconds in one["seconds"].items()
            }
            for one in raw["times"]
        },
    )


def _rates(raw: dict[str, Any]) -> Rates:
    flops = {str(name): _number(rate, _RATES) for name, rate in raw["flops"].items()}
    if "float32" not in flops:  # which other dtypes fall back to
        raise ValueError("float32 has no rate")
    return Rates(
        tuple(flops.items()),
        _number(raw["bandwidth"], _RATES),
        _number(raw["launch"], _TIMES),
    )


def _number(number: object, legal: tuple[float, float]) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{number!r} is no number")
    if not legal[0] <= number <= legal[1]:
        raise ValueError(f"{number!r} is not from {legal[0]:.0e} to {legal[1]:.0e}")
    return float(number)
