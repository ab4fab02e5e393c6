"""Tests of halos: their numbers against ranks that were simulated, and on thousands of ranks."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
import row_oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_ranks import chunk, held, simulated

from nbattn import Axis, InputError, Mask, MaskError
from nbattn.distributed import Halo, halo

Count = Callable[[str, int], None]
Problem = tuple[Mask, tuple[int, ...], tuple[int, ...]]
NUMBERS = ("own", "received", "sent", "messages", "readers", "pairs")


@given(oracle.masks(), st.data())
@settings(max_examples=250)
def test_numbers_are_those_of_simulated_ranks(
    cases: Count, problem: Problem, data: st.DataObject
) -> None:
    mask, space, keys = problem
    most = {1: 9, 2: 4, 3: 3}[mask.rank]
    parts = data.draw(st.tuples(*[st.integers(1, most)] * mask.rank))
    found = halo(mask, space, parts, key_space=keys)
    happened = simulated(mask, space, keys, parts)
    assert (found.space, found.key_space, found.parts) == (space, keys, parts)
    for number, place in enumerate(happened.own):
        came = {of: some for (to, of), some in happened.received.items() if to == place}
        went = [some for (_, of), some in happened.received.items() if of == place]
        expected = (
            *(happened.own[place], sum(map(len, came.values())), sum(map(len, went))),
            *(len(came), len(went), happened.computed[place]),
        )
        assert tuple(int(getattr(found, name)[place]) for name in NUMBERS) == expected
        one = found.rank(place)
        assert one == found.rank(number)
        assert (one.keys, one.received, one.sent) == expected[:3]
        assert (one.messages, one.readers, one.pairs) == expected[3:]
        sources = {source.place: _numbers(source.blocks, keys) for source in one.sources}
        assert sources == {of: sorted(some) for of, some in came.items()}
        assert [source.rank for source in one.sources] == sorted(
            source.rank for source in one.sources
        )
        assert _numbers((one.own,), keys) == sorted(held(keys, parts, place).ravel().tolist())
        cases("halos, ranks", 1)


def _numbers(blocks: Any, space: tuple[int, ...]) -> list[int]:
    """The numbers of all keys of blocks, in order."""
    numbers = np.arange(math.prod(space)).reshape(space)
    cut = (numbers[tuple(slice(*span) for span in block)].ravel().tolist() for block in blocks)
    return sorted(key for some in cut for key in some)


FOUR_THOUSAND = {
    "document": (Mask.sliding_window(30, 0), (50_000,), (4096,)),
    "image": (Mask.neighborhood((9, 9)), (512, 320), (64, 64)),
    "globe": (Mask(Axis(4, 4), Axis(8, 8, dilation=2, border="wrap")), (181, 360), (64, 64)),
    "video": (Mask.neighborhood((5, 9, 9), stride=(1, 3, 1)), (33, 90, 80), (16, 16, 16)),
    "causal": (Mask(Axis(None, 0), Axis(3, 3), Axis(2, 2, prefix=3)), (20, 64, 64), (4, 32, 32)),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUR_THOUSAND)
def test_4096_ranks(name: str, cases: Count) -> None:
    """Of some of them, every key that they need is looked up."""
    mask, space, parts = FOUR_THOUSAND[name]
    found = halo(mask, space, parts)
    assert found.ranks == 4096
    assert found.received.sum() == found.sent.sum()
    assert found.messages.sum() == found.readers.sum()
    pairs = [
        row_oracle.pairs(axis, length, length)
        for axis, length in zip(mask.axes, space, strict=True)
    ]
    assert found.pairs.sum() == math.prod(len(row) for row, _ in pairs)
    generator = np.random.default_rng(7)
    for number in (0, 4095, *generator.integers(1, 4095, 12).tolist()):
        one = found.rank(number)
        cut = [*zip(pairs, mask.axes, space, parts, one.place, strict=True)]
        owners = [_hull(*axis) // -(-axis[2] // axis[3]) for axis in cut]
        rank = np.ravel_multi_index(np.ix_(*owners), parts)
        others, counts = np.unique(rank[rank != number], return_counts=True)
        assert {s.rank: s.keys for s in one.sources} == dict(
            zip(others.tolist(), counts.tolist(), strict=True)
        )
        assert one.received == found.received.ravel()[number] == counts.sum()
        assert one.messages == found.messages.ravel()[number] == len(others)
        cases("halos, of 4,096 ranks", 1)


@st.composite
def cut_masks(draw: st.DrawFn) -> tuple[Mask, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """A mask, spaces of up to 90 positions per axis, and parts for up to 4,096 ranks."""
    rank = draw(st.integers(1, 3))
    axes = [draw(oracle.bound_axes(longest=90)) for _ in range(rank)]
    powers = [draw(st.integers(0, 12 // rank)) for _ in range(rank)]
    parts = [max(1, (1 << power) - draw(st.integers(0, 1))) for power in powers]
    specs, queries, keys = zip(*axes, strict=True)
    return Mask(*specs), queries, keys, tuple(parts)


@given(cut_masks(), st.data())
@settings(max_examples=120)
def test_random_masks_on_up_to_4096_ranks(cases: Count, problem: Any, data: st.DataObject) -> None:
    mask, space, keys, parts = problem
    found = halo(mask, space, parts, key_space=keys)
    pairs = [row_oracle.pairs(*axis) for axis in zip(mask.axes, space, keys, strict=True)]
    assert found.pairs.sum() == math.prod(len(row) for row, _ in pairs)
    assert found.received.sum() == found.sent.sum()
    assert found.messages.sum() == found.readers.sum()
    one = found.rank(data.draw(st.integers(0, found.ranks - 1)))
    needed = [np.concatenate([np.arange(*s) for s in spans] or [[]]) for spans in one.needed]
    for axis, every in enumerate(needed):
        mine = np.isin(pairs[axis][0], chunk(space[axis], parts[axis], one.place[axis]))
        assert np.isin(pairs[axis][1][mine], every).all()
    sizes = [max(1, -(-length // n)) for length, n in zip(keys, parts, strict=True)]
    owners = [every.astype(int) // size for every, size in zip(needed, sizes, strict=True)]
    rank = np.ravel_multi_index(np.ix_(*owners), parts)
    others, counts = np.unique(rank[rank != one.number], return_counts=True)
    sources = {source.rank: source.keys for source in one.sources}
    assert sources == dict(zip(others.tolist(), counts.tolist(), strict=True))
    assert one.received == found.received[one.place] == counts.sum()
    assert one.messages == found.messages[one.place] == len(others)
    cases("halos, random meshes", found.ranks)


def _hull(pairs: Any, axis: Axis, length: int, parts: int, part: int) -> np.ndarray:
    """The keys that a part's queries attend to, and on lines those between the first and last."""
    mine = np.isin(pairs[0], chunk(length, parts, part))
    attended = np.unique(pairs[1][mine])
    if not attended.size or (axis.dilation == axis.stride == 1 and parts > 1):
        return attended
    if parts == 1:
        return np.arange(length)
    gap = np.diff(attended, append=attended[0] + length).argmax()  # a circle is open there
    if axis.border != "wrap":
        return np.arange(attended[0], attended[-1] + 1)
    first = attended[(gap + 1) % len(attended)]
    return np.unique(np.arange(first, first + (attended[gap] - first) % length + 1) % length)


