"""Fixes of configurations: keys and values as other libraries have them, files, and rules."""

from __future__ import annotations

import json
from typing import Any

from fixes.row import Row

MASKS = {"nat": {"neighborhood": {"kernel_size": [7, 7]}}}
LAYER = {"mask": "nat", "dim": 64, "num_heads": 4}
PLAN = {"mask": "nat", "query": [2, 12, 12, 4, 16], "device": "cpu"}
FULL = '{"masks": {"all": {"full": {}}}}'
FOLDER = "import tempfile, pathlib; monkeypatch.chdir(tempfile.mkdtemp()); here = pathlib.Path()"


def python(value: object) -> str:
    """A value as a user writes it in Python, with double quotes."""
    text = json.dumps(value)
    return text.replace("true", "True").replace("false", "False").replace("null", "None")


def load(**sections: Any) -> str:
    return f"config = nbattn.load({python(sections)})"


def layer(pasted: str, wrong: dict[str, Any], right: dict[str, Any], means: str = "True") -> Row:
    """A layer's table with a wrong key or value, and with the fix."""
    calls = [load(masks=MASKS, layers={"block": LAYER | keys}) for keys in (wrong, right)]
    return Row(calls[0], pasted, calls[1], f"(it := config.layers['block']).build() and {means}")


def plan(pasted: str, wrong: dict[str, Any], right: dict[str, Any], means: str = "True") -> Row:
    """A plan's table with a wrong key or value, and with the fix."""
    calls = [load(masks=MASKS, plans={"train": PLAN | keys}) for keys in (wrong, right)]
    return Row(calls[0], pasted, calls[1], f"(it := config.plans['train']).plan() and {means}")


def mask(pasted: str, wrong: dict[str, Any], right: dict[str, Any], means: str) -> Row:
    """A mask's table with a wrong key or value, and with the fix."""
    calls = [load(masks={"own": keys}) for keys in (wrong, right)]
    return Row(calls[0], pasted, calls[1], f"config.masks['own'] == {means}")


def axis(pasted: str, wrong: dict[str, Any], right: dict[str, Any], means: str) -> Row:
    """An axis with a wrong key or value, and with the fix."""
    return mask(pasted, {"axes": [wrong]}, {"axes": [right]}, f"Mask(Axis({means}))")


def file(suffix: str, wrong: str, pasted: str, right: str, means: str) -> Row:
    """A file, and the file with the fix."""
    calls = [
        f"(here / 'a.{suffix}').write_text('''{text}'''); config = nbattn.load('a.{suffix}')"
        for text in (wrong, right)
    ]
    return Row(calls[0], pasted, calls[1], means, FOLDER)


