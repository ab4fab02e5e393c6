"""Tests of the GPU benchmarks without a GPU: findings are written at once, a second run goes
on, a peer's failure costs only its own finding, and no dry run has a number.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import nbattn
from nbattn import Mask
from nbattn.backends.cuda import measured_tiles
from nbattn.planner import cost_table
from nbattn.planner.cost_table import Fingerprint

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ABOUT = {"machine", "gpu", "capability", "versions", "commit", "date"}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Modules of the benchmarks, whose folder is on the path for this test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return __import__


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    "name", ["gpu_flash", "gpu_neighborhood", "gpu_tiles", "gpu_triton", "gpu_triton_tiles"]
)
def test_gpu_benchmarks_without_a_gpu_exit_with_a_message(
    name: str, module: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    assert module(name).main([]) == 2
    assert capsys.readouterr() == ("", f"{name}: this machine has no CUDA device.\n")


def test_the_sweep_goes_on_and_never_invents_a_time(
    module: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles, path = module("gpu_tiles"), tmp_path / "tiles.jsonl"
    words = ["--dry", "--only", "NAT 7", f"--output={path}"]
    assert tiles.main([*words, "--few"]) == 0
    assert [row["rank"] for row in lines(path)] == 3 * [*range(tiles.FEW)]
    path.unlink()
    assert tiles.main(words) == 0
    first = lines(path)
    assert {row["kernel"] for row in first} == {"fwd", "dq", "dkdv"}
    assert all(row["dry"] and "seconds" not in row and row.keys() >= ABOUT for row in first)
    assert len({row["tile"] for row in first}) == len(first) > 6
    assert all(row["estimate"] > 0 for row in first)
    assert [row["rank"] for row in first[: tiles.FEW]] == [*range(tiles.FEW)]
    assert {row["rank"] < tiles.FEW for row in first[3 * tiles.FEW :]} == {False}
    for row in first:
        assert json.loads(cost_table.tile_key(plan_of(tiles, row))) == row["request"]
    # As if measured: only what is not known runs, errors included.
    known = [{**row, "dry": False, "seconds": 1.0} for row in first[1:]]
    known[0] = {**known[0], "error": "no such luck"}
    path.write_text("".join(json.dumps(row) + "\n" for row in known) + '{"kind": "ti')
    assert tiles.main(words) == 0
    assert [row["tile"] for row in lines_that_parse(path)[len(known) :]] == [first[0]["tile"]]
    assert tiles.main([*words, "--seconds=0"]) == 3


def plan_of(tiles: ModuleType, row: dict[str, Any]) -> Any:
    load = next(one for one in tiles.workloads() if one.name == row["workload"])
    return tiles.Bench.of(True).plan(load, row["instructions"]).request


def lines_that_parse(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def test_an_error_of_a_tile_is_its_finding(
    module: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles, path = module("gpu_tiles"), tmp_path / "tiles.jsonl"
    launched: list[str] = []

    def launch(self: Any, variant: Any, *_: Any) -> None:
        launched.append(variant.entry)
        if variant.entry == "nb_dq_mma":
            raise RuntimeError("too many resources requested for launch")

    monkeypatch.setattr(tiles.Nothing, "launch", launch)
    assert tiles.main(["--dry", "--only", "NAT 7", f"--output={path}"]) == 0
    found = {(row["kernel"], "error" in row) for row in lines(path)}
    assert found == {("fwd", False), ("dq", True), ("dkdv", True)}


def test_every_workload_of_the_sweep_is_planned(module: Callable[[str], ModuleType]) -> None:
    """Sizes that only a GPU computes: LTX-2.5's stages have 2.9 million tokens."""
    tiles = module("gpu_tiles")
    loads = {load.name: load for load in tiles.workloads()}
    assert loads["LTX stage 5"].shape == (1, 79, 192, 192, 4, 64)
    assert {load.dim for load in loads.values()} == {32, 64, 128}
    bench = tiles.Bench.of(True)
    for load in loads.values():
        assert bench.plan(load, "mma").chosen.name == "cuda/window+mma"
        of_warpgroups = bench.plan(load, "wgmma")
        assert (of_warpgroups is None) == (load.dim == 32)
        assert of_warpgroups is None or of_warpgroups.chosen.name == "cuda/window+wgmma"
    line = loads["1-D 32k D128"]
    few, every = ([*tiles.choices(line, bench, slice(0, most))] for most in (1, None))
    parts = [one.word for part in tiles.PARTS for one in tiles.choices(line, bench, part)]
    assert sorted(parts) == sorted(one.word for one in every)
    of_kernels = {(one.one.tiles.instructions, one.kernel) for one in few}
    assert len(of_kernels) == len(few) == 6
    assert {variant.entry for one in few for variant in one.variants()} == {
        f"nb_{kernel}_{name}" for name, kernel in of_kernels
    }


