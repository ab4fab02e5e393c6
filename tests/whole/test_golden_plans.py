"""Tests of the plans of real configurations against stored ones: choice, refusals and SDPA's
programs.

Costs and tile sizes are tuned, so they are not in the file. Where the choice of a plan is meant to
change, `python tests/whole/test_golden_plans.py --update` writes tests/golden/plans.json again;
read its diff before you commit it.
"""

import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest

import nbattn
from nbattn import Axis, Mask
from nbattn.program.device import DEVICES

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "plans.json"
GPUS = ("sm_80", "sm_90", "sm_100", "sm_120")
Case = tuple[Mask, tuple[int, ...], dict[str, Any]]


def nat() -> dict[str, Case]:
    """NAT-Tiny and DiNAT-Tiny at 224 pixels: four stages, training at 128 and inference at 1."""
    cases: dict[str, Case] = {}
    stages = ((56, 2, 8), (28, 4, 4), (14, 8, 2), (7, 16, 1))
    runs = ((128, "sm_80", True), (128, "sm_90", True), (1, "cpu", False), (1, "sm_120", False))
    for (side, heads, widest), (batch, device, training) in product(stages, runs):
        named = {
            "dtype": "float32" if device == "cpu" else "float16",
            "device": device,
            "training": training,
        }
        shape = (batch, side, side, heads, 32)
        for dilation in sorted({1, widest}):
            model = "DiNAT" if dilation > 1 else "NAT"
            name = f"{model}-Tiny {side}x{side} B{batch} {device}"
            cases[name] = (Mask.neighborhood((7, 7), dilation=dilation), shape, named)
    return cases


def images_and_video() -> dict[str, Case]:
    """FLUX at 4K, Hunyuan, layers of Cosmos-Predict2, stages of LTX-2.5's decoder."""
    flux, hunyuan, cosmos = (
        (1, 256, 256, 24, 128),
        (1, 30, 48, 80, 24, 128),
        (1, 16, 44, 80, 16, 128),
    )
    masks: dict[str, tuple[Mask, tuple[int, ...], tuple[str, ...]]] = {
        "FLUX-4K": (Mask.neighborhood((80, 80)), flux, ("cpu", *GPUS)),
        "FLUX-4K stride 16": (Mask.neighborhood((80, 80), stride=16), flux, ("sm_90", "sm_100")),
        "Hunyuan": (Mask.neighborhood((18, 24, 24)), hunyuan, ("sm_80", "sm_90", "sm_100")),
        "Hunyuan stride 16x8x8": (
            Mask.neighborhood((18, 24, 24), stride=(16, 8, 8)),
            hunyuan,
            ("sm_90", "sm_100"),
        ),
        "Cosmos 4x16 dilated": (
            Mask.neighborhood((16, 4, 16), dilation=(1, 11, 5)),
            cosmos,
            ("cpu", "sm_90"),
        ),
        "Cosmos 12x16": (
            Mask.neighborhood((16, 12, 16), stride=(1, 4, 1), dilation=(1, 1, 5)),
            cosmos,
            ("sm_90",),
        ),
        "LTX-2.5 stage 4": (
            Mask.neighborhood((3, 5, 5)),
            (1, 69, 64, 96, 8, 64),
            ("cpu", "sm_80", "sm_90"),
        ),
        "LTX-2.5 stage 5": (
            Mask.neighborhood((11, 11, 11)),
            (1, 79, 192, 192, 4, 64),
            ("cpu", "sm_80", "sm_90"),
        ),
    }
    for rows, columns in ((12, 24), (20, 40), (28, 56)):
        mask = Mask.neighborhood((16, rows, columns), stride=(1, 4, 8))
        masks[f"Cosmos {rows}x{columns}"] = (mask, cosmos, ("sm_90",))
    return {
        f"{name} {device}": (mask, shape, {"device": device})
        for name, (mask, shape, devices) in masks.items()
        for device in devices
    }


def language() -> dict[str, Case]:
    """Sliding windows of decoders: prefill, decode, and a static cache."""
    cases: dict[str, Case] = {}
    for device in ("cpu", "sm_90", "sm_120"):
        named = {"device": device, "key_shape": (1, 8192, 8, 128)}
        window, causal = Mask.from_transformers(4096), Mask.causal("bottom-right")
        cases[f"window 4096 prefill {device}"] = (window, (1, 8192, 32, 128), named)
        cases[f"window 4096 chunk {device}"] = (window, (1, 512, 32, 128), named)
        far = named | {"key_shape": (4, 131072, 8, 128)}
        cases[f"window 4096 decode {device}"] = (window, (4, 1, 32, 128), far)
        cases[f"causal decode {device}"] = (causal, (4, 1, 32, 128), far)
        cases[f"causal prefill {device}"] = (causal, (1, 8192, 32, 128), named)
    sinks = {"device": "sm_90", "key_shape": (1, 4096, 8, 64), "sink": True}
    cases["window 128 with sinks prefill sm_90"] = (
        Mask.from_transformers(128),
        (1, 4096, 64, 64),
        sinks,
    )
    cases["window 128 with sinks decode cpu"] = (
        Mask.from_transformers(128),
        (1, 1, 64, 64),
        sinks | {"device": "cpu", "dtype": "float32"},
    )
    cases["static cache cpu"] = (
        Mask.from_transformers(1024, offset=700),
        (1, 4, 16, 64),
        {"device": "cpu", "dtype": "float32", "key_shape": (1, 2048, 4, 64)},
    )
    cases["softcap window 4096 sm_80"] = (
        Mask.from_transformers(4096),
        (1, 8192, 16, 256),
        {"device": "sm_80", "softcap": 50.0, "training": True},
    )
    long = (1, 32768, 1, 128)
    cases["one axis 2048 sm_90"] = (Mask.neighborhood(2048), long, {"device": "sm_90"})
    cases["one axis 2048 stride 2048 sm_90"] = (
        Mask.neighborhood(2048, stride=2048),
        long,
        {"device": "sm_90"},
    )
    cases["one axis 2048 stride 2048 packed cpu"] = (
        Mask.neighborhood(2048, stride=2048),
        long,
        {"device": "cpu", "dtype": "float32", "packed": True},
    )
    return cases


