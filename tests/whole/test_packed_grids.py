"""Tests of packed grids: every backend gives what each grid gives alone, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from packed_oracle import gradients, one_by_one, packed, support

import nbattn
from nbattn import Axis, BackendError, InputError, Mask, MaskError

MASKS = {
    "neighborhood": Mask.neighborhood((3, 5)),
    "dilated": Mask.neighborhood((3, 3), dilation=2, stride=2),
    "causal": Mask(Axis(2, 0, causal=True), Axis(1, 2)),
    "wrap": Mask(Axis(1, 1), Axis(1, 2, border="wrap")),
    "unlimited": Mask.full(rank=2),
    "line": Mask.causal(),
    "window": Mask.sliding_window(3, 1),
    "prefix": Mask(Axis(2, 0, causal=True, prefix=2)),
    "volume": Mask.neighborhood((3, 3, 3)),
}
SIZES = {
    1: [(5,), (1,), (0,), (13,), (5,), (2,)],
    2: [(5, 6), (3, 1), (4, 0), (7, 2), (5, 6), (1, 8)],
    3: [(2, 3, 4), (1, 1, 1), (2, 3, 4), (3, 0, 1)],
}
BACKENDS = ("auto", "reference", "tiled", "sdpa", "native", "flash-model")


def same(found: Any, wanted: Any) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def compare(
    mask: Mask, sizes: Any, key_sizes: Any, backend: str, options: dict[str, Any] | None = None
) -> bool:
    """Whether the backend takes it; then results and gradients are those of single grids."""
    tensors, given = packed(sizes, key_sizes), options or {}
    trained = [t for t in given.values() if isinstance(t, torch.Tensor) and t.requires_grad]
    leaves = [*tensors, *trained]
    try:
        found = nbattn.attention(
            *tensors,
            mask,
            grids=sizes,
            key_grids=key_sizes,
            backend=backend,
            return_lse=True,
            **given,
        )
    except BackendError:
        return False
    wanted = one_by_one(tensors, mask, sizes, key_sizes, **given)
    same(found, wanted)
    same(gradients(found, leaves), gradients(wanted, leaves))
    return True


@pytest.mark.parametrize("backend", BACKENDS)
def test_grids_are_what_each_is_alone(backend: str, cases: Callable[[str, int], None]) -> None:
    taken = 0
    for mask in MASKS.values():
        taken += compare(mask, SIZES[mask.rank], None, backend)
    least = {"sdpa": 0, "flash-model": 1}  # SDPA's backward takes no gradient of the logsumexp
    assert taken >= least.get(backend, len(MASKS))
    cases("packed grids", taken)


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_with_grids_of_their_own(backend: str) -> None:
    queries, keys = [(1,), (5,), (0,), (2,)], [(9,), (4,), (3,), (0,)]
    mask = Mask.sliding_window(3, 0, align="bottom-right")
    assert compare(mask, queries, keys, backend) or backend == "sdpa"
    mask = Mask(Axis(1, 1, align="top-left"), Axis())
    compare(mask, [(2, 3), (4, 1)], [(3, 5), (2, 2)], backend)


def extras(grids: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        made = torch.randn(shape, generator=generator, dtype=torch.float64)
        return made.requires_grad_()

    start = torch.randint(0, 2, (grids, 2, 1), generator=generator)
    length = torch.randint(0, 5, (grids, 2, 1), generator=generator)
    return {
        "sink": {"sink": random(4)},
        "extra keys": {"extra_key": random(grids, 3, 2, 8), "extra_value": random(grids, 3, 2, 8)},
        "extra range": {
            "extra_key": random(grids, 3, 2, 8),
            "extra_value": random(grids, 3, 2, 8),
            "extra_range": torch.randint(0, 4, (grids, 2), generator=generator).sort(1).values,
        },
        "key range": {"key_range": torch.cat([start, start + length], -1)},
        "table": {"relative_bias": random(4, 5, 9)},
        "softcap": {"softcap": 2.0, "scale": 0.3},
    }


@pytest.mark.parametrize("backend", ["auto", "tiled", "native", "reference"])
@pytest.mark.parametrize("name", [*extras(1)])
def test_what_comes_with_each_grid(backend: str, name: str) -> None:
    sizes = [(5, 6), (3, 4), (0, 2), (5, 6)]
    given = extras(len(sizes))[name]
    taken = compare(MASKS["neighborhood"], sizes, None, backend, given)
    assert taken or backend == "native"  # which some machines do not have


@pytest.mark.parametrize("shape", [(4,), (6, 4)])
def test_slopes_of_all_grids_or_of_each(shape: tuple[int, ...]) -> None:
    slopes = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    for backend in ("auto", "tiled", "reference"):
        assert compare(Mask.causal(), SIZES[1], None, backend, {"alibi_slopes": slopes})


@pytest.mark.parametrize("backend", ["auto", "reference", "tiled"])
def test_no_grids(backend: str) -> None:
    empty = torch.empty(0, 2, 4, requires_grad=True)
    out, lse = nbattn.attention(
        *[empty] * 3, MASKS["neighborhood"], grids=[], backend=backend, return_lse=True
    )
    assert out.shape == (0, 2, 4)
    assert lse.shape == (0, 2)
    out.sum().backward()
    assert empty.grad is not None


@pytest.mark.parametrize("backend", ["auto", "native", "reference", "tiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_grids_with_extra_keys_and_a_table(backend: str, dtype: torch.dtype) -> None:
    """Extra keys of no grids have no memory, and the table's gradient is zeros."""
    empty = torch.empty(0, 2, 4, dtype=dtype, requires_grad=True)
    extra = torch.empty(0, 3, 2, 4, dtype=dtype, requires_grad=True)
    table = torch.ones(2, 5, 9, requires_grad=True)
    given: dict[str, Any] = {"extra_key": extra, "extra_value": extra, "relative_bias": table}
    out = nbattn.attention(*[empty] * 3, MASKS["neighborhood"], grids=[], backend=backend, **given)
    out.sum().backward()  # the reference computes grid by grid: here nothing, of nothing
    assert not any(t.grad.any() for t in (empty, extra, table) if t.grad is not None)


