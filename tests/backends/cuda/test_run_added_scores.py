"""Tests of what the CUDA kernels add to scores (a table of relative positions, ALiBi's slopes) and
of ranges of extra keys, run by the emulator: values and gradients against float64, entry by entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import cuda_plans
import dense_attention
import pytest
import torch
from emulator import build, problem
from emulator.cases import CASES
from emulator.launcher import Launcher, Mode
from oracle import bias_entries, distances, is_legal, matrix
from packed_oracle import gradients, one_by_one, packed
from short_axes import specimens
from torch import Tensor

import nbattn
from nbattn import Axis, BackendError, Mask, MaskError, biases
from nbattn.backends.cuda import meaning, pipes
from nbattn.backends.cuda import run as cuda
from nbattn.backends.cuda.meaning import CudaArguments, two_runs
from nbattn.backends.cuda.tiles import Build, Tiles
from nbattn.backends.inputs import Inputs
from nbattn.geometry import bind
from nbattn.kernels import launch
from nbattn.kernels.variant import Variant
from nbattn.planner import devices, planner
from nbattn.program.device import DEVICES
from nbattn.program.program import Call, Program, whole

Count = Callable[[str, int], None]
Place = tuple[Mask, tuple[int, ...], tuple[int, ...]]
pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))
LINE = Tiles((1, 1, 16), (1, 1, 32))
PLANE = Tiles((1, 4, 4), (1, 4, 8))
DIFFERENTIABLE = ("query", "key", "value", "extra_key", "extra_value", "relative_bias")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    """CPU tensors are on a device with CuPy, and kernels run in the emulator."""
    launcher = Launcher()
    monkeypatch.setattr(devices, "device_info", lambda *_: cuda_plans.device("sm_90"))
    monkeypatch.setattr(launch, "launcher", lambda: launcher)
    planner.forget()
    yield launcher
    planner.forget()


# The kernels alone

NEW = [name for name in CASES if name.startswith(("table", "slopes", "text", "nothing"))]


def solve(name: str, mode: Mode) -> None:
    p = CASES[name]
    made = problem.make(p)
    found = problem.solve(p, Launcher(mode), made)
    assert ("grad_relative_bias" in found) == p.table
    problem.judge(p, found, problem.expected_results(p, made))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.deep if name in ("table", "slopes", "text") else [])
        for name in NEW
        if not name.endswith("simt")
    ],
)
def test_kernels_on_tensor_cores_with_every_access_checked(name: str, cases: Count) -> None:
    """Ranges of extra keys, too: those outside are NaN."""
    solve(name, "check")
    cases("cuda added scores", 1)


@pytest.mark.deep
@pytest.mark.parametrize("mode", ["eager", "random", "check"])
@pytest.mark.parametrize("name", NEW)
def test_all_kernels_in_every_mode(name: str, mode: Mode, cases: Count) -> None:
    solve(name, mode)
    cases("cuda added scores", 1)


def test_extra_keys_outside_are_not_loaded() -> None:
    """By the bytes that are copied: as columns, and as rows of the last tile."""
    p = replace(CASES["text"], batch=1, extra_ranges=((37, 50),))
    made = problem.make(p)
    bytes_of: dict[str, list[int]] = {"fwd": [], "dkdv": []}
    for ranges in ((37, 50), (37, 51)):
        here, known = replace(p, extra_ranges=(ranges,)), dict(made)
        known["extra_range"] = torch.tensor([ranges], dtype=torch.int32)
        for name in ("extra_key", "extra_value"):
            known[name] = known[name].nan_to_num(1.0)
        for kernel in ("fwd", "delta", "dkdv"):
            launcher = Launcher()
            known |= problem.run(here, launcher, kernel, known)
            bytes_of.setdefault(kernel, []).append(launcher.counts.copied_bytes)
    key_heads, vectors = p.heads // p.group, 2 * 2 * (p.head_dim + p.value_dim) // 2
    visits = -(-p.queries[0] // 32) * p.heads  # each loads one key and value more
    assert bytes_of["fwd"][1] - bytes_of["fwd"][0] == visits * vectors
    assert bytes_of["dkdv"][1] - bytes_of["dkdv"][0] == key_heads * vectors


# The backend


def solved(
    place: Place, window: CudaArguments, made: dict[str, Any], launcher: Launcher
) -> dict[str, Tensor]:
    """Results and gradients of one window on tensors, by the backend alone."""
    program = Program((Call(whole(place[1]), whole(place[2]), window),))
    given = {n: t for n, t in made.items() if n in Inputs._fields}
    inputs = Inputs(**given)
    out, lse = cuda.forward(program, inputs, return_lse=True, launcher=launcher)
    assert lse is not None
    grads = cuda.backward(
        program, inputs, out, lse, made["grad_out"], made["grad_lse"], launcher=launcher
    )
    found = {"out": out, "lse": lse}
    return found | {n: getattr(grads, n) for n in DIFFERENTIABLE if n in made}


def expected(place: Place, made: dict[str, Any]) -> dict[str, Tensor]:
    """The same by the definition, in the tensors' dtype."""
    mask, queries, keys = place
    names = [n for n in DIFFERENTIABLE if n in made]
    leaves = {n: made[n].detach().requires_grad_() for n in names}
    given = {n: t for n, t in made.items() if not n.startswith("grad_") and n not in leaves}
    if "relative_bias" in made:
        given["entries"] = torch.from_numpy(bias_entries(mask.axes, queries, keys))
    if "alibi_slopes" in made:
        given["distances"] = torch.from_numpy(distances(mask.axes[0], queries[0], keys[0]))
    allowed = torch.from_numpy(matrix(mask.axes, queries, keys))
    out, lse = dense_attention.attend(**leaves, **given, allowed=allowed)
    upward = [made["grad_out"], made["grad_lse"]]
    grads = torch.autograd.grad([out, lse], list(leaves.values()), upward)
    return {"out": out, "lse": lse} | dict(zip(names, grads, strict=True))


