"""Tests of the grammar of configurations: options, random trees and the schema."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbattn
from nbattn import Axis, ConfigError, Mask
from nbattn.config import schema

Count = Callable[[str, int], None]
ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").iterdir())


def test_an_unlimited_side_is_absent_or_null(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("masks: {a: {axes: [{left: null, right: 3}]}, b: {axes: [{right: 3}]}}")
    assert {*nbattn.load(path).masks.values()} == {Mask(Axis(None, 3))}


def test_an_alignment_is_absent_null_a_name_or_a_number(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    alignments = {
        "absent": "",
        "none": "align: null",
        "name": "align: bottom-right",
        "number": "align: 8",
    }
    lines = [f"  {n}: {{axes: [{{left: 3, right: 0, {text}}}]}}" for n, text in alignments.items()]
    lines += [
        f"  {n} made: {{sliding_window: {{left: 3, {text}}}}}" for n, text in alignments.items()
    ]
    path.write_text("\n".join(["masks:", *lines]))
    masks = nbattn.load(path).masks
    for made in ("", " made"):
        assert masks["absent" + made] == masks["none" + made] == Mask(Axis(3, 0))
        assert masks["name" + made] == Mask(Axis(3, 0, align="bottom-right"))
        assert masks["number" + made] == Mask(Axis(3, 0, align="top-left", offset=8))


KEYS = st.sampled_from(
    [
        *("masks", "layers", "plans", "a", "axes", "left", "right", "border", "causal", "full"),
        *("neighborhood", "kernel_size", "mask", "dim", "num_heads", "query", "key", "dtype"),
        *("device", "int"),
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 9)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=3)
    | KEYS
    | st.sampled_from(["wrap", "cpu", "sm_90", "auto", "\ud800", object(), {1}, Ellipsis])
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=4)
        | st.dictionaries(st.integers() | st.none(), inner, max_size=1)
    ),
    max_leaves=12,
)
VALID = nbattn.load(ROOT / "configs" / "video_3d.toml").to_dict() | {
    "masks": {"encoder": {"axes": [{"left": 8}] * 3}, "nat": {"neighborhood": {"kernel_size": 7}}}
}


def spots(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree if isinstance(tree, list) else ())
    )
    return [path, *(spot for key, value in inner for spot in spots(value, (*path, key)))]


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = replaced(tree[path[0]], path[1:], value)
    return copy


def loads_or_says_why(cases: Count, source: Any) -> None:
    """Nothing but ConfigError leaves the loader, and its lines name the source."""
    try:
        nbattn.load(source)
    except ConfigError as error:
        lines = str(error).splitlines()
        wrong = [line for line in lines if not line.startswith(f"{error.source}: ")]
    else:
        lines, wrong = [], []
    assert wrong == []
    cases(f"configs fuzzed: {'refused' if lines else 'loaded'}", 1)


@given(st.dictionaries(KEYS | st.text(max_size=3), TREES, max_size=3))
def test_any_mapping_loads_or_raises_config_error(cases: Count, tree: dict[str, Any]) -> None:
    loads_or_says_why(cases, tree)


@given(st.sampled_from(spots(VALID)[1:]), TREES)
def test_a_valid_configuration_with_one_value_replaced(
    cases: Count, path: tuple[Any, ...], value: Any
) -> None:
    loads_or_says_why(cases, replaced(VALID, path, value))


@given(st.sampled_from([".toml", ".yaml", ".json"]), st.binary(max_size=40) | st.text(max_size=40))
def test_any_file_loads_or_raises_config_error(
    cases: Count, tmp_path_factory: pytest.TempPathFactory, suffix: str, text: bytes | str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    loads_or_says_why(cases, path)


# The schema.


def test_the_schema_agrees_with_the_loader_on_structure() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    validator = jsonschema.Draft202012Validator(schema())
    for path in FILES:
        validator.validate(nbattn.load(path).to_dict())
    for wrong in (
        {"mask": {}},
        {"masks": {"a": {"axes": [{"lefft": 1}]}}},
        {"masks": {"a": {"axes": [{"border": "wrapp"}]}}},
        {"masks": {"a": {"neighborhood": {}}}},
        {"layers": {"a": {"mask": "m", "dim": "64", "num_heads": 2}}},
        {"plans": {"a": {"mask": "m"}}},
    ):
        assert not validator.is_valid(wrong), wrong
