"""Tests of configurations in use: real files, three formats, layers, plans and dumps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from omegaconf import OmegaConf
from oracle import masks
from work import work

import nbattn
from nbattn import Axis, ConfigError, Mask
from nbattn.config import LayerConfig, PlanConfig

Count = Callable[[str, int], None]
ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").iterdir())


def mistakes_of(source: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        nbattn.load(source)
    return str(caught.value)


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
        "ltx2_decoder",
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


def test_files_load_as_these_masks() -> None:
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
    assert masks_of("weather.toml")["far"] == Mask(
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


@settings(max_examples=60)
@given(masks(), masks())
def test_dumped_configurations_load_unchanged(cases: Count, one: Any, other: Any) -> None:
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


def test_load_takes_only_paths_and_mappings() -> None:
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

    error: Exception

    def __iter__(self) -> Any:
        raise self.error


def test_a_mapping_that_fails_is_named() -> None:
    for error, reason in ((ValueError("no keys today"), "no keys today"), (KeyError(), "KeyError")):
        Broken.error = error
        assert mistakes_of({"masks": Broken()}) == f"mapping: masks: cannot be read: {reason}."


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
