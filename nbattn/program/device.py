"""The planner's data of a device: its rates, with their source. A plan for a device can be made
without that device.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from nbattn import synonyms
from nbattn.errors import InputError, kind

# What named devices are assumed to have, by vendor: CuPy with NVRTC, Triton; and a CPU a C++
# compiler. Pip can install them on every machine; torch's packages for GPUs contain Triton.
ASSUMED: Mapping[str, tuple[str, ...]] = {
    "nvidia": ("cupy", "triton"),
    "amd": ("triton",),
    "intel": ("triton",),
    "cpu": ("c++",),
}
_ARCHITECTURES = {"nvidia": r"sm_\d", "amd": r"gfx\d"}  # how names of them begin
# Vendors as they write themselves.
VENDORS = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel"}
# Assumed where torch is not asked, as for named devices: torch 2.13, the cuDNN 9.20.0 of its
# wheels, and the Triton that the kernels are tested with. Plans for them are the same whichever
# torch makes them.
TORCH, CUDNN, TRITON = (2, 13), 92000, (3, 8)
RATES = (1e-3, 1e24)  # of a device, per second: others are mistakes and make costs overflow
LONGEST = 1e6  # seconds
MOST = 1 << 20  # multiprocessors
# The forward rate on sm_90 of kernels with Ampere's tensor-core instructions, divided by that of
# kernels with Hopper's: Flash 2 and 3, published for D=128, no mask, length 16k, fp16.
AMPERE_SHARE = 370 / 648
_TEXTS = {"name": "mine", "kind": "cuda", "source": "measured", "architecture": "sm_89"}
_CPU = "measured on one core of an AMD EPYC (Zen 4), torch 2.13, benchmarks/results"


@dataclass(frozen=True, slots=True, repr=False)
class DeviceInfo:
    """The planner's data of one device.

    Args:
        name: "cpu", "sm_90" …, as `device=` accepts it.
        kind: the torch device type.
        flops: dense matmul rate per dtype in FLOP/s, as pairs so that the value hashes.
        bandwidth: bytes per second, read plus written.
        launch: seconds that one call costs before it computes.
        source: where the numbers come from.
        providers: optional packages assumed to be installed; "c++" is a compiler.
        multiprocessors: of a GPU, compute units of AMD's, Xe-cores of Intel's; 0 if unknown.
        clock: of them in Hz, at which `flops` are reached; 0 if unknown.
        torch: the first two numbers of torch's version, which kernels of torch depend on.
        cudnn: cuDNN's version as `torch.backends.cudnn.version()` returns it.
        architecture: what a GPU's code is compiled for, "sm_89", "gfx942" …; empty if that is the
            name.
        triton: the first two numbers of Triton's version, which its kernels depend on.
    """

    name: str
    kind: str
    flops: tuple[tuple[str, float], ...]
    bandwidth: float
    launch: float
    source: str
    providers: tuple[str, ...] = ()
    multiprocessors: int = 0
    clock: float = 0.0
    torch: tuple[int, int] = TORCH
    cudnn: int = CUDNN
    architecture: str = ""
    triton: tuple[int, int] = TRITON

    def __post_init__(self) -> None:
        for name in _TEXTS:
            text = getattr(self, name)
            if not isinstance(text, str):
                raise InputError(
                    f"{name}={_short(text)} is {kind(text)}, not text.",
                    f'{name}="{_TEXTS[name]}"',
                )
        if not _are_pairs(self.flops):
            raise InputError(
                f"flops={_short(self.flops)} is not a tuple of pairs of a dtype and its rate that "
                "includes float32.",
                f"flops={_pairs(self.flops)}",
            )
        low, high = RATES
        for name, rate in (*self.flops, ("bandwidth", self.bandwidth)):
            if not is_between(rate, low, high):
                alone = name == "bandwidth"
                raise InputError(
                    f"{name if alone else f'the rate of {name}'} is {_short(rate)}, which is not "
                    f"between {low:.0e} and {high:.0e} per second.",
                    "bandwidth=1e11" if alone else f"flops={_pairs(self.flops)}",
                )
        if not is_between(self.launch, 0.0, LONGEST):
            raise InputError(
                f"launch={_short(self.launch)} is not a time from 0 to {LONGEST:.0e} seconds.",
                "launch=5e-6",
            )
        if not isinstance(self.providers, tuple) or any(
            not isinstance(name, str) for name in self.providers
        ):
            raise InputError(
                f"providers={_short(self.providers)} is not a tuple of names.",
                f"providers={_names(self.providers)}",
            )
        count, clock = self.multiprocessors, self.clock
        both = (
            is_between(count, 1, MOST) and isinstance(count, int) and is_between(clock, low, high)
        )
        if not both and (count, clock) != (0, 0):
            raise InputError(
                f"multiprocessors={_short(count)}, clock={_short(clock)} are not a number up to "
                f"{MOST} and a rate in Hz.",
                "multiprocessors=108, clock=1.41e9; or leave out both",
            )
        for name, assumed in (("torch", TORCH), ("triton", TRITON)):
            version = getattr(self, name)
            if not _is_version(version):
                raise InputError(
                    f"{name}={_short(version)} is not the first two numbers of a version.",
                    f"{name}={_version(version, assumed)}",
                )
        if isinstance(self.cudnn, bool) or not isinstance(self.cudnn, int):
            raise InputError(
                f"cudnn={_short(self.cudnn)} is {kind(self.cudnn)}, not an int.", f"cudnn={CUDNN}"
            )

    def __repr__(self) -> str:
        dtype, rate = max(self.flops, key=operator.itemgetter(1))
        rates = f"{rate / 1e12:.3g} TFLOP/s in {dtype}, {self.bandwidth / 1e9:.4g} GB/s"
        packages = ", ".join(self.providers) or "no packages"
        return f"DeviceInfo({self.name}, {self.kind}, {rates}, {packages}; {self.source})"

    @property
    def capability(self) -> int | None:
        """The compute capability, 90 for sm_90; None for devices of other architectures."""
        architecture = self.architecture or self.name
        digits = architecture.removeprefix("sm_")
        return int(digits) if digits != architecture and digits.isdigit() else None

    @property
    def vendor(self) -> str:
        """A GPU's vendor: "intel" for the device type "xpu", else "nvidia" or "amd" by the
        architecture; empty if unknown.
        """
        if self.kind == "xpu":
            return "intel"
        name = self.architecture or self.name
        return next((one for one, first in _ARCHITECTURES.items() if re.match(first, name)), "")

    @property
    def may_be_nvidia(self) -> bool:
        """Whether it can run NVIDIA's kernels: a device of type "cuda" and of no other vendor."""
        return self.kind == "cuda" and self.vendor in ("nvidia", "")

    @property
    def assumed(self) -> tuple[str, ...]:
        """The packages that a named device like this one is assumed to have."""
        return ASSUMED.get("nvidia" if self.may_be_nvidia else self.vendor or self.kind, ())

    @property
    def versions(self) -> str:
        """The versions of torch and cuDNN in words, "torch 2.13 with cuDNN 9.20.0"."""
        numbers = (self.cudnn // 10000, self.cudnn // 100 % 100, self.cudnn % 100)
        cudnn = f"cuDNN {numbers[0]}.{numbers[1]}.{numbers[2]}" if self.cudnn else "no cuDNN"
        return f"torch {self.torch[0]}.{self.torch[1]} with {cudnn}"

    def peak(self, dtype: str) -> float:
        """Returns the FLOP/s for a dtype; a dtype without a rate has that of float32."""
        rates = dict(self.flops)
        return rates.get(dtype, rates["float32"])


def is_between(number: object, low: float, high: float) -> bool:
    """Whether `number` is a number from low to high."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    return low <= number <= high


def _are_pairs(flops: object) -> bool:
    if not isinstance(flops, tuple):
        return False
    pairs = cast("tuple[object, ...]", flops)
    if not all(isinstance(pair, tuple) and len(cast("Any", pair)) == 2 for pair in pairs):
        return False
    names = [cast("tuple[object, object]", pair)[0] for pair in pairs]
    return all(isinstance(name, str) for name in names) and "float32" in names


def _is_version(value: object) -> bool:
    if not isinstance(value, tuple) or len(cast("Any", value)) != 2:
        return False
    return all(type(number) is int for number in cast("tuple[object, ...]", value))


def _pairs(flops: object) -> tuple[tuple[str, float], ...]:
    """The legal rates of what was given, with one of float32."""
    given = cast("Any", flops)
    pairs = given.items() if isinstance(flops, Mapping) else given
    legal: dict[str, float] = {"float32": 1e12}
    for pair in pairs if isinstance(pairs, Iterable) else ():
        if isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str):
            legal[pair[0]] = pair[1] if is_between(pair[1], *RATES) else 1e12
    return tuple(legal.items())


def _names(providers: object) -> tuple[str, ...]:
    """The names among what was given."""
    if isinstance(providers, str):
        return (providers,)
    names = cast("Iterable[object]", providers) if isinstance(providers, Iterable) else ()
    return tuple(name for name in names if isinstance(name, str))


def _version(value: object, assumed: tuple[int, int]) -> tuple[int, int]:
    """The first two numbers of a version that was given in another form, or those assumed."""
    numbers = re.findall(r"\d+", _short(value))
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else assumed


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "10^…"
    return text if len(text) <= 60 else f"{text[:57]}…"


def _gpu(
    name: str,
    rates: tuple[float, ...],
    bandwidth: float,
    processors: tuple[int, float],
    source: str,
    architecture: str = "",
) -> DeviceInfo:
    """A GPU by its datasheet.

    Args:
        name: of the device.
        rates: dense products in half precision, float32 and float64; without the last it is half
            of float32's. On Turing, GeForce and other chips for graphics it is a 32nd or a 64th
            (CUDA programming guide, throughput of arithmetic instructions).
        bandwidth: bytes per second.
        processors: how many, and the boost clock of the rates.
        source: of the numbers.
        architecture: if it is not the name.
    """
    half, single, double = rates if len(rates) == 3 else (*rates, rates[1] / 2)
    flops = {"float16": half, "bfloat16": half, "float32": single, "float64": double}
    if name == "sm_75":
        del flops["bfloat16"]
    kind = "xpu" if name == "xe" else "cuda"
    made = DeviceInfo(
        *(name, kind, tuple(flops.items()), bandwidth, 5e-6, source, (), *processors),
        architecture=architecture,
    )
    return replace(made, providers=made.assumed)


# Rates of AMD and Intel are those of matrix units without sparsity where a dtype has such units
# (Instincts: all dtypes; Radeons and Intel's: half precision), else those of vector units.
# An MI250X and a Max 1550 are two devices each for torch, with half of the datasheet's numbers.
DEVICES: Mapping[str, DeviceInfo] = {
    device.name: device
    for device in (
        DeviceInfo(
            "cpu",
            "cpu",
            (("float32", 85e9), ("float64", 40e9), ("bfloat16", 250e9), ("float16", 85e9)),
            8e9,
            4e-6,
            _CPU,
            ASSUMED["cpu"],
        ),
        _gpu("sm_75", (65e12, 8.1e12, 0.25e12), 0.32e12, (40, 1.59e9), "NVIDIA T4 datasheet"),
        _gpu("sm_80", (312e12, 19.5e12), 2.04e12, (108, 1.41e9), "NVIDIA A100 80GB SXM datasheet"),
        _gpu("sm_86", (150e12, 37.4e12, 0.58e12), 0.696e12, (84, 1.74e9), "NVIDIA A40 datasheet"),
        _gpu("sm_89", (362e12, 91.6e12, 1.43e12), 0.864e12, (142, 2.52e9), "NVIDIA L40S datasheet"),
        _gpu("sm_90", (989e12, 67e12), 3.35e12, (132, 1.83e9), "NVIDIA H100 SXM datasheet"),
        _gpu("sm_100", (2250e12, 75e12), 8.0e12, (148, 1.86e9), "NVIDIA B200 datasheet"),
        _gpu("sm_103", (2500e12, 77e12), 8.0e12, (160, 1.91e9), "NVIDIA B300 datasheet"),
        _gpu(
            "sm_120", (209e12, 105e12, 1.64e12), 1.79e12, (170, 2.41e9), "NVIDIA RTX 5090 datasheet"
        ),
        _gpu(
            "rtx_3090",
            (71.2e12, 35.6e12, 0.556e12),
            0.936e12,
            (82, 1.695e9),
            "NVIDIA GeForce RTX 3090, GA102 whitepaper, sums in float32",
            "sm_86",
        ),
        _gpu(
            "rtx_4090",
            (165.2e12, 82.6e12, 1.29e12),
            1.008e12,
            (128, 2.52e9),
            "NVIDIA GeForce RTX 4090, Ada whitepaper, sums in float32",
            "sm_89",
        ),
        _gpu(
            "gfx90a",
            (191.5e12, 47.9e12, 47.9e12),
            1.638e12,
            (110, 1.7e9),
            "AMD Instinct MI250X datasheet, one of its two dies",
        ),
        _gpu(
            "gfx942",
            (1307.4e12, 163.4e12, 163.4e12),
            5.3e12,
            (304, 2.1e9),
            "AMD Instinct MI300X datasheet",
        ),
        _gpu(
            "gfx950",
            (2516.6e12, 157.3e12, 78.6e12),
            8.0e12,
            (256, 2.4e9),
            "AMD Instinct MI355X datasheet",
        ),
        _gpu(
            "gfx1100",
            (122.8e12, 61.4e12, 1.92e12),
            0.96e12,
            (96, 2.5e9),
            "AMD Radeon RX 7900 XTX specifications",
        ),
        _gpu(
            "gfx1201",
            (195e12, 48.7e12, 0.76e12),
            0.64e12,
            (64, 2.97e9),
            "AMD Radeon RX 9070 XT specifications",
        ),
        _gpu(
            "xe",
            (419.4e12, 26.2e12, 26.2e12),
            1.638e12,
            (64, 1.6e9),
            "Intel Data Center GPU Max 1550 datasheet, one of its two stacks",
        ),
    )
}


def named(name: str) -> DeviceInfo:
    """Returns the device data of a name.

    >>> named("sm_90").kind
    'cuda'
    """
    if name not in DEVICES:
        raise InputError(f"device={name!r} is not known: {known()}.", fix(name))
    return DEVICES[name]


def known() -> str:
    """Returns the values that `device=` accepts, for messages."""
    return f"one of {', '.join(DEVICES)}, a torch.device or a DeviceInfo"


def fix(given: object, gpu: str = "sm_90") -> str:
    """Returns what to write instead of an unknown device; `gpu` where any GPU is meant.

    >>> fix("H100"), fix("gpu"), fix("sm_87"), fix("gfx1101"), fix("abacus")
    ('device="sm_90"', 'device="sm_90"', 'device="sm_86"', 'device="gfx1100"', 'device=None')
    """
    is_amd = isinstance(given, str) and re.match(_ARCHITECTURES["amd"], given)
    guess = amd(str(given)).name if is_amd else synonyms.device(given, DEVICES, gpu)
    return f'device="{guess}"' if guess else "device=None"


def cuda(major: int, minor: int) -> DeviceInfo:
    """Returns the device data for a compute capability: its own entry, or the nearest older one."""
    capability = 10 * major + minor
    entries = {int(name[3:]): device for name, device in DEVICES.items() if name.startswith("sm_")}
    older = [number for number in entries if number <= capability]
    return entries[max(older)] if older else entries[min(entries)]


# Entries for AMD's other architectures, by the first letters that they have in common: CDNA 1 to 4,
# the RDNA 1 to 4 of cards and of processors with graphics.
_LIKE = {
    "gfx94": "gfx942",
    "gfx95": "gfx950",
    "gfx125": "gfx950",
    "gfx9": "gfx90a",
    "gfx12": "gfx1201",
    "gfx1": "gfx1100",
}


def amd(architecture: str) -> DeviceInfo:
    """Returns the device data for an architecture as torch names it: its own entry, or that of the
    nearest one, whose source says which GPU it is used for.

    >>> amd("gfx942:sramecc+:xnack-").name
    'gfx942'
    >>> amd("gfx1101").source
    'AMD Radeon RX 7900 XTX specifications, used for gfx1101'
    """
    own = architecture.partition(":")[0]
    if own in DEVICES:
        return DEVICES[own]
    near = next((name for first, name in _LIKE.items() if own.startswith(first)), "gfx942")
    return _used_for(DEVICES[near], own, own if own.startswith("gfx") else "")


def intel(model: str) -> DeviceInfo:
    """Returns the device data for an Intel GPU; its source says if that is another model.

    >>> intel("Intel(R) Arc(TM) B580 Graphics").source.rpartition(", ")[2]
    'used for Intel(R) Arc(TM) B580 Graphics'
    """
    known = DEVICES["xe"]
    return known if "Max 1550" in model else _used_for(known, model, "")


def _used_for(known: DeviceInfo, model: str, architecture: str) -> DeviceInfo:
    """The data of a device for a GPU that has none."""
    source = f"{known.source}, used for {model or 'a GPU without a name'}"
    return replace(known, source=source, architecture=architecture)


def other(kind: str) -> DeviceInfo:
    """Returns a device of a type without data (mps, …): it has the CPU's rates."""
    return DeviceInfo(
        kind, kind, DEVICES["cpu"].flops, DEVICES["cpu"].bandwidth, 2e-5, "no data; the CPU's rates"
    )
