"""Tests of which (query, key) pairs each backend computes, found with one-hot probes.

Zero queries give every key of a row the same weight 1/n, so that one-hot values show in the
output which keys were used; one-hot gradients and keys show the same for every gradient. Nothing
here has a tolerance: the pairs found must equal the enumerator's matrix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from native_library import NAMES, needs_library
from support_probes import FIELDS, LARGE, SMALL, Probe, check, oracle

from nbattn import Axis, Mask

pytestmark = pytest.mark.usefixtures("refusals_without_fixes")

Count = Callable[[str, int], None]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# backend, required strategies, least number of specimens it must have taken
BACKENDS_AND_STRATEGIES = [
    ("reference", (), 160),
    ("tiled", (), 160),
    ("native", (), 160),
    ("sdpa", ("dense",), 20),
    ("sdpa", ("causal",), 12),
    ("sdpa", ("fold",), 8),
    ("sdpa", ("mask",), 80),
    ("flash-model:aten", (), 80),
]


@pytest.fixture(autouse=True)
def uninitialized_memory_is_nan() -> Iterator[None]:
    """What a backend does not write shows."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


# A push tries each specimen in two of the four dtypes, one of them half precision.
both_halves = pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.deep)])


@both_halves
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "route",
    [
        pytest.param(route, marks=needs_library if route[0] == "native" else ())
        for route in BACKENDS_AND_STRATEGIES
    ],
    ids=lambda route: "/".join([route[0], *route[1]]),
)
def test_a_backend_computes_exactly_the_pairs_of_the_mask(
    route: tuple[Any, ...], dtype: torch.dtype, half: int, cases: Count
) -> None:
    done: Counter[str] = Counter()
    for specimen in SMALL[(DTYPES.index(dtype) + half) % 2 :: 2]:
        done.update(check(specimen, route, dtype))
    name = "/".join([route[0], *route[1]])
    for what, count in done.items():
        assert count >= route[2] // 2, (what, count)
        cases(f"support, {name} {what}", count)
    assert set(done) == {"forward", "value_gradient", "query_gradient", "key_gradient"}


@both_halves
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_tiles_and_chunks_compute_exactly_the_pairs_of_the_mask(
    dtype: torch.dtype, half: int, cases: Count
) -> None:
    absent = {"reference", "native"} - {*NAMES}
    routes = [route for route in BACKENDS_AND_STRATEGIES if route[0] not in absent]
    first = DTYPES.index(dtype)  # each in one dtype, which does not say where tiles end
    for specimen in LARGE if half else LARGE[first :: len(DTYPES)]:
        for route in routes:
            done = check(specimen, route, dtype)
            assert done or route[0] not in ("tiled", "native")
            cases(f"support, large, {'/'.join([route[0], *route[1]])}", len(done))


def test_the_specimens_cover_every_field() -> None:
    axes = [axis for mask, _, _ in SMALL for axis in mask.axes]
    for name, values in FIELDS.items():
        for border in ("clip", "shift"):
            seen = {getattr(axis, name) for axis in axes if axis.border == border}
            if name == "border" or (border == "shift" and name in ("left", "right")):
                values = tuple(value for value in values if value not in (None, "wrap"))
                values = (border,) if name == "border" else values
            assert set(values) <= seen, (name, border)
    assert {mask.rank for mask, _, _ in SMALL} == {1, 2, 3}
    assert len(SMALL) >= 160
    empty = [specimen for specimen in SMALL if not oracle(*specimen).any(1).all()]
    assert len(empty) >= 20


@pytest.mark.parametrize("what", ["forward", "value_gradient", "query_gradient", "key_gradient"])
def test_one_pair_more_or_less_is_found(what: str) -> None:
    """The probes can fail: a window one key larger is another support."""
    for left, right in ((2, 1), (4, 1), (3, 0), (3, 2)):
        probe = Probe((Mask(Axis(left, right)), (9,), (9,)), ("tiled", ()), torch.bfloat16)
        pairs = getattr(probe, what)()
        assert torch.equal(pairs, oracle(probe.mask, (9,), (9,)))
        assert not torch.equal(pairs, oracle(Mask(Axis(3, 1)), (9,), (9,)))
