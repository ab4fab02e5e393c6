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
    assert info.kind == ("cpu" if name == "cpu" else "cuda")
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
            ({"torch": wrong}, f"torch={wrong!r} is not the first two numbers of a version.")
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
        if info.kind == "cuda":
            each = info.peak("float16") / 2 / info.multiprocessors / info.clock
            assert each == pytest.approx(2 ** round(math.log2(each)), rel=0.02), name
    count, clock = device.DEVICES["cpu"].multiprocessors, device.DEVICES["cpu"].clock
    assert (count, clock) == (0, 0)


def test_versions_in_words() -> None:
    known = device.DEVICES["sm_90"]
    assert known.versions == "torch 2.13 with cuDNN 9.20.0"
    assert replace(known, torch=(2, 9), cudnn=91002).versions == "torch 2.9 with cuDNN 9.10.2"
    assert replace(known, torch=(2, 8), cudnn=0).versions == "torch 2.8 with no cuDNN"