def test_bytes_are_keys_and_values_of_all_heads() -> None:
    found = halo(Mask.sliding_window(511, 0), 65536, 8)
    traffic = found.bytes(kv_heads=8, head_dim=128, batch=3, value_dim=64, dtype="float32")
    each = 3 * 8 * (128 + 64) * 4
    assert traffic.to_dict() == {
        "ranks": 8,
        "received": 511 * each,
        "sent": 511 * each,
        "total": 7 * 511 * each,
        "messages": 1,
        "held": (8192 + 511) * each,
        "shard": 8192 * each,
        "all_gather": 7 * 8192 * each,
        "everything": 65536 * each,
        "ring_steps": 7,
    }
    assert traffic.saving == 7 * 8192 / 511
    torch = importlib.import_module("torch")
    same = found.bytes(kv_heads=24, head_dim=128, value_dim=64, dtype=torch.float32)
    assert same == traffic


def test_the_most_of_any_rank_counts() -> None:
    """The last chunk is shorter, and its rank receives more of an all-gather."""
    traffic = halo(Mask.sliding_window(2, 2), 10, 4).bytes(kv_heads=1, head_dim=1, dtype="float16")
    assert (traffic.shard, traffic.all_gather, traffic.received) == (4 * 3, 4 * 9, 4 * 4)
    assert traffic.total == 4 * (2 + 4 + 3 + 2)
    assert traffic.held == 4 * 7


