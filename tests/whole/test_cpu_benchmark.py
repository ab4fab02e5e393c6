"""Tests of the CPU benchmarks' tables: targets name workloads that exist and apply to the rows that
they are meant for. Nothing is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MIB = 1 << 20


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Modules of the benchmarks, whose folder is on the path for this test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return __import__


def test_targets_name_workloads_and_peers_that_exist(module: Callable[[str], ModuleType]) -> None:
    targets, cpu = module("targets"), module("cpu")
    names = set(module("workloads").WORKLOADS)
    tables = [*targets.RATIOS.values(), *targets._TILED.values(), targets.PEAK]
    assert not [name for table in tables for name in table if name not in names]
    assert {peer for peer, _ in targets.RATIOS} <= set(cpu.PEERS)
    assert set(cpu.default_peers("native")) <= set(cpu.PEERS)


def test_targets_against_the_tile_loop_are_for_float32_and_grow_with_two_threads(
    module: Callable[[str], ModuleType],
) -> None:
    targets, workload = module("targets"), module("workloads").WORKLOADS["W3"]
    assert targets.ratio(workload, "tiled", "forward", "float32", 1) == 2.7
    assert targets.ratio(workload, "tiled", "forward", "float32", 2) == 3.2
    assert targets.ratio(workload, "tiled", "forward", "bfloat16", 1) is None
    assert targets.ratio(workload, "native-float32", "forward", "bfloat16", 1) == 0.95
    assert targets.peak(workload, "forward", "float32") is None


@pytest.mark.parametrize(
    ("seconds", "busy", "ratio"),
    [
        (0.021, False, 1.85),
        (0.02, False, 1.65),
        (0.005, False, 1.65),
        (0.004, False, 0.95),
        (1.0, True, 0.95),
    ],
)
def test_scaling_targets(
    seconds: float, busy: bool, ratio: float, module: Callable[[str], ModuleType]
) -> None:
    assert module("targets").scaling(seconds, busy) == ratio


def test_the_native_kernels_memory_is_results_and_a_mebibyte_a_thread(
    module: Callable[[str], ModuleType],
) -> None:
    targets, workload = module("targets"), module("workloads").WORKLOADS["W7a"]
    queries, keys, rows = 8 * 64 * 2048, 8 * 64 * 512, 8 * 2048
    assert targets.memory(workload, 2, False, native=True, threads=2) == 2 * queries + 2 * MIB
    expected = 4 * (2 * queries + 2 * keys) + 2 * 4 * rows + MIB
    assert targets.memory(workload, 4, True, native=True) == expected


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("W2", (255, 1, False)),
        ("W4", (7, 8, False)),
        ("LTX", (11, 1, False)),
        ("W1", None),
        ("W5", None),
        ("W7a", None),
    ],
)
def test_windows_that_natten_017_has(
    name: str, window: tuple[int, int, bool] | None, module: Callable[[str], ModuleType]
) -> None:
    natten, workload = module("natten_017"), module("workloads").WORKLOADS[name]
    if window is not None:
        assert natten._window(workload, 0) == window
        return
    with pytest.raises(module("peers").RefusedError, match=r"natten 0\.17 has"):
        natten._window(workload, 0)


def test_a_widened_peer_refuses_float32(module: Callable[[str], ModuleType]) -> None:
    peers, workload = module("peers"), module("workloads").WORKLOADS["W3-7"]
    with pytest.raises(peers.RefusedError, match="16 bits"):
        peers.own("auto", widened=True)(workload, torch.float32, False)
    prepared = peers.own("auto", widened=True)(workload, torch.bfloat16, False)
    assert prepared.run().dtype == torch.float32


def test_an_unknown_backend_is_a_peer_that_is_refused(module: Callable[[str], ModuleType]) -> None:
    peers, workload = module("peers"), module("workloads").WORKLOADS["W3-7"]
    with pytest.raises(peers.RefusedError, match="is not known"):
        peers.own("no such backend")(workload, torch.float32, False)
