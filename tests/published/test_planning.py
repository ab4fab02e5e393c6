"""Tests of plans of models: every layer is the plan that `nbattn.plan` makes, and work is counted
as by hand.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch_forks

import nbattn
from nbattn import InputError, Mask, published
from nbattn.published.models import MODELS

ROOT = Path(__file__).resolve().parents[2]


def test_flux_is_the_plans_of_its_layers() -> None:
    found = published.plan("flux", (4096, 4096), device="sm_90")
    mask = nbattn.load("flux_4k").masks["strided"]
    joint = nbattn.plan(
        mask, (1, 256, 256, 24, 128), extra_keys=512, extra_queries=True, device="sm_90"
    )
    dense = nbattn.plan(Mask.full(), (1, 65536 + 512, 24, 128), device="sm_90")
    assert [part.name for part in found.layers] == ["19 double", "38 single"]
    for part in found.layers:
        assert (part.plan, part.dense, part.mask) == (joint, dense, mask)
        assert (part.grid, part.text, part.windows) == ((256, 256), 512, "flux_4k/strided")
        assert part.seconds == sum(each.chosen.cost.seconds for each in joint.parts())
        assert part.dense_seconds == dense.chosen.cost.seconds


@pytest.mark.parametrize("training", [False, True])
def test_work_is_counted_as_by_hand(training: bool) -> None:
    """Every image token attends to its 80 x 80 window and the text, every text token to all."""
    found = published.plan("flux", (4096, 4096), device="sm_90", training=training)
    image, text, passes = 256 * 256, 512, 1 + 2.5 * training
    pairs = image * (80 * 80 + text) + text * (image + text)
    for part in found.layers:
        assert part.useful_flops == 4 * 24 * 128 * pairs * passes
        assert part.computed_flops >= part.useful_flops
        assert part.dense_flops >= 4 * 24 * 128 * (image + text) ** 2 * passes
    assert found.total("useful_flops") == 57 * found.layers[0].useful_flops
    assert found.seconds == pytest.approx(57 * found.layers[0].seconds)
    assert found.dense_seconds == pytest.approx(57 * found.layers[0].dense_seconds)


def test_computed_pairs_that_are_dropped_are_no_useful_work() -> None:
    (stage, *_) = published.plan("ltx2_decoder", device="sm_90").layers
    cost = stage.plan.chosen.cost
    assert stage.useful_flops == 4 * 64 * 32 * (18 * 16 * 24) * (3 * 7 * 7)
    assert stage.computed_flops == cost.flops > 3 * stage.useful_flops


def test_layers_without_published_windows_keep_the_models_attention() -> None:
    (double, self_) = published.plan("sd3.5", device="sm_90").layers
    for part, text in ((double, 333), (self_, 0)):
        assert (part.windows, part.mask, part.text) == ("none", Mask.full(2), text)
        assert part.plan is part.dense
        assert part.plan.request.query_space == (64 * 64 + text,)
        assert part.useful_flops == 4 * part.layers.dim * (64 * 64 + text) ** 2
    assert (double.name, self_.name) == ("24 double", "13 self")


def test_a_mask_is_for_all_layers_or_by_kind() -> None:
    mask, options = Mask.neighborhood((9, 9)), {"device": "cpu", "dtype": "float32"}
    every = published.plan("sd3.5", (512, 512), mask=mask, **options)
    assert [(part.windows, part.mask) for part in every.layers] == [("given", mask)] * 2
    some = published.plan("sd3.5", (512, 512), mask={"self": mask}, **options)
    assert [part.windows for part in some.layers] == ["none", "given"]
    some = published.plan("flux", (512, 512), mask={"double": None, "single": mask}, **options)
    assert [part.windows for part in some.layers] == ["none", "given"]
    assert some.layers[1].plan.request.extra_keys == 512


def test_layers_that_a_mask_makes_alike_are_together() -> None:
    cosmos = published.plan("cosmos", device="sm_90")
    assert cosmos.names() == [
        *("2 self global", "3 self wide", "7 self near", "15 self middle", "1 self far"),
    ]
    alike = published.plan("cosmos", mask=Mask.neighborhood((24, 12, 24)), device="sm_90")
    assert alike.names() == ["28 self"]
    assert published.plan("flux", device="sm_90").names() == ["19 double", "38 single"]


def test_text_of_another_length() -> None:
    found = published.plan("flux", (512, 512), text=64, device="cpu")
    assert {part.plan.request.extra_keys for part in found.layers} == {64}
    assert {part.dense.request.query_count for part in found.layers} == {32 * 32 + 64}
    none = published.plan("flux", (512, 512), text=0, device="cpu")
    assert {part.plan.request.extra_keys for part in none.layers} == {0}
    assert {part.text for part in none.layers} == {0}


def test_tiles_that_do_not_divide_the_grid_are_told() -> None:
    assert [part.note for part in published.plan("wan", device="cpu").layers] == [""]
    (part,) = published.plan("wan", (720, 1280), frames=81, device="cpu").layers
    assert part.note == (
        "tiles of 6 x 8 x 8 do not divide 21 x 45 x 80 tokens: sliding tile attention has no such "
        "grid, and here the last tiles are shorter"
    )
    # NATTEN's strides take every grid
    assert not any(part.note for part in published.plan("cosmos", device="sm_90").layers)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("device", ["cpu", "sm_90"])
def test_every_model_plans_exactly_and_is_plain_data(name: str, device: str) -> None:
    found = published.plan(name, device=device)
    assert found.verify()
    plain = found.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert sum(part["layers"] for part in plain["layers"]) == sum(
        layers.count for layers in MODELS[name].layers
    )
    for part in found.layers:
        assert part.dense.request.query_count == math.prod(part.grid) + part.text
        assert part.computed_flops >= part.useful_flops > 0
        assert 0 < part.tensor_bytes <= found.peak_bytes
        every = 4 * part.layers.dim * part.dense.request.query_count**2
        assert (part.useful_flops < every) == (part.windows != "none")


def test_a_plan_that_is_not_its_mask_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from nbattn.planner import proof

    def wrong(*_: object) -> bool:
        raise AssertionError("axis 0: query 3 attends to other keys")

    found = published.plan("flux", (512, 512), device="cpu")
    monkeypatch.setattr(proof, "verify", wrong)
    with pytest.raises(AssertionError, match="query 3"):
        found.verify()


def test_text_of_plans() -> None:
    found = published.plan("flux", (512, 512), device="cpu", dtype="float32")
    assert repr(found).startswith("ModelPlan(flux, (512, 512), cpu, float32: estimated ")
    assert repr(found).endswith(" without windows)")
    assert repr(found.layers[0]).startswith("LayerPlan(19 double, (32, 32), Mask(Axis(40, 39, ")


def test_needs_neither_diffusers_nor_a_device() -> None:
    code = (
        "import sys; sys.modules.update(diffusers=None, cupy=None)\n"
        "from nbattn import published\n"
        "print(published.plan('ltx2_decoder', device='sm_90').names())"
    )
    run = torch_forks.run(["-c", code], {**os.environ, "PYTHONPATH": str(ROOT)})
    assert run.stdout.startswith("['4 stage 1', '6 stage 2'"), run.stderr


MASK = Mask.neighborhood((3, 3))
ERRORS = {
    "text=5 is given, and no text attends together with the grid of wan: its cross attention is "
    "not planned.\n  fix:   text=None": ("wan", {"text": 5}),
    "text=-1 is below 0.\n  fix:   text=0": ("flux", {"text": -1}),
    "the mask has 2 axes, and tokens of wan have 3: frames, rows and columns.\n"
    f"  fix:   mask={Mask(*Mask.full().axes, *MASK.axes)!r}": ("wan", {"mask": MASK}),
    f"the mask has 3 axes, and tokens of flux have 2: rows and columns.\n  fix:   mask={MASK!r}": (
        "flux",
        {"mask": Mask.neighborhood((5, 3, 3))},
    ),
    "the mask has 1 axis, and tokens of flux have 2: rows and columns.\n"
    "  fix:   mask=Mask(Axis(), Axis(1, 1, border='shift'))": (
        "flux",
        {"mask": Mask.neighborhood(3)},
    ),
    "mask has 'doble', and the layers of flux are double, single.\n"
    f"  fix:   mask={ {'double': MASK, 'single': None}!r}": (
        "flux",
        {"mask": {"doble": MASK, "single": None}},
    ),
    "mask=7 is not a Mask, nor a table of masks by kind of layers.\n"
    "  fix:   mask=Mask(Axis(), Axis())": ("flux", {"mask": 7}),
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors(text: str) -> None:
    name, options = ERRORS[text]
    with pytest.raises(InputError) as caught:
        published.plan(name, device="cpu", **options)
    assert str(caught.value) == text