def test_one_rank_needs_nothing_of_others() -> None:
    found = halo(Mask.neighborhood((3, 3)), (8, 8), (1, 1))
    traffic = found.bytes(kv_heads=1, head_dim=8)
    assert (found.ranks, traffic.received, traffic.all_gather, traffic.saving) == (1, 0, 0, 1.0)
    assert found.largest.inner_share == 1.0
    assert halo(Mask(Axis(0, 0)), 8, 4).bytes(kv_heads=1, head_dim=8).saving == math.inf


@pytest.mark.parametrize(
    ("call", "problem", "fix"),
    [
        (lambda: halo(Mask.full(), 8, (2, 2)), "parts=(2, 2): the mask has 1 axis.", "parts=(2,)"),
        (lambda: halo(Mask.full(2), (8, 8), 4), "parts=4: the mask has 2 axes.", "parts=(4, 1)"),
        (lambda: halo(Mask.full(2), (8, 8), (4, 0)),
         "parts=(4, 0): 0 is below 1, an axis that is not cut.", "parts=(4, 1)"),
        (lambda: halo(Mask.full(2), (8, 8), [2.0, 1]),  # pyright: ignore
         "parts=[2.0, 1], a list, not a whole number for each axis.", "parts=(2, 1)"),
        (lambda: halo(Mask.causal(), 8, 2).rank(2),
         "rank=2: there are 2 ranks, from 0, (0,), to 1, (1,).", "rank=1"),
        (lambda: halo(Mask.full(2), (8, 8), (2, 2)).rank((0, -1)),
         "rank=(0, -1): there are 4 ranks, from 0, (0, 0), to 3, (1, 1).", "rank=3"),
        (lambda: halo(Mask.causal(), 8, 2).bytes(kv_heads=0, head_dim=8),
         "kv_heads=0, an int, not a whole number from 1.", "kv_heads=1"),
        (lambda: halo(Mask.causal(), 8, 2).bytes(kv_heads=1, head_dim=8, dtype="fp32"),
         "dtype='fp32' is none of float16, bfloat16, float32, float64.", 'dtype="bfloat16"'),
    ],
)  # fmt: skip
def test_messages(call: Callable[[], Halo], problem: str, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert (caught.value.problem, caught.value.fix) == (problem, fix)


def test_a_mask_that_does_not_fit() -> None:
    with pytest.raises(MaskError, match="the mask has 1 axis, the space of the queries 2"):
        halo(Mask.causal(), (8, 8), 2)
    with pytest.raises(InputError, match="mask is missing"):
        halo(None, 8, 2)  # pyright: ignore[reportArgumentType]


def test_plain_data() -> None:
    found = halo(Mask.sliding_window(2, 0), 10, 4)
    data = json.loads(json.dumps(found.to_dict(kv_heads=1, head_dim=4)))
    assert data["axes"] == [
        [
            {"queries": [0, 3], "keys": [0, 3], "needed": [[0, 3]]},
            {"queries": [3, 6], "keys": [3, 6], "needed": [[1, 6]]},
            {"queries": [6, 9], "keys": [6, 9], "needed": [[4, 9]]},
            {"queries": [9, 10], "keys": [9, 10], "needed": [[7, 10]]},
        ]
    ]
    assert data["ranks"]["received"] == [0, 2, 2, 2]
    assert data["ranks"]["own"] == [3, 3, 3, 1]
    assert data["bytes"] == found.bytes(kv_heads=1, head_dim=4).to_dict()
    assert (data["mask"], data["parts"], data["largest"]) == ("Mask(Axis(2, 0))", [4], 1)
    assert "bytes" not in found.to_dict()


def test_repr_and_values() -> None:
    found = halo(Mask.neighborhood((7, 7)), (64, 64), (4, 2))
    assert repr(found) == (
        "Halo(Mask(Axis(3, 3, border='shift'), Axis(3, 3, border='shift')), 64 x 64, "
        "parts=(4, 2): up to 258 keys of others)"
    )
    assert found == halo(Mask.neighborhood((7, 7)), [64, 64], [4, 2])
    assert hash(found) == hash(halo(Mask.neighborhood((7, 7)), (64, 64), (4, 2)))


def test_torch_is_not_loaded() -> None:
    code = (
        "import sys\n"
        "from nbattn import Mask\n"
        "from nbattn.distributed import halo\n"
        "found = halo(Mask.neighborhood((7, 7)), (64, 64), (4, 2))\n"
        "found.explain(kv_heads=2, head_dim=64), found.to_dict()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
