"""Tests of the configuration of the demo."""

from __future__ import annotations

from pathlib import Path

import nbattn
from nbattn.demo import CONFIG

CONFIGURATION = nbattn.load(CONFIG)


def test_the_configuration_is_in_the_package_with_the_masks_of_the_demo() -> None:
    assert CONFIG.parent == Path(nbattn.__file__).parent / "demo"  # so that a wheel has it
    assert CONFIGURATION.masks["search"] == nbattn.Mask.neighborhood((21, 21))
    assert [layer.mask.axes[0].dilation for layer in CONFIGURATION.layers.values()] == [1, 2]
