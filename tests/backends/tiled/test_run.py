"""Tests of the values of the tiled engine at every tile size.

Plans choose large tiles for small shapes; here sizes are forced, so that seams, hulls and tiles
that run as one batch are met on shapes small enough for the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import few_examples
import pytest
import torch
from dense_attention import attend
from hypothesis import given, reject
from hypothesis import strategies as st
from oracle import bias_entries, distances, masks, matrix
from torch import Tensor

import nbattn
from nbattn import Axis, Mask, MaskError, biases, geometry
from nbattn.backends.inputs import GRADIENTS, Inputs
from nbattn.backends.tiled import added
from nbattn.backends.tiled import run as tiled
from nbattn.backends.tiled.meaning import TiledArguments
from nbattn.backends.tiled.schedule import schedule
from nbattn.program.program import Call, Program, whole

Space = tuple[int, ...]
Count = Callable[[str, int], None]


CAP = 1.5
NUMBERS = {"scale": 0.5, "softcap": None}


def random_tensors(
    mask: Mask, queries: Space, keys: Space, seed: int, *, table: bool, slopes: bool
) -> dict[str, Tensor]:
    """Inputs in float64; odd seeds have a sink and extra keys, one in two of them with a range."""
    drawn = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(seed)}
    shapes = {
        "query": (2, *queries, 4, 4),
        "key": (2, *keys, 2, 4),
        "value": (2, *keys, 2, 3),
    }
    if seed % 2:
        shapes |= {"sink": (4,), "extra_key": (2, 2, 2, 4), "extra_value": (2, 2, 2, 3)}
    if table:
        windows = (2 * (axis.left + axis.right) + 1 for axis in mask.axes)  # pyright: ignore
        shapes["relative_bias"] = (4, *windows)
    made = {name: torch.randn(shape, **drawn) for name, shape in shapes.items()}
    if slopes:
        made["alibi_slopes"] = torch.rand((2, 4) if seed % 3 else (4,), **drawn)
    if seed % 4 == 3:
        made["extra_range"] = torch.tensor([[0, 1], [1, 1]], dtype=torch.int32)
        for name in ("extra_key", "extra_value"):
            made[name][0, 1] = made[name][1] = float("nan")
    return made


def check(
    mask: Mask,
    queries: Space,
    keys: Space,
    tile: Space,
    seed: int = 0,
    *,
    table: bool = False,
    slopes: bool = False,
) -> None:
    """Forward and backward of the engine at one tile size, in float64, with a gradient of lse."""
    made = random_tensors(mask, queries, keys, seed, table=table, slopes=slopes)
    numbers = NUMBERS | {"softcap": CAP if seed % 5 == 2 else None}
    leaves = {
        n: t.requires_grad_(n not in ("alibi_slopes", "extra_range")) for n, t in made.items()
    }
    pairs = {"allowed": torch.from_numpy(matrix(mask.axes, queries, keys))}
    if table:
        pairs["entries"] = torch.from_numpy(bias_entries(mask.axes, queries, keys))
    if slopes:
        pairs["distances"] = torch.from_numpy(distances(mask.axes[0], queries[0], keys[0]))
    out, lse = attend(**leaves, **pairs, **numbers)
    upward = torch.randn(out.shape, dtype=torch.float64)
    lse_upward = torch.randn(lse.shape, dtype=torch.float64).masked_fill(lse == -torch.inf, 0)
    loss = (out * upward).sum() + (lse.masked_fill(lse == -torch.inf, 0) * lse_upward).sum()
    names = [name for name, leaf in leaves.items() if leaf.requires_grad]
    wanted = torch.autograd.grad(
        loss, [leaves[name] for name in names], allow_unused=True, materialize_grads=True
    )

    arguments = TiledArguments(geometry.bind(mask, queries, keys), tile, table or slopes)
    program = Program((Call(whole(queries), whole(keys), arguments),))
    inputs = Inputs(**{n: t.detach() for n, t in leaves.items()}, **numbers)
    found, found_lse = tiled.forward(program, inputs, return_lse=True)
    assert found_lse is not None
    grads = tiled.backward(program, inputs, found, found_lse, upward, lse_upward)
    torch.testing.assert_close(found, out.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found_lse, lse.detach(), rtol=1e-10, atol=1e-12)
    for name, want in zip(names, wanted, strict=True):
        torch.testing.assert_close(getattr(grads, name), want, rtol=1e-9, atol=1e-11)
    absent = {name for name in GRADIENTS if getattr(grads, name) is None}
    assert absent == set(GRADIENTS) - set(names)


@st.composite
def tabled_masks(draw: st.DrawFn) -> tuple[Mask, Space, Space]:
    """A mask with a table, and its lengths."""
    mask, queries, keys = draw(masks())
    sides = [(axis.left or 0, axis.right or 0) for axis in mask.axes]
    axes = [
        replace(axis, left=left, right=0 if axis.causal else right, prefix=0)
        for axis, (left, right) in zip(mask.axes, sides, strict=True)
    ]
    axes = [
        replace(axis, left=min(axis.left, 1), right=min(axis.right, 1), stride=1)
        if axis.border == "wrap" or axis.stride // 2 > axis.left
        else axis
        for axis in axes
    ]
    mask = Mask(*axes)
    try:
        biases.check_table(mask, geometry.bind(mask, queries, keys))
    except MaskError:
        reject()
    return mask, queries, keys


@few_examples.quick(100)
@given(masks(), st.lists(st.integers(1, 5), min_size=3, max_size=3), st.integers(0, 3))
def test_values_at_any_tile_size(
    cases: Count, drawn: tuple[Mask, Space, Space], sizes: list[int], seed: int
) -> None:
    mask, queries, keys = drawn
    check(mask, queries, keys, tuple(sizes[: mask.rank]), seed)
    cases("tiles, values", 1)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 32])
@pytest.mark.parametrize(
    ("mask", "queries", "keys"),
    [
        (Mask(Axis(20, 20, border="shift", stride=32)), (96,), (96,)),
        (Mask(Axis(0, causal=True, stride=4, prefix=3)), (5,), (5,)),
        (Mask(Axis(3, 3, border="shift", dilation=2)), (61,), (61,)),
        (Mask(Axis(5, 2, border="wrap")), (48,), (48,)),
        (Mask(Axis(2, 2), Axis(3, 3, border="shift")), (5, 40), (5, 40)),
        (Mask(Axis(1, 1, offset=9), Axis(2, 2, border="wrap")), (6, 9), (6, 9)),
    ],
)
def test_values_where_tiles_join(
    mask: Mask, queries: Space, keys: Space, size: int, cases: Count
) -> None:
    """Equal neighbours run as one batch only where they move evenly; hulls hold late prefixes."""
    check(mask, queries, keys, (size,) * mask.rank, size)
    cases("tiles, joined", 1)


@few_examples.quick(100)
@given(tabled_masks(), st.lists(st.integers(1, 5), min_size=3, max_size=3), st.integers(0, 11))
def test_tables_and_slopes_at_any_tile_size(
    cases: Count, drawn: tuple[Mask, Space, Space], sizes: list[int], seed: int
) -> None:
    mask, queries, keys = drawn
    on_line = mask.rank == 1 and mask.axes[0].border != "wrap"
    check(mask, queries, keys, tuple(sizes[: mask.rank]), seed, table=True, slopes=on_line)
    cases("tiles, tables", 1)


@few_examples.quick(100)
@given(masks(1, ["clip", "shift"]), st.integers(1, 5), st.integers(0, 11))
def test_slopes_at_any_tile_size(
    cases: Count, drawn: tuple[Mask, Space, Space], size: int, seed: int
) -> None:
    check(*drawn, (size,), seed, slopes=True)
    cases("tiles, slopes", 1)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 32])
@pytest.mark.parametrize(
    ("mask", "queries", "keys"),
    [
        (Mask(Axis(20, 20, border="shift", stride=32)), (96,), (96,)),
        (Mask(Axis(3, 3, border="shift", dilation=2)), (61,), (61,)),
        (Mask(Axis(5, 2, border="wrap")), (48,), (48,)),
        (Mask(Axis(5, 2, border="wrap", stride=4, dilation=2)), (48,), (48,)),
        (Mask(Axis(2, 2), Axis(3, 3, border="shift")), (5, 40), (5, 40)),
        (Mask(Axis(1, 1), Axis(2, 2, border="wrap")), (6, 9), (6, 9)),
    ],
)
def test_tables_where_tiles_join(
    mask: Mask,
    queries: Space,
    keys: Space,
    size: int,
    cases: Count,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also in chunks of one head, and where sums over equal tiles are kept only for a few."""
    for seed in (size, size + 1):
        check(mask, queries, keys, (size,) * mask.rank, seed, table=True)
    monkeypatch.setattr(tiled, "SCORE_BYTES", 4000)
    monkeypatch.setattr(added, "_KEPT_BYTES", 3000)
    on_line = mask.rank == 1 and mask.axes[0].border != "wrap"
    check(mask, queries, keys, (size,) * mask.rank, size, table=True, slopes=on_line)
    cases("tiles, joined, tables", 3)


