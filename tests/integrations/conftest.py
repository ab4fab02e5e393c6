"""Fixtures for tests of transformers: exact softmax, and the masks that attention receives."""

from __future__ import annotations

from typing import Any

import pytest
from small_models import exact_softmax
from torch import Tensor

from nbattn import Mask
from nbattn.integrations import transformers as integration


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    exact_softmax(monkeypatch)


@pytest.fixture
def attention_arguments(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Mask, Tensor | None]]:
    """Mask and key range of every call of nbattn.attention by a layer."""
    found: list[tuple[Mask, Tensor | None]] = []
    attention = integration.attention

    def spy(query: Tensor, key: Tensor, value: Tensor, mask: Mask, **named: Any) -> Any:
        found.append((mask, named["key_range"]))
        return attention(query, key, value, mask, **named)

    monkeypatch.setattr(integration, "attention", spy)
    return found
