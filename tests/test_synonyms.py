"""Tests of names from other libraries: each means one name of nbattn, and no other means it."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import fields

import pytest

from nbattn import NeighborhoodAttention, synonyms
from nbattn.axis import Axis
from nbattn.backends import families
from nbattn.config import LayerConfig, PlanConfig
from nbattn.config.grammar import MaskTable
from nbattn.program.device import DEVICES
from nbattn.program.request import DTYPES

LAYER_ALONE = {"qk_transform"}  # what no file has
TABLES = {
    "backends": (synonyms.BACKENDS, families.BACKENDS),
    "dtypes": (synonyms.DTYPES, DTYPES),
    "layouts": (synonyms.LAYOUTS, ("channels_last", "channels_first")),
    "inputs of layers": (
        synonyms.LAYER_INPUTS,
        inspect.signature(NeighborhoodAttention.forward).parameters,
    ),
    "devices": (synonyms.DEVICES, DEVICES),
    "strategies": (synonyms.STRATEGIES, families.STRATEGIES),
    "layers": (synonyms.LAYER_KEYS, {f.name for f in fields(LayerConfig)} | LAYER_ALONE),
    "plans": (synonyms.PLAN_KEYS, {f.name for f in fields(PlanConfig)}),
    "masks": (synonyms.MASK_KEYS, MaskTable.keys),
    "axes": (synonyms.AXIS_KEYS, {f.name for f in fields(Axis)}),
}


@pytest.mark.parametrize("place", TABLES)
def test_a_name_means_one_name_that_exists(place: str) -> None:
    table, known = TABLES[place]
    assert set(table) <= set(known)
    words = [word for others in table.values() for word in others]
    assert [word for word, times in Counter(words).items() if times > 1] == []
    assert [word for word in words if word in known] == []
    assert [word for word in words if word != word.lower() or "_" in word] == []


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("flash-attn", "flash"),
        ("flash_attention_2", "flash:fa2"),
        ("FlashAttention", "flash"),
        ("FLEX_ATTENTION", "flex"),
        ("flexAttention", "flex"),
        ("cpu", "native"),
        ("gpu", "cuda"),
        ("nvidia", "cuda"),
        ("triton_kernels", "triton"),
        ("OpenAI Triton", "triton"),
        ("ROCm", "triton"),
        ("amd", "triton"),
        ("xpu", "triton"),
        ("pytorch", "tiled"),
        ("math", "reference"),
        ("nativ", "native"),
        ("magic", ""),
        (None, ""),
        (3, ""),
    ],
)
def test_backends_of_other_libraries(given: object, meant: str) -> None:
    assert synonyms.meant(given, families.BACKENDS, synonyms.BACKENDS) == meant


def test_a_name_that_is_not_offered_is_not_meant() -> None:
    assert synonyms.meant("bf16", ("float16",), synonyms.DTYPES) == ""
    assert synonyms.meant("double", ("float16",), synonyms.DTYPES) == ""


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("H100", "sm_90"),
        ("NVIDIA H100 80GB HBM3", "sm_90"),
        ("NVIDIA A100-SXM4-80GB", "sm_80"),
        ("NVIDIA GeForce RTX 4090", "rtx_4090"),
        ("rtx 3090", "rtx_3090"),
        ("rtx_4080", "sm_89"),
        ("AMD Instinct MI300X", "gfx942"),
        ("mi250", "gfx90a"),
        ("Radeon RX 7900 XTX", "gfx1100"),
        ("rocm", "gfx942"),
        ("Intel(R) Data Center GPU Max 1550", "xe"),
        ("pvc", "xe"),
        ("arc", "xe"),
        ("Intel(R) Arc(TM) B580 Graphics", "xe"),
        ("hopper", "sm_90"),
        ("sm90", "sm_90"),
        ("sm_90a", "sm_90"),
        ("9.0", "sm_90"),
        ("compute_87", "sm_86"),
        ("sm_70", ""),  # older than all
        ("942", "sm_120"),  # a compute capability, not a gfx942
        ("tpu", ""),
        ("abacus", ""),
        ("cpuu", "cpu"),
        (3, ""),
    ],
)
def test_devices_by_product_generation_and_capability(given: object, meant: str) -> None:
    assert synonyms.device(given, DEVICES) == meant


def test_any_gpu_is_the_one_of_this_machine() -> None:
    assert synonyms.device("gpu", DEVICES, "cuda") == "cuda"
    assert synonyms.device("gpu", DEVICES) == "sm_90"
