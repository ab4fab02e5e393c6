"""Tests of the operators: opcheck, fresh outputs, fake and meta tensors, export and counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from operator_calls import (
    BACKENDS,
    BATCH,
    CAUSAL,
    COMPILES,
    DIM,
    ENGINES,
    HEADS,
    KEY_HEADS,
    MASKS,
    PLANE,
    WINDOW,
    equal,
    extras,
    inputs,
    random,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import nbattn
import nbattn.functional  # defines the operators
from nbattn import Axis, BackendError, Mask

pytestmark = COMPILES
Count = Callable[[str, int], None]


# The operators themselves.


def options(mask: Mask, backend: str, **changed: Any) -> tuple[Any, ...]:
    """The arguments of the operators after the tensors, in the order of the schema."""
    given = {"mask": mask.code(), "grids": [], "key_grids": [], "scale": 0.3, "softcap": None,
             "backend": backend, "traits": "", "training": True, "deterministic": False,
             "return_lse": True}  # fmt: skip
    return tuple((given | changed).values())


ABSENT = (None,) * 3  # extra_range, relative_bias, alibi_slopes: no backend takes them yet

COMBINATIONS = [
    ("tiled", CAUSAL, (), {}),
    ("tiled", WINDOW, ("sink", "key_range", "extra_key", "extra_value"), {"softcap": 2.0}),
    ("tiled", PLANE, ("key_range",), {"return_lse": False}),
    ("tiled", WINDOW, (), {"training": False, "return_lse": False}),
    ("tiled", WINDOW, (), {"training": False}),
    ("sdpa", CAUSAL, (), {"return_lse": False}),
    ("sdpa", CAUSAL, ("sink", "extra_key", "extra_value"), {"return_lse": False}),
    ("sdpa", Mask(Axis(causal=True, dilation=2)), ("sink",), {"return_lse": False}),
    ("sdpa", Mask(Axis(causal=True, offset=-3)), (), {"return_lse": False}),
    ("sdpa", Mask(Axis(1, 0, stride=2)), (), {"return_lse": False}),
    ("sdpa", WINDOW, (), {"return_lse": False}),
    ("sdpa", PLANE, (), {"training": False}),
    ("auto", PLANE, (), {}),
]


def operands(mask: Mask, names: tuple[str, ...], dtype: torch.dtype) -> list[Tensor | None]:
    space = (12,) if mask.rank == 1 else (4, 5)
    optional = extras(space, dtype)
    given = [optional[n] if n in names else None for n in extras(space)]
    return [*inputs(space, dtype=dtype), *given, *ABSENT]


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# A push tries each combination in one dtype, in turn.
IN_TURN = [
    pytest.param(*one, dtype, marks=pytest.mark.deep if (n + m) % len(DTYPES) else ())
    for n, one in enumerate(COMBINATIONS)
    for m, dtype in enumerate(DTYPES)
]


@pytest.mark.parametrize(("backend", "mask", "names", "changed", "dtype"), IN_TURN)
def test_operators_pass_opcheck(
    backend: str, mask: Mask, names: tuple[str, ...], changed: dict[str, Any], dtype: torch.dtype,
    cases: Count,
) -> None:  # fmt: skip
    tensors, rest = operands(mask, names, dtype), options(mask, backend, **changed)
    torch.library.opcheck(torch.ops.nbattn.forward.default, (*tensors, *rest))
    cases("opcheck", 1)
    training, _, return_lse = rest[-3:]
    if not training:
        return
    out, lse = torch.ops.nbattn.forward(*tensors, *rest)
    grad_lse = random(*lse.shape, seed=8) if return_lse else None
    arguments = (random(*out.shape, seed=7).to(dtype), grad_lse, out, lse, *tensors, *rest)
    torch.library.opcheck(torch.ops.nbattn.backward.default, arguments)
    cases("opcheck", 1)


LAYOUTS = {
    "contiguous": lambda t: t,
    "heads first": lambda t: t.movedim(-2, 1).contiguous().movedim(1, -2),
    "expanded": lambda t: t[:1].expand(t.shape),
    "reversed": lambda t: t.permute(*range(t.dim())[::-1]).contiguous().permute(
        *range(t.dim())[::-1]),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ENGINES)
def test_outputs_are_fresh_and_match_their_fakes(backend: str, layout: str, cases: Count) -> None:
    for mask, space in MASKS:
        for names in ((), ("sink", "extra_key", "extra_value")):
            if backend == "sdpa" and names and mask in (WINDOW, PLANE):
                continue
            for shape in (space, (1,) * len(space), (0,) * len(space)):
                optional = extras(shape)
                tensors = [LAYOUTS[layout](t) for t in inputs(shape)]
                optional |= {n: LAYOUTS[layout](optional[n]) for n in ("extra_key", "extra_value")}
                tensors += [optional[n] if n in names else None for n in optional]
                tensors += ABSENT
                rest = options(mask, backend, return_lse=False)
                try:
                    real = torch.ops.nbattn.forward(*tensors, *rest)
                except BackendError:
                    assert backend == "sdpa"
                    continue
                grad = torch.ones(()).expand(real[0].shape)
                grads = torch.ops.nbattn.backward(grad, None, *real, *tensors, *rest)
                with FakeTensorMode() as mode:
                    fakes = [None if t is None else mode.from_tensor(t) for t in tensors]
                    fake = torch.ops.nbattn.forward(*fakes, *rest)
                    up = mode.from_tensor(grad)
                    fake_grads = torch.ops.nbattn.backward(up, None, *fake, *fakes, *rest)
                input_storages = {
                    t.untyped_storage().data_ptr() for t in tensors if t is not None
                } - {0}
                for found, like in zip((*real, *grads), (*fake, *fake_grads), strict=True):
                    assert found.shape == like.shape
                    assert found.dtype == like.dtype
                    assert found.stride() == like.stride()
                    assert found.untyped_storage().data_ptr() not in input_storages
                cases("operators, strides", 1)


# Export, fakes, meta, counts.


@pytest.mark.parametrize("backend", ENGINES)
def test_the_operator_by_itself_is_differentiable(backend: str) -> None:
    """Exported graphs hold it without the autograd function around it, whatever mode they had."""
    found, wanted = inputs(grad=True), inputs(grad=True)
    given = options(CAUSAL, backend, scale=DIM**-0.5, training=False, return_lse=False)
    out, _ = torch.ops.nbattn.forward(*found, *(None,) * 4, *ABSENT, *given)
    want = nbattn.attention(*wanted, CAUSAL, backend=backend)
    equal(
        torch.autograd.grad(out.sin().sum(), found), torch.autograd.grad(want.sin().sum(), wanted)
    )
    with torch.no_grad():
        out, _ = torch.ops.nbattn.forward(*found, *(None,) * 4, *ABSENT, *given)
    assert not out.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_export(backend: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return nbattn.attention(query, key, value, CAUSAL, backend=backend)

    length = torch.export.Dim("length", min=2, max=64)
    shapes = ({1: length},) * 3
    exported = torch.export.export(Module(), tuple(inputs()), dynamic_shapes=shapes)
    for size in (12, 20):
        equal(exported.module()(*inputs((size,))), Module()(*inputs((size,))))


@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("backend", ["auto", "tiled", "reference"])
@pytest.mark.parametrize("device", ["cuda", "cpu", "meta"])
def test_fakes_and_meta_tensors_have_the_right_shapes(
    device: str, backend: str, return_lse: bool
) -> None:
    trained = (
        device != "cuda"
    )  # torch without CUDA aborts where a fake CUDA tensor needs a gradient

    def run() -> list[Any]:
        sizes = [(BATCH, 12, HEADS, DIM), (BATCH, 9, KEY_HEADS, DIM), (BATCH, 9, KEY_HEADS, 5)]
        tensors = [
            torch.empty(size, device=device, dtype=torch.bfloat16, requires_grad=trained)
            for size in sizes
        ]
        found = nbattn.attention(*tensors, WINDOW, backend=backend, return_lse=return_lse)
        out, lse = found if isinstance(found, tuple) else (found, None)
        if trained:
            out.float().sum().backward()
        return [out, lse, *(t.grad for t in tensors), tensors]

    if device == "meta":
        out, lse, *grads, tensors = run()
    else:
        with FakeTensorMode():
            out, lse, *grads, tensors = run()
    assert out.shape == (BATCH, 12, HEADS, 5)
    assert out.dtype == torch.bfloat16
    assert out.device.type == device
    assert lse is None or (lse.shape == (BATCH, 12, HEADS) and lse.dtype == torch.float32)
    for grad, tensor in zip(grads, tensors, strict=True):
        assert (grad is not None) == trained
        assert grad is None or (grad.shape, grad.dtype) == (tensor.shape, tensor.dtype)


@pytest.mark.parametrize("backend", ENGINES)
def test_counted_operations_are_those_of_the_pairs(backend: str) -> None:
    for mask, space in MASKS:
        leaves = inputs(space, grad=True)
        pairs = int(mask.dense(space).sum())
        with FlopCounterMode(display=False) as counter:
            out = nbattn.attention(*leaves, mask, backend=backend)
        forward = 2 * BATCH * HEADS * pairs * (DIM + DIM)
        assert counter.get_total_flops() == forward
        with FlopCounterMode(display=False) as counter:
            out.sum().backward()
        assert counter.get_total_flops() == 2.5 * forward


def test_extra_keys_and_value_sizes_are_counted() -> None:
    query, key, _ = inputs()
    optional = extras()
    value = random(BATCH, 12, KEY_HEADS, 5)
    with FlopCounterMode(display=False) as counter:
        nbattn.attention(
            query, key, value, WINDOW, backend="tiled", extra_key=optional["extra_key"],
            extra_value=optional["extra_value"][..., :5],
        )  # fmt: skip
    pairs = int(WINDOW.dense(12).sum()) + 12 * 2
    assert counter.get_total_flops() == 2 * BATCH * HEADS * pairs * (DIM + 5)
