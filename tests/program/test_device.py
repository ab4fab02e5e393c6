"""Tests of devices as data: rates, capabilities and refused values."""

import math
import pickle
from dataclasses import replace
from typing import Any

import pytest

import nbattn
from nbattn import DeviceInfo, InputError, Mask
from nbattn.program import device
from nbattn.program.request import DTYPES

NAMES = tuple(device.DEVICES)


# Devices


@pytest.mark.parametrize("name", NAMES)
def test_a_device_is_data(name: str) -> None:
    info = device.named(name)
    assert info.name == name
    assert info.kind == {"cpu": "cpu", "xe": "xpu"}.get(name, "cuda")
    assert info.source
    assert info.bandwidth > 1e9
    assert 0 < info.launch < 1e-3
    rates = dict(info.flops)
    assert set(rates) <= set(DTYPES)
    assert {"float16", "float32", "float64"} <= set(rates)
    assert all(info.peak(dtype) > 0 for dtype in DTYPES)
    assert info.peak("float16") >= info.peak("float32") >= info.peak("float64")
    assert hash(info) == hash(pickle.loads(pickle.dumps(info)))
    plan = nbattn.plan(Mask.causal(), (1, 64, 2, 16), device=name)
    assert plan.request.device is info
    assert plan.verify()
    assert name in plan.explain()
    assert info.source in plan.explain()


def test_a_dtype_without_a_rate_counts_as_float32() -> None:
    turing = device.named("sm_75")
    assert "bfloat16" not in dict(turing.flops)
    assert turing.peak("bfloat16") == turing.peak("float32")


VENDORS = {
    "cpu": ("", None, ("c++",)),
    "sm_75": ("nvidia", 75, ("cupy", "triton")),
    "sm_103": ("nvidia", 103, ("cupy", "triton")),
    "rtx_3090": ("nvidia", 86, ("cupy", "triton")),
    "rtx_4090": ("nvidia", 89, ("cupy", "triton")),
    "gfx90a": ("amd", None, ("triton",)),
    "gfx1201": ("amd", None, ("triton",)),
    "xe": ("intel", None, ("triton",)),
}


@pytest.mark.parametrize("name", VENDORS)
def test_a_named_device_has_a_vendor_and_what_is_assumed_of_it(name: str) -> None:
    info = device.named(name)
    assert (info.vendor, info.capability, info.providers) == VENDORS[name]
    assert info.assumed == info.providers
    assert info.may_be_nvidia == (info.vendor == "nvidia")


def test_a_device_of_ones_own_has_the_vendor_of_its_architecture() -> None:
    mine = replace(device.DEVICES["sm_90"], name="mine")
    assert (mine.vendor, mine.capability, mine.may_be_nvidia) == ("", None, True)
    assert mine.assumed == ("cupy", "triton")  # whoever made it
    for architecture, vendor, capability in (
        ("sm_89", "nvidia", 89),
        ("gfx1101", "amd", None),
        ("gfxx", "", None),
        ("abacus", "", None),
    ):
        one = replace(mine, architecture=architecture)
        assert (one.vendor, one.capability) == (vendor, capability)
        assert one.may_be_nvidia == (vendor != "amd")
    other = replace(mine, kind="xpu")
    assert (other.vendor, other.may_be_nvidia, other.assumed) == ("intel", False, ("triton",))
    odd = replace(mine, kind="mps")
    assert (odd.vendor, odd.may_be_nvidia, odd.assumed) == ("", False, ())
    assert DeviceInfo("mine", "cuda", (("float32", 1e12),), 1e11, 1e-6, "me").providers == ()


# Dense rates of a processor in a clock, in multiply-adds of half precision, float32 and float64.
PER_CLOCK = {
    "rtx_3090": (256, 128, 2),
    "rtx_4090": (256, 128, 2),
    "gfx90a": (512, 128, 128),
    "gfx942": (1024, 128, 128),
    "gfx950": (2048, 128, 64),
    "gfx1100": (256, 128, 4),
    "gfx1201": (512, 128, 2),
    "xe": (2048, 128, 128),
}