def test_keys_of_a_grid_without_queries_have_no_gradient() -> None:
    query, key, value = packed([(0,), (3,)], [(4,), (3,)])
    mask = Mask.causal("bottom-right")
    for backend in ("auto", "tiled", "reference"):
        out = nbattn.attention(
            query, key, value, mask, grids=[0, 3], key_grids=[4, 3], backend=backend
        )
        grad, of_value = torch.autograd.grad(out.sum(), [key, value])
        assert not grad[:4].any()
        assert not of_value[:4].any()
        assert of_value[4:].any()


def test_gradients_of_gradients() -> None:
    tensors = packed([(2, 2), (1, 3)], dim=2)
    mask = Mask.neighborhood((3, 3))

    def attend(*given: torch.Tensor) -> torch.Tensor:
        return nbattn.attention(*given, mask, grids=[(2, 2), (1, 3)], backend="reference")

    assert torch.autograd.gradgradcheck(attend, tensors)


@pytest.mark.parametrize("name", [*MASKS])
def test_a_plan_has_every_pair_of_each_grid_once(name: str) -> None:
    mask = MASKS[name]
    sizes = SIZES[mask.rank]
    wanted = support(mask, sizes)
    shape = (len(wanted), 4, 8)
    for backend in BACKENDS[2:]:
        try:
            plan = nbattn.plan(
                mask, shape, grids=sizes, dtype="float32", device="cpu", backend=backend
            )
        except BackendError:
            continue
        assert plan.verify()
        assert (plan.support() == wanted).all(), plan.chosen.name


@pytest.mark.parametrize("device", ["cpu", "sm_90", "sm_75"])
def test_every_accepted_candidate_is_exact(device: str) -> None:
    from dataclasses import replace

    for name in ("neighborhood", "line", "window"):
        mask = MASKS[name]
        sizes = SIZES[mask.rank]
        shape = (len(support(mask, sizes)), 4, 32)
        plan = nbattn.plan(mask, shape, grids=sizes, dtype="float16", device=device, training=True)
        for candidate in plan.candidates:
            if candidate.program is not None and not candidate.reasons:
                assert replace(plan, chosen=candidate).verify(), candidate.name


def test_a_strided_and_a_packed_query_give_the_same() -> None:
    sizes = SIZES[2]
    tokens = len(support(MASKS["neighborhood"], sizes))
    qkv = torch.randn(tokens, 3, 2, 8, dtype=torch.float64)
    views = qkv.unbind(1)
    found = nbattn.attention(*views, MASKS["neighborhood"], grids=sizes)
    copies = (t.contiguous() for t in views)
    same([found], [nbattn.attention(*copies, MASKS["neighborhood"], grids=sizes)])


