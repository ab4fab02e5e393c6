"""The natten package as a backend: which masks it can say, its limits, and the call it receives.

natten's kernels need a GPU; here a stand-in in plain torch takes the call.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import dense_attention
import numpy as np
import oracle
import pytest
import torch
from torch import Tensor

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.backends.inputs import Inputs
from nbattn.backends.natten import run as backend
from nbattn.backends.natten.meaning import NattenAxis, window
from nbattn.geometry import bind
from nbattn.program import device

HERE = replace(device.DEVICES["sm_90"], providers=("natten",))
SPACES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((20,), {"kernel_size": 6, "stride": 4}),
    ((17,), {"kernel_size": 5, "dilation": 3}),
    ((17,), {"kernel_size": 4, "stride": 3, "is_causal": True}),
    ((13, 12), {"kernel_size": (4, 5), "stride": (3, 2), "dilation": (3, 2)}),
    ((9, 8), {"kernel_size": (3, 8), "is_causal": (True, False)}),
    ((5, 6, 7), {"kernel_size": (3, 2, 3), "stride": (1, 2, 3), "dilation": (1, 3, 2)}),
]
DEFAULTS = {"stride": 1, "dilation": 1, "is_causal": False}


def planned(mask: Mask, space: tuple[int, ...], **named: Any) -> Any:
    shape = (1, *space, 2, 32)
    return nbattn.plan(mask, shape, device=HERE, **{"backend": "natten"} | named)


@pytest.mark.parametrize(("space", "given"), SPACES)
def test_its_plans_are_the_published_mask(space: tuple[int, ...], given: dict[str, Any]) -> None:
    mask = Mask.neighborhood(**given)
    rank, full = len(space), DEFAULTS | given
    plan = planned(mask, space)
    call = plan.chosen.program.calls[0].arguments
    assert call.named() == {name: oracle.per_axis(value, rank) for name, value in full.items()}
    assert plan.verify()
    wanted = oracle.natten_matrix(
        space, full["kernel_size"], full["stride"], full["dilation"], full["is_causal"]
    )
    assert np.array_equal(plan.support(), wanted)


def test_a_full_axis_is_a_window_of_its_length() -> None:
    assert window(bind(Mask.full(), 9)[0]) == NattenAxis(9, 1, 1, False)
    assert planned(Mask(Axis(), Axis(2, 2, border="shift")), (6, 9)).verify()


@pytest.mark.parametrize(
    ("axis", "keys", "text"),
    [
        (Axis(3, 3), None, 'border="clip"; it supports border="shift"'),
        (Axis(3, 3, border="wrap"), None, 'border="wrap"; it supports border="shift"'),
        (Axis(3, causal=True, border="shift"), None,
         'a causal axis with border="shift"; it supports border="clip"'),
        (Axis(3, 1, border="shift"), None, "left=3, right=1; it supports 2 and 2"),
        (Axis(causal=True), None, "an unlimited side; it supports only finite windows"),
        (Axis(3, causal=True, offset=1), None, "offset=1; it has no offset"),
        (Axis(3, causal=True, prefix=1), None, "prefix=1; it has no prefix"),
        (Axis(0, 0, border="shift"), None,
         "a window of 1 with stride=1; it needs at least 2 and the stride"),
        (Axis(1, 1, border="shift", stride=4), None,
         "a window of 3 with stride=4; it needs at least 2 and the stride"),
        (Axis(2, 2, border="shift", dilation=3), None,
         "5 keys x dilation 3 exceed the axis length 12"),
        (Axis(2, 2, border="shift", align=0), 14, "12 queries and 14 keys; it needs equal numbers"),
    ],
)  # fmt: skip
def test_what_it_cannot_say(axis: Axis, keys: int | None, text: str) -> None:
    assert window(bind(Mask(axis), 12, keys)[0]) == text


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ({"dtype": "float64"}, "takes float16, bfloat16, float32, not float64"),
        ({"value_dim": 12}, "needs a value_dim that 8 divides, not 12"),
        ({"softcap": 2.0}, "has no softcap"),
        ({"sink": True}, "has no sink"),
        ({"extra_keys": 3}, "does not support extra keys"),
        ({"training": True, "return_lse": True},
         "its backward cannot use a gradient of the logsumexp"),
        ({"training": True, "deterministic": True}, "its backward is not deterministic"),
    ],
)  # fmt: skip
def test_its_limits_are_told(named: dict[str, Any], text: str) -> None:
    with pytest.raises(BackendError) as error:
        planned(Mask.neighborhood(7), (20,), **named)
    assert f"  natten/window: {text}\n" in str(error.value)


def test_its_grid_has_heads_and_residue_classes_in_one_dimension() -> None:
    mask = Mask.neighborhood((3, 3), dilation=(8, 4))
    for shape, text in (
        ((65_536, 24, 12, 1, 8), "65536 samples"),
        ((1, 24, 12, 2_048, 8), "65536 heads"),
    ):
        with pytest.raises(BackendError, match=f"{text} after folding are over the grid of 65535"):
            nbattn.plan(mask, shape, device=HERE, backend="natten")
    nbattn.plan(mask, (65_535, 24, 12, 2_047, 8), device=HERE, backend="natten")


def test_an_absent_package_is_the_reason() -> None:
    with pytest.raises(BackendError, match="natten/window: natten is not installed on this dev"):
        nbattn.plan(Mask.neighborhood(7), (1, 20, 2, 32), device="sm_90", backend="natten")


def test_auto_does_not_trust_what_has_not_run_on_a_gpu() -> None:
    plan = planned(Mask.neighborhood(7), (20,), backend="auto")
    (own,) = [one for one in plan.candidates if one.backend == "natten"]
    assert [reason.text for reason in own.reasons] == [
        "not yet run on a GPU, runs only if requested: backend='natten'"
    ]


def stand_in(query: Tensor, key: Tensor, value: Tensor, **named: Any) -> tuple[Tensor, Tensor]:
    """NATTEN's generic function, its treatment of a scale of 0 included."""
    allowed = oracle.natten_matrix(
        query.shape[1:-2], named["kernel_size"], named["stride"], named["dilation"],
        named["is_causal"],
    )  # fmt: skip
    assert named["return_lse"] is True
    scale = named["scale"] or query.shape[-1] ** -0.5
    return dense_attention.attend(query, key, value, torch.from_numpy(allowed), scale=scale)


