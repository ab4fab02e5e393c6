"""Tests of the costs of the Triton kernels: pairs, flops, launches, time."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from triton_plans import arguments, device, planned

from nbattn import Axis, Mask
from nbattn.backends.triton import costs
from nbattn.backends.triton import tiles as triton_tiles
from nbattn.backends.triton.tiles import Build
from nbattn.geometry import pairs
from nbattn.program.costs import Cost
from nbattn.program.tile_counts import padded
from nbattn.program.tile_traversal import Traversal

GRID = Mask.neighborhood((9, 9))


def cost(mask: Mask = GRID, shape: tuple[int, ...] = (2, 64, 64, 8, 64), **named: Any) -> Cost:
    found = planned(mask, shape, **named).chosen.cost
    assert found is not None
    return found


def test_costs_follow_the_kernels() -> None:
    """Seven products of a training step where Flash has five."""
    build = Build("bfloat16", 64, 64, 1)
    assert [triton_tiles.products(k, build) for k in ("fwd", "dq", "dkdv")] == [128, 192, 256]
    forward, step = (cost(Mask.full(), (1, 4096, 8, 64), training=t) for t in (False, True))
    assert step.flops / forward.flops == pytest.approx(4.5)
    assert forward.computed_pairs == forward.useful_pairs == 8 * 4096**2


def test_launches_are_counted() -> None:
    """The forward; delta, gradients of queries, and of keys; of extra keys; of a table."""
    assert cost().calls == 1
    assert cost(training=True).calls == 4
    assert cost(extra_keys=3).calls == 1
    assert cost(training=True, extra_keys=3).calls == 5
    assert cost(training=True, relative_bias=True).calls == 5
    assert cost(training=True, relative_bias=True, extra_keys=3).calls == 6
    assert cost(training=True, sink=True).calls == 12


@pytest.mark.parametrize("dilation", [1, 2])
def test_pairs_are_those_of_visited_tiles(dilation: int) -> None:
    mask = Mask(Axis(4, 4, border="shift", dilation=dilation), Axis(3, 3, border="wrap"))
    plan = planned(mask, (2, 40, 48, 8, 64), key_shape=(2, 40, 48, 4, 64), training=True)
    axes, known = plan.request.axes(), arguments(plan)
    found = plan.chosen.cost
    assert found is not None
    assert found.useful_pairs == 16 * pairs(axes)
    visits = 1
    for axis, rows, columns in zip(
        padded(axes), known.forward.rows, known.forward.columns, strict=True
    ):
        visits *= Traversal(axis, uncut=True).tile_pairs(rows, columns)
    assert found.computed_pairs == 16 * visits * known.forward.area
    assert found.backward_pairs > found.computed_pairs  # seven products in the unit of five


def test_more_work_takes_longer() -> None:
    for grown in (
        [{"shape": (1, n, n, 8, 64)} for n in (16, 64, 128, 256)],
        [{"shape": (n, 64, 64, 8, 64)} for n in (1, 4, 32)],
        [{"mask": Mask.neighborhood((n, n))} for n in (3, 9, 21, 63)],
        [{"shape": (2, 64, 64, 8, d)} for d in (32, 64, 128, 256)],
        [{"training": t} for t in (False, True)],
        [{"extra_keys": n} for n in (0, 64, 1024)],
        [{"relative_bias": t, "training": True} for t in (False, True)],
        [{"dtype": name} for name in ("bfloat16", "float32")],
    ):
        times = [cost(**one).estimate for one in grown]
        assert all(less < more for less, more in pairwise(times)), (grown, times)


def test_extra_keys_are_pairs_of_every_query() -> None:
    plain, more = (cost(training=True, extra_keys=n) for n in (0, 64))
    extra = 16 * 64**2 * 64
    assert more.computed_pairs - plain.computed_pairs == extra
    assert more.backward_pairs - plain.backward_pairs == extra
    assert more.useful_pairs - plain.useful_pairs == extra


def test_the_kernel_of_delta_takes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of reading the output and its gradient; in training."""
    named = {"shape": (8, 256, 256, 8, 128), "training": True}
    with_it, without = cost(**named), cost(**{**named, "training": False})
    monkeypatch.setattr(costs, "_delta", lambda _: 0.0)
    read = 2 * 2 * 8 * 256**2 * 8 * 128 / device().bandwidth
    assert with_it.estimate - cost(**named).estimate == pytest.approx(read)
    assert cost(**{**named, "training": False}) == without


def test_faster_devices_take_less() -> None:
    devices = [device(name) for name in ("gfx1100", "gfx90a", "gfx942", "gfx950")]
    times = [cost(device=one, shape=(4, 256, 256, 16, 128)).estimate for one in devices]
    assert times == sorted(times, reverse=True)


def test_dilated_windows_cost_as_much_as_dense_ones() -> None:
    """Tiles lie in one class of the dilation."""
    one, four = (
        cost(Mask.neighborhood((13, 13), dilation=d), (1, 224, 224, 8, 64)).estimate for d in (1, 4)
    )
    assert four < 1.1 * one


def test_a_launch_costs_no_less_than_its_bytes() -> None:
    one = cost(Mask.neighborhood((1, 1)), (8, 256, 256, 8, 64), training=True)
    on = device()
    assert one.estimate >= one.bytes / on.bandwidth + 4 * on.launch