def test_a_known_call_is_for_its_grids_alone() -> None:
    query, key, value = (t.detach() for t in packed([(2, 6), (3, 4)]))
    mask = Mask.neighborhood((3, 3))
    for sizes in ([(2, 6), (3, 4)], [(3, 4), (2, 6)], [(2, 6), (3, 4)], [(4, 6)]):
        found = nbattn.attention(query, key, value, mask, grids=sizes)
        same([found], one_by_one((query, key, value), mask, sizes)[:1])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"grids": [(2, 3)]}, "grids have 6 tokens, query has 24."),
        ({"grids": [(2, 12)], "key_grids": [(2, 3)]}, "key_grids have 6 tokens, key has 24."),
        ({"grids": [(2, 12)], "key_grids": [(2, 6)] * 2}, "grids has 1 grids, key_grids 2."),
        ({"key_grids": [(2, 12)]}, "key_grids is given, but not grids."),
        ({"grids": [24]}, "grids has shape [1], not [G, 2]"),
    ],
)
def test_grids_that_do_not_fit(options: dict[str, Any], text: str) -> None:
    query, key, value = packed([(2, 12)])
    with pytest.raises(InputError) as raised:
        nbattn.attention(query, key, value, Mask.neighborhood((3, 3)), **options)
    assert text in str(raised.value)


def test_tensors_with_a_batch_are_no_packed_grids() -> None:
    query = torch.randn(1, 24, 2, 8)
    with pytest.raises(InputError, match="with grids it needs 3 dimensions"):
        nbattn.attention(query, query, query, Mask.neighborhood((3, 3)), grids=[(2, 12)])


def test_the_first_grid_without_an_alignment() -> None:
    query, key, value = packed([(2,), (5,), (3,)], [(2,), (6,), (4,)])
    with pytest.raises(MaskError, match=r"grid 1: axis 0 \(5 queries, 6 keys\)"):
        nbattn.attention(query, key, value, Mask.causal(), grids=[2, 5, 3], key_grids=[2, 6, 4])


def test_compiled_with_sizes_that_change() -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter, mask = CompileCounter(), Mask.neighborhood((3, 3))

    @torch.compile(backend=counter, fullgraph=True)
    def attend(query: Any, key: Any, value: Any, sizes: Any) -> Any:
        return nbattn.attention(query, key, value, mask, grids=sizes)

    for sizes in ([(5, 6), (7, 3)], [(4, 7), (8, 4)], [(9, 5), (6, 8)], [(3, 4), (5, 9)]):
        tensors = tuple(t.detach() for t in packed(sizes))
        same([attend(*tensors, sizes)], one_by_one(tensors, mask, sizes)[:1])
    assert counter.frame_count <= 2


def test_compiled_with_keys_that_have_grids_of_their_own() -> None:
    torch._dynamo.reset()
    sizes, key_sizes, mask = [(5, 6), (0, 3)], [(3, 4), (2, 2)], Mask.full(rank=2)
    attend = torch.compile(nbattn.attention, backend="eager", fullgraph=True)
    tensors = packed(sizes, key_sizes)
    found = attend(*tensors, mask, grids=sizes, key_grids=key_sizes, return_lse=True)
    wanted = one_by_one(tensors, mask, sizes, key_sizes)
    same(found, wanted)
    same(gradients(found, tensors), gradients(wanted, tensors))


def test_compiled_with_grids_made_before() -> None:
    torch._dynamo.reset()
    mask = Mask.neighborhood((3, 3))

    @torch.compile(backend="eager")
    def attend(query: Any, key: Any, value: Any, sizes: Any) -> Any:
        return nbattn.attention(query, key, value, mask, grids=sizes)

    from nbattn.grids import grids_of

    for sizes in ([(5, 6)], [(4, 7)], [(7, 4)]):
        tensors = tuple(t.detach() for t in packed(sizes))
        found = attend(*tensors, grids_of(sizes))
        same([found], one_by_one(tensors, mask, sizes)[:1])


OPAQUE: dict[str, Callable[[Any], Any]] = {
    "grids": nbattn.Grids,
    "array": np.array,
    "tensor": torch.tensor,
    "numbers of numpy": lambda sizes: [tuple(map(np.int64, size)) for size in sizes],
}