def drawn(
    place: Place, *, table: bool = True, slopes: bool = False, heads: int = 2, batch: int = 1
) -> dict[str, Any]:
    mask, queries, keys = place
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    made: dict[str, Any] = {
        "query": normal(batch, *queries, heads, 4),
        "key": normal(batch, *keys, 1, 4),
        "value": normal(batch, *keys, 1, 4),
        "grad_out": normal(batch, *queries, heads, 4),
        "grad_lse": normal(batch, *queries, heads),
        "scale": 0.5,
        "softcap": None,
    }
    if table:
        made["relative_bias"] = normal(heads, *biases.table_sizes(mask.axes))
    if slopes:
        made["alibi_slopes"] = normal(batch, heads).abs()
    return made


def window_of(place: Place, tiles: Tiles, *, table: bool = True, slopes: bool = False) -> Any:
    axes = bind(*place)
    built = Build("float64", 4, 4, two_runs(axes), table=table, slopes=slopes)
    return CudaArguments(axes, built, tiles, tiles, tiles, tiles if table else None)


def has_table(place: Place) -> bool:
    axes = bind(*place)
    if any(axis.left is None or axis.right is None for axis in place[0].axes):
        return False
    try:
        biases.check_table(place[0], axes)
    except MaskError:
        return False
    return True


def close(found: dict[str, Tensor], wanted: dict[str, Tensor], label: object) -> None:
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, wanted[name], rtol=1e-11, atol=1e-11, msg=lambda m, n=name: f"{label} {n}: {m}"
        )


def lines(first: int, step: int) -> Iterator[Place]:
    """Short axes that have a table."""
    for fields, queries, keys in specimens(first, step):
        if is_legal(fields, queries, keys) and queries:
            place = (Mask(Axis(**fields)), (queries,), (keys,))
            if has_table(place):
                yield place


PLANES: tuple[Place, ...] = (
    (Mask(Axis(1, 2, border="wrap", stride=2), Axis(2, 1, border="shift")), (4, 5), (4, 5)),
    (Mask(Axis(3, 2, border="wrap"), Axis(2, 3, border="wrap", dilation=2)), (6, 12), (6, 12)),
    (Mask(Axis(2, causal=True, dilation=2), Axis(2, 2, stride=3, border="shift")), (7, 6), (7, 6)),
    (Mask(Axis(1, 0, align="top-left"), Axis(2, 2, align="bottom-right")), (5, 3), (4, 9)),
)