def test_sums_over_equal_tiles_are_kept_for_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    mask, kept = Mask(Axis(2, 1, border="shift", dilation=3)), list[int]()
    add = added.TableGradient.add

    def seen(gradient: Any, chunk: Any, tile: Any, grad: torch.Tensor) -> None:
        add(gradient, chunk, tile, grad)
        kept.append(gradient._bytes)

    monkeypatch.setattr(added.TableGradient, "add", seen)
    check(mask, (41,), (41,), (4,), 0, table=True)
    most = max(kept)
    kept.clear()
    monkeypatch.setattr(added, "_KEPT_BYTES", most // 2)
    check(mask, (41,), (41,), (4,), 0, table=True)
    assert 0 < max(kept) <= most // 2


def test_a_table_may_forbid_every_key() -> None:
    """An entry of -inf is a step that no query takes; without any other, a query has no key."""
    made = random_tensors(Mask(Axis(1, 1)), (6,), (6,), 0, table=True, slopes=False)
    made["relative_bias"][0] = float("-inf")
    made["relative_bias"][1, 2] = float("-inf")
    for backend in ("reference", "tiled"):
        out, lse = nbattn.attention(**made, mask=Mask(Axis(1, 1)), backend=backend, return_lse=True)
        assert not out[..., 0, :].any()
        assert (lse[..., 0] == float("-inf")).all()
        assert out.isfinite().all()


def test_memory_of_a_table_is_linear_in_the_tokens() -> None:
    """What is kept for a mask grows with its tile, not with its length."""
    cpu, kept = torch.device("cpu"), []
    for length in (4096, 65536):
        axes = geometry.bind(Mask(Axis(6, 6, border="shift")), (length,), (length,))
        plan = schedule(TiledArguments(axes, (64,), True))
        tensors = [
            make(tile.patterns, cpu)
            for tile in plan.tiles(torch.float32, cpu, 1, 4)
            for make in (plan.entries, plan.pairs_by_entry)
        ]
        kept.append(sum({t.data_ptr(): t.nbytes for t in tensors}.values()))
    assert 0 < kept[0] == kept[1] < 1 << 20
