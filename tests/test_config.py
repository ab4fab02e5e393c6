"""Configurations: real files, every mistake's exact words, hostile input, and the schema."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import jsonschema
import pytest
from config_mistakes import CASES
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from oracle import masks
from work import work

import nbattn
from nbattn import Axis, ConfigError, Mask
from nbattn.config import LayerConfig, PlanConfig, schema

Count = Callable[[str, int], None]
ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").iterdir())


def cases_of(text: str) -> list[tuple[str, str, str, str]]:
    """(title, suffix, content, expected) of every case."""
    found = []
    for block in text.strip().split("\n\n"):
        title, *lines = block.splitlines()
        body = [line for line in lines if line.startswith("    ")]
        suffix, *content = dedent("\n".join(body)).splitlines()
        found.append((title, suffix, "\n".join(content), "\n".join(lines[len(body) :])))
    return found


MALFORMED = cases_of(CASES)
assert len(MALFORMED) >= 45


def mistakes_of(source: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        nbattn.load(source)
    return str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "content", "expected"),
    [case[1:] for case in MALFORMED],
    ids=[c[0] for c in MALFORMED],
)
def test_a_malformed_file_is_answered_in_these_words(
    tmp_path: Path, suffix: str, content: str, expected: str
) -> None:
    path = tmp_path / f"bad.{suffix}"
    path.write_text(content)
    lines = [f"{path}: {line}" for line in expected.splitlines()]
    assert mistakes_of(path) == "\n".join(lines)


def test_a_mapping_is_answered_in_the_same_words() -> None:
    bad = {"masks": {"a": {"axes": [{"lefft": 1}]}}}
    assert mistakes_of(bad).startswith("mapping: masks.a.axes[0].lefft: unknown key; legal: left,")


def test_the_mistakes_are_data_too() -> None:
    with pytest.raises(ConfigError) as caught:
        nbattn.load({"masks": {"a": {"axes": [{"border": "wrapp"}]}}})
    (mistake,) = caught.value.mistakes
    assert mistake.path == "masks.a.axes[0].border"
    assert mistake.found == 'found "wrapp"'
    assert mistake.legal == '"clip", "shift" or "wrap"'
    assert mistake.guess == '"wrap"'
    assert caught.value.source == "mapping"


# Real files.


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_real_file_opens_and_every_plan_is_proved(path: Path, cases: Count) -> None:
    config = nbattn.load(path)
    assert config.masks
    assert config.layers
    for request in config.plans.values():
        for device in {request.device or "cpu", "sm_90"}:
            plan = request.plan(device=device)
            assert plan.verify()
            found = work(plan.verify)
            assert found.lines <= 100_000
            assert found.peak <= 8 << 20
            cases("plans of configs verified", 1)


def test_real_files_are_many() -> None:
    names = {path.stem for path in FILES}
    assert names >= {
        "nat_tiny",
        "dinat_tiny",
        "mistral",
        "flux_4k",
        "hunyuan_video",
        "cosmos_predict2",
        "weather",
        "video_3d",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_real_files_layers_are_built(path: Path, cases: Count) -> None:
    import torch

    config = nbattn.load(path)
    with torch.device("meta"):
        for name, layer in config.layers.items():
            built = layer.build()
            assert built.mask == layer.mask, name
            cases("layers of configs built", 1)


def test_files_mean_these_masks() -> None:
    def masks_of(name: str) -> dict[str, Mask]:
        return nbattn.load(ROOT / "configs" / name).masks

    assert masks_of("video_3d.toml")["encoder"] == Mask(
        Axis(8, 0, causal=True),
        Axis(6, 6, border="shift"),
        Axis(6, 6, border="wrap", dilation=2),
    )
    assert masks_of("mistral.toml")["decoder"] == Mask(
        Axis(4095, 0, causal=True, align="bottom-right")
    )
    assert masks_of("weather.yaml")["far"] == Mask(
        Axis(4, 4, dilation=4), Axis(8, 8, border="wrap", dilation=4)
    )
    cosmos = nbattn.load(ROOT / "configs" / "cosmos_predict2.toml")
    assert len(cosmos.layers) == 28
    full = Axis()
    for name, rest in {
        "global": Mask.neighborhood((4, 16), dilation=(11, 5)),
        "wide": Mask.neighborhood((12, 16), stride=(4, 1), dilation=(1, 5)),
        "near": Mask.neighborhood((12, 24), stride=(4, 8)),
        "middle": Mask.neighborhood((20, 40), stride=(4, 8)),
        "far": Mask.neighborhood((28, 56), stride=(4, 8)),
    }.items():
        assert cosmos.masks[name] == Mask(full, *rest.axes)
    # shares of the pairs that the published table leaves out, in percent
    left_out = {"global": 98, "wide": 95, "near": 92, "middle": 77, "far": 55}
    for name, percent in left_out.items():
        cost = cosmos.plans[name].plan(device="sm_90").chosen.cost
        assert cost is not None
        share = cost.useful_pairs / (16 * (24 * 44 * 80) ** 2)
        assert round(100 * (1 - share)) == percent


def test_one_file_in_three_formats_is_one_configuration(tmp_path: Path) -> None:
    toml = tmp_path / "a.toml"
    toml.write_text('[masks.a]\naxes = [{ left = 2, border = "wrap", right = 1 }]\n')
    yaml = tmp_path / "a.yml"
    yaml.write_text("masks:\n  a:\n    axes:\n      - {left: 2, border: wrap, right: 1}\n")
    plain = tmp_path / "a.json"
    plain.write_text('{"masks": {"a": {"axes": [{"left": 2, "border": "wrap", "right": 1}]}}}')
    assert nbattn.load(toml) == nbattn.load(yaml) == nbattn.load(str(plain))
    assert nbattn.load(toml).masks == {"a": Mask(Axis(2, 1, border="wrap"))}


def test_an_unlimited_side_is_absent_or_null(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("masks: {a: {axes: [{left: null, right: 3}]}, b: {axes: [{right: 3}]}}")
    assert {*nbattn.load(path).masks.values()} == {Mask(Axis(None, 3))}


def test_an_alignment_is_absent_null_a_name_or_a_number(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    said = {
        "absent": "",
        "none": "align: null",
        "name": "align: bottom-right",
        "number": "align: 8",
    }
    lines = [f"  {n}: {{axes: [{{left: 3, right: 0, {text}}}]}}" for n, text in said.items()]
    lines += [f"  {n} made: {{sliding_window: {{left: 3, {text}}}}}" for n, text in said.items()]
    path.write_text("\n".join(["masks:", *lines]))
    masks = nbattn.load(path).masks
    for made in ("", " made"):
        assert masks["absent" + made] == masks["none" + made] == Mask(Axis(3, 0))
        assert masks["name" + made] == Mask(Axis(3, 0, align="bottom-right"))
        assert masks["number" + made] == Mask(Axis(3, 0, align="top-left", offset=8))


def test_layers_and_plans_are_built_from_their_tables() -> None:
    config = nbattn.load(
        {
            "masks": {"m": {"causal": {"align": "top-left"}}},
            "layers": {"l": {"mask": "m", "dim": 32, "num_heads": 4, "kv_heads": 2}},
            "plans": {"p": {"mask": "m", "query": [1, 2048, 8, 64], "key": [1, 512, 8, 64]}},
        }
    )
    causal = Mask.causal("top-left")
    assert config.layers == {"l": LayerConfig(mask=causal, dim=32, num_heads=4, kv_heads=2)}
    request = PlanConfig(mask=causal, query=(1, 2048, 8, 64), key=(1, 512, 8, 64))
    assert config.plans == {"p": request}
    layer = config.layers["l"].build()
    assert (layer.num_heads, layer.mask) == (4, causal)
    plan = request.plan(dtype="float32", device="cpu")
    assert plan == nbattn.plan(
        causal, (1, 2048, 8, 64), (1, 512, 8, 64), dtype="float32", device="cpu"
    )


def test_every_option_of_a_plan_reaches_the_planner() -> None:
    table = {
        "query": [2, 8, 4, 16],
        "key": [2, 9, 2, 16],
        "value_dim": 8,
        "dtype": "float64",
        "device": "sm_80",
        "training": True,
        "backend": "tiled",
        "require": ["tile"],
        "forbid": ["fold"],
        "return_lse": True,
        "extra_keys": 3,
        "softcap": 5,
        "sink": True,
        "key_range": True,
        "deterministic": True,
        "packed": True,
    }
    config = nbattn.load({"masks": {"m": {"full": {}}}, "plans": {"p": table | {"mask": "m"}}})
    request = config.plans["p"].plan().request
    assert (request.batch, request.query_space, request.heads, request.head_dim) == (2, (8,), 4, 16)
    assert (request.key_space, request.kv_heads, request.value_dim) == ((9,), 2, 8)
    assert (request.dtype, request.device.name, request.backend) == ("float64", "sm_80", "tiled")
    assert (request.require, request.forbid, request.extra_keys) == (("tile",), ("fold",), 3)
    assert request.layout == "packed"
    switches = ("training", "return_lse", "softcap", "sink", "key_range", "deterministic")
    assert all(getattr(request, name) for name in switches)


@given(masks(), masks())
def test_what_is_dumped_loads_as_it_was(cases: Count, one: Any, other: Any) -> None:
    first, second = one[0], other[0]

    def table(mask: Mask) -> dict[str, Any]:
        names = Axis.__dataclass_fields__
        return {"axes": [{n: getattr(axis, n) for n in names} for axis in mask.axes]}

    config = nbattn.load({"masks": {"a": table(first), "b": table(second)}})
    assert config.masks == {"a": first, "b": second}
    assert nbattn.load(config.to_dict()) == config
    assert nbattn.load(json.loads(json.dumps(config.to_dict()))) == config
    cases("configs dumped and loaded", 1)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_real_file_survives_dumping(path: Path) -> None:
    config = nbattn.load(path)
    assert nbattn.load(config.to_dict()) == config


# Hostile input.


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def said(name: str, content: bytes | None = None) -> str:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        return mistakes_of(path).removeprefix(f"{path}: ")

    assert said("absent.toml") == "cannot be read: No such file or directory."
    (tmp_path / "folder.toml").mkdir()
    assert said("folder.toml") == "cannot be read: is no regular file."
    assert said("masks.ini", b"") == "unknown kind of file; legal: .toml, .yaml, .yml, .json."
    assert said("masks") == "unknown kind of file; legal: .toml, .yaml, .yml, .json."
    assert said("latin.toml", b"# \xe9") == "byte 2 is not UTF-8; legal: UTF-8 text."
    large = "larger than 1048576 bytes; legal: up to 1048576 bytes."
    for name in ("large.toml", "large.yaml", "large.json"):
        assert said(name, b" " * 10_000_000) == large
    os.mkfifo(tmp_path / "pipe.toml")
    assert said("pipe.toml") == "cannot be read: is no regular file."
    assert said("bom.toml", "\ufeff[masks.a]\nfull = 1".encode()) == (
        "masks.a.full: found 1; legal: a table."
    )
    nul = said("nul\0.toml")  # the rest is Python's
    assert re.fullmatch(r"cannot be read: (stat: )?embedded null (byte|character in path)\.", nul)


def test_deep_nesting_is_refused_in_every_format(tmp_path: Path) -> None:
    deep = "[" * 100_000
    for name, text, expected in [
        ("a.toml", f"a = {deep}", "not toml: nested deeper than 16."),
        ("a.yaml", deep, "not yaml: nested deeper than 16."),
        ("a.json", deep, "not json: nested deeper than 16."),
        ("b.json", '{"masks":' * 17 + "1" + "}" * 17, "is nested deeper than 16."),
    ]:
        path = tmp_path / name
        path.write_text(text)
        assert mistakes_of(path) == f"{path}: {expected}"
    circle: dict[str, Any] = {}
    circle["masks"] = circle
    assert mistakes_of(circle) == "mapping: is nested deeper than 16."


def test_an_alias_bomb_is_refused_before_it_is_built(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    assert mistakes_of(path) == f"{path}: not yaml: line 2: aliases are not read; write it out."
    bomb: Any = "x"
    for _ in range(10):
        bomb = [bomb] * 9
    assert mistakes_of({"masks": bomb}) == "mapping: holds more than 100000 values."


@pytest.mark.parametrize("tag", ["name:os.system", "object/new:os.system [id]", "module:os id"])
def test_python_tags_are_refused(tmp_path: Path, tag: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"masks: !!python/{tag}")
    assert "line 1: tags are not read; write the value without !!python/" in mistakes_of(path)


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("left: !!float '" + "1:" * 299 + "1'", "!!float"),  # 60 ** 299 overflows
        ("left: !!int '1:1:1'", "!!int"),
        ("left: !!binary x", "!!binary"),
        ("left: !!timestamp 2001-01-01", "!!timestamp"),
        ("left: !!set {a, b}", "!!set"),
        ("left: !!omap [a: 1]", "!!omap"),
        ("left: !!str 1", "!!str"),
        ("left: ! 1", "!"),
        ("left: !own 1", "!own"),
        ("? !!float 1:1\n: 1", "!!float"),
        ("!!map {left: 1}", "!!map"),
        ("!<tag:yaml.org,2002:seq> [1]", "!!seq"),
        ("%TAG !e! tag:e,2000:\n---\nleft: !e!own 1", "tag:e,2000:own"),
    ],
)
def test_tags_are_refused(tmp_path: Path, text: str, tag: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    line = 1 + text.count("\n") * text.startswith("%")
    says = f"not yaml: line {line}: tags are not read; write the value without {tag}."
    assert mistakes_of(path) == f"{path}: {says}"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (".inf: 1", '".inf"'),
        ("<<: {a: 1}", '"<<"'),
        ("=: 1", '"="'),
        ("1:1:1: 2", '"1:1:1"'),
        ("2001-01-01: 1", "2001-01-01"),
    ],
)
def test_keys_that_yaml_1_1_reads_otherwise_are_text(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert mistakes_of(path) == f"{path}: {key}: unknown key; legal: masks, layers, plans."


def test_yaml_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = tmp_path / "a.yaml"
    path.write_text("masks: {}")
    expected = 'YAML needs PyYAML, which is not installed; fix: pip install "nbattn[yaml]".'
    assert mistakes_of(path) == f"{path}: {expected}"


def test_only_paths_and_mappings_are_loaded() -> None:
    with pytest.raises(nbattn.InputError, match="load takes a path or a mapping, not a list"):
        nbattn.load([])  # pyright: ignore


def test_omegaconf_containers_are_resolved() -> None:
    config = OmegaConf.create(
        {
            "side": 3,
            "masks": {"m": {"axes": [{"left": "${side}", "right": "${side}"}, {"left": "${no}"}]}},
            "layers": {"l": {"mask": "???"}},
        }
    )
    assert isinstance(config, dict) is False
    text = mistakes_of(config)
    assert "masks.m.axes[1].left: cannot be read: Interpolation key 'no' not found" in text
    assert "layers.l.mask: cannot be read: Missing mandatory value: layers.l.mask" in text
    del config["side"], config["layers"]
    config["masks"]["m"]["axes"] = [{"left": 2}]
    assert nbattn.load(config).masks == {"m": Mask(Axis(2))}


class Broken(UserDict[str, Any]):
    """A mapping that cannot even be listed."""

    def __iter__(self) -> Any:
        raise RuntimeError("no keys today")


def test_a_mapping_that_fails_is_named() -> None:
    assert mistakes_of({"masks": Broken()}) == "mapping: masks: cannot be read: no keys today."


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
def test_any_mapping_loads_or_says_why(cases: Count, tree: dict[str, Any]) -> None:
    loads_or_says_why(cases, tree)


@given(st.sampled_from(spots(VALID)[1:]), TREES)
def test_a_valid_configuration_with_one_value_replaced(
    cases: Count, path: tuple[Any, ...], value: Any
) -> None:
    loads_or_says_why(cases, replaced(VALID, path, value))


@given(st.sampled_from([".toml", ".yaml", ".json"]), st.binary(max_size=40) | st.text(max_size=40))
def test_any_file_loads_or_says_why(
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


def test_masks_alone_need_no_torch() -> None:
    code = f"""
import sys
sys.modules["torch"] = None
import nbattn
config = nbattn.load({{"masks": {{"a": {{"neighborhood": {{"kernel_size": [7, 7]}}}}}}}})
print(config.masks["a"].draw({(2, 2)!r}).splitlines()[0])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout == "16 of 16 pairs; 4 keys per query\n", run.stderr