LAYERS = [
    layer("num_heads", {"heads": 8}, {"num_heads": 8}, "it.num_heads == 8"),
    layer("kv_heads", {"num_key_value_heads": 2}, {"kv_heads": 2}, "it.kv_heads == 2"),
    layer('"proj_drop": 0.1', {"dropout": 0.1}, {"proj_drop": 0.1}, "it.proj_drop == 0.1"),
    layer('"proj_drop": 0.1', {"attn_drop": 0.1}, {"proj_drop": 0.1}, "it.proj_drop == 0.1"),
    layer('"qkv_bias": False', {"qkv_bias": "no"}, {"qkv_bias": False}, "not it.qkv_bias"),
    layer('"flash"', {"backend": "flash-attn"}, {"backend": "flash"}, "it.backend == 'flash'"),
    layer('"native"', {"backend": "cpu"}, {"backend": "native"}, "it.backend == 'native'"),
    layer('"flex"', {"backend": "FlexAttention"}, {"backend": "flex"}),
    layer('"head_dim": 21', {"num_heads": 3}, {"num_heads": 3, "head_dim": 21}, "it.head_dim"),
    Row(
        call=load(layers={"block": {"dim": 64, "num_heads": 4, "kernel_size": 7, "dilation": 2}}),
        pasted='"neighborhood": {"kernel_size": 7, "dilation": 2}',
        fixed=load(
            masks={"block": {"neighborhood": {"kernel_size": 7, "dilation": 2}}},
            layers={"block": {"dim": 64, "num_heads": 4, "mask": "block"}},
        ),
        means="config.layers['block'].mask == Mask.neighborhood(7, dilation=2)",
    ),
    Row(
        call=load(layers={"block": {"dim": 64, "num_heads": 4, "window_size": [512, 0]}}),
        pasted='"from_flash": {"window_size": [512, 0]}',
        fixed=load(
            masks={"block": {"from_flash": {"window_size": [512, 0]}}},
            layers={"block": {"dim": 64, "num_heads": 4, "mask": "block"}},
        ),
        means="config.layers['block'].mask == Mask.from_flash((512, 0))",
    ),
]
PLANS = [
    plan('"query": [1, 7, 8, 4, 16]', {"query": [1, 56, 4, 16]}, {"query": [1, 7, 8, 4, 16]}),
    plan('"bfloat16"', {"dtype": "bf16"}, {"dtype": "bfloat16"}, "it.dtype == 'bfloat16'"),
    plan('"float16"', {"dtype": "half"}, {"dtype": "float16"}),
    plan('"float32"', {"dtype": "fp32"}, {"dtype": "float32"}),
    plan('"sm_90"', {"device": "H100"}, {"device": "sm_90"}, "it.device == 'sm_90'"),
    plan('"sm_80"', {"device": "NVIDIA A100-SXM4-80GB"}, {"device": "sm_80"}),
    plan('"sm_86"', {"device": "sm_87"}, {"device": "sm_86"}),
    plan('"reference"', {"backend": "math"}, {"backend": "reference"}),
    plan('"tiled"', {"backend": "pytorch"}, {"backend": "tiled"}),
    plan("training", {"requires_grad": True}, {"training": True}, "it.training"),
    plan('"require": ["tile"]', {"require": "tile"}, {"require": ["tile"]}),
    plan('"tile"', {"require": ["tiles"]}, {"require": ["tile"]}),
    plan('"softcap": 30.0', {"softcap": "30"}, {"softcap": 30.0}, "it.softcap == 30.0"),
    plan('"nat"', {"mask": "natt"}, {"mask": "nat"}),
    Row(
        call=load(
            masks={"text": {"sliding_window": {"left": 15}}},
            plans={"step": {"mask": "text", "query": [1, 1, 2, 8], "key": [1, 40, 2, 8]}},
        ),
        pasted='"axes": [{"left": 15, "right": 0, "align": "bottom-right"}]',
        fixed=load(
            masks={"text": {"axes": [{"left": 15, "right": 0, "align": "bottom-right"}]}},
            plans={"step": {"mask": "text", "query": [1, 1, 2, 8], "key": [1, 40, 2, 8]}},
        ),
        means="config.plans['step'].mask.dense(1, 40).sum() == 16",
    ),
]
ENTRIES = [
    mask(
        '"neighborhood": {"kernel_size": 7, "dilation": 2}',
        {"kernel_size": 7, "dilation": 2},
        {"neighborhood": {"kernel_size": 7, "dilation": 2}},
        "Mask.neighborhood(7, dilation=2)",
    ),
    mask(
        '"axes": [{"left": 8, "causal": True}]',
        {"left": 8, "causal": True},
        {"axes": [{"left": 8, "causal": True}]},
        "Mask(Axis(8, causal=True))",
    ),
    mask('"causal": {}', {"causal": True}, {"causal": {}}, "Mask.causal()"),
    mask('"full": {"rank": 2}', {"full": 2}, {"full": {"rank": 2}}, "Mask.full(rank=2)"),
    mask('"full": {}', {}, {"full": {}}, "Mask.full()"),
    mask(
        '"full": {"rank": 2}',
        {"axes": [{"left": 1}], "full": {"rank": 2}},
        {"full": {"rank": 2}},
        "Mask.full(rank=2)",
    ),
    mask(
        '"sliding_window": {"left": 511}',
        {"window": 512},
        {"sliding_window": {"left": 511}},
        "Mask.sliding_window(511)",
    ),
    mask(
        '"left": 511',
        {"sliding_window": {"window": 512}},
        {"sliding_window": {"left": 511}},
        "Mask.sliding_window(511)",
    ),
    mask(
        '"neighborhood": {"kernel_size": [7, 7]}',
        {"neighborhood": [7, 7]},
        {"neighborhood": {"kernel_size": [7, 7]}},
        "Mask.neighborhood((7, 7))",
    ),
    mask(
        "is_causal",
        {"neighborhood": {"kernel_size": 7, "causal": True}},
        {"neighborhood": {"kernel_size": 7, "is_causal": True}},
        "Mask.neighborhood(7, is_causal=True)",
    ),
]
AXES = [
    axis(
        '"wrap"',
        {"left": 3, "border": "circular"},
        {"left": 3, "border": "wrap"},
        "3, border='wrap'",
    ),
    axis('"border": "wrap"', {"periodic": True}, {"border": "wrap"}, "border='wrap'"),
    axis(
        '"left": 4, "right": 3, "border": "shift"',
        {"kernel_size": 8},
        {"left": 4, "right": 3, "border": "shift"},
        "4, 3, border='shift'",
    ),
    axis(
        '"left": 6',
        {"kernel_size": 7, "causal": True},
        {"left": 6, "causal": True},
        "6, causal=True",
    ),
    axis('"left": 512, "right": 0', {"window_size": [512, 0]}, {"left": 512, "right": 0}, "512, 0"),
    axis('"left": 3', {"left": "3"}, {"left": 3}, "3"),
    axis('"left": 3', {"left": 3.0}, {"left": 3}, "3"),
    axis("causal", {"is_causal": True}, {"causal": True}, "causal=True"),
    axis(
        '{"left": 1, "right": 0, "causal": True}',
        {"left": 1, "right": 2, "causal": True},
        {"left": 1, "right": 0, "causal": True},
        "1, 0, causal=True",
    ),
]
FORMS = [
    Row(
        load(masks={"own": "causal"}),
        '"own": {"causal": {}}',
        load(masks={"own": {"causal": {}}}),
        "config.masks['own'] == Mask.causal()",
    ),
    Row(
        load(masks={"own": [7, 7]}),
        '"own": {"neighborhood": {"kernel_size": [7, 7]}}',
        load(masks={"own": {"neighborhood": {"kernel_size": [7, 7]}}}),
        "config.masks['own'] == Mask.neighborhood((7, 7))",
    ),
    mask(
        '"neighborhood": {"kernel_size": 7}',
        {"type": "neighborhood", "kernel_size": 7},
        {"neighborhood": {"kernel_size": 7}},
        "Mask.neighborhood(7)",
    ),
    mask(
        '"neighborhood": {"kernel_size": 7}',
        {"neighborhood": "7"},
        {"neighborhood": {"kernel_size": 7}},
        "Mask.neighborhood(7)",
    ),
    mask(
        '"kernel_size": [7, 7]',
        {"neighborhood": {"kernel_size": "7,7"}},
        {"neighborhood": {"kernel_size": [7, 7]}},
        "Mask.neighborhood((7, 7))",
    ),
    mask(
        '{"left": 3, "right": 0}',
        {"axes": [[3, 0]]},
        {"axes": [{"left": 3, "right": 0}]},
        "Mask(Axis(3, 0))",
    ),
    *[
        plan(
            '"query": [2, 12, 12, 4, 16]',
            {"query": text},
            {"query": [2, 12, 12, 4, 16]},
            "it.query == (2, 12, 12, 4, 16)",
        )
        for text in ("2,12,12,4,16", "[2, 12, 12, 4, 16]", "2x12x12x4x16")
    ],
]
FILES = [
    file(
        "toml",
        "[masks.a]\naxes = [{ left = 1, right = 2, causal = true }]",
        "{ left = 1, right = 0, causal = true }",
        "[masks.a]\naxes = [{ left = 1, right = 0, causal = true }]",
        "config.masks['a'] == Mask(Axis(1, 0, causal=True))",
    ),
    file(
        "yaml",
        "masks: {a: {axes: [{causal: no}]}}",
        "causal: false",
        "masks: {a: {axes: [{causal: false}]}}",
        "config.masks['a'] == Mask(Axis())",
    ),
    file(
        "json",
        '{"masks": {"a": {"full": 2}}}',
        '"full": {"rank": 2}',
        '{"masks": {"a": {"full": {"rank": 2}}}}',
        "config.masks['a'] == Mask.full(rank=2)",
    ),
    Row(
        call="nbattn.load('video3d.toml')",
        pasted="video_3d.toml",
        fixed="config = nbattn.load('video_3d.toml')",
        means="config.masks['all'] == Mask.full()",
        given=f"{FOLDER}; (here / 'video_3d.toml').write_text('[masks.all]\\nfull = {{}}')",
    ),
    Row(
        call="(here / 'a.yaml').write_text('masks: {}'); nbattn.load('a.yaml')",
        pasted="pip install pyyaml",
        given=f"{FOLDER}; import sys; monkeypatch.setitem(sys.modules, 'yaml', None)",
    ),
]
LOADED = [
    Row(
        call="nbattn.load(source)",
        pasted="nbattn.load(tomllib.loads(source.decode()))",
        fixed="import tomllib; config = nbattn.load(tomllib.loads(source.decode()))",
        means="config.masks['a'] == Mask.full()",
        given="source = b'[masks.a]\\nfull = {}'",
    ),
    *(
        Row(
            call="nbattn.load(text)",
            pasted=f"nbattn.load({parse}(text))",
            fixed=f"import json, tomllib, yaml; config = nbattn.load({parse}(text))",
            means="config.masks['all'] == Mask.full()",
            given=f"text = {text!r}",
        )
        for parse, text in (
            ("tomllib.loads", "[masks.all]\nfull = {}"),
            ("json.loads", FULL + "\n"),
            ("yaml.safe_load", "masks:\n  all:\n    full: {}\n"),
        )
    ),
    Row(
        call="nbattn.load('my_masks')",
        pasted="my_masks.toml",
        fixed="config = nbattn.load('my_masks.toml')",
        means="config.masks['all'] == Mask.full()",
        given=f"{FOLDER}; (here / 'my_masks.toml').write_text('[masks.all]\\nfull = {{}}')",
    ),
    Row(
        call="nbattn.load(config)",
        pasted="nbattn.load(config.to_dict())",
        fixed="again = nbattn.load(config.to_dict())",
        means="again == config",
        given=f"config = nbattn.load({FULL})",
    ),
    Row(
        call="with open('a.json') as file: nbattn.load(file)",
        pasted="nbattn.load(file.name)",
        fixed="with open('a.json') as file: config = nbattn.load(file.name)",
        means="config.masks['all'] == Mask.full()",
        given=f"{FOLDER}; (here / 'a.json').write_text('{FULL}')",
    ),
    *(
        Row(
            call="Mask.from_dict(data)",
            pasted=pasted,
            fixed=f"import json; text = data; own = {fixed}",
            means=f"own == {wanted}",
            given=f"data = {data}",
        )
        for data, pasted, fixed, wanted in (
            (
                "mask = Mask.causal()",
                "Mask.from_dict(mask.to_dict())",
                "Mask.from_dict(mask.to_dict())",
                "mask",
            ),
            (
                "' {\"full\": {}}'",
                "Mask.from_dict(json.loads(text))",
                "Mask.from_dict(json.loads(text))",
                "Mask.full()",
            ),
            (
                FULL,
                "nbattn.load(data).masks['all']",
                "nbattn.load(data).masks['all']",
                "Mask.full()",
            ),
            (
                "[7, 7]",
                '{"neighborhood": {"kernel_size": [7, 7]}}',
                'Mask.from_dict({"neighborhood": {"kernel_size": [7, 7]}})',
                "Mask.neighborhood((7, 7))",
            ),
            (
                '{"axes": [{"left": "3"}]}',
                '"left": 3',
                'Mask.from_dict({"axes": [{"left": 3}]})',
                "Mask(Axis(3))",
            ),
        )
    ),
    Row(
        call="nbattn.load([7, 7])",
        pasted='nbattn.load({"masks": {"mine": {"neighborhood": {"kernel_size": 7}}}})',
        fixed='config = nbattn.load({"masks": {"mine": {"neighborhood": {"kernel_size": 7}}}})',
        means="config.masks['mine'] == Mask.neighborhood(7)",
    ),
]
ROWS = [*LAYERS, *PLANS, *ENTRIES, *AXES, *FORMS, *FILES, *LOADED]
