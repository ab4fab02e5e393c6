"""Tests that the native kernels touch nothing but their tensors, and write every output.

Tensors lie flush with pages that may not be touched, inputs are read-only, and outputs are filled
with NaN beforehand. The address sanitizer watches the same calls, the kernels' own memory included.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
from native_checks import apart, build, checks
from native_checks.cases import AVERAGES, CASES
from native_checks.problem import Problem
from native_library import needs_library

from nbattn import Mask

Count = Callable[[str, int], None]
pages = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="maps pages as Linux does")
sanitizers = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))
# The guards work: a tensor that is shorter than its shape says is noticed.
SHORTENED = ("line.value", "bfloat.query", "half.out", "double.delta")


@pages
@needs_library
def test_between_pages_that_may_not_be_touched(cases: Count) -> None:
    every = apart.reports(guards=CASES, shortened=SHORTENED)
    assert every["guards"] == dict.fromkeys(CASES, "")
    assert every["shortened"].keys() == set(SHORTENED)
    for name, report in every["shortened"].items():
        assert report.startswith(f"{name.split('.')[0]}, pass ")
        assert report.endswith("SIGSEGV")
    cases("native guards", 2 * len(CASES))


@pytest.mark.deep
@sanitizers
def test_with_the_address_sanitizer(cases: Count) -> None:
    assert not checks.sanitized(build.library("sanitized"), CASES)
    cases("native sanitizer", len(CASES))


@sanitizers
def test_the_address_sanitizer_notices_an_element_too_few() -> None:
    short = checks.shortened(checks.recorded("line"), "value")
    with pytest.raises(checks.DiedError, match=r"line, pass 0, heap.*heap-buffer-overflow"):
        checks.replayed([short], ["heap"], build.library("sanitized"), checks.ADDRESS)


@sanitizers
@pytest.mark.deep
def test_with_everything_that_is_undefined(cases: Count) -> None:
    assert not checks.sanitized(build.library("all sanitized"), CASES)
    cases("native sanitizer", len(CASES))


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_have_ties_and_small_numbers(name: str) -> None:
    """So that rounding of another kind shows."""
    made, _ = checks.known(name)
    values = made["value"].float()
    average = (values[:, 1:] + values[:, :-1]) / 2
    close = average.to(made["value"].dtype).float()
    step = 2.0 ** (close.abs().log2().floor() - (10 if name.endswith("halves") else 7))
    assert ((average - close).abs() * 2 == step).sum() > 20
    assert (close.abs() < 2.0**-14).sum() > 20


def test_items_of_threads_share_no_column() -> None:
    """Of the slabs of a case that run at a time: else threads would add to the same gradients."""
    for name, p in CASES.items():
        if p.slab is None:
            continue
        slabs = [_columns_of_slabs(p, axis) for axis in range(p.common.mask.rank)]
        alternating = [axis for axis, (longest, *_) in enumerate(slabs) if len(longest) > 1][-1:]
        for axis, classes in enumerate(slabs):
            step = 2 if axis in alternating else 1
            for phase in range(step):
                columns = np.concatenate([slabs_of[phase::step] for slabs_of in classes])
                assert columns.sum(0).max() <= 1, f"{name}, axis {axis}"


def _columns_of_slabs(p: Problem, axis: int) -> list[np.ndarray]:
    """For each class of one axis, [slabs, keys]: whether a query of the slab attends to the key."""
    assert p.slab is not None
    spec, at = p.common.mask.axes[axis], axis - p.common.mask.rank
    pairs = Mask(spec).dense(p.common.queries[axis], p.common.keys[axis])
    rows = p.rows[1][at] * p.groups[1][at] * p.slab[at]
    return [
        np.logical_or.reduceat(queries, range(0, len(queries), rows)).astype(int)
        for queries in (pairs[first :: spec.dilation] for first in range(spec.dilation))
        if len(queries)
    ]


def test_a_case_for_every_type() -> None:
    assert len({p.common.dtype for p in CASES.values()}) == 4
