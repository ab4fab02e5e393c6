"""Cases of Flash programs: masks, tensors and features, and ways to run and judge them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dense_attention
import torch
from oracle import matrix
from torch import Tensor

import nbattn
from nbattn import Axis, Mask
from nbattn.backends.flash import adapters as flash_backend

Space = tuple[int, ...]

MASKS: dict[str, tuple[Mask, Space, Space]] = {
    "full": (Mask(Axis()), (9,), (7,)),
    "causal, wide": (Mask(Axis(None, 0, align="top-left")), (5,), (13,)),
    "causal, tall": (Mask(Axis(None, 0, align="top-left")), (13,), (5,)),
    "window, tall": (Mask(Axis(4, 1, align="top-left")), (16,), (6,)),
    "rows outside": (Mask(Axis(2, 1, offset=-5, align="top-left")), (13,), (10,)),
    "no pair at all": (Mask(Axis(2, 1, offset=40, align="top-left")), (4,), (6,)),
    "one query": (Mask(Axis(5, 0, align="bottom-right")), (1,), (30,)),
    "growing": (Mask(Axis(5, causal=True, align="bottom-right", offset=-2)), (7,), (12,)),
    "shift": (Mask(Axis(2, 3, border="shift")), (17,), (17,)),
    "shift, dilated": (Mask(Axis(2, 2, border="shift", dilation=3)), (17,), (17,)),
    "shift, stride": (Mask(Axis(3, 3, border="shift", stride=2)), (16,), (16,)),
    "causal, stride": (Mask(Axis(4, causal=True, stride=3)), (14,), (14,)),
    "causal, gaps": (Mask(Axis(1, causal=True, stride=4)), (13,), (13,)),
    "wrap": (Mask(Axis(2, 1, border="wrap")), (9,), (9,)),
    "wrap, dilated": (Mask(Axis(2, 1, border="wrap", dilation=2)), (12,), (12,)),
    "prefix": (Mask(Axis(1, causal=True, prefix=3)), (14,), (14,)),
    "prefix, open": (Mask(Axis(1, 1, prefix=3, align="top-left")), (9,), (11,)),
    "blocks": (Mask(Axis(2, 1, stride=4)), (16,), (16,)),
    "ragged blocks": (Mask(Axis(2, 1, stride=4, align="top-left")), (18,), (20,)),
    "ragged causal blocks": (Mask(Axis(3, causal=True, stride=4, align="top-left")), (18,), (20,)),
    "folded, rows outside": (Mask(Axis(0, 0), Axis(9, 1, align=-3)), (3, 20), (3, 6)),
    "folded": (Mask(Axis(0, 0), Axis(2, causal=True)), (3, 6), (3, 6)),
    "flat": (Mask(Axis(), Axis()), (3, 4), (2, 5)),
}  # fmt: skip
Tensors = dict[str, Any]


def random(shape: Space, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tensors(queries: Space, keys: Space, *features: str) -> Tensors:
    """Inputs in float64: two samples, four heads on two, D = 5 and Dv = 3, and what is asked."""
    made = {
        "query": random((2, *queries, 4, 5), 1),
        "key": random((2, *keys, 2, 5), 2),
        "value": random((2, *keys, 2, 3), 3),
    }
    if "extra" in features:
        made |= {"extra_key": random((2, 3, 2, 5), 4), "extra_value": random((2, 3, 2, 3), 5)}
    if "sink" in features:
        made["sink"] = random((4,), 6)
    return {name: t.requires_grad_() for name, t in made.items()}


def compare(
    mask: Mask, queries: Space, keys: Space, made: Tensors, numbers: Tensors,
    attend: Callable[..., Any], *, lse_gradient: bool = True,
) -> None:  # fmt: skip
    """Outputs, logsumexps and all gradients against dense attention by its definition."""
    allowed = torch.from_numpy(matrix(mask.axes, queries, keys))
    out, lse = attend(**made, **numbers)
    want, want_lse = dense_attention.attend(**made, allowed=allowed, **numbers)
    some = ~want_lse.isinf()
    assert torch.equal(lse.isinf(), ~some)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse[some], want_lse[some], rtol=0, atol=1e-12)
    weight, of_lse = random(tuple(out.shape), 7), random(tuple(lse.shape), 8)[some]
    leaves = list(made.values())
    found, wanted = (
        torch.autograd.grad(
            (o * weight).sum() + (x[some] * of_lse).sum() * lse_gradient,
            leaves, materialize_grads=True, allow_unused=True,
        )
        for o, x in ((out, lse), (want, want_lse))
    )  # fmt: skip
    for name, one, other in zip(made, found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11, msg=lambda m, n=name: f"{n} {m}")


FEATURES: dict[str, tuple[tuple[str, ...], dict[str, float]]] = {
    "plain": ((), {}),
    "everything": (("extra", "sink"), {"scale": -0.7, "softcap": 1.5}),
    "no cap": (("extra", "sink"), {"scale": -0.7}),
    "small scale": ((), {"scale": 1e-9}),
    "scale 0": (("extra",), {"scale": 0.0}),
}


def attention_by_adapter(
    provider: str, mask: Mask, strategy: str, queries: Space, keys: Space, **asked: Any
) -> Callable[..., Any]:
    """Attention by a provider's adapter: the model's program, which no device refuses."""
    plan = nbattn.plan(
        mask, (2, *queries, 4, 5), (2, *keys, 2, 5), value_dim=3, dtype="float64", device="cpu",
        backend=f"flash-model:{provider}", require=(strategy,), **asked,
    )  # fmt: skip
    program = plan.chosen.program

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            inputs = flash_backend.Inputs(*arguments)
            out, lse = flash_backend.forward(program, inputs, return_lse=True)
            ctx.save_for_backward(*(t for t in arguments if isinstance(t, Tensor)), out, lse)
            ctx.numbers = [None if isinstance(t, Tensor) else (t,) for t in arguments]
            return out, lse

        @staticmethod
        def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> Any:
            *saved, out, lse = ctx.saved_tensors
            arguments = [saved.pop(0) if n is None else n[0] for n in ctx.numbers]
            inputs = flash_backend.Inputs(*arguments)
            given = grad_lse if provider == "fa4" else None
            grads = flash_backend.backward(program, inputs, out, lse, grad_out, given)
            return (
                grads.query, grads.key, grads.value, grads.sink, None, grads.extra_key,
                grads.extra_value, None, None, None, None, None,
            )  # fmt: skip

    def attend(
        query: Tensor, key: Tensor, value: Tensor, *, sink: Any = None, extra_key: Any = None,
        extra_value: Any = None, scale: float = 5**-0.5, softcap: float | None = None,
        alibi_slopes: Any = None, distances: Any = None,
    ) -> Any:  # fmt: skip
        added = (None, None, alibi_slopes)
        extra = (extra_key, extra_value)
        return Node.apply(query, key, value, sink, None, *extra, *added, scale, softcap)

    return attend


# Rows of the output, written by the kernels themselves


def part_of(piece: Tensor, whole: Tensor) -> bool:
    """Whether a tensor is memory of another one."""
    return piece.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def unpadded_case(mask: Mask, queries: Space, keys: Space, **asked: Any) -> tuple[Any, Any, Tensor]:
    """A program on heads of 8, which need no padding, with its inputs and expected output."""
    sizes = {"query": (queries, 4), "key": (keys, 2), "value": (keys, 2)}
    made = {
        name: random((2, *space, heads, 8), n)
        for n, (name, (space, heads)) in enumerate(sizes.items())
    }
    plan = nbattn.plan(
        mask, made["query"].shape, made["key"].shape, dtype="float64", device="cpu", **asked
    )
    inputs = flash_backend.Inputs(**made, sink=None, key_range=None, extra_key=None,
                                  extra_value=None, scale=0.3, softcap=None)  # fmt: skip
    want = nbattn.attention(**made, mask=mask, scale=0.3, backend="reference")
    return plan.chosen.program, inputs, want
