"""Tests of launches whose kernels read boxes by tensor maps: which maps a pass gives them, what is
copied before, and what is refused; and outputs of tensors of every layout, in the emulator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from emulator import build
from emulator.launcher import Launcher
from torch import Tensor
from work import lines

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.backends.cuda import run as cuda
from nbattn.backends.cuda.meaning import CudaArguments
from nbattn.backends.cuda.tiles import Build, Tiles
from nbattn.backends.inputs import Inputs
from nbattn.geometry import bind
from nbattn.kernels import layout
from nbattn.kernels.tensor_maps import TensorMap, View, maps_of
from nbattn.kernels.variant import Variant
from nbattn.program.program import Call, Program, whole

LAUNCH = 100  # lines of Python of a forward that is prepared
ROWS, COLUMNS = (1, 8, 16), (1, 8, 8)
BOXES = 8 * len(layout.POINTERS) + layout.NUMBERS.size  # where they begin in the argument


class Recorder:
    """A launcher that launches nothing."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, dict[str, Tensor], bytes, tuple[TensorMap, ...]]] = []

    def launch(
        self,
        variant: Variant,
        blocks: int,
        tensors: Mapping[str, Tensor],
        numbers: bytes,
        maps: Sequence[TensorMap] = (),
    ) -> None:
        self.launches.append((variant.entry, dict(tensors), numbers, tuple(maps)))

    def load(self, variant: Variant) -> None:
        raise AssertionError(variant)


def program_of(mask: Mask, space: tuple[int, ...], warpgroups: int = 2) -> Program:
    """The kernels of warpgroups, or those of warps."""
    if warpgroups:
        tiles = Tiles(ROWS, COLUMNS, 12, 1, 2, warpgroups)
    else:
        tiles = Tiles((1, 8, 8), (1, 8, 8), 4, 1, 2)
    arguments = CudaArguments(
        bind(mask, space, space), Build("float16", 64, 64, extra=True), tiles, tiles, tiles
    )
    return Program((Call(whole(space), whole(space), arguments),))


def drawn(space: tuple[int, ...], heads: int = 2, batch: int = 2) -> Tensor:
    return torch.zeros(batch, *space, heads, 64, dtype=torch.float16)


def passes(
    program: Program, inputs: Inputs, grad_out: Tensor | None = None
) -> list[tuple[str, dict[str, Tensor], bytes, tuple[TensorMap, ...]]]:
    """The launches of a forward and a backward, with the strides of their tensors."""
    taken = Recorder()
    out, lse = cuda.forward(program, inputs, return_lse=True, launcher=taken)
    assert lse is not None
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    cuda.backward(program, inputs, out, lse, grad_out, None, launcher=taken)
    return taken.launches


def expected(kernel: str, tensors: Mapping[str, Tensor], dilations: Any) -> Any:
    """What `maps_of` says of the tensors that the launch got."""
    names = [name for name in layout.MAPPED if name in tensors]
    names = [name for name in names if kernel != "fwd" or name != "grad_out"]
    order = ("query", "key", "value", "grad_out", "extra_key", "extra_value")
    views = {n: View(tuple(tensors[n].shape), tensors[n].stride()) for n in order if n in names}
    return maps_of(kernel, views, ROWS, COLUMNS, dilations)


def fields(maps: Sequence[TensorMap]) -> list[tuple[Any, ...]]:
    return [tuple(getattr(each, name) for name in TensorMap.__slots__) for each in maps]


MASKS: dict[str, tuple[Mask, tuple[int, ...], tuple[int, int, int]]] = {
    "plane": (Mask(Axis(3, 3), Axis(2, 2)), (20, 24), (1, 1, 1)),
    "line": (Mask(Axis(9, 0)), (70,), (1, 1, 1)),
    "dilated": (Mask(Axis(3, 3, dilation=2), Axis(2, 2, dilation=3)), (20, 24), (1, 2, 3)),
}


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("name", MASKS)
def test_every_kernel_gets_the_maps_of_its_tensors(name: str, extra: int) -> None:
    mask, space, dilations = MASKS[name]
    query, key = drawn(space, 4), drawn(space)
    more = [drawn((extra,))] * 2 if extra else [None, None]
    inputs = Inputs(query, key, key + 1, extra_key=more[0], extra_value=more[1])
    launches = passes(program_of(mask, space), inputs)
    entries = ["nb_fwd_wgmma", "nb_delta", "nb_dq_wgmma", "nb_dkdv_wgmma"]
    assert [entry for entry, *_ in launches] == entries
    for entry, tensors, numbers, maps in launches:
        if entry == "nb_delta":
            assert not maps
            assert len(numbers) == layout.NUMBERS.size
            continue
        wanted = expected(entry.split("_")[1], tensors, dilations)
        assert fields(maps) == fields(wanted.maps)
        assert numbers[layout.NUMBERS.size :] == wanted.boxes
        assert len(numbers) == layout.FIRST_MAP - 8 * len(layout.POINTERS)
        assert {each.tensor for each in maps} <= tensors.keys()
    plain = passes(program_of(mask, space, 0), inputs)
    for (_, _, numbers, _), (_, _, others, maps) in zip(launches, plain, strict=True):
        assert numbers[: layout.NUMBERS.size] == others  # besides the boxes nothing differs
        assert not maps


