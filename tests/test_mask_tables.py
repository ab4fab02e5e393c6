"""Tests of masks as plain data: round trips, agreement with files, and what is no mask."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from omegaconf import OmegaConf
from oracle import masks

import nbattn
from nbattn import Axis, ConfigError, Mask
from nbattn.mask_tables import CONSTRUCTORS

Count = Callable[[str, int], None]
ROOT = Path(__file__).parents[1]
DEFAULTS = {name: field.default for name, field in Axis.__dataclass_fields__.items()}


@settings(max_examples=80)
@given(masks())
def test_a_mask_and_its_plain_data_are_one(cases: Count, drawn: tuple[Mask, Any, Any]) -> None:
    mask = drawn[0]
    data = mask.to_dict()
    assert Mask.from_dict(data) == mask
    assert Mask.from_dict(json.loads(json.dumps(data))) == mask
    assert nbattn.load({"masks": {"own": data}}).masks["own"] == mask
    for axis in data["axes"]:
        assert not [name for name, value in axis.items() if value == DEFAULTS[name]]
        assert not {"causal", "right"} <= axis.keys()
        assert {type(value) for value in axis.values()} <= {int, bool, str}
    cases("masks as plain data", 1)


def test_the_data_is_as_a_file_has_it() -> None:
    mask = Mask(Axis(8, causal=True), Axis(3, 3, border="shift"), Axis())
    data = mask.to_dict()
    time, height = {"left": 8, "causal": True}, {"left": 3, "right": 3, "border": "shift"}
    assert data == {"axes": [time, height, {}]}
    assert nbattn.load({"masks": {"a": data}}).to_dict() == {"masks": {"a": data}}
    assert Mask.from_dict(yaml.safe_load(yaml.safe_dump(data))) == mask
    data["axes"][0]["left"] = 9  # it is the caller's own
    assert mask.to_dict()["axes"][0]["left"] == 8


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ({"neighborhood": {"kernel_size": [7, 5]}}, Mask.neighborhood((7, 5))),
        ({"neighborhood": {"kernel_size": 7, "rank": 2}}, Mask.neighborhood((7, 7))),
        ({"sliding_window": {"left": None, "right": 2}}, Mask.sliding_window(None, 2)),
        ({"causal": {"align": 3}}, Mask.causal(3)),
        ({"full": {}}, Mask.full()),
        ({"from_flash": {"window_size": [-1, 0]}}, Mask.from_flash((-1, 0))),
        ({"from_cudnn": {"left_bound": 4}}, Mask.from_cudnn(4)),
        ({"from_transformers": {"sliding_window": 4}}, Mask.from_transformers(4)),
        ({"axes": [{"left": np.int64(3)}]}, Mask(Axis(3))),
        ({"axes": ({"left": 3},)}, Mask(Axis(3))),
        (UserDict(axes=[{"left": 3}]), Mask(Axis(3))),
        (OmegaConf.create({"axes": [{"left": 3}]}), Mask(Axis(3))),
    ],
    ids=lambda part: f"{type(part).__name__} {part}",
)
def test_constructors_and_other_containers(data: Any, wanted: Mask) -> None:
    assert Mask.from_dict(data) == wanted


def test_every_constructor_of_files_has_an_example() -> None:
    assert {*CONSTRUCTORS} == {
        name
        for name in vars(Mask)
        if isinstance(vars(Mask)[name], classmethod) and name != "from_dict"
    }


VALID = [
    {"axes": [{"left": 8, "causal": True, "align": "top-left"}, {"right": 3, "dilation": 2}]},
    {"neighborhood": {"kernel_size": [7, 5], "dilation": 2, "is_causal": [True, False], "rank": 2}},
    {"sliding_window": {"left": 3, "right": None, "align": 4, "rank": 2}},
    {"from_flash": {"window_size": [3, None], "causal": False}},
    {"from_transformers": {"sliding_window": 3, "causal": True, "offset": 2}},
]
ODD = [None, True, 1, 0, -1, 2.0, "3", "top-left", [], [7], [7, 7], {}, {"left": 1}, 2**70]


def spots(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    parts = enumerate(tree) if isinstance(tree, list) else ()
    for key, value in tree.items() if isinstance(tree, dict) else parts:
        yield from spots(value, (*path, key))


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.copy(tree)
    changed[path[0]] = replaced(tree[path[0]], path[1:], value)
    return changed


def outcome(read: Callable[[], Mask]) -> Mask | list[str]:
    """The mask, or where its mistakes are."""
    try:
        return read()
    except ConfigError as error:
        return [mistake.path for mistake in error.mistakes]


@pytest.mark.parametrize("valid", VALID, ids=lambda table: next(iter(table)))
def test_data_with_one_other_value_is_read_as_files_are(
    cases: Count, valid: dict[str, Any]
) -> None:
    for path in spots(valid):
        for odd in ODD:
            data = replaced(valid, path, odd)
            in_file = outcome(lambda: nbattn.load({"masks": {"own": data}}).masks["own"])  # noqa: B023
            if isinstance(in_file, list):
                in_file = [place.removeprefix("masks.own").lstrip(".") for place in in_file]
            assert outcome(lambda: Mask.from_dict(data)) == in_file, data  # noqa: B023
            cases("masks as plain data, one value changed", 1)


MASK_KEYS = ", ".join(("axes", *CONSTRUCTORS))
AXIS_KEYS = ", ".join(DEFAULTS)
MISTAKES: dict[str, tuple[Any, str]] = {
    "a misspelt key": (
        {"axes": [{}, {"lefft": 3}]},
        f"axes[1].lefft: unknown key; legal: {AXIS_KEYS}. Did you mean left?",
    ),
    "a misspelt constructor": (
        {"neighbourhood": {"kernel_size": 7}},
        f"neighbourhood: unknown key; legal: {MASK_KEYS}. Did you mean neighborhood?",
    ),
    "a wrong type": (
        {"axes": [{"left": "3"}]},
        'axes[0].left: found "3"; legal: a whole number; fix: "left": 3.',
    ),
    "a word of another library": (
        {"axes": [{"border": "periodic"}]},
        'axes[0].border: found "periodic"; legal: "clip", "shift" or "wrap". Did you mean "wrap"?',
    ),
    "a field beside its table": (
        {"left": 3},
        f"left: unknown key: it needs a table of its own; legal: {MASK_KEYS}; "
        'fix: "axes": [{"left": 3}].',
    ),
    "two entries": (
        {"axes": [{}], "full": {}},
        f"defines axes and full; legal: exactly one of {MASK_KEYS}; "
        'fix: "axes": [{}] alone, or "full": {} alone.',
    ),
    "a size": (7, 'found 7; legal: a table; fix: {"neighborhood": {"kernel_size": 7}}.'),
    "a word": ("causal", 'found "causal"; legal: a table; fix: {"causal": {}}.'),
    "text": (' {"axes": []}', "is text; legal: a table; fix: Mask.from_dict(json.loads(text))."),
    "a mask": (Mask.full(), "is a Mask; legal: a table; fix: Mask.from_dict(mask.to_dict())."),
    "a file": (
        {"masks": {"a b": {"full": {}}}},
        "is a whole configuration; legal: the table of one mask; "
        "fix: nbattn.load(data).masks['a b'].",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_message_of_what_is_no_mask(name: str) -> None:
    data, text = MISTAKES[name]
    with pytest.raises(ConfigError) as caught:
        Mask.from_dict(data)
    assert str(caught.value) == f"mapping: {text}"
    assert caught.value.__cause__ is None


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Mask.from_dict({"axes": [{"left": -1}, {"stride": 0, "caushal": True}]})
    places = {mistake.path for mistake in caught.value.mistakes}
    assert places == {"axes[0].left", "axes[1].stride", "axes[1].caushal"}


def test_plain_data_of_a_mask_needs_no_other_package() -> None:
    code = """
import sys
from nbattn import Mask
mask = Mask.from_dict({"neighborhood": {"kernel_size": 7, "rank": 2}})
assert Mask.from_dict(mask.to_dict()) == mask
print([name for name in ("numpy", "pydantic", "torch", "rich") if name in sys.modules])
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert run.stdout == "[]\n"
