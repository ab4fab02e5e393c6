"""Tests of tables: which attention layer gets which mask."""

from __future__ import annotations

from typing import Any

import pytest

import nbattn
from nbattn.errors import InputError, MaskError
from nbattn.integrations.diffusers import tables

NARROW, WIDE = nbattn.Mask.neighborhood((3, 3)), nbattn.Mask.neighborhood((5, 5))
LAYERS = {
    "transformer_blocks.0.attn": "double",
    "transformer_blocks.1.attn": "double",
    "single_transformer_blocks.0.attn": "single",
    "single_transformer_blocks.1.attn": "single",
    "single_transformer_blocks.10.attn": "single",
}


def masks(given: Any) -> list[nbattn.Mask | None]:
    return [*tables.masks_of(LAYERS, given, 2).values()]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (NARROW, [NARROW] * 5),
        (None, [None] * 5),
        ({"double": NARROW}, [NARROW, NARROW, None, None, None]),
        ({"double": NARROW, "single": WIDE}, [NARROW, NARROW, WIDE, WIDE, WIDE]),
        ({"single": NARROW, "*": WIDE}, [WIDE, WIDE, NARROW, NARROW, NARROW]),
        ({"*": WIDE, "single": NARROW}, [WIDE, WIDE, NARROW, NARROW, NARROW]),
        ({0: NARROW, 4: WIDE}, [NARROW, None, None, None, WIDE]),
        ({"single_transformer_blocks.1": NARROW}, [None, None, None, NARROW, None]),
        ({"single_transformer_blocks.1.attn": NARROW}, [None, None, None, NARROW, None]),
        ({"single_transformer_blocks.1*": NARROW}, [None, None, None, NARROW, NARROW]),
        # what fits fewer layers counts, in either order
        ({"double": NARROW, 1: None}, [NARROW, None, None, None, None]),
        ({1: None, "double": NARROW}, [NARROW, None, None, None, None]),
        ({"*": NARROW, "transformer_blocks.0": WIDE}, [WIDE, NARROW, NARROW, NARROW, NARROW]),
    ],
)
def test_a_table_gives_each_layer_its_mask(given: Any, expected: list[Any]) -> None:
    assert masks(given) == expected


def test_a_configuration_with_as_many_layers_counts_in_order() -> None:
    names = [f"layer{number}" for number in range(5)]
    config = nbattn.load(
        {
            "masks": {
                "narrow": {"neighborhood": {"kernel_size": [3, 3]}},
                "wide": {"neighborhood": {"kernel_size": [5, 5]}},
            },
            "layers": {
                name: {"mask": "wide" if name == "layer3" else "narrow", "dim": 8, "num_heads": 1}
                for name in names
            },
        }
    )
    assert masks(config) == [NARROW, NARROW, NARROW, WIDE, NARROW]


def test_a_configuration_whose_layers_are_types_is_a_table() -> None:
    layer = {"mask": "narrow", "dim": 8, "num_heads": 1}
    table = {"narrow": {"neighborhood": {"kernel_size": [3, 3]}}}
    config = nbattn.load({"masks": table, "layers": {"single": layer}})
    assert masks(config) == [None, None, NARROW, NARROW, NARROW]


@pytest.mark.parametrize(
    "wrong",
    [
        *("narrow", 7, [NARROW], {}, {"dobule": NARROW}, {5: NARROW}, {-1: NARROW}),
        *({True: NARROW}, {"double": "narrow"}, {"double": 7}, {("double",): NARROW}),
        {"double": nbattn.Mask.causal()},
        nbattn.Mask.neighborhood((3, 3, 3)),
    ],
)
def test_what_is_no_table_is_refused(wrong: Any) -> None:
    with pytest.raises((InputError, MaskError)):
        masks(wrong)


def test_layers_selects_by_types_numbers_names_and_patterns() -> None:
    names = [*LAYERS]

    def selected(only: Any) -> list[str]:
        return [*tables.selected(LAYERS, only)]

    assert selected(None) == names
    assert selected("double") == names[:2]
    assert selected(3) == [names[3]]
    assert selected(range(1, 4)) == names[1:4]
    assert selected(["single_transformer_blocks.0", 0]) == [names[0], names[2]]
    for wrong in ("triple", 9, [0, "attn"], 1.5, [], range(0)):
        with pytest.raises(InputError):
            selected(wrong)