def test_views_of_a_packed_projection_are_not_copied() -> None:
    space = (20, 24)
    joined = torch.zeros(2, *space, 3, 2, 64, dtype=torch.float16)
    inputs = Inputs(*joined.unbind(3))
    mask = MASKS["plane"][0]
    for entry, tensors, numbers, maps in passes(program_of(mask, space), inputs):
        for name, given in zip(("query", "key", "value"), inputs[:3], strict=True):
            assert tensors[name] is given
        if entry != "nb_delta":
            wanted = expected(entry.split("_")[1], tensors, (1, 1, 1))
            assert fields(maps) == fields(wanted.maps)
            assert numbers[layout.NUMBERS.size :] == wanted.boxes
            assert maps[0].strides[0] == 2 * 3 * 2 * 64


def test_the_maps_of_a_layout_are_made_once() -> None:
    program, query = program_of(*MASKS["plane"][:2]), drawn(MASKS["plane"][1])
    first, second = (passes(program, Inputs(query, query, query)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one[3] is other[3]


@pytest.mark.parametrize(
    ("kind", "copied"),
    [("plain", False), ("expanded", True), ("heads first", False), ("uneven", True)],
)
def test_gradients_of_the_output_are_copied_where_no_map_says_them(kind: str, copied: bool) -> None:
    mask, space, dilations = MASKS["plane"]
    query = drawn(space)
    grad = {
        "plain": drawn(space),
        "expanded": torch.ones((), dtype=torch.float16).expand(query.shape),
        "heads first": drawn((2, 20), 24).transpose(1, 2).transpose(2, 3),
        "uneven": torch.zeros(2, 20, 24, 2, 68, dtype=torch.float16)[..., :64],
    }[kind]
    assert grad.shape == query.shape
    launches = passes(program_of(mask, space), Inputs(query, query, query), grad)
    for entry, tensors, _, maps in launches[1:]:
        assert (tensors["grad_out"] is not grad) == copied
        if entry != "nb_delta":
            assert fields(maps) == fields(expected(entry.split("_")[1], tensors, dilations).maps)


def test_gradients_of_the_output_are_copied_where_they_need_more_maps() -> None:
    """Nine classes of a last axis fold into the channels only where tokens are whole."""
    mask, space = Mask(Axis(3, 3), Axis(2, 2, dilation=9)), (20, 36)
    query, first = drawn(space), drawn((36,), 20).transpose(1, 2)  # axes turned
    grad = first[:, :, :, None].expand(2, 20, 36, 2, 64)
    turned = drawn((36, 20)).transpose(1, 2)
    for given in (grad, turned):
        launches = passes(program_of(mask, space), Inputs(query, query, query), given)
        assert launches[1][1]["grad_out"].is_contiguous()
        assert all(len(maps) == 4 for entry, _, _, maps in launches[2:])


def test_tensors_that_begin_between_chunks_are_copied() -> None:
    mask, space, dilations = MASKS["plane"]
    odd = torch.zeros(2 * 20 * 24 * 2 * 64 + 8, dtype=torch.float16)[1:-7].view(2, 20, 24, 2, 64)
    even = drawn(space)
    assert odd.data_ptr() % 16
    for given in ((odd, even, even), (even, odd, even), (even, even, odd)):
        for entry, tensors, _, maps in passes(program_of(mask, space), Inputs(*given), odd):
            names = [name for name in layout.MAPPED if name in tensors]
            assert not any(tensors[name].data_ptr() % 16 for name in names)
            assert all(tensors[name].shape == odd.shape for name in names)
            if entry != "nb_delta":
                assert fields(maps) == fields(
                    expected(entry.split("_")[1], tensors, dilations).maps
                )
        warps = passes(program_of(mask, space, 0), Inputs(*given))
        assert all(
            warps[0][1][n] is t for n, t in zip(("query", "key", "value"), given, strict=True)
        )


def test_a_layout_that_no_map_says_is_refused_with_the_fix() -> None:
    mask, space, _ = MASKS["plane"]
    query, wide = drawn(space), torch.zeros(2, 20, 24, 2, 68, dtype=torch.float16)[..., :64]
    run = partial(cuda.forward, program_of(mask, space), return_lse=False, launcher=Recorder())
    with pytest.raises(BackendError) as caught:
        run(Inputs(query, wide, query))
    assert str(caught.value) == (
        "fwd_wgmma copies boxes by tensor maps. key: its head stride is 68 elements, a map "
        "takes multiples of 8.\n"
        '  fix:   key.contiguous(); or forbid=("wgmma",)'
    )
    with pytest.raises(BackendError, match=r"fix:   key.contiguous\(\), value.contiguous\(\); or"):
        run(Inputs(query, wide, wide))


def test_a_dilation_that_needs_too_many_maps_is_refused() -> None:
    mask = Mask(Axis(2, 2, dilation=30), Axis(2, 2))
    query = drawn((40, 24))
    with pytest.raises(BackendError) as caught:
        cuda.forward(
            program_of(mask, (40, 24)), Inputs(query, query, query), return_lse=False,
            launcher=Recorder(),
        )  # fmt: skip
    assert str(caught.value) == (
        "fwd_wgmma copies boxes by tensor maps. query, axis 0: the dilation 30 needs 30 maps, one "
        "for each residue class, and there are 24; boxes of 8 positions step over up to 8.\n"
        '  fix:   forbid=("wgmma",)'
    )


def test_a_forward_takes_few_lines_of_the_host() -> None:
    mask, space, _ = MASKS["plane"]
    query, taken = drawn(space), Recorder()
    inputs = Inputs(query, query, query, scale=0.125)
    run = partial(cuda.forward, program_of(mask, space), inputs, return_lse=False, launcher=taken)
    run()
    assert lines(run) <= LAUNCH
    assert len(taken.launches) == 2


# Values

VALUES: dict[str, tuple[Mask, tuple[int, ...], dict[str, Any]]] = {
    "contiguous": (Mask(Axis(3, 3), Axis(2, 2)), (20, 24), {}),
    "packed": (Mask(Axis(3, 3), Axis(2, 2)), (20, 24), {"layout": "packed"}),
    "heads first": (Mask(Axis(3, 3), Axis(2, 2)), (20, 24), {"layout": "heads first"}),
    "axes turned": (Mask(Axis(3, 3), Axis(2, 2, dilation=2)), (20, 24), {"layout": "turned"}),
    "folded": (Mask(Axis(3, 3), Axis(2, 2, dilation=3)), (20, 24), {}),
    "folded and packed": (Mask(Axis(3), Axis(2, 2, dilation=3)), (9, 24), {"layout": "packed"}),
    "stepped": (Mask(Axis(3, 3, dilation=3), Axis(2, 2)), (20, 25), {}),
    "by class": (Mask(Axis(2, 2, dilation=6), Axis(2, 2)), (52, 9), {}),
    "extra keys beside classes": (Mask(Axis(3, 3, dilation=2), Axis(2, 2)), (20, 25), {"extra": 5}),
}


def laid_out(space: tuple[int, ...], layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values in views."""
    shape = (2, *space, 3, 2, 64)
    if layout == "packed":
        query, key, value = torch.randn(shape).half().unbind(3)
        return query, key, value
    tensors = torch.randn(3, 2, *space, 2, 64).half().unbind(0)
    order = {"heads first": (0, 3, 1, 2, 4), "turned": (0, 2, 1, 3, 4), "": (0, 1, 2, 3, 4)}[layout]
    back = sorted(range(5), key=order.__getitem__)
    query, key, value = (t.permute(order).contiguous().permute(back) for t in tensors)
    return query, key, value


@pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))
@pytest.mark.parametrize("name", VALUES)
def test_outputs_of_every_layout_and_dilation(name: str, cases: Any) -> None:
    mask, space, more = VALUES[name]
    torch.manual_seed(0)
    tensors = laid_out(space, more.get("layout", ""))
    extra = torch.randn(2, 2, more.get("extra", 0), 2, 64).half().unbind(0)
    named = dict(zip(("extra_key", "extra_value"), extra, strict=True)) if "extra" in more else {}
    inputs = Inputs(*tensors, **named, scale=0.125)
    out, _ = cuda.forward(program_of(mask, space), inputs, return_lse=False, launcher=Launcher())
    exact = nbattn.attention(
        *(t.double() for t in tensors), mask, backend="reference",
        **{n: t.double() for n, t in named.items()},
    )  # fmt: skip
    torch.testing.assert_close(out.double(), exact, rtol=4e-3, atol=4e-3)
    cases("cuda outputs by boxes", 1)


@pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))
@pytest.mark.parametrize("name", ["folded and packed", "extra keys beside classes"])
def test_gradients_of_dilated_keys_and_of_extra_keys(name: str, cases: Any) -> None:
    """Extra keys read queries and gradients of every class by position."""
    mask, space, more = VALUES[name]
    torch.manual_seed(0)
    tensors = [*laid_out(space, more.get("layout", "")), *torch.randn(2, 2, 3, 2, 64).half()]
    inputs = Inputs(*tensors[:3], extra_key=tensors[3], extra_value=tensors[4], scale=0.125)
    launcher, program = Launcher(), program_of(mask, space)
    out, lse = cuda.forward(program, inputs, return_lse=True, launcher=launcher)
    assert lse is not None
    grad = torch.randn_like(out)
    found = cuda.backward(program, inputs, out, lse, grad, None, launcher=launcher)
    leaves = [t.double().requires_grad_() for t in tensors]
    exact = nbattn.attention(
        *leaves[:3], mask, extra_key=leaves[3], extra_value=leaves[4], backend="reference"
    )
    wanted = torch.autograd.grad(exact, leaves, grad.double())
    names = ("query", "key", "value", "extra_key", "extra_value")
    for field, one in zip(names, wanted, strict=True):
        given: Tensor = getattr(found, field)
        torch.testing.assert_close(given.double(), one, rtol=1e-2, atol=1e-2, msg=field)
    cases("cuda gradients by boxes", 1)
