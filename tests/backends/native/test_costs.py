"""Tests of the cost of native kernels: what counts, and that it scales with the device."""

from dataclasses import replace

import pytest
from small_requests import request_for

from nbattn import Mask
from nbattn.backends.native import costs
from nbattn.backends.native.costs import Work
from nbattn.planner import planner
from nbattn.program import device
from nbattn.program.costs import Cost
from nbattn.program.request import Request

GRID = request_for(
    Mask.neighborhood((7, 7)), (16, 16), batch=1, heads=2, kv_heads=2, backend="native"
)

FORWARD = (7 + 10 + 10 + 7) ** 2  # columns of tiles of 4x4 queries, and of 4x4 keys
INVERSE = (7 + 11 + 11 + 7) ** 2


def cost_of(request: Request) -> Cost:
    cost = planner.make(request).chosen.cost
    assert cost is not None
    return cost


def test_pairs_are_those_of_all_lanes() -> None:
    """Tiles of 4x4 queries: the hulls of four of 16 have 7, 10, 10 and 7 keys per axis."""
    cost = cost_of(GRID)
    assert cost.useful_pairs == 2 * 256 * 49
    assert cost.computed_pairs == 2 * 16 * FORWARD
    assert cost.calls == 1
    assert cost.flops == 2 * cost.computed_pairs * 16


def test_the_backward_counts_its_products() -> None:
    """All gradients take five products a pair; in two passes, those of queries take three and those
    of keys and values four. 2.5 times the two of the forward are what a pair of the backward stands
    for.
    """
    for dtype, calls, products in (
        ("float32", 2, 5 * FORWARD),
        ("bfloat16", 3, 3 * FORWARD + 4 * INVERSE),
    ):
        cost = cost_of(replace(GRID, training=True, dtype=dtype))
        assert cost.calls == calls
        assert cost.backward_pairs == pytest.approx(2 * 16 * products / 2 / 2.5, abs=1)
        assert cost.flops == pytest.approx(2 * 2 * 16 * (2 * FORWARD + products) * 8, rel=1e-4)


def test_one_column_costs_its_products_and_one_exponential() -> None:
    request = replace(GRID, batch=1, heads=1, kv_heads=1)
    none, one = Work(0, 0, 0, 0, 0, 0), Work(1, 1, 0, 0, 0, 0)
    cycles = {
        kernel: (costs.seconds(kernel, request, one) - costs.seconds(kernel, request, none))
        * costs.CLOCK
        for kernel in costs.KERNELS
    }
    assert cycles["forward"] == pytest.approx(costs.PRODUCT * 16 + costs.SCORE)
    assert cycles["grad_query"] == pytest.approx(costs.PRODUCT * 24 + costs.SCORE)
    assert cycles["grad_key"] == pytest.approx(costs.PRODUCT * 32 + costs.SCORE)
    assert cycles["grad_all"] == pytest.approx(costs.PRODUCT * 40 + costs.SCORE)
    assert costs.seconds("forward", request, none) == costs.CALL
    for name, cycles in costs.ADDED.items():
        more = replace(request, **{name: True})
        of_one = costs.seconds("grad_key", more, one) - costs.seconds("grad_key", more, none)
        assert of_one * costs.CLOCK == pytest.approx(costs.PRODUCT * 32 + costs.SCORE + cycles)
    extra = Work(0, 0, 1, 0, 0, 0)
    assert costs.seconds("forward", request, extra) == costs.seconds("forward", request, one)


def test_estimates_scale_with_the_device_and_the_dtype() -> None:
    cpu = device.DEVICES["cpu"]
    fast = replace(cpu, flops=tuple((name, 4 * rate) for name, rate in cpu.flops))
    slow = cost_of(GRID).estimate
    assert cost_of(replace(GRID, device=fast)).estimate == pytest.approx(slow / 4)
    half, double = (
        cost_of(replace(GRID, dtype=dtype)).estimate for dtype in ("bfloat16", "float64")
    )
    assert slow < half < 1.2 * slow
    assert 1.2 * slow < double < 2.5 * slow


def test_extra_keys_and_batches_cost_more() -> None:
    few, many = cost_of(GRID), cost_of(replace(GRID, extra_keys=64))
    assert many.computed_pairs == few.computed_pairs + 2 * 256 * 64
    assert many.estimate > 1.3 * few.estimate
    work = cost_of(replace(GRID, batch=64)).estimate - costs.CALL
    assert work == pytest.approx(64 * (few.estimate - costs.CALL), rel=0.2)


def test_a_table_costs_by_column_and_by_entry() -> None:
    plain = replace(GRID, training=True)
    assert (
        1.0 < cost_of(replace(plain, relative_bias=True)).estimate / cost_of(plain).estimate < 1.2
    )
    tables = replace(GRID, relative_bias=True)
    entries = costs.laid_out(tables)
    assert costs.laid_out(replace(tables, heads=8, kv_heads=8)) == 4 * entries
    assert entries == costs.TABLE * 16 * 2 * 13 * 13


def test_nothing_to_compute_is_a_call() -> None:
    nothing = request_for(Mask.full(), 0, 5, backend="native")
    assert cost_of(nothing).estimate == pytest.approx(costs.CALL)