def sweep(places: Iterator[Place], tiles: Tiles, launcher: Launcher) -> int:
    count = 0
    for place in places:
        made = drawn(place)
        close(solved(place, window_of(place, tiles), made, launcher), expected(place, made), place)
        count += 1
    return count


def test_every_pair_reads_and_adds_to_its_entry(cases: Count) -> None:
    """All borders, dilations, strides and alignments of short axes, and products of some."""
    launcher = Launcher()
    count = sweep(lines(5, 1009), LINE, launcher)
    assert count > 80
    cases("cuda tables", count + sweep(iter(PLANES), PLANE, launcher))


@pytest.mark.deep
def test_every_pair_of_many_axes_reads_its_entry(cases: Count) -> None:
    cases("cuda tables", sweep(lines(0, 101), LINE, Launcher()))


@pytest.mark.parametrize("align", ["top-left", "bottom-right"])
def test_alibi_of_any_alignment(align: str, cases: Count) -> None:
    """Distances are of positions, not of coordinates of a class."""
    launcher = Launcher()
    for fields in ({"causal": True}, {"left": 9, "right": 5, "dilation": 3, "offset": 2}):
        place = (Mask(Axis(**fields, align=align)), (20,), (31,))
        for table in (False, "left" in fields):
            made = drawn(place, table=table, slopes=True, heads=4, batch=2)
            window = window_of(place, LINE, table=table, slopes=True)
            close(solved(place, window, made, launcher), expected(place, made), (fields, table))
            cases("cuda slopes", 1)


def test_a_table_of_many_tiles_repeats_bit_by_bit(cases: Count) -> None:
    """Random orders of blocks and threads, several blocks of a head."""
    place = (Mask(Axis(9, 20)), (150,), (150,))
    made = drawn(place, heads=3, batch=2)
    window = window_of(place, LINE)
    plain = solved(place, window, made, Launcher("eager"))
    close(plain, expected(place, made), place)
    for seed in range(1, 5):
        found = solved(place, window, made, Launcher("random", seed))
        assert all(torch.equal(found[name], plain[name]) for name in plain)
        cases("cuda repetitions", 1)


def test_blocks_of_a_table_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what fills a device and by memory; one per head at least."""
    place = (Mask(Axis(9, 20)), (150,), (150,))
    made = drawn(place, heads=3, batch=2)
    wanted = expected(place, made)["relative_bias"]
    for most, blocks in ((1 << 24, 60), (4 * 3 * 59 * 7, 21), (1, 3)):
        monkeypatch.setattr(cuda, "_TABLE_ELEMENTS", most)
        cuda._launches.cache_clear()
        taken = Recorder()
        found = solved(place, window_of(place, LINE), made, taken)
        assert taken.blocks["nb_dbias_simt"] == blocks
        torch.testing.assert_close(found["relative_bias"], wanted, rtol=1e-11, atol=1e-11)
    cuda._launches.cache_clear()


class Recorder(Launcher):
    """The emulator; `blocks` of each kernel, by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: dict[str, int] = {}
        self.loaded: list[str] = []

    def launch(self, variant: Variant, blocks: int, *arguments: Any) -> None:
        self.blocks[variant.entry] = blocks
        super().launch(variant, blocks, *arguments)

    def load(self, variant: Variant) -> None:
        self.loaded.append(variant.entry)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("rank", [1, 2])
