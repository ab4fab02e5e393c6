"""Tests against the real natten where it is installed: 0.21 on its CPU path (masks, values and
logsumexp), 0.17 with its native kernels (unfused functions and their gradients).

Neither is a dependency of the tests; without one they are skipped, which the summary says.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import typing
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

import nbattn
from nbattn.integrations.natten import fused, modules, unfused


def load(generation: str) -> Any:
    """The real natten of a generation, or a skip that names the installed one."""
    if importlib.util.find_spec("natten") is None:
        pytest.skip("natten is not installed")
    # 0.17 asks for two things that newer torch without CUDA does not have
    torch.cuda._device_t = typing.Union[torch.device, str, int, None]  # type: ignore # noqa: UP007
    original, torch.cuda.get_device_capability = torch.cuda.get_device_capability, lambda *_: (0, 0)
    try:
        package = importlib.import_module("natten")
        importlib.import_module("natten.functional")
    except ImportError as error:
        pytest.skip(f"no natten: {error}")
    finally:
        torch.cuda.get_device_capability = original
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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_weights_of_modules_of_natten_0_21_load_and_give_its_outputs(rank: int) -> None:
    real, space = load("0.21"), ((20,), (10, 12), (10, 9, 7))[rank - 1]
    kernel, step, causal = (4, 3, 3)[:rank], (2, 3, 1)[:rank], (False, True, False)[:rank]
    theirs = getattr(real, f"NeighborhoodAttention{rank}D")(32, 2, kernel, 1, step, causal)
    weights, x = theirs.state_dict(), random(2, *space, 32, seed=1)
    mask = nbattn.Mask.neighborhood(kernel, dilation=step, is_causal=causal)
    current = getattr(modules, f"NeighborhoodAttention{rank}D")
    with torch.no_grad():
        wanted = theirs(x)
        for ours in (
            current(32, 2, kernel, 1, step, causal),
            nbattn.NeighborhoodAttention(32, 2, mask),
        ):
            ours.load_state_dict(weights)
            torch.testing.assert_close(ours(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_weights_of_modules_of_natten_0_17_load_and_give_its_outputs(rank: int, bias: bool) -> None:
    real, space = load("0.17"), ((20,), (10, 12), (10, 9, 7))[rank - 1]
    kernel, step = (5, 3, 3)[:rank], (2, 3, 1)[:rank]
    given = {"kernel_size": kernel, "dilation": step, "rel_pos_bias": bias}
    theirs = getattr(real, f"NeighborhoodAttention{rank}D")(32, 2, **given)
    weights, x = theirs.state_dict(), random(2, *space, 32, seed=1)
    ours = getattr(modules, f"OlderNeighborhoodAttention{rank}D")(32, 2, **given)
    ours.load_state_dict(weights)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    layer = nbattn.NeighborhoodAttention(32, 2, nbattn.Mask.neighborhood(kernel, dilation=step))
    if bias:
        with pytest.raises(RuntimeError, match="rpb"):
            layer.load_state_dict(weights)
    else:
        layer.load_state_dict(weights)
        torch.testing.assert_close(layer(x), theirs(x), rtol=1e-5, atol=1e-5)


def _is_own(name: str, value: object, module: str) -> bool:
    """What a module defines for others to use."""
    ignored = {"NattenContext", "AutotunerContext"}  # where its switches keep their state
    ignored |= {"NoneType", "QKTileShapeType", "FnaTileShapeType", "ListOrNestedTensor"}
    ignored |= {"create_dim_from_int", "create_causal_arg_from_bool"}
    defined = getattr(value, "__module__", None) in (module, "typing")
    return defined and name[0] != "_" and name not in ignored | {*dir(typing)}


@pytest.mark.filterwarnings("ignore")
def test_switches_and_signatures_are_those_of_the_installed_natten() -> None:
    """Every public name of a release, but for its lists of tile shapes."""
    if importlib.util.find_spec("natten") is None:
        pytest.skip("natten is not installed")
    generation = importlib.metadata.version("natten")[:4]
    real = load(generation)
    names = {*getattr(real, "__all__", ())}
    drop = importlib.import_module("nbattn.integrations.natten.install")
    ours = drop._contents(generation)["natten"]
    missing = {n for n in names if n not in ours and "_configs_for_" not in n}
    assert missing == set()
    for name in ("context", "types"):
        held = drop._contents(generation)[f"natten.{name}"]
        module = importlib.import_module(f"natten.{name}")
        own = {n for n, value in vars(module).items() if _is_own(n, value, module.__name__)}
        assert {n for n in own if n not in held and "Config" not in n} == set()
    for name in names & {"na1d", "na2d", "na3d", "attention"}:
        found, wanted = (inspect.signature(where[name]) for where in (ours, vars(real)))
        more = {*found.parameters} - {*wanted.parameters}
        assert more <= {"try_fuse_additional_kv"}, name  # which an earlier release had
        assert [n for n in found.parameters if n not in more] == [*wanted.parameters], name
    for rank in (1, 2, 3):
        name = f"NeighborhoodAttention{rank}D"
        found, wanted = (inspect.signature(where[name]) for where in (ours, vars(real)))
        assert [*found.parameters] == [*wanted.parameters], name