def others() -> dict[str, Case]:
    """Weather, cross lengths from the top-left corner, registers, and the smallest shapes."""
    sphere = Mask(Axis(3, 3), Axis(6, 6, border="wrap"))
    video = Mask(Axis(8, causal=True), Axis(3, 3, border="shift"), Axis(3, 3, border="shift"))
    plain = {"device": "cpu", "dtype": "float32"}
    cases: dict[str, Case] = {
        f"weather 721x1440 {device}": (sphere, (1, 721, 1440, 8, 64), {"device": device})
        for device in ("cpu", "sm_90", "sm_100")
    }
    for queries, keys in ((2048, 512), (512, 2048), (1, 777), (777, 1), (100, 101)):
        for device in ("cpu", "sm_80"):
            cases[f"causal top-left {queries}x{keys} {device}"] = (
                Mask.causal("top-left"),
                (2, queries, 8, 64),
                {"device": device, "key_shape": (2, keys, 8, 64), "training": True},
            )
    cases |= {
        "causal video cpu": (video, (1, 16, 24, 24, 8, 64), plain),
        "registers cpu": (Mask.neighborhood((7, 7)), (2, 28, 28, 4, 32), plain | {"extra_keys": 4}),
        "registers, full, cpu": (Mask.full(2), (2, 28, 28, 4, 32), plain | {"extra_keys": 4}),
        "padded batch cpu": (Mask.causal(), (4, 256, 8, 64), plain | {"key_range": True}),
        "lse of a causal mask cpu": (
            Mask.causal(),
            (4, 256, 8, 64),
            plain | {"return_lse": True, "training": True},
        ),
        "deterministic training sm_90": (
            Mask.causal(),
            (4, 256, 8, 64),
            {"device": "sm_90", "training": True, "deterministic": True},
        ),
        "wide values cpu": (Mask.causal(), (1, 256, 8, 64), plain | {"value_dim": 128}),
        "blocks 16x16 cpu": (
            Mask.neighborhood((16, 16), stride=16),
            (2, 64, 64, 4, 32),
            plain | {"training": True},
        ),
        "diagonal cpu": (Mask.sliding_window(0), (1, 1000, 2, 32), plain),
        "dilated cpu": (Mask(Axis(dilation=4)), (2, 1003, 2, 32), plain),
        "dilated, packed, cpu": (
            Mask(Axis(dilation=4)),
            (2, 1003, 2, 32),
            plain | {"packed": True},
        ),
        "one query, one key, cpu": (Mask.causal(), (1, 1, 1, 8), plain),
        "no keys cpu": (Mask.full(), (1, 4, 1, 8), plain | {"key_shape": (1, 0, 1, 8)}),
        "no queries cpu": (Mask.full(), (1, 0, 1, 8), plain | {"key_shape": (1, 4, 1, 8)}),
        "three by three cpu": (Mask.neighborhood((3, 3)), (1, 3, 3, 1, 8), plain),
        "float64 cpu": (
            Mask.neighborhood(7),
            (1, 100, 2, 16),
            {"device": "cpu", "dtype": "float64"},
        ),
        "rows without keys cpu": (Mask(Axis(0, causal=True, stride=4)), (1, 64, 2, 16), plain),
    }
    return cases


def kernels() -> dict[str, Case]:
    """The project's kernels beside Flash and torch, on named devices, which have CuPy."""
    cases: dict[str, Case] = {}
    for name in ("sm_75", "sm_80", "sm_90", "sm_120"):
        half = {"device": name, "dtype": "float16"}
        train = half | {"training": True}
        flux, hunyuan = (1, 256, 256, 24, 128), (1, 30, 48, 80, 24, 128)
        neighborhood = Mask.neighborhood
        cases |= {
            f"{label} {name}": case
            for label, case in {
                "FLUX-4K": (neighborhood((80, 80)), flux, half),
                "FLUX-4K stride 16": (neighborhood((80, 80), stride=16), flux, half),
                "Hunyuan": (neighborhood((18, 24, 24)), hunyuan, half),
                "NAT 56x56": (neighborhood((7, 7)), (128, 56, 56, 2, 32), train),
                "DiNAT 56x56": (neighborhood((7, 7), dilation=8), (128, 56, 56, 2, 32), train),
                "NAT 7x7": (neighborhood((7, 7)), (128, 7, 7, 16, 32), train),
                "one axis 2048": (neighborhood(2048), (1, 32768, 1, 128), half),
                "causal": (Mask.causal(), (1, 8192, 32, 128), train),
                "float32": (neighborhood((7, 7)), (8, 56, 56, 2, 32), train | {"dtype": "float32"}),
                "window 4096 decode": (
                    Mask.from_transformers(4096),
                    (4, 1, 32, 128),
                    half | {"key_shape": (4, 131072, 8, 128)},
                ),
            }.items()
        }
    return cases


