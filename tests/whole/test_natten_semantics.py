"""Tests that Mask.neighborhood has the meaning of NATTEN's parameters."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np
import pytest
from oracle import natten_matrix

from nbattn import Mask

Count = Callable[[str, int], None]
LONGEST = 22
SAMPLES = {2: (1000, 7), 3: (300, 4)}  # rank: configurations, longest side


def legal(n: int, kernel: int, stride: int, dilation: int) -> bool:
    """What NATTEN accepts."""
    return kernel >= 2 and 1 <= stride <= kernel and kernel * dilation <= n


def one_axis(n: int) -> Iterator[tuple[int, int, int]]:
    """Every kernel size, stride and dilation that NATTEN accepts on n places."""
    for kernel in range(2, n + 1):
        for stride in range(1, kernel + 1):
            for dilation in range(1, n // kernel + 1):
                yield kernel, stride, dilation


def agrees(space: tuple[int, ...], kernel: Any, stride: Any, dilation: Any, causal: Any) -> bool:
    mask = Mask.neighborhood(kernel, dilation=dilation, stride=stride, is_causal=causal)
    return np.array_equal(mask.dense(space), natten_matrix(space, kernel, stride, dilation, causal))


@pytest.mark.parametrize("n", range(2, LONGEST + 1))
def test_every_configuration_of_one_axis(n: int, cases: Count) -> None:
    for config in one_axis(n):
        assert legal(n, *config)
        for causal in (False, True):
            assert agrees((n,), *config, causal), (n, *config, causal)
            cases("NATTEN, one axis", 1)


@pytest.mark.parametrize("rank", SAMPLES)
def test_sampled_configurations_of_more_axes(rank: int, cases: Count) -> None:
    random = Random(rank)
    samples, longest = SAMPLES[rank]
    for _ in range(samples):
        space = tuple(random.randint(2, longest) for _ in range(rank))
        settings = [random.choice([*one_axis(n)]) for n in space]
        kernel, stride, dilation = zip(*settings, strict=True)
        causal = tuple(random.random() < 0.5 for _ in range(rank))
        assert agrees(space, kernel, stride, dilation, causal), (space, settings, causal)
        cases(f"NATTEN, {rank} axes", 1)


@pytest.mark.parametrize(
    ("space", "kernel", "stride", "dilation", "causal"),
    [
        ((6, 7), 3, 2, 2, (True, False)),
        ((6, 7), (2, 3), 2, 2, False),
        ((6, 7), 2, (1, 2), 3, True),
        ((6, 3, 4), 3, 3, (2, 1, 1), False),
        ((9,), 4, 3, 2, True),
    ],
)
def test_one_value_applies_to_every_axis(
    space: tuple[int, ...], kernel: Any, stride: Any, dilation: Any, causal: Any
) -> None:
    assert agrees(space, kernel, stride, dilation, causal)
