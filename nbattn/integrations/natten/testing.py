"""The contents of `natten.utils.testing`: decorators that skip tests of what is not here."""

from __future__ import annotations

import os
import unittest
from collections.abc import Callable
from typing import Any

import torch

_CUDA = ("cuda", "libnatten", "fna", "flex", "flex_compile", "triton", "torch_compile")
_KERNELS = ("gemm", "gemm_does_not_support_double_precision", "hopper_kernels", "blackwell_kernels")
_HERE = ("nested", "experimental_ops", "torch_flop_count")


def names() -> dict[str, Any]:
    """Returns the names of `natten.utils.testing` of all generations.

    >>> names()["supports_bfloat16"](torch.device("cpu"))
    True
    """
    cuda = torch.cuda.is_available()
    conditions = {
        **{_name(one): (cuda, "CUDA is not available.") for one in _CUDA},
        **{_name(one): (False, "nbattn has no such kernels.") for one in _KERNELS},
        **{_name(one): (True, "") for one in _HERE},
        "skip_if_fvcore_is_not_available": (True, ""),  # natten.flops does not need it
        "skip_if_not_running_extended_tests": (
            os.environ.get("NATTEN_RUN_EXTENDED_TESTS") == "1",
            "NATTEN_RUN_EXTENDED_TESTS is not 1.",
        ),
    }
    always = ("supports_float16", "supports_bfloat16", "fna_supports_additional_kv")
    return {
        **{name: _skip_unless(*condition) for name, condition in conditions.items()},
        **{name: lambda *_, **__: True for name in always},
        "skip_if_fewer_than_n_gpus": lambda n: unittest.skipUnless(
            torch.cuda.device_count() >= n, f"fewer than {n} GPUs."
        ),
    }


def _name(what: str) -> str:
    if "does_not" in what:
        return f"skip_if_{what}"
    kernels = what.endswith("kernels")
    words = ("not_supported",) if kernels else ("are" if what[-1] == "s" else "is", "not_supported")
    return "_".join(("skip_if", what, *words))


def _skip_unless(condition: bool, reason: str) -> Callable[[], Callable[..., Any]]:
    return lambda: unittest.skipUnless(condition, reason)
