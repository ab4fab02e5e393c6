"""Tests of names that are loaded when they are first used: the public ones, and misspelt ones."""

from __future__ import annotations

import re
import traceback

import pytest

import nbattn
from nbattn import distributed, integrations, lazy, program


def test_dir_is_the_api() -> None:
    public = {"config", "distributed", "errors", "export", "integrations", "nn", "program"}
    public |= {"published", "recipes"}
    assert dir(nbattn) == sorted({*nbattn.__all__, *public})
    for name in dir(nbattn):
        assert getattr(nbattn, name) is not None
    assert dir(integrations) == ["diffusers", "natten", "swin", "transformers"]
    assert dir(program) == ["device"]
    assert dir(distributed) == ["Halo", "attention", "halo"]
    for name in dir(distributed):
        assert getattr(distributed, name) is not None


def test_a_star_import_has_every_public_name() -> None:
    names: dict[str, object] = {}
    exec("from nbattn import *", names)
    assert set(nbattn.__all__) <= set(names)


MEANT = {
    "atention": "nbattn.attention",
    "flash_attention": "nbattn.attention",
    "scaled_dot_product_attention": "nbattn.attention",
    "NATTEN": "nbattn.integrations.natten",
    "natten": "nbattn.integrations.natten",
    "na2d": "nbattn.integrations.natten.na2d",
    "register": "nbattn.integrations.transformers.register",
    "masks": "nbattn.Mask",
    "neighbourhood": "nbattn.Mask.neighborhood",
    "neighborhood_attention": "nbattn.NeighborhoodAttention",
    "named": "nbattn.program.device.named",
    "integration": "nbattn.integrations",
    "context_parallel": "nbattn.distributed.attention",
    "ring_attention": "nbattn.distributed.attention",
}


@pytest.mark.parametrize("name", MEANT)
def test_a_misspelt_name_is_answered_with_what_exists(name: str) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(nbattn, name)
    text = f"module 'nbattn' has no attribute {name!r}. Did you mean {MEANT[name]}?"
    assert str(caught.value) == text
    assert "".join(traceback.format_exception(caught.value)).count("Did you mean") == 1
    assert caught.value.obj is None  # else Python would print a second suggestion
    assert eval(MEANT[name], {"nbattn": nbattn}) is not None


@pytest.mark.parametrize("name", ["zebra", "__wrapped__", "_private", "a b", "planner.plan", ""])
def test_other_names_have_no_suggestion(name: str) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(nbattn, name)
    assert str(caught.value) == f"module 'nbattn' has no attribute {name!r}"


@pytest.mark.parametrize(
    ("package", "wrong", "right"),
    [
        (integrations, "naten", "nbattn.integrations.natten"),
        (program, "devices", "nbattn.program.device"),
        (distributed, "atention", "nbattn.distributed.attention"),
    ],
)
def test_a_misspelt_submodule_of_a_package(package: object, wrong: str, right: str) -> None:
    with pytest.raises(AttributeError, match=rf"Did you mean {re.escape(right)}\?"):
        getattr(package, wrong)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("prefix_lm", "Mask(Axis(None, 0, prefix=4))"),
        ("from_sdpa", 'Mask.causal("top-left")'),
        ("neighbourhood", "Mask.neighborhood((7, 7))"),
        ("swin", "Mask.neighborhood((7, 7), stride=7)"),
        ("sliding", "Mask.sliding_window(511)"),
        ("Full", "Mask.full"),
        ("zebra", ""),
    ],
)
def test_a_constructor_that_masks_do_not_have(wrong: str, right: str) -> None:
    assert not hasattr(nbattn.Mask, wrong)
    with pytest.raises(AttributeError) as caught:
        getattr(nbattn.Mask, wrong)
    hint = f". Did you mean {right}?" if right else ""
    assert str(caught.value) == f"type object 'Mask' has no attribute {wrong!r}{hint}"
    assert eval(right or "1", vars(nbattn) | {"Axis": nbattn.Axis, "Mask": nbattn.Mask})


def test_the_prefix_that_is_suggested_is_a_prefix_lm() -> None:
    matrix = nbattn.Mask(nbattn.Axis(None, 0, prefix=4)).dense(9)
    assert matrix.tolist() == [[j <= max(i, 3) for j in range(9)] for i in range(9)]


def test_folders_of_kernels_are_no_modules(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """As they lie in a wheel, where Python takes them for packages."""
    (tmp_path / "cuda").mkdir()
    monkeypatch.setattr(nbattn, "__path__", [*nbattn.__path__, str(tmp_path)])
    with pytest.raises(AttributeError, match="has no attribute 'cuda'"):
        lazy.submodule("nbattn", "cuda", {})