@pytest.mark.parametrize("name", PER_CLOCK)
def test_datasheets_have_the_rates_of_their_processors(name: str) -> None:
    """Vendors count a sparse product twice: a rate that is one of those is twice too high."""
    info = device.named(name)
    for dtype, each in zip(("float16", "float32", "float64"), PER_CLOCK[name], strict=True):
        rate = 2 * each * info.multiprocessors * info.clock
        assert info.peak(dtype) == pytest.approx(rate, rel=0.01), dtype
    assert info.peak("bfloat16") == info.peak("float16")


@pytest.mark.parametrize("name", ["sm_75", "sm_86", "sm_89", "sm_120", "rtx_3090", "rtx_4090"])
def test_chips_for_graphics_have_two_units_for_float64(name: str) -> None:
    """In each multiprocessor, where a data center's GPUs have 32 or 64."""
    info = device.named(name)
    assert info.peak("float64") == pytest.approx(4 * info.multiprocessors * info.clock, rel=0.02)


@pytest.mark.parametrize(
    ("architecture", "name", "source"),
    [
        ("gfx942:sramecc+:xnack-", "gfx942", "AMD Instinct MI300X datasheet"),
        ("gfx90a:sramecc+:xnack-", "gfx90a", "AMD Instinct MI250X datasheet, one of its two dies"),
        ("gfx1100", "gfx1100", "AMD Radeon RX 7900 XTX specifications"),
        ("gfx1101", "gfx1100", "AMD Radeon RX 7900 XTX specifications, used for gfx1101"),
        ("gfx1030", "gfx1100", "AMD Radeon RX 7900 XTX specifications, used for gfx1030"),
        ("gfx1200", "gfx1201", "AMD Radeon RX 9070 XT specifications, used for gfx1200"),
        ("gfx1250", "gfx950", "AMD Instinct MI355X datasheet, used for gfx1250"),
        ("gfx941", "gfx942", "AMD Instinct MI300X datasheet, used for gfx941"),
        (
            "gfx908:sramecc+:xnack-",
            "gfx90a",
            "AMD Instinct MI250X datasheet, one of its two dies, used for gfx908",
        ),
        ("abacus", "gfx942", "AMD Instinct MI300X datasheet, used for abacus"),
        ("", "gfx942", "AMD Instinct MI300X datasheet, used for a GPU without a name"),
    ],
)
def test_an_architecture_of_amd_has_the_data_of_the_nearest_one(
    architecture: str, name: str, source: str
) -> None:
    info = device.amd(architecture)
    assert (info.name, info.source, info.vendor) == (name, source, "amd")
    own = architecture.partition(":")[0]
    assert info.architecture == (own if own != name and own.startswith("gfx") else "")
    assert info.flops == device.DEVICES[name].flops


def test_a_gpu_of_intel_has_the_data_of_the_known_one() -> None:
    assert device.intel("Intel(R) Data Center GPU Max 1550") is device.DEVICES["xe"]
    arc = device.intel("Intel(R) Arc(TM) A770 Graphics")
    assert (arc.name, arc.kind, arc.vendor) == ("xe", "xpu", "intel")
    assert arc.source.endswith("one of its two stacks, used for Intel(R) Arc(TM) A770 Graphics")


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((7, 5), "sm_75"),
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 7), "sm_86"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_100"),
        ((10, 1), "sm_100"),
        ((10, 3), "sm_103"),
        ((12, 0), "sm_120"),
        ((12, 1), "sm_120"),
        ((15, 0), "sm_120"),
        ((7, 0), "sm_75"),
    ],
)
def test_a_capability_counts_as_the_nearest_older_one(
    capability: tuple[int, int], name: str
) -> None:
    assert device.cuda(*capability).name == name


def test_plans_for_a_custom_device() -> None:
    rates = (("float16", 1e15), ("bfloat16", 1e15), ("float32", 1e14), ("float64", 1e13))
    mine = DeviceInfo("mine", "cuda", rates, 1e12, 1e-6, "a guess", providers=("natten",))
    plan = nbattn.plan(Mask.causal(), (1, 64, 2, 16), device=mine)
    assert plan.request.device == mine
    assert "device data of mine: a guess" in plan.explain()
    assert plan.to_dict()["request"]["device"] == "mine"
    slow = replace(mine, flops=tuple((name, rate / 1e6) for name, rate in rates))
    slower = nbattn.plan(Mask.causal(), (1, 64, 2, 16), device=slow)
    assert slower != plan
    assert slower.chosen.cost is not None
    assert plan.chosen.cost is not None
    assert slower.chosen.cost.estimate > plan.chosen.cost.estimate


