"""Tests of the adapter of every Flash provider, with stand-ins, in one pass and step by step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flash_cases import FEATURES, MASKS, attention_by_adapter, compare, tensors
from oracle import matrix

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.backends import families
from nbattn.backends.flash import adapters as flash_backend
from nbattn.backends.flash import model as flash_model

Count = Callable[[str, int], None]
Space = tuple[int, ...]
PROVIDERS = ("aten", "fa2", "fa3", "fa4")
STRATEGIES = ("translate", "trim", "split", "virtual-pad", "pack", "pad")


@pytest.mark.usefixtures("providers", "refusals_without_fixes")
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("label", MASKS)
def test_adapter_computes_the_program(label: str, provider: str, cases: Count) -> None:
    mask, queries, keys = MASKS[label]
    for strategy in STRATEGIES:
        features, numbers = FEATURES["everything"]
        if label == "no pair at all":
            features = ("sink",)
        if provider == "aten" or strategy == "pad":
            numbers = {"scale": numbers["scale"]}
        try:
            softcap = numbers.get("softcap")
            attend = attention_by_adapter(provider, mask, strategy, queries, keys, softcap=softcap)
        except BackendError:
            continue
        made = tensors(queries, keys, *features)
        compare(mask, queries, keys, made, numbers, attend, lse_gradient=provider == "fa4")
        cases(f"flash values, {provider} adapter", 1)


@pytest.mark.usefixtures("providers")
def test_a_replaced_built_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = attention_by_adapter("aten", Mask.causal(), "translate", (4,), (4,))
    module = torch.nn.attention
    monkeypatch.setattr(module, "current_flash_attention_impl", lambda: "FA4", raising=False)
    with pytest.raises(BackendError, match="operator was replaced by FA4"):
        attend(**tensors((4,), (4,)))


def test_misaligned_rows_are_copied_and_aligned_ones_are_not() -> None:
    whole = torch.zeros(2, 9, 4, 16, dtype=torch.float16)
    assert flash_backend._sized(whole[:, 1:], 16).data_ptr() == whole[:, 1:].data_ptr()
    odd = torch.zeros(2 * 9 * 4 * 16 + 1, dtype=torch.float16)[1:].view(2, 9, 4, 16)
    assert flash_backend._sized(odd, 16).data_ptr() % 16 == 0
    assert flash_backend._sized(whole.transpose(2, 3).contiguous().mT, 16).stride(-1) == 1


@pytest.mark.parametrize("strides", [(1, 576, 64, 1), (576, 8, 576, 1), (0, 64, 16, 1)], ids=str)
def test_rows_that_overlap_are_copied(strides: Space) -> None:
    """A hop of 8 halves is 16 bytes, which kernels load; a TMA box needs rows that lie apart."""
    memory = torch.arange(10_000, dtype=torch.float16)
    given = memory.as_strided((2, 9, 4, 16), strides)
    taken = flash_backend._sized(given, 16)
    assert taken.is_contiguous()
    assert torch.equal(taken, given)


# Decode


DECODING = {
    "causal": Mask.causal("bottom-right"),
    "window": Mask.from_transformers(5),
    "behind": Mask(Axis(4, causal=True, align="bottom-right", offset=-2)),
    "dilated": Mask(Axis(3, causal=True, dilation=3, align="bottom-right")),
    "sinks": Mask(Axis(2, causal=True, prefix=2, align="bottom-right")),
}

WAYS = {
    "flash-model:aten": (),
    "flash-model:fa4": (),
    "flash-model:fa2": ("kv-cache",),
    "flash-model:fa3": ("kv-cache",),
    "tiled": (),
    "auto": (),
}


@pytest.mark.parametrize("backend", WAYS)
@pytest.mark.parametrize("name", DECODING)
def test_prefill_and_decode_are_one_pass(name: str, backend: str, cases: Count) -> None:
    mask, length = DECODING[name], 17
    assert mask.decodes() is None
    made = {key: t.detach() for key, t in tensors((length,), (length,)).items()}
    whole = nbattn.attention(**made, mask=mask, backend="reference")
    for first in (1, 6, 16):
        for step in (1, 2, 5):
            at, parts = 0, []
            while at < length:
                stop = min(length, at + (first if at == 0 else step))
                query, (key, value) = (
                    made["query"][:, at:stop],
                    (made[side][:, :stop] for side in ("key", "value")),
                )
                named = {"backend": backend, "require": WAYS[backend]}
                parts.append(nbattn.attention(query, key, value, mask, **named))
                at = stop
            torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
            cases("flash values, decode", 1)


@pytest.mark.usefixtures("providers")
@pytest.mark.parametrize("provider", ["fa2", "fa3"])
@pytest.mark.parametrize("name", DECODING)
def test_the_cache_entry_of_a_provider(name: str, provider: str, cases: Count) -> None:
    """The whole cache is given; what lies behind the filled part is not read."""
    for queries, keys in ((1, 30), (3, 30), (7, 7), (16, 4), (4, 17)):
        mask = DECODING[name]
        made = {key: t.detach() for key, t in tensors((queries,), (keys,)).items()}
        plan = nbattn.plan(
            mask, made["query"].shape, made["key"].shape, value_dim=3, dtype="float64",
            device="cpu", backend=f"flash-model:{provider}", require=("kv-cache",),
        )  # fmt: skip
        assert plan.chosen.program is not None
        want, want_lse = nbattn.attention(**made, mask=mask, backend="reference", return_lse=True)
        read = torch.from_numpy(matrix(mask.axes, (queries,), (keys,)).any(0))
        for side in ("key", "value"):
            made[side][:, int(read.nonzero().max()) + 1 :] = 1e6
        inputs = flash_backend.Inputs(**made, sink=None, key_range=None, extra_key=None,
                                      extra_value=None, scale=5**-0.5, softcap=None)  # fmt: skip
        for run in (flash_backend.forward, flash_model.forward):
            out, lse = run(plan.chosen.program, inputs, return_lse=True)
            torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
            torch.testing.assert_close(lse, want_lse, rtol=0, atol=1e-12)
            cases("flash values, kv-cache", 1)


def test_the_data_of_a_cuda_device_lists_what_is_installed() -> None:
    assert "torch" not in families.installed("cuda")
    known = {"flash-attn", "flash-attn-3", "flash-attn-4", "cupy", "triton"}
    assert set(families.installed("cuda")) <= known
