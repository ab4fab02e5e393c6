"""Owns the values of Flash programs: the model, and every provider's adapter on stand-ins.

No GPU: the providers are the modules of `flash_stand_ins`, so what is proved is how they are called
and how their parts are joined; `tests/gpu/test_flash.py` asks the real kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import dense_attention
import flash_stand_ins
import pytest
import torch
from oracle import matrix
from torch import Tensor

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.backends import calls, families
from nbattn.backends.dense.meaning import NoMask
from nbattn.backends.flash import adapters as flash_backend
from nbattn.backends.flash import model as flash_model
from nbattn.program.program import AxisView, Call, Program, View

Count = Callable[[str, int], None]
Space = tuple[int, ...]
PROVIDERS = ("aten", "fa2", "fa3", "fa4")
STRATEGIES = ("translate", "trim", "split", "virtual-pad", "pack", "pad")

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


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("label", MASKS)
def test_the_model_differentiates_every_strategy(label: str, feature: str, cases: Count) -> None:
    mask, queries, keys = MASKS[label]
    features, numbers = FEATURES[feature]
    taken: set[str] = set()
    for provider in ("aten", "fa4"):
        for strategy in STRATEGIES:

            def attend(
                query: Tensor, key: Tensor, value: Tensor, *,
                by: str = f"flash-model:{provider}", using: str = strategy, **more: Any,
            ) -> Any:  # fmt: skip
                return nbattn.attention(
                    query, key, value, mask, backend=by, require=(using,), return_lse=True, **more
                )

            made = tensors(queries, keys, *features)
            try:
                compare(mask, queries, keys, made, numbers, attend)
            except BackendError:
                continue
            taken.add(provider)
            cases(f"flash values, model {strategy}", 1)
    silent = label == "no pair at all" and "extra" in features
    assert taken == (set() if silent else {"aten", "fa4"})


# The adapters


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All four providers, as stand-ins on the CPU."""
    modules = {
        "flash_attn.flash_attn_interface": flash_stand_ins.Flash2(),
        "flash_attn_interface": flash_stand_ins.Flash3(),
        "flash_attn.cute.interface": flash_stand_ins.Flash4(),
    }
    known = flash_backend.import_module
    monkeypatch.setattr(
        flash_backend, "import_module", lambda name: modules.get(name) or known(name)
    )
    aten, flash3 = (
        torch.library.Library("aten", "IMPL"),
        torch.library.Library("flash_attn_3", "DEF"),
    )
    aten.impl("_flash_attention_forward", flash_stand_ins.aten_forward, "CPU")
    aten.impl(flash_backend._WRITES, flash_stand_ins.aten_forward_into, "CPU")
    aten.impl("_flash_attention_backward", flash_stand_ins.aten_backward, "CPU")
    flash3.define(flash_stand_ins.FLASH3)
    flash3.impl("fwd", flash_stand_ins.flash3_forward, "CPU")
    flash_stand_ins.WRITTEN.clear()
    yield
    aten._destroy()
    flash3._destroy()


def through(
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
                grads.extra_value, None, None,
            )  # fmt: skip

    def attend(
        query: Tensor, key: Tensor, value: Tensor, *, sink: Any = None, extra_key: Any = None,
        extra_value: Any = None, scale: float = 5**-0.5, softcap: float | None = None,
    ) -> Any:  # fmt: skip
        return Node.apply(query, key, value, sink, None, extra_key, extra_value, scale, softcap)

    return attend


@pytest.mark.usefixtures("providers")
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("label", MASKS)
def test_an_adapter_says_what_the_program_means(label: str, provider: str, cases: Count) -> None:
    mask, queries, keys = MASKS[label]
    for strategy in STRATEGIES:
        features, numbers = FEATURES["everything"]
        if label == "no pair at all":
            features = ("sink",)
        if provider == "aten" or strategy == "pad":
            numbers = {"scale": numbers["scale"]}
        try:
            softcap = numbers.get("softcap")
            attend = through(provider, mask, strategy, queries, keys, softcap=softcap)
        except BackendError:
            continue
        made = tensors(queries, keys, *features)
        compare(mask, queries, keys, made, numbers, attend, lse_gradient=provider == "fa4")
        cases(f"flash values, {provider} adapter", 1)


@pytest.mark.usefixtures("providers")
def test_a_replaced_built_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = through("aten", Mask.causal(), "translate", (4,), (4,))
    module = torch.nn.attention
    monkeypatch.setattr(module, "current_flash_attention_impl", lambda: "FA4", raising=False)
    with pytest.raises(BackendError, match="operator was replaced by FA4"):
        attend(**tensors((4,), (4,)))


