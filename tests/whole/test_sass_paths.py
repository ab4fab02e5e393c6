"""Tests of `instruments/sass_paths.py` on short programs: which instructions a visit executes."""

from __future__ import annotations

import pytest
from counted_visits import Budget, over
from sass_paths import Need, graph, main_loop, need_of, visit

from nbattn.backends.cuda import tiles as cuda_tiles
from nbattn.backends.cuda.tiles import Build, Tiles

NEED = Need(hmma=4, copies=2, scores=2, output=0)
MMA = "HMMA.16816.F32 R4, R8, R12, R4"
COPY = "LDGSTS.E.BYPASS.128 [R1], [R2.64], P0"
HIDE = "FSEL R4, R4, -INF, P1"
KERNEL = (
    "MOV R1, RZ", "loop:", "BAR.SYNC 0x0", "@P2 BRA last", COPY, COPY, "last:",
    MMA, MMA, "@P0 BRA full", HIDE, HIDE, "full:", "MUFU.EX2 R4, R4", MMA, MMA, "@P3 BRA loop",
    "EXIT",
)  # fmt: skip


def sass(*lines: str) -> str:
    """Lines as nvdisasm writes them; a line that ends with a colon is a label."""
    text, at = [".text.nb_probe:"], 0
    for line in lines:
        if line.endswith(":"):
            text.append(f".L_{line}")
            continue
        name, _, label = line.rpartition(" ")
        if name.endswith(("BRA", "NOINC", "B0,")) and label.isalpha():
            line = f"{name} `(.L_{label})"
        text.append(f"        /*{at:04x}*/                   {line} ;")
        at += 16
    return "\n".join(text)


def changed(*pairs: tuple[int, tuple[str, ...]]) -> str:
    """The kernel with lines put in before the given ones."""
    lines = [*KERNEL]
    for at, new in sorted(pairs, reverse=True):
        lines[at:at] = new
    return sass(*lines)


def lengths(text: str, need: Need = NEED) -> tuple[int | None, ...]:
    return tuple(path and path.length for path in visit(text, need))


def test_a_visit_copies_and_does_not_mask() -> None:
    """The way without copies is shorter, the one with a mask longer."""
    assert lengths(sass(*KERNEL)) == (11, 13, None)
    found = visit(sass(*KERNEL), NEED).interior
    assert found.kinds == {"HMMA": 4, "LDGSTS": 2, "MUFU": 1, "branch": 4}


