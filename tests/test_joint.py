"""Tests of joint attention: against all tokens in one dense softmax, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from dense_attention import inside, rows
from oracle import axis_matrix, box
from torch import Tensor

import nbattn
from nbattn import Axis, BackendError, InputError, Mask, MaskError, joint_attention

HEADS, KEY_HEADS, DIM, VALUE_DIM = 4, 2, 6, 3
Space = tuple[int, ...]


class Case(NamedTuple):
    """A mask at lengths, the number of extra tokens, and what else the call has."""

    mask: Mask
    space: Space
    key_space: Space
    extras: int
    options: dict[str, Any] = {}
    given: str = ""


PLANE = Mask(Axis(1, 1, border="shift"), Axis(2, causal=True))
CASES = {
    "line": Case(Mask.sliding_window(2), (9,), (9,), 3),
    "line_of_no_extra_tokens": Case(Mask.sliding_window(2), (9,), (9,), 0),
    "line_short_queries": Case(Mask.causal("bottom-right"), (4,), (9,), 2, given="lse sink"),
    "line_rows_without_keys": Case(Mask(Axis(1, 0, offset=-3)), (7,), (7,), 1, given="lse"),
    "plane": Case(PLANE, (4, 5), (4, 5), 5, {"softcap": 2.0}, "lse sink"),
    "plane_scale": Case(PLANE, (4, 5), (4, 5), 1, {"scale": -0.7}, "lse"),
    "plane_key_range": Case(PLANE, (4, 5), (4, 5), 3, {"scale": 0.0}, "lse key_range sink"),
    "plane_of_one_token": Case(PLANE, (1, 1), (1, 1), 4),
    "solid": Case(
        Mask(Axis(1, 1, border="wrap"), Axis(), Axis(1, 1, border="shift", dilation=2)),
        *((3, 2, 6),) * 2,
        2,
        given="lse key_range",
    ),
}
ADDED = {
    "line_slopes": Case(Mask.causal(), (9,), (9,), 3, given="lse slopes"),
    "line_padded_text": Case(Mask.sliding_window(2), (9,), (9,), 4, given="lse extra_range sink"),
    "plane_table": Case(Mask.neighborhood((3, 3)), (4, 5), (4, 5), 3, given="lse table"),
    "plane_everything": Case(
        Mask.neighborhood((3, 3)), (4, 5), (4, 5), 4, {"softcap": 3.0},
        "lse table key_range extra_range sink",
    ),
}  # fmt: skip


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensors_of(case: Case, batch: int = 2) -> tuple[list[Tensor], dict[str, Any]]:
    """The three tensors of the grid and of the extra tokens, and the optional ones."""
    heads = ((HEADS, DIM), (KEY_HEADS, DIM), (KEY_HEADS, VALUE_DIM))
    spaces = (case.space, case.key_space, case.key_space)
    grid = [
        drawn(batch, *space, *head, seed=n)
        for n, (space, head) in enumerate(zip(spaces, heads, strict=True))
    ]
    extras = [drawn(batch, case.extras, *head, seed=3 + n) for n, head in enumerate(heads)]
    named: dict[str, Any] = {}
    if "sink" in case.given:
        named["sink"] = drawn(HEADS, seed=6)
    if "table" in case.given:
        named["relative_bias"] = drawn(HEADS, 5, 5, seed=7)
    if "slopes" in case.given:
        named["alibi_slopes"] = drawn(HEADS, seed=8).float()
    if "key_range" in case.given:
        boxes = [[[0, n] for n in case.key_space], [[1, n] for n in case.key_space]]
        named["key_range"] = torch.tensor(boxes, dtype=torch.int32)
    if "extra_range" in case.given:
        named["extra_range"] = torch.tensor([[0, 2], [1, 3]], dtype=torch.int32)
    return [*grid, *extras], named


def added(case: Case, named: dict[str, Any]) -> Tensor:
    """What is added to the scores of all tokens, [H, Nq + E, Nk + E], pair by pair."""
    places = [[*product(*map(range, space))] for space in (case.space, case.key_space)]
    lines = []
    for query in places[0]:
        line = []
        for key in places[1]:
            steps = [k - q for q, k in zip(query, key, strict=True)]
            one = torch.zeros(HEADS, dtype=torch.float64)
            if "relative_bias" in named and max(map(abs, steps)) <= 2:
                one = named["relative_bias"][:, steps[0] + 2, steps[1] + 2]
            if "alibi_slopes" in named:
                one = one - named["alibi_slopes"].double() * abs(steps[0])
            line.append(one)
        lines.append(torch.stack(line, -1))
    grid = torch.stack(lines, 1)
    return torch.nn.functional.pad(grid, (0, case.extras, 0, case.extras))


def one_softmax(case: Case, tensors: list[Tensor], named: dict[str, Any]) -> list[Tensor]:
    """Outputs and logsumexps of the grid and the extra tokens: all tokens in one dense matrix."""
    batch, extra, rank = len(tensors[0]), case.extras, len(case.space)
    query, key, value = (
        torch.cat([one.flatten(1, rank), other], 1)
        for one, other in zip(tensors[:3], tensors[3:], strict=True)
    )
    sizes = zip(case.mask.axes, case.space, case.key_space, strict=True)
    mask = torch.from_numpy(box([axis_matrix(*size) for size in sizes]))
    reads = torch.nn.functional.pad(mask, (0, extra, 0, extra), value=True).repeat(batch, 1, 1)
    count = reads.shape[2] - extra
    if "key_range" in named:
        reads[:, :, :count] &= inside(named["key_range"], case.key_space)[:, None]
    for sample, (start, stop) in enumerate(named.get("extra_range", ())):
        reads[sample, :, count : count + start] = False
        reads[sample, :, count + stop :] = False
    bias, scale = added(case, named), case.options.get("scale", DIM**-0.5)
    key, value = (one.repeat_interleave(HEADS // KEY_HEADS, dim=2) for one in (key, value))
    scores = scale * torch.einsum("bqhd,bkhd->bhqk", query, key)
    if "softcap" in case.options:
        cap = case.options["softcap"]
        scores = cap * torch.tanh(scores / cap)
    out, total = rows(scores + bias, reads[:, None], value, named.get("sink"))
    found = [
        part
        for joined in (out, total.transpose(1, 2))
        for part in joined.split([query.shape[1] - extra, extra], dim=1)
    ]
    found[0], found[2] = (found[n].unflatten(1, case.space) for n in (0, 2))
    return found if "lse" in case.given else found[:2]


def compared(case: Case, backend: str) -> int:
    """Compares outputs and all gradients; returns the number of tensors compared."""
    tensors, named = tensors_of(case)
    floats = [t for n, t in named.items() if n in ("sink", "relative_bias")]
    leaves = [t.requires_grad_() for t in (*tensors, *floats)]
    found = joint_attention(
        *tensors[:3], case.mask, *tensors[3:], **named, **case.options, backend=backend,
        return_lse="lse" in case.given,
    )  # fmt: skip
    wanted = one_softmax(case, tensors, named)
    upward = [drawn(*t.shape, seed=10 + n) for n, t in enumerate(wanted)]
    upward = [u.masked_fill(t == float("-inf"), 0) for u, t in zip(upward, wanted, strict=True)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    grads = (torch.autograd.grad(results, leaves, upward) for results in (found, wanted))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    return len(found) + len(leaves)


@pytest.mark.parametrize("backend", ["auto", "tiled", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_equals_one_softmax_over_all_tokens(
    name: str, backend: str, cases: Callable[[str, int], None]
) -> None:
    cases("joint attention", compared(CASES[name], backend))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ADDED)
def test_what_is_added_to_scores_and_padded_text(
    name: str, backend: str, cases: Callable[[str, int], None]
) -> None:
    cases("joint attention", compared(ADDED[name], backend))


def test_padded_tokens_are_queries_and_their_keys_are_not_read() -> None:
    case = ADDED["line_padded_text"]
    (*tensors, extra_key, extra_value), named = tensors_of(case)
    poisoned = [extra_key.clone(), extra_value.clone()]
    for tensor in poisoned:
        tensor[0, 2:] = float("nan")
        tensor[1, :1] = tensor[1, 3:] = float("nan")
    call = (*tensors[:3], case.mask, tensors[3])
    found = joint_attention(*call, *poisoned, **named)
    wanted = joint_attention(*call, extra_key, extra_value, **named)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
    assert found[1].abs().amax((2, 3)).gt(0).all()


def test_half_precision_and_autocast() -> None:
    tensors, _ = tensors_of(CASES["plane"])
    singles, halves = ([t.to(dtype) for t in tensors] for dtype in (torch.float32, torch.bfloat16))
    wanted = joint_attention(*halves[:3], PLANE, *halves[3:])
    with torch.autocast("cpu", torch.bfloat16):
        found = joint_attention(*singles[:3], PLANE, *singles[3:])
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_packed_grids_with_extra_tokens_of_their_own(backend: str) -> None:
    """Images of several sizes, each with its own registers, are the images one by one."""
    grids = [(4, 5), (1, 3), (0, 2), (6, 2)]
    mask, options = Mask.neighborhood((3, 3)), {"return_lse": True, "backend": backend}
    parts: list[list[Tensor]] = []
    for n, grid in enumerate(grids):
        one = Case(mask, grid, grid, 3)
        parts.append([t + n for t in tensors_of(one, batch=1)[0]])
    packed = [torch.cat([part[n].flatten(1, 2)[0] for part in parts]) for n in range(3)]
    extras = [torch.cat([part[n] for part in parts]) for n in range(3, 6)]
    leaves = [t.requires_grad_() for t in (*packed, *extras)]
    found = joint_attention(*packed, mask, *extras, grids=grids, **options)
    alone = [
        joint_attention(
            *(p[None].unflatten(1, g) for p, g in zip(each, (grid,) * 3, strict=True)),
            mask,
            *(t[n : n + 1] for t in extras),
            **options,
        )
        for n, (grid, each) in enumerate(
            zip(grids, zip(*(t.split([a * b for a, b in grids]) for t in packed), strict=True),
                strict=True)
        )
    ]  # fmt: skip
    wanted = [
        torch.cat([one[n].flatten(1, 2)[0] if n % 2 == 0 else one[n] for one in alone])
        for n in range(4)
    ]
    upward = [drawn(*t.shape, seed=n) for n, t in enumerate(wanted)]
    grads = (torch.autograd.grad(results, leaves, upward) for results in (found, wanted))
    for one, other in zip([*found, *next(grads)], [*wanted, *next(grads)], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


# Inside torch.


def joint(*tensors: Tensor) -> tuple[Tensor, ...]:
    return joint_attention(*tensors[:3], PLANE, *tensors[3:], return_lse=True)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_into_one_graph_forward_and_backward(backend: str) -> None:
    tensors, _ = tensors_of(CASES["plane"])
    leaves = [t.requires_grad_() for t in tensors]
    found = torch.compile(joint, fullgraph=True, backend=backend)(*leaves)
    wanted = joint(*leaves)
    upward = [drawn(*t.shape, seed=n) for n, t in enumerate(wanted)]
    grads = (torch.autograd.grad(results, leaves, upward) for results in (found, wanted))
    for one, other in zip([*found, *next(grads)], [*wanted, *next(grads)], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_exports_for_any_number_of_extra_tokens() -> None:
    class Joint(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            return joint(*tensors)

    tensors, _ = tensors_of(CASES["plane"])
    count = torch.export.Dim("count", min=2, max=64)
    shapes = (*({},) * 3, *({1: count},) * 3)
    program = torch.export.export(Joint(), tuple(tensors), dynamic_shapes={"tensors": shapes})
    other, _ = tensors_of(CASES["plane"]._replace(extras=9))
    for one, two in zip(program.module()(*other), joint(*other), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_exports_counts_that_only_the_data_knows() -> None:
    """Of extra queries and keys, which a graph cannot compare."""

    class Chosen(torch.nn.Module):
        def forward(self, grid: Tensor, text: Tensor, *used: Tensor) -> tuple[Tensor, ...]:
            query, key = (text.index_select(1, t.nonzero().flatten()) for t in used)
            return joint_attention(grid, grid, grid, PLANE, query, key, key)

    grid, text = drawn(2, 4, 5, HEADS, DIM, seed=0), drawn(2, 6, HEADS, DIM, seed=1)
    given = (grid, text, *torch.tensor([[1, 0, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0]]))
    found = torch.export.export(Chosen(), given, strict=False).module()(*given)
    for one, other in zip(found, Chosen()(*given), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_vmap_over_all_tensors() -> None:
    both = [tensors_of(CASES["plane"], batch)[0] for batch in (2, 2)]
    both[1] = [t.flip(0) for t in both[1]]
    stacked = [torch.stack(pair) for pair in zip(*both, strict=True)]
    found = torch.func.vmap(joint)(*stacked)
    for n, tensors in enumerate(both):
        for one, other in zip(found, joint(*tensors), strict=True):
            torch.testing.assert_close(one[n], other, rtol=1e-12, atol=1e-12)


# What is refused.


@pytest.fixture
def call() -> Callable[..., Any]:
    """A legal call, but for the arguments that are given."""
    tensors, _ = tensors_of(CASES["plane"])
    names = ("query", "key", "value", "extra_query", "extra_key", "extra_value")
    legal = dict(zip(names, tensors, strict=True)) | {"mask": PLANE}
    return lambda **given: joint_attention(**(legal | given))


def test_extra_tokens_that_do_not_fit(call: Callable[..., Any]) -> None:
    extra = drawn(2, 4, HEADS, DIM, seed=0)
    for given, text in (
        ({"extra_query": None}, "extra_query is None, not a tensor: extra tokens have"),
        ({"extra_query": [1.0]}, "extra_query is a list, not a tensor"),
        ({"extra_value": PLANE}, "extra_value is a Mask, not a tensor"),
        ({"extra_query": extra[:, :1]}, "extra_query has 1 token, extra_key 5"),
        ({"extra_query": extra[:, :, :2]}, "extra_query has shape [2, 4, 2, 6], not [2, 4, 4, 6]"),
        ({"extra_query": extra.float()}, "extra_query is float32, query float64"),
        ({"extra_query": extra, "extra_key": extra, "extra_value": extra}, "extra_key has shape"),
        ({"extra_range": [[0, 1]]}, "extra_range has shape [1, 2], not [2, 2]"),
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            call(**given)
        assert text in caught.value.problem


def test_a_fix_never_leaves_out_the_extra_tokens(call: Callable[..., Any]) -> None:
    """Whole calls of attention, the fixes of several errors, would."""
    tensors, _ = tensors_of(CASES["plane"], batch=1)
    with pytest.raises(InputError) as caught:
        nbattn.attention(*(t[0] for t in tensors[:3]), PLANE)
    assert "nbattn.attention(query[None]" in caught.value.fix
    with pytest.raises(InputError) as caught:
        joint_attention(*(t[0] for t in tensors[:3]), PLANE, *(t[0] for t in tensors[3:]))
    assert not caught.value.fix


def test_unknown_and_missing_arguments(call: Callable[..., Any]) -> None:
    with pytest.raises(InputError) as caught:
        call(qk_scale=0.5)
    assert caught.value.fix == "scale=0.5."
    with pytest.raises(InputError) as caught:
        call(dropout_p=0.1)
    assert "takes no argument 'dropout_p'" in caught.value.problem
    tensors, _ = tensors_of(CASES["plane"])
    whole = "nbattn.joint_attention(query, key, value, mask, extra_query, extra_key, extra_value)."
    for given in (tensors[:3], [*tensors, PLANE, 1.0], [*tensors[:5], tensors[5], PLANE]):
        with pytest.raises(InputError) as caught:
            joint_attention(*given)
        assert caught.value.fix == whole


def test_a_backend_runs_both_parts_or_raises(call: Callable[..., Any]) -> None:
    with pytest.raises(BackendError, match="sdpa cannot run this"):
        call(backend="sdpa", forbid=("dense",))
    with pytest.raises(BackendError, match="flash cannot run this"):
        call(backend="flash")
    with pytest.raises(MaskError):
        call(alibi_slopes=drawn(HEADS, seed=0))
    assert len(call(require=("window",), return_lse=True)) == 4


GRIDS = [(4, 5), (1, 7), (0, 3), (5, 4)]


def packed_problem() -> tuple[dict[str, Tensor], Mask]:
    tokens = sum(height * width for height, width in GRIDS)
    shapes = {
        "query": (tokens, HEADS, DIM),
        "key": (tokens, KEY_HEADS, DIM),
        "value": (tokens, KEY_HEADS, VALUE_DIM),
        "extra_query": (len(GRIDS), 3, HEADS, DIM),
        "extra_key": (len(GRIDS), 3, KEY_HEADS, DIM),
        "extra_value": (len(GRIDS), 3, KEY_HEADS, VALUE_DIM),
    }
    generator = torch.Generator().manual_seed(0)
    made = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }
    return made, Mask.neighborhood((3, 3))


@pytest.mark.parametrize("backend", ["auto", "reference", "tiled"])
def test_packed_grids_have_extra_tokens_of_their_own(backend: str) -> None:
    made, mask = packed_problem()
    ranges = [[0, 3], [1, 2], [0, 2], [2, 2]]
    options: dict[str, Any] = {"return_lse": True, "extra_range": ranges}
    found = joint_attention(**made, mask=mask, grids=GRIDS, backend=backend, **options)
    parts: list[list[Tensor]] = []
    first = 0
    for number, (height, width) in enumerate(GRIDS):
        rows_of = slice(first, first + height * width)
        first += height * width
        one = {
            name: t[number : number + 1]
            if name.startswith("extra")
            else t[rows_of].view(1, height, width, *t.shape[1:])
            for name, t in made.items()
        }
        own = {"return_lse": True, "extra_range": ranges[number : number + 1]}
        out, extra, lse, extra_lse = joint_attention(**one, mask=mask, backend="reference", **own)
        parts.append([out.flatten(0, 2), extra, lse.flatten(0, 2), extra_lse])
    wanted = [torch.cat(part) for part in zip(*parts, strict=True)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    grads = [
        torch.autograd.grad([t.square().sum() for t in (results[0], results[1])], [*made.values()])
        for results in (found, wanted)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_plan_of_packed_grids_has_both_parts() -> None:
    made, mask = packed_problem()
    plan = nbattn.plan(
        mask, made["query"].shape, made["key"].shape, value_dim=VALUE_DIM, grids=GRIDS,
        extra_keys=3, extra_queries=True, dtype="float64", device="cpu", training=True,
    )  # fmt: skip
    assert plan.verify()
    tokens = [height * width for height, width in GRIDS]
    owners = torch.repeat_interleave(torch.arange(len(GRIDS)), torch.tensor(tokens))
    of_extras = torch.arange(len(GRIDS)).repeat_interleave(3)
    support = torch.from_numpy(plan.support())
    count = sum(tokens)
    assert torch.equal(support[:count, count:], owners[:, None] == of_extras)
    assert torch.equal(support[count:, :count], of_extras[:, None] == owners)
    assert torch.equal(support[count:, count:], of_extras[:, None] == of_extras)
    assert not (support[:count, :count] & (owners[:, None] != owners)).any()
    run = plan.run(**made)
    wanted = joint_attention(**made, mask=mask, grids=GRIDS)
    for one, other in zip(run, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