def portable() -> dict[str, Case]:
    """The Triton kernels beside torch: GPUs of AMD and Intel, and NVIDIA's without CuPy."""
    devices: dict[str, Any] = {name: name for name in ("gfx90a", "gfx942", "gfx1100", "xe")}
    for name in ("sm_90", "sm_100", "rtx_4090"):
        devices[f"{name} without CuPy but Triton"] = replace(DEVICES[name], providers=("triton",))
    flux, video = (1, 256, 256, 24, 128), (1, 30, 48, 80, 24, 128)
    half, neighborhood = {"dtype": "float16"}, Mask.neighborhood
    cases = {
        "FLUX-4K": (neighborhood((80, 80)), flux, half),
        "Hunyuan": (neighborhood((18, 24, 24)), video, half | {"training": True}),
        "DiNAT 56x56": (
            neighborhood((7, 7), dilation=8),
            (128, 56, 56, 2, 32),
            half | {"training": True},
        ),
        "causal": (Mask.causal(), (1, 8192, 32, 128), half | {"training": True}),
        "float64": (neighborhood((7, 7)), (8, 56, 56, 2, 32), {"dtype": "float64"}),
    }
    return {
        f"{label} {name}": (mask, shape, named | {"device": device})
        for name, device in devices.items()
        for label, (mask, shape, named) in cases.items()
    }


def without_cupy(cases: dict[str, Case]) -> dict[str, Case]:
    """The cases of named GPUs on the same devices without CuPy."""
    found: dict[str, Case] = {}
    for name, (mask, shape, named) in cases.items():
        if named["device"] == "cpu":
            found[name] = mask, shape, named
        else:
            bare = replace(DEVICES[named["device"]], providers=())
            found[f"{name} without CuPy"] = mask, shape, named | {"device": bare}
    return found


CASES = without_cupy(nat() | images_and_video() | language() | others()) | kernels() | portable()


def golden(name: str) -> dict[str, Any]:
    """The part of a plan that the file stores."""
    mask, shape, named = CASES[name]
    plan = nbattn.plan(mask, shape, **({"deterministic": False} | named))
    candidates: dict[str, Any] = {}
    for candidate in sorted(plan.candidates, key=lambda one: one.name):
        found: dict[str, Any] = {"refused": [reason.limit for reason in candidate.reasons]}
        if candidate.backend == "sdpa" and candidate.program is not None:
            found["program"] = candidate.program.to_dict()
        assert candidate.name not in candidates
        candidates[candidate.name] = found
    assert plan.chosen.cost is not None
    return {
        "request": f"{mask!r} {plan.request.summary()}",
        "chosen": plan.chosen.name,
        "useful_pairs": plan.chosen.cost.useful_pairs,
        "candidates": candidates,
    }


@pytest.fixture(scope="module")
def stored_plans() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text("utf-8"))


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_the_committed_one(name: str, stored_plans: dict[str, Any]) -> None:
    assert name in stored_plans, "python tests/whole/test_golden_plans.py --update"
    assert golden(name) == stored_plans[name]


@pytest.mark.parametrize("name", CASES)
def test_a_golden_plan_is_proved(name: str) -> None:
    mask, shape, named = CASES[name]
    assert nbattn.plan(mask, shape, **named).verify()


def test_the_file_holds_these_cases_and_no_other(stored_plans: dict[str, Any]) -> None:
    assert list(stored_plans) == list(CASES)
    assert len(CASES) >= 60
    devices = {named["device"] for _, _, named in CASES.values()}
    others = {"cpu", "sm_75", "rtx_4090", "gfx90a", "gfx942", "gfx1100", "xe"}
    assert {getattr(device, "name", device) for device in devices} == {*others, *GPUS}


def update() -> None:
    """Write the file: one line per candidate, so that a diff can be read."""
    lines: list[str] = []
    for name in CASES:
        found = golden(name)
        candidates = found.pop("candidates")
        head = [f"    {json.dumps(key)}: {json.dumps(value)}," for key, value in found.items()]
        rows = [f"      {json.dumps(key)}: {json.dumps(one)}" for key, one in candidates.items()]
        body = ['    "candidates": {', ",\n".join(rows), "    }"]
        lines.append("\n".join([f"  {json.dumps(name)}: {{", *head, *body, "  }"]))
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python tests/whole/test_golden_plans.py --update")
    update()
