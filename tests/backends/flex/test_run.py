"""Tests of `backend="flex"` on a CPU, where it runs only by name."""

from __future__ import annotations

import shutil

import dense_attention
import oracle
import pytest
import torch

import nbattn
from nbattn import Axis, Mask

MASK = Mask(Axis(2, 2, border="shift", dilation=2), Axis(3, 3, border="wrap"))


@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="FlexAttention compiles C++"
)
@pytest.mark.deep
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_flex_runs_on_a_cpu_when_named() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, 13, 20, heads, 32, generator=generator) for heads in (4, 2, 2)
    )
    found = nbattn.attention(query, key, value, MASK, backend="flex", scale=0.3, softcap=2.0)
    allowed = torch.from_numpy(oracle.matrix(MASK.axes, (13, 20), (13, 20)))
    given_ = (t.double() for t in (query, key, value))
    wanted, _ = dense_attention.attend(*given_, allowed, scale=0.3, softcap=2.0)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