def test_a_peer_that_fails_costs_only_its_own_finding(
    module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = module("gpu_neighborhood")
    order: list[str] = []
    monkeypatch.setattr(bench.gpu_timing, "seconds", lambda run: run() or 2.0)
    monkeypatch.setattr(bench.gpu_timing, "by_kernel", lambda run: {"nb_fwd_mma": 1.0})
    monkeypatch.setattr(torch.compiler, "reset", lambda: order.append("reset"))

    def peer(name: str, error: Exception | None = None) -> Callable[[], Callable[[], None]]:
        def prepare() -> Callable[[], None]:
            order.append(name)
            if error:
                raise error
            return lambda: None

        return prepare

    peers = {
        bench.OURS: peer(bench.OURS),
        "flex, tiled": peer("flex", ValueError("457 GB")),
        "sdpa, dense": peer("sdpa"),
    }
    monkeypatch.setattr(bench, "peers", lambda *_: peers)
    planned = nbattn.plan
    monkeypatch.setattr(
        nbattn, "plan", lambda *a, **k: planned(*a, **{**k, "device": "sm_90", "backend": "cuda"})
    )
    load = bench.Workload("small", (16, 16), Mask.neighborhood((7, 7)), 2, 64)
    rows = list(bench.measure(load, torch.bfloat16, False, lambda **_: False))
    assert order == ["reset", bench.OURS, "reset", "flex", "reset", "sdpa"]
    assert [row.get("seconds") for row in rows] == [2.0, None, 2.0]
    assert rows[0]["kernels"] == {"nb_fwd_mma": 1.0}
    assert rows[0]["useful_tflops"] == pytest.approx(load.useful / 2.0 * 1e-12)
    assert rows[1]["error"] == "ValueError: 457 GB"
    again = list(bench.measure(load, torch.bfloat16, False, lambda **k: k["peer"] == bench.OURS))
    assert [row["peer"] for row in again] == ["flex, tiled", "sdpa, dense"]


def test_ours_is_the_first_peer_of_every_workload(module: Callable[[str], ModuleType]) -> None:
    bench = module("gpu_neighborhood")
    for load in bench.workloads():
        first, *others = bench.peers(load, torch.bfloat16, True)
        assert first == bench.OURS
        assert (others[:2] == [bench.WARPGROUPS, bench.WARPS]) == (load.dim > 32)


def test_our_peers_tell_which_kernels_ran(
    module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, planned, device = module("gpu_neighborhood"), nbattn.plan, ["sm_90"]
    monkeypatch.setattr(nbattn, "plan", lambda *a, **k: planned(*a, **{**k, "device": device[0]}))
    loads = {load.name: load for load in bench.workloads()}
    found = {
        name: bench.planned(loads["FLUX"], torch.bfloat16, False, name) for name in bench.ROUTES
    }
    assert [one["traits"] for one in found.values()] == [["wgmma"], ["wgmma"], ["mma"]]
    assert found[bench.WARPS]["estimate"] > found[bench.OURS]["estimate"] > 0
    assert found[bench.OURS]["goal_tflops"] == 430
    device[0] = "sm_80"
    found = bench.planned(loads["FLUX"], torch.bfloat16, True, bench.WARPGROUPS)
    assert "needs sm_90, not sm_80" in found["plan"]


def test_the_sweep_of_triton_goes_on_and_never_invents_a_time(
    module: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, path = module("gpu_triton_tiles"), tmp_path / "tiles.jsonl"
    words = ["--dry", "--only", "NAT 7", "--most=3", f"--output={path}"]
    assert sweep.main(words) == 0
    first = lines(path)
    assert [row["kernel"] for row in first] == ["fwd"] * 3 + ["dq"] * 3 + ["dkdv"] * 3
    assert all(row["dry"] and "seconds" not in row and row.keys() >= ABOUT for row in first)
    assert all(0 < row["share"] <= 1 for row in first)
    known = [{**row, "dry": False, "seconds": 1.0} for row in first[1:]]
    path.write_text("".join(json.dumps(row) + "\n" for row in known))
    assert sweep.main(words) == 0
    assert [row["tile"] for row in lines(path)[len(known) :]] == [first[0]["tile"]]
    assert sweep.main([*words, "--seconds=0"]) == 3
    launched: list[str] = []

    def launch(self: Any, kernel: str, *_: Any) -> None:
        launched.append(kernel)
        if kernel == "grad_query":
            raise RuntimeError("out of resources")

    monkeypatch.setattr(sweep.gpu_tiles.Nothing, "launch", launch)
    path.unlink()
    assert sweep.main(words) == 0
    failed = {(row["kernel"], "error" in row) for row in lines(path)}
    assert failed == {("fwd", False), ("dq", True), ("dkdv", True)}


def test_kernels_are_compiled_once_before_they_are_timed(
    module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By parts, of which each kernel is in one."""
    sweep = module("gpu_triton_tiles")
    bench = sweep.Bench.of(True, 2)
    loads = [load for load in sweep.gpu_tiles.workloads() if load.name in ("NAT 14", "NAT 7")]
    programs = [*sweep.variants(loads, bench)]
    expected = {
        (kernel, one.tiles)
        for load in loads
        for kernel in sweep.KERNELS
        for one in bench.tiles(bench.plan(load), kernel)
    }
    assert len(programs) == len(expected)
    loaded: list[Any] = []
    monkeypatch.setattr(sweep.gpu_tiles.Nothing, "load", lambda self, *given: loaded.append(given))
    for part in range(3):
        sweep.compile_part(loads, bench, f"{part}/3", lambda: True)
    tiles = {(kernel, variant.rows, variant.columns) for kernel, _, variant, *_ in loaded}
    functions = {"fwd": "forward", "dq": "grad_query", "dkdv": "grad_key"}
    assert tiles >= {(functions[kernel], one.rows, one.columns) for kernel, one in expected}
    assert len(loaded) == 4 * len(programs)
    sweep.compile_part(loads, bench, "0/3", lambda: False)
    assert len(loaded) == 4 * len(programs), "no time is left"


@pytest.mark.parametrize(
    ("mask", "space", "tiles"),
    [
        (Mask.neighborhood((5, 5)), (16, 32), ((8, 16), (8, 8))),
        (Mask.neighborhood((3, 3), dilation=(3, 2)), (16, 19), ()),
        (Mask.neighborhood(21, dilation=4), (300,), ()),
    ],
    ids=["tiles", "classes of a plane", "classes of a line"],
)
def test_blocks_of_flexattention_hold_the_mask(
    module: Callable[[str], ModuleType], mask: Mask, space: tuple[int, ...], tiles: Any
) -> None:
    """In every order of tokens: pairs by its function, and which blocks are partial or full."""
    bench, common = module("gpu_triton"), module("gpu_neighborhood")
    load = bench.Workload("small", space, mask, 2, 32)
    orders = bench.arrangements(load, tiles)
    assert len(orders) == 1 + len(tiles) + bench.is_dilated(load)
    tokens = torch.arange(load.tokens)
    for how in orders:
        order = tokens
        if how.tile is not None:
            order = common.tile_order(space, how.tile)
        elif how.name == "by class":
            order = bench.class_order(load)
            places = np.unravel_index(order.numpy(), space)
            steps = [axis.dilation for axis in mask.axes]
            classes = np.stack([at % step for at, step in zip(places, steps, strict=True)])
            changes = (np.diff(classes) != 0).any(0).sum()
            assert changes == np.prod(steps) - 1, "each class is contiguous"
        assert torch.equal(order.sort().values, tokens)
        allowed = torch.from_numpy(mask.dense(space))[order][:, order]
        blocks = bench.blocks_of(load, how, "cpu")
        assert tuple(blocks.BLOCK_SIZE) == (how.block, how.block)
        pairs = blocks.mask_mod(0, 0, tokens[:, None], tokens[None, :])
        assert torch.equal(pairs, allowed)
        count = -(-load.tokens // how.block)
        for rows in range(count):
            partial = set(
                blocks.kv_indices[0, 0, rows, : blocks.kv_num_blocks[0, 0, rows]].tolist()
            )
            full = blocks.full_kv_indices[0, 0, rows, : blocks.full_kv_num_blocks[0, 0, rows]]
            full = set(full.tolist())
            for columns in range(count):
                part = allowed[rows * how.block :, columns * how.block :][: how.block, : how.block]
                assert (columns in partial | full) == bool(part.any())
                assert columns not in full or part.all()


def test_flexattention_is_tried_in_every_order_and_then_with_the_options_of_the_best(
    module: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, path = module("gpu_triton"), tmp_path / "triton.jsonl"
    seconds = {"row-major": 5.0, "by class": 2.0, "64x64 4w3s": 1.5, "64x64x64x64": 1.75}
    monkeypatch.setattr(bench.gpu_timing, "seconds", lambda run: run())
    monkeypatch.setattr(bench.common.gpu_timing, "by_kernel", lambda run: {})
    monkeypatch.setattr(bench, "our_peer", lambda *_: lambda: lambda: 1.0)
    tried: list[tuple[str, bool, dict[str, int]]] = []

    def flex(load: Any, training: bool, how: Any, options: dict[str, int]) -> Any:
        def run() -> float:
            named = "x".join(str(options[n]) for n in options if "BLOCK" in n and "fwd" not in n)
            word = "64x64 4w3s" if options.get("fwd_BLOCK_M") == 64 else ""
            tried.append((how.name, training, options))
            return min(seconds[how.name], seconds.get(word, 9.0), seconds.get(named, 9.0))

        return lambda: run

    monkeypatch.setattr(bench, "flex_peer", flex)
    monkeypatch.setattr(bench.Bench, "plan", lambda *_: {})
    load = bench.Workload("small", (16, 16), Mask.neighborhood((3, 3), dilation=2), 2, 64)
    monkeypatch.setattr(bench, "workloads", lambda: iter([(load, ((8, 8),))]))
    monkeypatch.setitem(seconds, "8x8", 3.0)
    to = bench.Bench(bench.Findings(path), False, lambda: True)
    for training in (False, True):
        bench.measure(load, ((8, 8),), training, to)
    orders = [(name, training) for name, training, _ in tried]
    assert orders[:3] == [("8x8", False), ("by class", False), ("row-major", False)]
    assert set(orders[3:]) == {("by class", False), ("by class", True)}
    fastest = {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64, "fwd_num_warps": 4, "fwd_num_stages": 3}
    for _, training, options in tried:
        if training:
            assert options.items() >= fastest.items(), "the forward at its best"
    before = len(tried)
    bench.measure(load, ((8, 8),), False, to)
    assert len(tried) == before, "what is known is not measured again"
    text = bench.summary(to.found)[1]
    assert text.split()[:7] == [
        "small",
        "forward",
        "1000.000ms",
        "1000.000ms",
        "1500.000ms",
        "1.50",
        "3.0",
    ]


def test_the_comparison_runs_dry_and_stops(
    module: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    bench, path = module("gpu_triton"), tmp_path / "triton.jsonl"
    words = ["--dry", "--only", "DiNAT 14", f"--output={path}"]
    assert bench.main([*words, "--seconds=0"]) == 3
    assert bench.main(words) == 0
    rows = lines(path)
    assert [row["peer"] for row in rows[:2]] == ["triton", "cuda"]
    assert all(row["dry"] and "seconds" not in row and row.keys() >= ABOUT for row in rows)
    assert {row["arrangement"] for row in rows if "arrangement" in row} == {"by class", "row-major"}
    names = {load.name for load, _ in bench.workloads()}
    assert names >= {"FLUX", "Hunyuan", "LTX stage 4", "1-D 32k", "NAT 56", "DiNAT 56 d8"}


def test_a_cost_table_of_findings(
    module: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only measured lines, the median of several, per device and versions."""
    fit, tiles = module("fit_costs"), module("gpu_tiles")
    load = next(one for one in tiles.workloads() if one.name == "NAT 7")
    request = tiles.Bench.of(True).plan(load).request
    about = {
        "gpu": "NVIDIA H100", "capability": [9, 0], "date": "2026-12-01T10:00:00",
        "versions": {"torch": "2.11.0", "nbattn": "0.1.0"},
    }  # fmt: skip
    tile = {"kind": "tile", "request": json.loads(cost_table.tile_key(request)), **about}
    name = measured_tiles.name("fwd", tiles.cuda_tiles.Tiles((1, 8, 8), (1, 8, 8), 4, 1, 2))
    candidate = {
        "kind": "regret", "request": json.loads(cost_table.key(request)),
        "seconds": {"flash:aten/pack": 3.0, "flash:aten/split": 4.0}, **about,
    }  # fmt: skip
    rows = [
        *({**tile, "tile": name, "seconds": seconds} for seconds in (1.0, 3.0, 2.0)),
        {**tile, "tile": "fwd dry", "dry": True}, {**tile, "tile": "fwd bad", "error": "x"},
        {**tile, "tile": name, "seconds": 9.0, "gpu": "NVIDIA H200"}, candidate,
    ]  # fmt: skip
    (tmp_path / "gpu_tiles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert fit.main([str(tmp_path), f"--output={tmp_path / 'costs.json'}"]) == 0
    h100, h200 = cost_table.decode((tmp_path / "costs.json").read_bytes())
    assert h100.fingerprint == Fingerprint("sm_90", "NVIDIA H100", 0, "2.11.0", "0.1.0")
    assert h100.tiles == {cost_table.tile_key(request): {name: 2.0}}
    assert h100.times == {cost_table.key(request): candidate["seconds"]}
    assert (h200.fingerprint.model, h200.date) == ("NVIDIA H200", "2026-12-01")
    assert h200.tiles == {cost_table.tile_key(request): {name: 9.0}}
    assert "NVIDIA H100, torch 2.11.0: 1 tiles of 1 requests" in capsys.readouterr().out
    (tmp_path / "gpu_tiles.jsonl").write_text(json.dumps({**tile, "dry": True, "gpu": None}))
    assert fit.main([str(tmp_path), f"--output={tmp_path / 'none.json'}"]) == 1
    assert not (tmp_path / "none.json").exists()
