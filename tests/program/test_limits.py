"""Tests of limits: each is a reason, and all reasons are reported at once."""

from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest

from nbattn.program import device
from nbattn.program.limits import Limits

# One negative test per limit


FACTS = {
    "device": device.DEVICES["sm_90"],
    "dtype": "float32",
    "head_dim": 64,
    "value_dim": 64,
    "training": False,
    "return_lse": False,
    "softcap": False,
    "key_range": False,
    "sink": False,
    "extra_keys": 0,
    "extra_range": False,
    "relative_bias": False,
    "alibi_slopes": False,
    "deterministic": False,
}
OWN = replace(device.DEVICES["sm_90"], name="mine")
ADDED = dict.fromkeys(("extra_range", "relative_bias", "alibi_slopes"), True)  # by name only
LIMITS: list[tuple[str, Any, dict[str, Any], str, str]] = [
    ("kinds", ("cpu",), {}, "device", "runs on cpu, not on sm_90"),
    ("kinds", ("cpu", "mps"), {}, "device", "runs on cpu, mps, not on sm_90"),
    (
        "vendors",
        ("nvidia", "intel"),
        {"device": device.DEVICES["gfx942"]},
        "device",
        "needs an NVIDIA or an Intel GPU, and gfx942 is AMD's",
    ),
    ("dtypes", ("float16", "bfloat16"), {}, "dtype", "takes float16, bfloat16, not float32"),
    ("softcap", False, {"softcap": True}, "softcap", "has no softcap"),
    ("key_range", False, {"key_range": True}, "key_range", "has no key_range"),
    ("extra_range", False, {"extra_range": True}, "extra_range", "has no extra_range"),
    ("relative_bias", False, {"relative_bias": True}, "relative_bias", "has no relative_bias"),
    ("alibi_slopes", False, {"alibi_slopes": True}, "alibi_slopes", "has no alibi_slopes"),
    (
        "value_dim",
        False,
        {"value_dim": 32},
        "value_dim",
        "needs value_dim = head_dim, not 32 and 64",
    ),
    ("lse", False, {"return_lse": True}, "lse", "returns no logsumexp, which "),
    ("lse", False, {"sink": True}, "lse", "returns no logsumexp, which "),
    ("lse", False, {"extra_keys": 1}, "lse", "returns no logsumexp, which "),
    (
        "lse_gradient",
        False,
        {"training": True, "return_lse": True},
        "lse_gradient",
        "its backward cannot use a gradient of the logsumexp",
    ),
    (
        "deterministic",
        False,
        {"training": True, "deterministic": True},
        "deterministic",
        "its backward is not deterministic",
    ),
]


@pytest.mark.parametrize(
    ("limit", "value", "facts", "name", "text"),
    LIMITS,
    ids=[f"{row[0]}={row[1]} with {[*row[2]]}" for row in LIMITS],
)
def test_a_limit_is_a_reason(
    limit: str, value: Any, facts: dict[str, Any], name: str, text: str
) -> None:
    asked = SimpleNamespace(**(FACTS | facts))
    (reason,) = Limits(name="some", **(ADDED | {limit: value})).reasons(asked)
    assert reason.limit == name
    assert reason.text.startswith(text)
    assert Limits(name="some", **ADDED).reasons(asked) == []
    if facts:
        allowed = ADDED | {limit: value}
        assert Limits(name="some", **allowed).reasons(SimpleNamespace(**FACTS)) == []


def test_every_limit_has_a_negative_test() -> None:
    of_calls = {"grid", "why"}  # which the strategies look at, call by call; and the sentence
    assert {row[0] for row in LIMITS} == {f.name for f in fields(Limits)} - {"name"} - of_calls


def test_limits_are_collected_not_cut_short() -> None:
    strict = Limits(
        name="some",
        kinds=("cpu",),
        dtypes=("float64",),
        **dict.fromkeys(
            ("softcap", "key_range", "value_dim", "lse", "lse_gradient", "deterministic"), False
        ),
    )
    wild = FACTS | {name: True for name, value in FACTS.items() if value is False}
    found = strict.reasons(SimpleNamespace(**(wild | {"value_dim": 8, "extra_keys": 2})))
    assert [reason.limit for reason in found] == [
        "device",
        "dtype",
        "softcap",
        "key_range",
        "extra_range",
        "relative_bias",
        "alibi_slopes",
        "value_dim",
        "lse",
        "lse_gradient",
        "deterministic",
    ]


def test_a_gpu_of_another_vendor_is_named_before_its_device_type() -> None:
    limits = Limits(name="some", kinds=("cuda",), vendors=("nvidia",))
    reasons = {
        name: limits.wrong_device(info)
        for name, info in {**device.DEVICES, "mine": OWN}.items()
        if info.vendor != "nvidia"
    }
    assert reasons.pop("mine") is None  # of an unknown vendor
    assert reasons.pop("cpu") == ("device", "runs on cuda, not on cpu")
    assert reasons.pop("xe") == ("device", "needs an NVIDIA GPU, and xe is Intel's")
    assert {name: text for name, (_, text) in reasons.items()} == {
        name: f"needs an NVIDIA GPU, and {name} is AMD's"
        for name in ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")
    }
    assert limits.wrong_device(device.DEVICES["rtx_4090"]) is None


@pytest.mark.parametrize("limit", ["lse_gradient", "deterministic"])
def test_a_limit_of_the_backward_needs_training(limit: str) -> None:
    limits = Limits(name="some", **{limit: False})
    asked = SimpleNamespace(**(FACTS | {"return_lse": True, "deterministic": True}))
    assert limits.reasons(asked) == []


def test_a_limit_may_say_why() -> None:
    limits = Limits(name="some", why=(("relative_bias", "it adds nothing"),))
    asked = SimpleNamespace(**(FACTS | {"relative_bias": True, "alibi_slopes": True}))
    assert [reason.text for reason in limits.reasons(asked)] == [
        "has no relative_bias: it adds nothing",
        "has no alibi_slopes",
    ]
