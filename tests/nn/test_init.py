"""Tests of what the package of layers exports."""

from __future__ import annotations

import pytest

import nbattn.nn


def test_names_are_found_when_they_are_used() -> None:
    assert repr(nbattn.nn.HeadParallel()) == "HeadParallel()"
    assert {"HeadParallel", "NeighborhoodAttention"} <= {*dir(nbattn.nn)}
    with pytest.raises(AttributeError, match="has no attribute 'Layer'"):
        nbattn.nn.Layer  # noqa: B018  # pyright: ignore
    with pytest.raises(AttributeError, match=r"Did you mean nbattn\.nn\.HeadParallel\?"):
        nbattn.nn.HeadParalel  # noqa: B018  # pyright: ignore
