"""Tests that the limits of Flash providers and devices are reasons of refusals."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from nbattn.backends.flash.meaning import DIALECTS
from nbattn.backends.flash.providers import PROVIDERS, padded
from nbattn.program import device

# Limits


FACTS = {
    "device": replace(
        device.DEVICES["sm_90"], providers=tuple(p.package for p in PROVIDERS.values())
    ),
    "dtype": "bfloat16",
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
LIMITS = [
    ("aten", {"device": device.DEVICES["sm_75"]}, "runs on sm_80 to sm_121, not on sm_75"),
    ("aten", {"dtype": "float32"}, "takes float16, bfloat16, not float32"),
    ("aten", {"head_dim": 264}, "supports head sizes up to 256, not 264"),
    ("aten", {"value_dim": 300}, "supports head sizes up to 256, not 300"),
    ("aten", {"softcap": True}, "has no softcap"),
    ("fa3", {"key_range": True}, "has no key_range"),
    ("fa2", {"device": device.DEVICES["sm_90"]}, "needs the package flash-attn, which is"),
    ("fa3", {"training": True, "return_lse": True}, "its backward cannot use a gradient of"),
    ("fa3", {"head_dim": 250, "training": True, "deterministic": True}, "has no deterministic"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "facts", "text"), LIMITS)
def test_a_limit_of_a_provider_is_a_reason(name: str, facts: dict[str, Any], text: str) -> None:
    assert PROVIDERS[name].reasons(SimpleNamespace(**FACTS)) == []
    (reason,) = PROVIDERS[name].reasons(SimpleNamespace(**(FACTS | facts)))
    assert reason.text.startswith(text)


@pytest.mark.parametrize(
    ("name", "on", "facts", "text"),
    [
        ("fa3", "sm_100", {}, "runs on sm_80 to sm_90, not on sm_100"),
        ("fa4", "sm_80", {"training": True}, "its backward does not run on sm_80"),
        ("fa4", "sm_100", {"head_dim": 192, "value_dim": 192}, "supports head sizes up to 128"),
        ("fa4", "sm_120", {"training": True, "deterministic": True}, "has no deterministic"),
        ("aten", "cpu", {}, "runs on cuda, not on cpu"),
        ("aten", "gfx942", {}, "needs an NVIDIA GPU, and gfx942 is AMD's"),
        ("fa2", "gfx942", {}, "needs an NVIDIA GPU, and gfx942 is AMD's"),
        ("fa4", "rtx_4090", {"training": True}, "its backward does not run on sm_89"),
    ],
)
def test_a_limit_of_a_device_is_a_reason(
    name: str, on: str, facts: dict[str, Any], text: str
) -> None:
    packages = FACTS["device"].providers
    asked = FACTS | facts | {"device": replace(device.DEVICES[on], providers=packages)}
    (reason,) = PROVIDERS[name].reasons(SimpleNamespace(**asked))
    assert reason.text.startswith(text)


def test_a_backward_without_windows_does_not_train() -> None:
    one = replace(PROVIDERS["aten"], backward_windows=False)
    assert one.reasons(SimpleNamespace(**FACTS)) == []
    (reason,) = one.reasons(SimpleNamespace(**(FACTS | {"training": True})))
    assert reason.text == "its backward ignores the window, so gradients would be wrong"


def test_providers_are_those_of_the_dialects() -> None:
    assert set(PROVIDERS) == set(DIALECTS)
    assert [padded(size) for size in (1, 8, 9, 250)] == [8, 8, 16, 256]
