"""Tests of natten.utils.testing: what runs here, and what is skipped."""

from __future__ import annotations

import unittest

import pytest
import torch

from nbattn.integrations.natten import testing

NAMES = testing.names()
SKIPPED = {
    "skip_if_gemm_is_not_supported": True,
    "skip_if_hopper_kernels_not_supported": True,
    "skip_if_gemm_does_not_support_double_precision": True,
    "skip_if_cuda_is_not_supported": not torch.cuda.is_available(),
    "skip_if_fna_is_not_supported": not torch.cuda.is_available(),
    "skip_if_nested_is_not_supported": False,
    "skip_if_experimental_ops_are_not_supported": False,
    "skip_if_fvcore_is_not_available": False,
}


@pytest.mark.parametrize("name", SKIPPED)
def test_what_is_skipped(name: str) -> None:
    def body() -> int:
        return 1

    decorated = NAMES[name]()(body)
    if SKIPPED[name]:
        with pytest.raises(unittest.SkipTest):
            decorated()
    else:
        assert decorated() == 1


def test_the_number_of_gpus() -> None:
    count = torch.cuda.device_count()
    for wanted in (count, count + 1):
        decorated = NAMES["skip_if_fewer_than_n_gpus"](wanted)(lambda: 1)
        assert getattr(decorated, "__unittest_skip__", False) == (wanted > count)


def test_dtypes_are_supported_everywhere() -> None:
    assert NAMES["supports_float16"](torch.device("cpu"))
    assert NAMES["fna_supports_additional_kv"](64, device_index=0)
