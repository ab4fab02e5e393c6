"""Tests of attention in standard operators: both forms against the reference, the choice of a form,
and that nothing but torch's operators is in a program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from nbattn import Axis, Mask
from nbattn.backends.dense import reference
from nbattn.backends.inputs import Inputs
from nbattn.export import standard_form

MASKS = {
    "dilation": (Mask(Axis(2, 1, border="shift", dilation=2)), (13,), (13,)),
    "prefix": (Mask(Axis(3, causal=True, align="bottom-right", prefix=2)), (5,), (11,)),
    "stride": (Mask(Axis(1, 1, border="shift", stride=2), Axis(2, causal=True)), (4, 5), (4, 5)),
    "cube": (Mask(Axis(1, 0), Axis(1, 1), Axis(1, 1, border="wrap")), (3, 4, 5), (3, 4, 5)),
    "rows without keys": (Mask(Axis(1, 1, align="top-left", offset=6)), (7,), (5,)),
    "no keys": (Mask(Axis(1, 1, align="top-left")), (7,), (0,)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"sink": True, "key_range": True, "extra": 3, "softcap": 2.0},
    "padding": {"key_range": True},
    "sink": {"sink": True, "extra": 0},
}
TABLED = {name: MASKS[name] for name in ("dilation", "stride", "cube", "rows without keys")} | {
    "circle": (Mask(Axis(3, 2, border="wrap", dilation=2, stride=3)), (36,), (36,)),
    "bottom-right": (Mask(Axis(3, 0, align="bottom-right", dilation=2)), (5,), (11,)),
}


def inputs(
    space: Sequence[int],
    key_space: Sequence[int],
    *,
    sink: bool = False,
    key_range: bool = False,
    extra: int | None = None,
    softcap: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Inputs:
    """Four query heads over two key heads, and values of another size."""
    torch.manual_seed(0)
    key = torch.randn(2, *key_space, 2, 8, dtype=dtype)
    value = torch.randn(2, *key_space, 2, 6, dtype=dtype)
    box = torch.tensor([[[1, n - 1] for n in key_space], [[0, n] for n in key_space]])
    if key_range and all(key_space):
        key[0, 0], value[0, 0] = float("nan"), float("nan")  # padding may hold anything
    return Inputs(
        torch.randn(2, *space, 4, 8, dtype=dtype),
        key,
        value,
        torch.randn(4) if sink else None,
        box.to(torch.int32) if key_range else None,
        None if extra is None else torch.randn(2, extra, 2, 8, dtype=dtype),
        None if extra is None else torch.randn(2, extra, 2, 6, dtype=dtype),
        scale=0.5,
        softcap=softcap,
    )


def with_added(given: Inputs, mask: Mask) -> Inputs:
    """A table; slopes where there is a line; and NaN in extra keys out of their range."""
    sizes = [2 * (axis.left + axis.right) + 1 for axis in mask.axes]  # pyright: ignore
    assert given.extra_key is not None
    assert given.extra_value is not None
    key, value = given.extra_key.clone(), given.extra_value.clone()
    key[1], value[0, 0], value[1] = float("nan"), float("nan"), float("nan")
    on_line = mask.rank == 1 and mask.axes[0].border != "wrap"
    return given._replace(
        relative_bias=torch.randn(4, *sizes),
        alibi_slopes=torch.rand(2, 4) if on_line else None,
        extra_key=key,
        extra_value=value,
        extra_range=torch.tensor([[1, 3], [2, 2]], dtype=torch.int32),
    )


def forms(monkeypatch: pytest.MonkeyPatch, given: Inputs, mask: Mask) -> list[Any]:
    """The results of the dense form and, where there are keys, of tiles of two queries."""
    monkeypatch.setattr(standard_form, "best_tilings", lambda *_: None)
    results = [standard_form.attend(given, mask)]
    lengths = zip(mask.axes, given.space, given.key.shape[1:-2], strict=True)
    cuts = [standard_form.tiling(*axis, 2) for axis in lengths]
    monkeypatch.setattr(standard_form, "best_tilings", lambda *_: cuts)
    return [*results, standard_form.attend(given, mask)] if given.key.numel() else results


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", MASKS)
def test_both_forms_compute_what_the_reference_computes(
    name: str, options: str, monkeypatch: pytest.MonkeyPatch, cases: Callable[[str, int], None]
) -> None:
    mask, space, key_space = MASKS[name]
    given = inputs(space, key_space, **OPTIONS[options])
    wanted = reference.attend(given, mask)
    for found in forms(monkeypatch, given, mask):
        for one, other in zip(found, wanted, strict=True):
            assert one.is_contiguous()
            torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6)
        cases("standard forms", 1)


@pytest.mark.parametrize("name", TABLED)
def test_both_forms_add_what_the_reference_adds(
    name: str, monkeypatch: pytest.MonkeyPatch, cases: Callable[[str, int], None]
) -> None:
    mask, space, key_space = TABLED[name]
    for options in ("all", "sink"):
        extra = {"extra": 3, "sink": options == "all"}
        given = with_added(inputs(space, key_space, **OPTIONS[options] | extra), mask)
        wanted = reference.attend(given, mask)
        for found in forms(monkeypatch, given, mask):
            for one, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6)
            cases("standard forms, added", 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_sums_have_the_precision_of_the_reference(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask, space, key_space = MASKS["dilation"]
    given = inputs(space, key_space, dtype=dtype)
    wanted = reference.attend(given, mask)
    for found in forms(monkeypatch, given, mask):
        assert [t.dtype for t in found] == [t.dtype for t in wanted]
        limit = {torch.float64: 1e-14}.get(dtype, 2 * torch.finfo(dtype).eps)
        torch.testing.assert_close(found[0], wanted[0], rtol=limit, atol=limit)
        torch.testing.assert_close(found[1], wanted[1], rtol=2e-6, atol=2e-6)


def chosen(mask: Mask, space: tuple[int, ...], heads: int = 2, dim: int = 32) -> list[int] | None:
    """The rows of a tile on every axis; None for the dense form."""
    tensor = torch.empty(1, *space, heads, dim, device="meta")
    given = Inputs(tensor, tensor, tensor, scale=1.0)
    cuts = standard_form.best_tilings(given, mask, space, space)
    return None if cuts is None else [cut.rows for cut in cuts]


def test_the_form_that_keeps_fewer_numbers_is_chosen() -> None:
    plane = Mask.neighborhood((7, 7))
    assert chosen(plane, (14, 14)) is None
    assert chosen(plane, (28, 28)) is None  # tiles would keep more than half
    assert chosen(plane, (56, 56)) == [8, 8]
    assert chosen(Mask.neighborhood((7, 7), dilation=8), (56, 56)) == [8, 8]
    assert chosen(Mask.sliding_window(511), (8192,), 8, 64) == [256]
    assert chosen(Mask.causal(), (8192,), 8, 64) is None


def gradients(attend: Callable[..., Any], given: Inputs) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in given[:3]]
    out, lse = attend(given._replace(query=leaves[0], key=leaves[1], value=leaves[2]))
    kept = lse.isfinite()
    return list(torch.autograd.grad(out.sin().sum() + lse[kept].sum(), leaves))


def test_rewritten_programs_have_gradients_also_for_rows_without_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("rows without keys", "cube"):
        mask, space, key_space = MASKS[name]
        given = inputs(space, key_space)
        wanted = gradients(lambda g, mask=mask: reference.attend(g, mask), given)
        monkeypatch.setattr(standard_form, "best_tilings", lambda *_: None)
        found = gradients(lambda g, mask=mask: standard_form.attend(g, mask), given)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
