"""Tests of the model of Flash: values and gradients of every strategy, and the rows it writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flash_cases import FEATURES, MASKS, compare, part_of, tensors, unpadded_case
from torch import Tensor

import nbattn
from nbattn import BackendError
from nbattn.backends import calls
from nbattn.backends.flash import model as flash_model

Count = Callable[[str, int], None]
Space = tuple[int, ...]
PROVIDERS = ("aten", "fa2", "fa3", "fa4")
STRATEGIES = ("translate", "trim", "split", "virtual-pad", "pack", "pad")


# A push tries each mask with every second feature, in turn.
IN_TURN = [
    pytest.param(label, feature, marks=pytest.mark.deep if (n + m) % 2 else ())
    for n, label in enumerate(MASKS)
    for m, feature in enumerate(FEATURES)
]


@pytest.mark.usefixtures("refusals_without_fixes")
@pytest.mark.parametrize(("label", "feature"), IN_TURN)
def test_the_model_differentiates_every_strategy(label: str, feature: str, cases: Count) -> None:
    mask, queries, keys = MASKS[label]
    features, numbers = FEATURES[feature]
    taken: set[str] = set()
    for provider in ("aten", "fa4"):
        for strategy in STRATEGIES:

            def attend(
                query: Tensor, key: Tensor, value: Tensor, *,
                by: str = f"flash-model:{provider}", using: str = strategy, **more: Any,
            ) -> Any:  # fmt: skip
                return nbattn.attention(
                    query, key, value, mask, backend=by, require=(using,), return_lse=True, **more
                )

            made = tensors(queries, keys, *features)
            try:
                compare(mask, queries, keys, made, numbers, attend)
            except BackendError:
                continue
            taken.add(provider)
            cases(f"flash values, model {strategy}", 1)
    silent = label == "no pair at all" and "extra" in features
    assert taken == (set() if silent else {"aten", "fa4"})


@pytest.mark.usefixtures("providers")
@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_model_writes_where_kernels_do(provider: str) -> None:
    """The rows a kernel is given are memory of the output, for the model as for the providers."""
    mask, queries, keys = MASKS["shift"]
    program, inputs, want = unpadded_case(mask, queries, keys, backend=f"flash-model:{provider}")
    given: list[Tensor] = []

    class Watched(flash_model.Model):
        def forward(
            self, call: Any, arrays: Any, scale: Any, softcap: Any, into: Any = None
        ) -> Any:
            given.append(into)
            out, lse = super().forward(call, arrays, scale, softcap, into)
            assert out is into
            return out, lse

    out, _ = calls.forward(program, inputs, Watched())
    assert len(given) == len(program.calls) == 3
    assert all(part_of(one, out) for one in given)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