def test_misaligned_rows_are_copied_and_aligned_ones_are_not() -> None:
    whole = torch.zeros(2, 9, 4, 16, dtype=torch.float16)
    assert flash_backend._sized(whole[:, 1:], 16).data_ptr() == whole[:, 1:].data_ptr()
    odd = torch.zeros(2 * 9 * 4 * 16 + 1, dtype=torch.float16)[1:].view(2, 9, 4, 16)
    assert flash_backend._sized(odd, 16).data_ptr() % 16 == 0
    assert flash_backend._sized(whole.transpose(2, 3).contiguous().mT, 16).stride(-1) == 1


@pytest.mark.parametrize("strides", [(1, 576, 64, 1), (576, 8, 576, 1), (0, 64, 16, 1)], ids=str)
def test_rows_that_overlap_are_copied(strides: Space) -> None:
    """A hop of 8 halves is 16 bytes, which kernels load; a TMA box needs rows that lie apart."""
    memory = torch.arange(10_000, dtype=torch.float16)
    given = memory.as_strided((2, 9, 4, 16), strides)
    taken = flash_backend._sized(given, 16)
    assert taken.is_contiguous()
    assert torch.equal(taken, given)


# Decode


DECODING = {
    "causal": Mask.causal("bottom-right"),
    "window": Mask.from_transformers(5),
    "behind": Mask(Axis(4, causal=True, align="bottom-right", offset=-2)),
    "dilated": Mask(Axis(3, causal=True, dilation=3, align="bottom-right")),
    "sinks": Mask(Axis(2, causal=True, prefix=2, align="bottom-right")),
}


WAYS = {
    "flash-model:aten": (),
    "flash-model:fa4": (),
    "flash-model:fa2": ("kv-cache",),
    "flash-model:fa3": ("kv-cache",),
    "tiled": (),
    "auto": (),
}


@pytest.mark.parametrize("backend", WAYS)
@pytest.mark.parametrize("name", DECODING)
def test_prefill_and_decode_are_one_pass(name: str, backend: str, cases: Count) -> None:
    mask, length = DECODING[name], 17
    assert mask.decodes() is None
    made = {key: t.detach() for key, t in tensors((length,), (length,)).items()}
    whole = nbattn.attention(**made, mask=mask, backend="reference")
    for first in (1, 6, 16):
        for step in (1, 2, 5):
            at, parts = 0, []
            while at < length:
                stop = min(length, at + (first if at == 0 else step))
                query, (key, value) = (
                    made["query"][:, at:stop],
                    (made[side][:, :stop] for side in ("key", "value")),
                )
                named = {"backend": backend, "require": WAYS[backend]}
                parts.append(nbattn.attention(query, key, value, mask, **named))
                at = stop
            torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
            cases("flash values, decode", 1)


@pytest.mark.usefixtures("providers")
@pytest.mark.parametrize("provider", ["fa2", "fa3"])
@pytest.mark.parametrize("name", DECODING)
def test_the_cache_entry_of_a_provider(name: str, provider: str, cases: Count) -> None:
    """The whole cache is given; what lies behind the filled part is not read."""
    for queries, keys in ((1, 30), (3, 30), (7, 7), (16, 4), (4, 17)):
        mask = DECODING[name]
        made = {key: t.detach() for key, t in tensors((queries,), (keys,)).items()}
        plan = nbattn.plan(
            mask, made["query"].shape, made["key"].shape, value_dim=3, dtype="float64",
            device="cpu", backend=f"flash-model:{provider}", require=("kv-cache",),
        )  # fmt: skip
        assert plan.chosen.program is not None
        want, want_lse = nbattn.attention(**made, mask=mask, backend="reference", return_lse=True)
        read = torch.from_numpy(matrix(mask.axes, (queries,), (keys,)).any(0))
        for side in ("key", "value"):
            made[side][:, int(read.nonzero().max()) + 1 :] = 1e6
        inputs = flash_backend.Inputs(**made, sink=None, key_range=None, extra_key=None,
                                      extra_value=None, scale=5**-0.5, softcap=None)  # fmt: skip
        for run in (flash_backend.forward, flash_model.forward):
            out, lse = run(plan.chosen.program, inputs, return_lse=True)
            torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
            torch.testing.assert_close(lse, want_lse, rtol=0, atol=1e-12)
            cases("flash values, kv-cache", 1)


def test_the_data_of_a_cuda_device_lists_what_is_installed() -> None:
    assert "torch" not in families.installed()
    assert set(families.installed()) <= {"flash-attn", "flash-attn-3", "flash-attn-4", "cupy"}


# Rows of the output, written by the kernels themselves


def part_of(piece: Tensor, whole: Tensor) -> bool:
    """Whether a tensor is memory of another one."""
    return piece.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def even(mask: Mask, queries: Space, keys: Space, **asked: Any) -> tuple[Any, Any, Tensor]:
    """A program on heads of 8, which no kernel wants padded: it, its inputs, what they give."""
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


