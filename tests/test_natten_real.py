"""Agreement with the real natten where it is installed: 0.21 on its CPU path (masks, values and
logsumexp), 0.17 with its native kernels (unfused functions and their gradients).

Neither is a dependency of the tests; without one they are skipped, which the summary says.
"""

from __future__ import annotations

import importlib
import importlib.util
import typing
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from nbattn.integrations.natten import fused, unfused


def load(generation: str) -> Any:
    """The real natten of a generation, or a skip that says what is there."""
    if importlib.util.find_spec("natten") is None:
        pytest.skip("natten is not installed")
    # 0.17 asks for two things that newer torch without CUDA does not have
    torch.cuda._device_t = typing.Union[torch.device, str, int, None]  # type: ignore # noqa: UP007
    kept, torch.cuda.get_device_capability = torch.cuda.get_device_capability, lambda *_: (0, 0)
    try:
        package = importlib.import_module("natten")
        importlib.import_module("natten.functional")
    except ImportError as error:
        pytest.skip(f"no natten: {error}")
    finally:
        torch.cuda.get_device_capability = kept
    if not package.__version__.startswith(generation):
        pytest.skip(f"natten {package.__version__} is installed, not {generation}")
    return package


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def windows(count: int, *, strided: bool) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
    """Random spaces with parameters that natten accepts."""
    dice, found = Random(0), []
    while len(found) < count:
        rank = dice.choice((1, 1, 2, 2, 3))
        sizes = [dice.randint(2, {1: 7, 2: 5, 3: 3}[rank]) for _ in range(rank)]
        if not strided:
            sizes = [size | 1 for size in sizes]  # its old kernels are odd
        steps = [dice.randint(1, 3) for _ in range(rank)]
        space = [k * d + dice.randint(0, 5) for k, d in zip(sizes, steps, strict=True)]
        causal = [dice.random() < 0.4 for _ in range(rank)]
        one_axis_full = rank == 1 and causal[0] and sizes[0] == space[0]
        if one_axis_full and strided:
            continue  # natten's own hole: K == L, causal, one axis
        named = {"kernel_size": sizes, "dilation": steps, "is_causal": causal}
        if strided:
            named["stride"] = [dice.randint(1, k) for k in sizes]
        found.append((tuple(space), {name: tuple(value) for name, value in named.items()}))
    return found


@pytest.mark.filterwarnings("ignore")
def test_values_and_logsumexp_are_those_of_natten_0_21(cases: Any) -> None:
    real = load("0.21")
    for number, (space, named) in enumerate(windows(60, strided=True)):
        query, key, value = (random(2, *space, 2, 16, seed=3 * number + n) for n in range(3))
        with torch.no_grad():
            wanted = real.functional.neighborhood_attention_generic(
                query, key, value, **named, backend="flex-fna", return_lse=True
            )
        found = fused.neighborhood_attention_generic(query, key, value, **named, return_lse=True)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, msg=f"{space} {named}")
        cases("natten 0.21", 1)


@pytest.mark.filterwarnings("ignore")
def test_scores_sums_and_gradients_are_those_of_natten_0_17(cases: Any) -> None:
    real = load("0.17").functional
    for number, (space, named) in enumerate(windows(60, strided=False)):
        rank, extra = len(space), number % 3
        query, key, value = (random(2, 3, *space, 4, seed=3 * number + n) for n in range(3))
        given = [t.double().requires_grad_() for t in (query, key, value)]
        more = [random(2, 3, extra, 4, seed=n).double().requires_grad_() for n in (7, 8)]
        bias = [random(3, *(2 * k - 1 for k in named["kernel_size"]), seed=9).double()]
        bias = [] if any(named["is_causal"]) else [bias[0].requires_grad_()]
        names = {"additional_keys": more[0] if extra else None, "rpb": bias[0] if bias else None}
        last = {"additional_values": more[1] if extra else None}
        results = []
        for qk, av in (
            (unfused.scores, unfused.weighted),
            (getattr(real, f"na{rank}d_qk"), getattr(real, f"na{rank}d_av")),
        ):
            scores = qk(*given[:2], **named, **names)
            out = av(scores.softmax(-1), given[2], **named, **last)
            leaves = [*given, *(more if extra else []), *bias]
            results.append((scores, out, *torch.autograd.grad(out.square().sum(), leaves)))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=f"{space} {named}")
        cases("natten 0.17", 1)