def test_packed_heads_read_their_own_tables(
    emulated: Launcher, dtype: torch.dtype, rank: int, cases: Count
) -> None:
    """As a plan packs them, where there are few queries; each head and sample its own slope."""
    place = [
        (Mask(Axis(30, causal=True, align="bottom-right")), (3,), (70,)),
        (Mask(Axis(2, 2, border="shift"), Axis(3, 1)), (3, 4), (3, 4)),
    ][rank - 1]
    torch.manual_seed(0)
    query = torch.randn(2, *place[1], 6, 32).to(dtype)
    key, value = (torch.randn(2, *place[2], 2, 32).to(dtype) for _ in "kv")
    given: dict[str, Any] = {"relative_bias": torch.randn(6, *biases.table_sizes(place[0].axes))}
    if rank == 1:
        given["alibi_slopes"] = torch.rand(2, 6)
    require = ("mma",) if dtype == torch.bfloat16 else ("simt",)
    plan = nbattn.plan(
        place[0], query.shape, key_shape=key.shape, dtype=dtype, backend="cuda", require=require,
        relative_bias=True, alibi_slopes=rank == 1,
    )  # fmt: skip
    assert cuda_plans.arguments(plan).packed == 3
    found = plan.run(query, key, value, **given)
    wide = {n: t.double() for n, t in given.items()}
    exact = nbattn.attention(
        query.double(), key.double(), value.double(), place[0], backend="reference", **wide
    )
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), exact, rtol=8 * eps, atol=8 * eps)
    cases("cuda packed heads", 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_attention_with_all_of_it(emulated: Launcher, dtype: torch.dtype) -> None:
    """Through the operators; the table's gradient comes in its dtype."""
    torch.manual_seed(0)
    mask = Mask(Axis(4, 2, dilation=2))
    shapes = {"query": (2, 33, 4, 16), "key": (2, 33, 2, 16), "value": (2, 33, 2, 16)}
    shapes |= {"extra_key": (2, 5, 2, 16), "extra_value": (2, 5, 2, 16)}
    made = {n: torch.randn(s, dtype=torch.float64).to(dtype) for n, s in shapes.items()}
    made["relative_bias"] = torch.randn(4, 13).to(dtype if dtype == torch.float64 else torch.half)
    more = {
        "alibi_slopes": torch.rand(2, 4),
        "extra_range": torch.tensor([[1, 4], [3, 3]], dtype=torch.int32),
        "key_range": torch.tensor([[[0, 33]], [[20, 22]]], dtype=torch.int32),
        "softcap": 3.0,
        "mask": mask,
    }
    results: list[list[Tensor]] = []
    for backend, wide in (("cuda", dtype), ("reference", dtype), ("reference", torch.float64)):
        leaves = {n: t.to(wide).requires_grad_() for n, t in made.items()}
        given: dict[str, Any] = leaves | more
        out, lse = nbattn.attention(**given, backend=backend, return_lse=True)
        upward = (torch.ones_like(out), torch.where(lse.isinf(), 0.0, 0.5).to(lse.dtype))
        grads = torch.autograd.grad((out, lse), list(leaves.values()), upward)
        assert [grad.dtype for grad in grads] == [leaf.dtype for leaf in leaves.values()]
        results.append([out, lse, *grads])
    assert results[0][1].isinf().any(), "rows without keys"
    eps = 5e-11 if dtype == torch.float64 else torch.finfo(dtype).eps
    names = ("out", "lse", *made)
    for name, found, low, exact in zip(names, *results, strict=True):
        dense_attention.judge(name, found, low, exact, eps, terms=1.0)


def test_packed_grids_share_a_table(emulated: Launcher, cases: Count) -> None:
    """Every grid has its own slopes and range, and all add to one gradient, whatever its blocks."""
    for mask, sizes, slopes in (
        (Mask(Axis(2, 2, border="shift"), Axis(3, 1, dilation=2)), [(5, 9), (6, 4), (0, 2)], False),
        (Mask(Axis(4, causal=True)), [(30,), (3,), (0,), (17,)], True),
    ):
        made, count = packed(sizes, None), len(sizes)
        generator = torch.Generator().manual_seed(3)

        def random(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        heads, kv_heads, dim = made[0].shape[-2], made[1].shape[-2], made[0].shape[-1]
        trained = {
            "relative_bias": random(heads, *biases.table_sizes(mask.axes)).requires_grad_(),
            "extra_key": random(count, 3, kv_heads, dim).requires_grad_(),
            "extra_value": random(count, 3, kv_heads, made[2].shape[-1]).requires_grad_(),
        }
        given: dict[str, Any] = dict(trained)
        given["extra_range"] = torch.tensor([[0, 2], [1, 3], [1, 1], [0, 3]][:count]).int()
        if slopes:
            given["alibi_slopes"] = torch.rand(count, heads, generator=generator)
        found = nbattn.attention(*made, mask, grids=sizes, backend="cuda", return_lse=True, **given)
        wanted = one_by_one(made, mask, sizes, None, **given)
        leaves = [*made, *trained.values()]
        results = ((*one, *gradients(one, leaves)) for one in (found, wanted))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        cases("cuda packed grids", 1)


def test_empty_shapes_have_a_gradient_of_zero(emulated: Launcher) -> None:
    mask = Mask(Axis(2, 2, align="top-left"))
    for queries, keys, batch in ((0, 4, 2), (4, 0, 2), (4, 4, 0)):
        query, key = torch.ones(batch, queries, 2, 16), torch.ones(batch, keys, 2, 16)
        leaves = [t.bfloat16().requires_grad_() for t in (query, key, key)]
        table = torch.ones(2, 9, requires_grad=True)
        out = nbattn.attention(*leaves, mask, relative_bias=table, backend="cuda")
        (grad,) = torch.autograd.grad(out.sum(), [table])
        assert torch.equal(grad, torch.zeros(2, 9))


# Plans


def plan(**named: Any) -> nbattn.Plan:
    given = {"training": True, "relative_bias": True} | named
    return cuda_plans.planned(Mask.neighborhood((7, 7)), (1, 20, 20, 2, 64), **given)


def test_warmup_prepares_the_kernel_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Recorder()
    monkeypatch.setattr(launch, "launcher", lambda: taken)
    plan().warmup()
    names = ["nb_fwd_mma", "nb_dq_mma", "nb_dkdv_mma", "nb_dbias_simt", "nb_delta"]
    assert taken.loaded == names
    taken.loaded.clear()
    plan(training=False).warmup()
    assert taken.loaded == names[:1]


def test_plans_prove_the_kernel_of_the_table() -> None:
    planned = nbattn.plan(
        Mask(Axis(1, 1), Axis(2, 1)), (1, 5, 6, 1, 16), device=cuda_plans.device("sm_90"),
        backend="cuda", training=True, relative_bias=True,
    )  # fmt: skip
    assert planned.verify()
    arguments = cuda_plans.arguments(planned)
    assert arguments.grad_table is not None
    assert arguments.allowed((5, 6), (5, 6)).sum() == Mask(Axis(1, 1), Axis(2, 1)).dense(
        (5, 6)
    ).sum()  # fmt: skip


def test_what_is_added_costs_time() -> None:
    def seconds(**named: Any) -> float:
        cost = plan(**named).chosen.cost
        assert cost is not None
        return cost.seconds

    none = {"relative_bias": False}
    assert seconds(training=False) > seconds(training=False, **none)
    assert seconds() > seconds(**none)
    plain = Build("bfloat16", 64, 64)
    tiles = Tiles((1, 8, 8), (1, 8, 8), 4, 1, 2)
    machine = pipes.machine(DEVICES["sm_90"], "float32", meaning.memory(plan().request.needs))
    for built in (plain._replace(slopes=True), plain._replace(table=True)):
        for kernel in ("fwd", "dq", "dkdv"):
            (more,), (less,) = (pipes.visit(kernel, tiles, one) for one in (built, plain))
            assert more.issued > less.issued
            more, less = (pipes.clocks(kernel, PLANE, one, machine, 0.0) for one in (built, plain))
            assert more > less


def test_a_table_that_is_too_large_is_refused() -> None:
    side = meaning.TABLE // 4
    with pytest.raises(BackendError, match=f"takes tables of up to {meaning.TABLE} entries"):
        nbattn.plan(
            Mask(Axis(side, side)), (1, 64, 1, 64), device=cuda_plans.device("sm_90"),
            backend="cuda", relative_bias=True,
        )  # fmt: skip
    nbattn.plan(
        Mask(Axis(side - 1, side)), (1, 64, 1, 64), device=cuda_plans.device("sm_90"),
        backend="cuda", relative_bias=True,
    )  # fmt: skip