@pytest.mark.parametrize("scale", [0.3, 0.0])
def test_the_call_and_its_gradients(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(neighborhood_attention_generic=stand_in)
    monkeypatch.setitem(sys.modules, "natten", SimpleNamespace(functional=module))
    monkeypatch.setitem(sys.modules, "natten.functional", module)
    mask, space = Mask.neighborhood((3, 4), dilation=(2, 1), stride=(1, 2)), (7, 8)
    program = planned(mask, space, training=True).chosen.program
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, *space, 2, 8, generator=generator).double() for _ in range(4)]
    leaves = [t.requires_grad_() for t in tensors[:3]]
    inputs = Inputs(*(t.detach() for t in leaves), None, None, None, None, scale, None)
    out, lse = backend.forward(program, inputs, return_lse=True)
    allowed = torch.from_numpy(mask.dense(space))
    wanted = dense_attention.attend(*leaves, allowed, scale=scale)
    for one, other in zip((out, lse), wanted, strict=True):
        torch.testing.assert_close(one, other.detach())
    assert lse is not None
    grads = backend.backward(program, inputs, out, lse, tensors[3], None)
    exact = torch.autograd.grad(wanted[0], leaves, tensors[3])
    for one, other in zip((grads.query, grads.key, grads.value), exact, strict=True):
        torch.testing.assert_close(one, other)


def test_the_drop_in_is_no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would call itself."""
    monkeypatch.setitem(sys.modules, "natten", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "natten.functional", SimpleNamespace(__nbattn__=True))
    program = planned(Mask.neighborhood(3), (9,)).chosen.program
    query = torch.zeros(1, 9, 2, 8)
    inputs = Inputs(query, query, query, None, None, None, None, 1.0, None)
    with pytest.raises(BackendError) as error:
        backend.forward(program, inputs, return_lse=False)
    assert str(error.value) == (
        "the installed natten is nbattn's drop-in replacement, which would call itself.\n"
        "  fix:   nbattn.integrations.natten.uninstall()"
    )