@pytest.mark.usefixtures("providers")
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("label", MASKS)
def test_kernels_write_their_rows_into_the_output(label: str, provider: str, cases: Count) -> None:
    """One piece of the output per call, at its own rows; nothing is copied there."""
    mask, queries, keys = MASKS[label]
    for strategy in ("translate", "trim", "split"):
        try:
            program, inputs, want = even(
                mask, queries, keys, backend=f"flash-model:{provider}", require=(strategy,)
            )
        except BackendError:
            continue
        flash_stand_ins.WRITTEN.clear()
        out, _ = flash_backend.forward(program, inputs, return_lse=True)
        torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
        if (len(program.calls) == 1 and program.calls[0].query.covers(inputs.space)) or any(
            call.joins for call in program.calls
        ):
            assert not flash_stand_ins.WRITTEN
            continue
        rows = [call.query.rows_of(out) for call in program.calls]
        if any(part is None for part in rows):  # residues of two samples in the batch
            continue
        if provider == "aten" and not hasattr(torch.ops.aten, flash_backend._WRITES):
            assert not flash_stand_ins.WRITTEN  # torch before 2.12 has no operator that does
            continue
        places = [(part.data_ptr(), part.shape, part.stride()) for part in rows]
        given = [(one.data_ptr(), one.shape, one.stride()) for one in flash_stand_ins.WRITTEN]
        assert given == places
        assert all(part_of(one, out) for one in flash_stand_ins.WRITTEN)
        cases(f"flash rows, {provider} written in place", len(rows))


@pytest.mark.usefixtures("providers")
@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_model_writes_where_kernels_do(provider: str) -> None:
    """The rows a kernel is given are memory of the output, for the model as for the providers."""
    mask, queries, keys = MASKS["shift"]
    program, inputs, want = even(mask, queries, keys, backend=f"flash-model:{provider}")
    given: list[Tensor] = []

    class Watched(flash_model.Model):
        def forward(
            self, call: Any, arrays: Any, scale: Any, softcap: Any, into: Any = None
        ) -> Any:
            given.append(into)
            out, lse = super().forward(call, arrays, scale, softcap, into)
            assert out is into
            return out, lse

    out, _ = calls.forward(program, inputs, Watched())
    assert len(given) == len(program.calls) == 3
    assert all(part_of(one, out) for one in given)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("providers")
def test_what_a_kernel_cannot_write_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of another size, packed rows of several samples, a torch without the operator."""
    mask, queries, keys = MASKS["rows outside"]
    attend = through("aten", mask, "trim", queries, keys)  # heads of 5, values of 3
    compare(mask, queries, keys, tensors(queries, keys), {}, attend, lse_gradient=False)
    program, inputs, want = even(
        mask, queries, keys, backend="flash-model:aten", require=("virtual-pad",)
    )
    found, _ = flash_backend.forward(program, inputs, return_lse=True)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)
    monkeypatch.setattr(flash_backend, "_WRITES", "of another version")
    program, inputs, want = even(mask, queries, keys, backend="flash-model:aten", require=("trim",))
    found, _ = flash_backend.forward(program, inputs, return_lse=True)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)
    assert not flash_stand_ins.WRITTEN


def test_a_call_that_joins_writes_no_rows() -> None:
    halves = [View((AxisView(start, 3),)) for start in (0, 3)]
    whole = Program(tuple(Call(half, half, NoMask()) for half in halves))
    assert whole.writes_all((6,))
    first, second = whole.calls
    assert not Program((first, replace(second, joins=True))).writes_all((6,))


@pytest.mark.parametrize("provider", ["aten", "fa4"])
@pytest.mark.parametrize("label", MASKS)
def test_rows_that_no_call_writes_are_zero(label: str, provider: str) -> None:
    """In memory that is full of NaN where nobody has written."""
    mask, queries, keys = MASKS[label]
    made = {name: t.detach() for name, t in tensors(queries, keys).items()}
    want, want_lse = nbattn.attention(**made, mask=mask, backend="reference", return_lse=True)
    torch.use_deterministic_algorithms(True)
    try:
        for strategy in STRATEGIES:
            try:
                found, lse = nbattn.attention(
                    **made, mask=mask, backend=f"flash-model:{provider}", require=(strategy,),
                    return_lse=True,
                )  # fmt: skip
            except BackendError:
                continue
            torch.testing.assert_close(found, want, rtol=0, atol=1e-12)
            torch.testing.assert_close(lse, want_lse, rtol=0, atol=1e-12)
    finally:
        torch.use_deterministic_algorithms(False)