PAIRS = "is not a tuple of pairs of a dtype and its rate that includes float32."


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"flops": {"float32": 1e12}}, f"flops={{'float32': 1000000000000.0}} {PAIRS}"),
        ({"flops": ("float32",)}, f"flops=('float32',) {PAIRS}"),
        ({"flops": (("bfloat16", 1e12),)}, f"flops=(('bfloat16', 1000000000000.0),) {PAIRS}"),
        ({"flops": None}, f"flops=None {PAIRS}"),
        *(
            ({"flops": (("float32", 1e12), ("float16", rate))},
             f"the rate of float16 is {rate!r}, which is not between 1e-03 and 1e+24 per second.")
            for rate in (0, -1.0, 5e-324, 1e308, float("inf"), float("nan"), "1", True, None)
        ),
        *(
            ({"bandwidth": rate},
             f"bandwidth is {rate!r}, which is not between 1e-03 and 1e+24 per second.")
            for rate in (0, -1.0, 1e-310, 1e308, float("nan"), "1")
        ),
        ({"bandwidth": 10**5000},
         "bandwidth is 10^…, which is not between 1e-03 and 1e+24 per second."),
        *(
            ({"launch": time}, f"launch={time!r} is not a time from 0 to 1e+06 seconds.")
            for time in (-1e-6, 1e308, float("nan"), "1", None)
        ),
        ({"name": 3}, "name=3 is an int, not text."),
        ({"kind": None}, "kind=None is a NoneType, not text."),
        ({"source": 1.5}, "source=1.5 is a float, not text."),
        ({"architecture": 89}, "architecture=89 is an int, not text."),
        *(
            ({"multiprocessors": count, "clock": clock},
             f"multiprocessors={count!r}, clock={clock!r} are not a number up to 1048576 and a "
             "rate in Hz.")
            for count, clock in (
                (108, 0.0), (0, 1e9), (-1, 1e9), (1.5, 1e9), (True, 1e9), (1 << 21, 1e9),
                (108, float("nan")), (108, -1e9), ("108", 1e9), (None, None),
            )
        ),
        ({"providers": "natten"}, "providers='natten' is not a tuple of names."),
        ({"providers": ["natten"]}, "providers=['natten'] is not a tuple of names."),
        *(
            ({name: wrong}, f"{name}={wrong!r} is not the first two numbers of a version.")
            for name in ("torch", "triton")
            for wrong in ("2.13", (2,), (2, 13, 0), (2, "13"), [2, 13], None)
        ),
        ({"cudnn": "9.20"}, "cudnn='9.20' is a str, not an int."),
        ({"cudnn": True}, "cudnn=True is a bool, not an int."),
    ],
)  # fmt: skip
def test_impossible_device_data_are_refused(wrong: dict[str, Any], text: str) -> None:
    fields_ = {"name": "mine", "kind": "cpu", "flops": (("float32", 1e12),), "bandwidth": 1e11}
    with pytest.raises(InputError) as error:
        DeviceInfo(**(fields_ | {"launch": 1e-6, "source": "a guess"} | wrong))
    assert str(error.value).splitlines()[0] == text


def test_gpus_reach_their_rates_at_the_clock_given() -> None:
    """A multiprocessor does a power of two of half-precision multiply-adds in a clock."""
    for name, info in device.DEVICES.items():
        if info.kind != "cpu":
            each = info.peak("float16") / 2 / info.multiprocessors / info.clock
            assert each == pytest.approx(2 ** round(math.log2(each)), rel=0.02), name
    count, clock = device.DEVICES["cpu"].multiprocessors, device.DEVICES["cpu"].clock
    assert (count, clock) == (0, 0)


def test_versions_in_words() -> None:
    known = device.DEVICES["sm_90"]
    assert known.versions == "torch 2.13 with cuDNN 9.20.0"
    assert replace(known, torch=(2, 9), cudnn=91002).versions == "torch 2.9 with cuDNN 9.10.2"
    assert replace(known, torch=(2, 8), cudnn=0).versions == "torch 2.8 with no cuDNN"
