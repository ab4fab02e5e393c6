"""Tests of `nbattn plan --mesh`: the halo, the attention of one rank, JSON, the picture, misuse."""

from __future__ import annotations

import json
import os
from pathlib import Path
from textwrap import dedent

import pytest

import nbattn
from nbattn import Mask
from nbattn.cli import main
from nbattn.distributed import halo, halo_text

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]
REQUEST = ("--mask", "neighborhood((7, 7))", "--query", "2,56,56,4,32", "--device", "cpu")


def planned(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    """Exit status, output and errors of `nbattn plan`."""
    status = main(["plan", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def test_the_halo_comes_before_the_plan_of_a_rank(capsys: Capture) -> None:
    status, out, err = planned(capsys, *REQUEST, "--mesh", "2,4,2", "--shard", "batch,0,heads")
    found = halo(Mask.neighborhood((7, 7)), (56, 56), (4, 1))
    traffic = found.bytes(batch=1, kv_heads=2, head_dim=32)
    first, second = out.split("\n\n")[:2]
    assert (status, err) == (0, "")
    lines = [" ".join(line.split()) for line in first.splitlines()]
    assert lines[:2] == [
        "neighborhood((7, 7))",
        "mesh 2 x 4 x 2 ranks: batch in 2, axis 0 in 4, heads in 2",
    ]
    text = " ".join(" ".join(lines).split())
    for label, content in halo_text.of_rank(found, found.rank(1), traffic):
        assert f"{label} {content}" in text
    assert "receives 336 keys (86 kB) from 2 ranks" in text
    local = "query [1, 14, 56, 2, 32] key [1, 20, 56, 2, 32] bfloat16 cpu"
    assert second.startswith("rank 1\n  choice ")
    assert local in second
    assert "backward" not in out
    assert "nbattn tune" not in out  # which has no meshes


def test_the_plan_of_the_rank_is_proved(capsys: Capture) -> None:
    mask = "Axis(4, 4, border='wrap', dilation=2), Axis(3, 0, causal=True, prefix=2)"
    given = ("--mask", mask, "--query", "1,32,24,2,16", "--device", "cpu", "--training")
    status, out, _ = planned(capsys, *given, "--mesh", "4,2", "--shard", "1,0", "--verify")
    assert status == 0
    assert "proof    exact: every pair of the mask once, no other" in out
    assert "mesh       4 x 2 ranks: axis 1 in 4, axis 0 in 2" in out
    assert "backward   sends the gradients of these keys and values back: as many bytes" in out


def test_json_has_the_halo_and_the_plan(capsys: Capture) -> None:
    out = planned(capsys, *REQUEST, "--mesh", "4,2", "--json", "--dtype", "float32")[1]
    (record,) = json.loads(out)
    found = halo(Mask.neighborhood((7, 7)), (56, 56), (4, 2))
    sizes = {"batch": 2, "kv_heads": 4, "head_dim": 32, "dtype": "float32"}
    assert record["halo"] == json.loads(json.dumps(found.to_dict(**sizes)))
    assert (record["mesh"], record["shard"], record["rank"]) == ([4, 2], ["0", "1"], 2)
    spaces = record["request"]["query_space"], record["request"]["key_space"]
    assert spaces == ([14, 28], [20, 31])


def test_every_plan_of_a_file_is_cut(capsys: Capture) -> None:
    out = planned(capsys, "weather", "--mesh", "4,3,2", "--shard", "0,none,1")[1]
    titles = [line for line in out.splitlines() if line and line[0] != " "]
    assert titles[:4] == ["local", "rank 2", "far", "rank 2"]
    assert out.count("4 x 3 x 2 ranks: axis 0 in 4, axis 1 in 2; 3 times the same") == 2
    assert [mask in out for mask in map(repr, nbattn.load("weather").masks.values())] == [True] * 2


def test_a_mesh_that_cuts_no_axis(capsys: Capture) -> None:
    out = planned(capsys, *REQUEST, "--mesh", "4", "--shard", "none")[1]
    assert "4 ranks: nothing is cut; 4 times the same" in out
    assert "  receives   nothing" in out
    assert "ring" not in out.split("\n\n")[0]


def test_the_picture(capsys: Capture, tmp_path: Path) -> None:
    for name, start in (("a.png", b"\x89PNG\r\n\x1a\n"), ("b.svg", b"<?xml")):
        file = tmp_path / name
        status, out, _ = planned(capsys, *REQUEST, "--mesh", "4,2", "--plot", str(file))
        assert (status, out.splitlines()[-1]) == (0, f"written: {file}")
        assert file.read_bytes().startswith(start)


@pytest.mark.parametrize("columns", [40, 80])
def test_lines_fit_the_terminal(
    columns: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = planned(capsys, *REQUEST, "--mesh", "4,2")[1]
    words = max(len(word) for word in out.split())  # of code, which is not cut
    assert max(map(len, out.splitlines())) <= max(columns, words + 13)


MISUSE = """
--mesh 2,4,2
    --mesh has 3 sizes and the mask 2 axes, so --shard has to say what is cut.
      fix:   nbattn plan REQUEST --mesh 2,4,2 --shard 0,1,batch

--mesh 4,2 --shard 0
    --mesh has 2 sizes and --shard 0: for each size one of 0, 1, batch, heads, none of them twice, or none.
      fix:   nbattn plan REQUEST --mesh 4,2 --shard 0,1

--mesh=4 --shard=2
    --mesh has 1 size and --shard 2: for each size one of 0, 1, batch, heads, none of them twice, or none.
      fix:   nbattn plan REQUEST --mesh 4 --shard 0

--mesh 4,2,2 --shard none,1,1
    --mesh has 3 sizes and --shard none,1,1: for each size one of 0, 1, batch, heads, none of them twice, or none.
      fix:   nbattn plan REQUEST --mesh 4,2,2 --shard none,1,0

--mesh 8,2 --shard heads,0
    4 heads, 4 of them of keys, are not cut into 8 alike parts.
      fix:   nbattn plan REQUEST --mesh 4,2 --shard heads,0

--mesh 4x2
    --mesh: '4x2' is not a list of mesh sizes from 1.
      fix:   nbattn plan REQUEST --mesh 4,2

--mesh 4 --shard x
    --shard: 'x' is not a list of axes, batch, heads or none.
      fix:   nbattn plan REQUEST --mesh 4 --shard 0,1

--shard 0,1
    --shard says what a mesh cuts, and --mesh is missing.
      fix:   nbattn plan REQUEST --shard 0,1 --mesh 2,2

--mesh 4,2 --plot halo.jpg
    halo.jpg does not end in .png, the format of the file.
      fix:   --plot halo.png
"""  # noqa: E501  the texts are as users see them


@pytest.mark.parametrize("case", MISUSE.strip().split("\n\n"), ids=lambda case: case.split("\n")[0])
def test_misuse_is_one_message_and_exit_status_2(capsys: Capture, case: str) -> None:
    command, _, expected = case.partition("\n")
    given = "--mask 'neighborhood((7, 7))' --query 2,56,56,4,32 --device cpu"
    status, out, err = planned(capsys, *REQUEST, *command.split())
    assert (status, out) == (2, "")
    assert err == f"nbattn plan: {dedent(expected).replace('REQUEST', given)}\n"


@pytest.mark.parametrize(
    ("given", "problem", "fix"),
    [
        (("nat_tiny", "--mesh", "2", "--plot", os.devnull),
         "--plot draws one halo, and 4 plans are selected.",
         f"nbattn plan nat_tiny stage1 --mesh 2 --plot {os.devnull}"),
        (("--mask", "full(2)", "--query", "30,8,64", "--grids", "5x6", "--mesh=2", "--shard", "0"),
         "--mesh cuts the axes of one grid, and this request has packed grids.",
         "nbattn plan --mask 'full(2)' --query 30,8,64 --grids 5x6"),
        ((*REQUEST, "--extra-keys", "4", "--extra-queries", "--mesh", "2"),
         "--mesh cuts the axes of one grid, and this request has extra queries.",
         "nbattn plan --mask 'neighborhood((7, 7))' --query 2,56,56,4,32 --device cpu "
         "--extra-keys 4 --extra-queries"),
        (("--model", "flux", "--mesh", "4,2", "--shard", "0,1"),
         "--model defines the request, so these are unused: --mesh, --shard.",
         "nbattn plan --model flux"),
    ],
)  # fmt: skip
def test_requests_without_a_space_to_cut(
    capsys: Capture, given: tuple[str, ...], problem: str, fix: str
) -> None:
    status, out, err = planned(capsys, *given)
    assert (status, out) == (2, "")
    assert err == f"nbattn plan: {problem}\n  fix:   {fix}\n"