@pytest.mark.parametrize(
    ("need", "text"),
    [
        (
            NEED._replace(hmma=5),
            r"no path with 5 HMMAs and 2 copies; there are \[\(4, 0\), \(4, 2\)\]",
        ),
        (NEED._replace(copies=3), "no path with 4 HMMAs and 3 copies; there are"),
        (NEED._replace(scores=3), "no path with 3 more selects"),
    ],
)
def test_what_a_kernel_does_not_do_is_reported(need: Need, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        visit(sass(*KERNEL), need)


def test_without_a_number_of_copies_any_will_do() -> None:
    assert lengths(sass(*KERNEL), NEED._replace(copies=None)) == (9, 11, None)


def test_a_loop_of_copies_goes_round_as_often_as_needed() -> None:
    text = sass(
        "MOV R1, RZ", "loop:", "BAR.SYNC 0x0", "again:", COPY, "@P4 BRA again", MMA, "@P0 BRA full",
        HIDE, HIDE, "full:", "@P3 BRA loop", "EXIT",
    )  # fmt: skip
    for copies in (1, 3, 8):
        found = lengths(text, Need(1, copies, 2, 0))
        assert found == (4 + 2 * copies, 6 + 2 * copies, None)


def test_predicated_moves_mask_too() -> None:
    hidden = ("@P1 MOV R4, 0xff800000", "@!P1 IMAD.MOV.U32 R5, RZ, RZ, RZ", "MOV R6, RZ")
    text = sass(*(x for x in KERNEL[:10]), *hidden, *KERNEL[12:])
    assert lengths(text) == (11, 14, None)
    with pytest.raises(ValueError, match="no path with 3 more selects"):
        visit(text, NEED._replace(scores=3))


def test_a_rescale_is_found_by_its_multiplications() -> None:
    scale = ("@P5 BRA small", "FMUL R20, R20, R3", "FMUL R21, R21, R3", "small:")
    text, need = changed((13, scale)), NEED._replace(output=2)
    assert lengths(text, need) == (12, 14, 14)
    assert lengths(text, need._replace(output=3)) == (12, 14, None)
    double = text.replace("FMUL R21", "FMUL2 R22")
    assert lengths(double, need._replace(output=3)) == (12, 14, 14)
    assert lengths(text, need._replace(output=0)) == (12, 14, None)


def test_a_far_jump_by_a_call() -> None:
    assert "CALL.REL.NOINC" in sass("CALL.REL.NOINC done")
    jump = ("@P5 CALL.REL.NOINC full", "MOV R9, RZ")
    assert lengths(changed((9, jump)))[0] == 11
    assert lengths(changed((9, ("CALL.REL.NOINC `($function)",))))[0] == 12


def test_a_break_goes_to_the_end_of_its_barrier() -> None:
    text = sass("BSSY B0, done", "@P0 BREAK B0", "MOV R1, R2", "done:", "EXIT")
    assert [block.after for block in graph(text)] == [(2, 1), (2,), ()]


def test_the_main_loop_is_the_largest_with_products() -> None:
    text = sass(
        "a:", *["MOV R1, R2"] * 9, "@P0 BRA a", "b:", MMA, "c:", MMA, "@P1 BRA c", "@P0 BRA b",
        "EXIT",
    )  # fmt: skip
    blocks = graph(text)
    assert [len(block.lines) for block in blocks] == [10, 1, 2, 1, 1]
    assert main_loop(blocks) == ({1, 2, 3}, 1)
    two = sass("a:", MMA, "@P0 BRA a", "b:", MMA, "@P1 BRA c", MMA, "c:", "@P2 BRA b", "EXIT")
    assert main_loop(graph(two)) == ({1, 2, 3}, 1)
    with pytest.raises(ValueError, match="no loop with HMMAs"):
        main_loop(graph(sass("a:", "@P0 BRA a", MMA, "EXIT")))


@pytest.mark.parametrize(
    ("kernel", "rows", "columns", "size", "warps", "row_blocks", "wanted"),
    [
        ("fwd", (1, 8, 16), (1, 4, 8), 128, 4, 2, Need(128, 8, 32, 128)),
        ("fwd", (1, 8, 8), (1, 8, 8), 64, 4, 1, Need(64, 8, 32, 32)),
        ("dq", (1, 8, 8), (1, 8, 8), 128, 4, 1, Need(192, 16, 32, 0)),
        ("dkdv", (1, 8, 8), (1, 4, 8), 128, 4, 1, Need(128, 9, 16, 0)),
        ("dkdv", (1, 8, 16), (1, 4, 8), 64, 8, 1, Need(64, 3, 16, 0)),
        ("dkdv", (1, 4, 4), (1, 4, 8), 256, 1, 1, Need(128, 65, 16, 0)),
    ],
)
def test_what_a_visit_needs(
    kernel: str,
    rows: tuple[int, int, int],
    columns: tuple[int, int, int],
    size: int,
    warps: int,
    row_blocks: int,
    wanted: Need,
) -> None:
    """Pairs of a warp x channels x products / 2048 are HMMAs; gradients of wide heads are two."""
    build, tiles = Build("bfloat16", size, size), Tiles(rows, columns, warps, row_blocks, 2)
    grads = cuda_tiles.grads_of(kernel, build)
    found = [
        need_of(
            kernel, dict(cuda_tiles.variant(kernel, tiles, build, grads=g, vector=True).constants)
        )
        for g in grads
    ]
    assert found[0] == wanted
    assert sum(need.hmma for need in found) * 2048 == (
        tiles.area // warps * cuda_tiles.products(kernel, build)
    )


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ({}, []),
        ({"registers": 160, "interior": {"all": 9, "HMMA": 4}}, []),
        ({"registers": 176}, ["176 registers: 168"]),
        ({"stack": 8}, ["8 stack: 0"]),
        ({"interior": {"all": 11, "HMMA": 4}}, ["interior: 11 all: 10"]),
        ({"interior": {"all": 10, "SHFL": 1}}, ["interior: 1 SHFL: 0"]),
        ({"rescale": {"all": 12}}, ["rescale: has no budget"]),
    ],
)
def test_what_grows_is_over_its_budget(change: Budget, faults: list[str]) -> None:
    budget: Budget = {"registers": 168, "interior": {"all": 10, "HMMA": 4}}
    assert over(budget, budget | change) == faults
