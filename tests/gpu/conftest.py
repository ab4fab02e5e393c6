"""Fixture of every GPU test: unwritten memory is NaN, and every run gives the same bits."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# Before the first call of cuBLAS. Torch before 2.10 refuses its products under deterministic
# algorithms without it, and the judges are such products.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def uninitialized_memory_is_nan() -> Iterator[None]:
    """What a kernel does not write shows."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before