@pytest.mark.parametrize("kind", OPAQUE)
def test_sizes_that_a_graph_does_not_know(kind: str) -> None:
    """torch.compile leaves its graph, also in a layer; torch.export takes the numbers."""
    mask, sizes, x = Mask.neighborhood((3, 3)), [(5, 6), (4, 3)], torch.randn(42, 2, 4)
    given = OPAQUE[kind](sizes)

    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return nbattn.attention(x, x, x, mask, grids=given)

    class Places(torch.nn.Module):
        def forward(self, query: Any, key: Any) -> Any:
            return query * torch.arange(query.shape[1])[:, None, None, None], key

    wanted = nbattn.attention(x, x, x, mask, grids=sizes)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(Model(), backend="eager")(x), wanted)
    if kind == "tensor":
        with pytest.raises(InputError) as raised:
            torch.export.export(Model(), (x,), strict=False)
        problem = "grids is a tensor, whose numbers torch.export does not know."
        assert raised.value.problem == problem
        assert raised.value.fix == "grids=grids.tolist(), before the export."
    else:
        torch.testing.assert_close(
            torch.export.export(Model(), (x,), strict=False).module()(x), wanted
        )
    layer = nbattn.NeighborhoodAttention(8, 2, mask, qk_transform=Places())
    compiled = torch.compile(layer, backend="eager")
    tokens = x.flatten(1)
    torch.testing.assert_close(compiled(tokens, grids=given), layer(tokens, grids=sizes))


def test_compiled_with_sizes_of_other_tokens() -> None:
    """The error of the call alone, where torch compiles a part of what raises it."""
    torch._dynamo.reset()
    x = torch.randn(42, 2, 4)
    attend = torch.compile(
        lambda x: nbattn.attention(x, x, x, Mask.causal(), grids=[5, 6]), backend="eager"
    )
    with pytest.raises(InputError, match="grids have 11 tokens, query has 42"):
        attend(x)


def test_exported_with_symbols_as_sizes() -> None:
    mask = Mask.neighborhood((3, 3))

    class Model(torch.nn.Module):
        def forward(self, x: Any, y: Any) -> Any:
            line = torch.cat([t.flatten(0, 1) for t in (x, y)]).unsqueeze(1)
            return nbattn.attention(line, line, line, mask, grids=[t.shape[:2] for t in (x, y)])

    dim = torch.export.Dim
    spaces = ({0: dim("a"), 1: dim("b")}, {0: dim("c"), 1: dim("d")})
    example = torch.randn(5, 6, 8), torch.randn(4, 7, 8)
    program = torch.export.export(Model(), example, dynamic_shapes=spaces)
    given = torch.randn(9, 5, 8), torch.randn(4, 8, 8)
    torch.testing.assert_close(program.module()(*given), Model()(*given))


def test_transforms_of_functions() -> None:
    sizes, mask = [(3, 4), (2, 5)], Mask.neighborhood((3, 3))
    query, key, value = (t.detach() for t in packed(sizes))
    several = torch.randn(3, *query.shape, dtype=torch.float64)

    def attend(given: Any) -> Any:
        return nbattn.attention(given, key, value, mask, grids=sizes)

    same(torch.vmap(attend)(several), [attend(one) for one in several])
    grad = torch.func.grad(lambda given: attend(given).sin().sum())(query)
    leaf = query.clone().requires_grad_()
    attend(leaf).sin().sum().backward()
    same([grad], [leaf.grad])


def test_counted_flops_are_those_of_single_grids() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    sizes, mask = [(3, 4), (2, 5), (3, 4)], Mask.neighborhood((3, 3))
    query, key, value = (t.detach() for t in packed(sizes))
    with FlopCounterMode(display=False) as counter:
        nbattn.attention(query, key, value, mask, grids=sizes)
    pairs = int(np.count_nonzero(support(mask, sizes)))
    assert counter.get_total_flops() == 4 * pairs * 4 * 8


def test_sdpa_runs_what_it_takes_size_by_size() -> None:
    for mask in (Mask.full(rank=2), Mask.causal(), Mask.neighborhood((3, 3))):
        sizes = [size for size in SIZES[mask.rank] if 0 not in size]
        tensors = packed(sizes)
        out = nbattn.attention(*tensors, mask, grids=sizes, backend="sdpa")
        wanted, _ = one_by_one(tensors, mask, sizes)
        same([out], [wanted])
        grads = (torch.autograd.grad(t.sin().sum(), tensors) for t in (out, wanted))
        same(*grads)
