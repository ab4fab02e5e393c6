"""Counts the instructions that a tensor-core kernel issues in one visit, from its disassembly.

A visit is one iteration of the main loop. nvdisasm's text becomes a graph of basic blocks; the main
loop is the largest strongly connected part with HMMAs, and a path goes from its entry back to it.
In kernels for warpgroups HGMMAs stand for HMMAs, and the path is that of a consumer.

* Interior: the cheapest path with the whole number of HMMAs and of copies (LDGSTS) of the tile,
  both known in closed form. Inner loops go round as often as these numbers need.
* Masked: the cheapest path that besides puts each of the thread's scores through a select: an FSEL,
  or a predicated move of zero or of minus infinity.
* Rescale: the cheapest path with one more FMUL for each of the thread's output accumulators; None
  where no path has them, as when every visit rescales.

Every instruction on the path counts once, predicated or not. "Cheapest" leaves out what only some
visits or warps do: one warp in 16 visits computes the next 16, and a visit to extra keys copies
them. In dK/dV a thread that copies the logsumexp and delta of a query counts. A call of a function
is as long as its instruction.
"""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

KINDS: Mapping[str, tuple[str, ...]] = {
    "HMMA": ("HMMA",),
    "HGMMA": ("HGMMA",),
    "LDSM": ("LDSM",),
    "LDS": ("LDS", "STS"),
    "LDGSTS": ("LDGSTS",),
    "MUFU": ("MUFU",),
    "FP32": ("FMUL", "FADD", "FFMA", "FMUL2", "FADD2", "FFMA2"),
    "ALU": (
        *(
            "FMNMX",
            "FMNMX3",
            "FSEL",
            "FSETP",
            "F2FP",
            "ISETP",
            "SEL",
            "LOP3",
            "LOP",
            "PLOP3",
            "SHF",
        ),
        *(
            "LEA",
            "IADD3",
            "IADD",
            "VIADD",
            "VIMNMX",
            "VIMNMX3",
            "VIADDMNMX",
            "IMNMX",
            "IABS",
            "MOV",
        ),
        *("PRMT", "R2P", "P2R", "LEPC", "CS2R", "BMSK", "SGXT", "ISCADD"),
    ),
    "IMAD": ("IMAD",),
    "SHFL": ("SHFL",),
    "branch": (
        *("BRA", "BRX", "JMP", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "BAR", "DEPBAR", "LDGDEPBAR"),
        *("EXIT", "CALL", "RET", "VOTE", "NOP", "SYNCS", "ARRIVES", "ELECT", "WARPGROUP"),
    ),
}
OTHER = "other"  # uniform instructions, constants, conversions, special registers, global memory
_KIND = {name: kind for kind, names in KINDS.items() for name in names}
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", re.MULTILINE)
_LABEL = re.compile(r"^(\.L_[A-Za-z0-9_]+|\$\S+):", re.MULTILINE)
_TARGET = re.compile(r"`\((\.L_[A-Za-z0-9_]+|\$[^)]+)\)")
_NAME = re.compile(r"(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)")
_HIDES = re.compile(
    r"@!?P\d\s+(?:MOV|IMAD\.MOV\.U32|CS2R|FSEL)\b.*(?:RZ|-INF|0xff800000|-0x800000)$"
)


Done = tuple[int, int, int]  # HMMAs, copies, what is counted
State = tuple[int, Done]  # a block, and what was done before it


class Need(NamedTuple):
    """What one visit of a thread executes, in closed form: HMMAs, copies (None where their
    number is not known), scores, and accumulators of the output (0 if nothing is rescaled);
    `product` is the name of what counts as an HMMA.
    """

    hmma: int
    copies: int | None
    scores: int
    output: int
    product: str = "HMMA"


@dataclass(frozen=True)
class Block:
    """A basic block: its number, its instructions and the numbers of the blocks that follow."""

    number: int
    lines: tuple[str, ...]
    after: tuple[int, ...]

    @property
    def names(self) -> Counter[str]:
        return Counter(map(name_of, self.lines))


class Path(NamedTuple):
    """The blocks of one visit in order."""

    blocks: tuple[Block, ...]

    @property
    def kinds(self) -> dict[str, int]:
        """How many instructions of each kind are on the path."""
        counts: Counter[str] = Counter()
        for block in self.blocks:
            for name, count in block.names.items():
                counts[_KIND.get(name, OTHER)] += count
        return {kind: counts[kind] for kind in (*KINDS, OTHER) if counts[kind]}

    @property
    def length(self) -> int:
        return sum(len(block.lines) for block in self.blocks)


class Visit(NamedTuple):
    """The paths of one visit."""

    interior: Path
    masked: Path
    rescale: Path | None


def name_of(line: str) -> str:
    """The instruction's name without its suffixes."""
    found = _NAME.match(line)
    return found[1] if found else ""


def graph(text: str) -> list[Block]:
    """The basic blocks of the first kernel in nvdisasm's text, in the order of their addresses."""
    body = re.split(r"^\.text\.\S+:$", text, maxsplit=1, flags=re.MULTILINE)[-1]
    body = re.split(r"^\s*//-{10,}", body, maxsplit=1, flags=re.MULTILINE)[0]
    lines = [match[2].strip() for match in _LINE.finditer(body)]
    starts = [match.start() for match in _LINE.finditer(body)]
    labels = {
        match[1]: sum(start < match.start() for start in starts) for match in _LABEL.finditer(body)
    }
    leaders = {0, *labels.values()}
    leaders |= {at + 1 for at, line in enumerate(lines) if _ends(line)}
    edges = [*sorted(at for at in leaders if at < len(lines)), len(lines)]
    number = {at: n for n, at in enumerate(edges[:-1])}
    blocks: list[Block] = []
    for n, (start, end) in enumerate(pairwise(edges)):
        after = [number[labels[x]] for x in _jumps(lines, end - 1) if labels[x] < len(lines)]
        if end < len(lines) and not _leaves(lines[end - 1]):
            after.append(n + 1)
        blocks.append(Block(n, tuple(lines[start:end]), tuple(dict.fromkeys(after))))
    return blocks


def _ends(line: str) -> bool:
    return name_of(line) in ("BRA", "JMP", "EXIT", "RET", "BSYNC", "BREAK") or _is_far(line)


def _is_far(line: str) -> bool:
    """Whether a CALL is a jump: ptxas jumps far by one, without a return, to an ordinary label."""
    return name_of(line) == "CALL" and "`(.L_" in line


def _leaves(line: str) -> bool:
    """Whether the next line never follows: an unconditional jump or end."""
    if name_of(line) in ("EXIT", "RET"):
        return not line.startswith("@")
    return re.match(r"(?:BRA|JMP|CALL)(?:\.[A-Z]+)*\s+`\(\.L_", line) is not None


def _jumps(lines: list[str], at: int) -> list[str]:
    """The labels that a block's last line jumps to. Threads that wait at a BSYNC go on at the label
    of its BSSY, which is the next line in all kernels but those with a BREAK.
    """
    line = lines[at]
    if name_of(line) in ("BRA", "JMP") or _is_far(line):
        found = _TARGET.search(line)
        return [found[1]] if found else []
    if name_of(line) == "BREAK":
        barrier = line.split()[-1]
        pairs = [x for x in lines[:at] if name_of(x) == "BSSY" and x.split()[1] == f"{barrier},"]
        found = _TARGET.search(pairs[-1]) if pairs else None
        return [found[1]] if found else []
    return []


def main_loop(blocks: list[Block], product: str = "HMMA") -> tuple[set[int], int]:
    """The numbers of the main loop's blocks, and of its entry."""
    loops = [loop for loop in _loops(blocks) if _count(blocks, loop, product)]
    if not loops:
        raise ValueError(f"no loop with {product}s")
    loop = max(loops, key=len)
    entries = [n for block in blocks if block.number not in loop for n in block.after if n in loop]
    return loop, min(entries)


def _count(blocks: list[Block], numbers: Iterable[int], name: str) -> int:
    return sum(blocks[n].names[name] for n in numbers)


def _loops(blocks: list[Block]) -> list[set[int]]:
    """The strongly connected parts with an edge inside: what is reached from a block and reaches
    it.
    """
    before: dict[int, list[int]] = {block.number: [] for block in blocks}
    for block in blocks:
        for n in block.after:
            before[n].append(block.number)
    rest, found = {block.number for block in blocks}, list[set[int]]()
    while rest:
        at = min(rest)
        part = _reached(at, lambda n: blocks[n].after) & _reached(at, before.__getitem__)
        if part:
            found.append(part)
        rest -= part | {at}
    return found


def _reached(start: int, after: Callable[[int], Iterable[int]]) -> set[int]:
    """What follows a block in one step or more."""
    seen: set[int] = set()
    todo = [start]
    while todo:
        for n in after(todo.pop()):
            if n not in seen:
                seen.add(n)
                todo.append(n)
    return seen


def visit(text: str, need: Need) -> Visit:
    """The paths of one visit.

    Args:
        text: nvdisasm's.
        need: what a visit executes.
    """
    loop = Loop(graph(text), need.product)
    interior = loop.path(need, lambda block: 0, 0)
    if interior is None:
        text = f"no path with {need.hmma} {need.product}s and {need.copies} copies"
        raise ValueError(f"{text}; there are {loop.totals(3 * need.hmma, 3 * (need.copies or 0))}")
    hidden = sum(map(selects, interior.blocks)) + need.scores
    masked = loop.path(need, selects, hidden)
    if masked is None:
        raise ValueError(f"no path with {need.scores} more selects")
    scaled = sum(map(multiplies, interior.blocks)) + need.output
    rescale = loop.path(need, multiplies, scaled) if need.output else None
    return Visit(interior, masked, rescale)


def selects(block: Block) -> int:
    """Scores that a block can hide."""
    return sum(name_of(x) == "FSEL" or _HIDES.match(x) is not None for x in block.lines)


def multiplies(block: Block) -> int:
    """Numbers that a block multiplies."""
    return block.names["FMUL"] + 2 * block.names["FMUL2"]


class Loop:
    """The main loop's graph."""

    def __init__(self, blocks: list[Block], product: str = "HMMA") -> None:
        self.blocks, self.product = blocks, product
        self.loop, self.entry = main_loop(blocks, product)
        self.after = {n: tuple(x for x in blocks[n].after if x in self.loop) for n in self.loop}

    def path(self, need: Need, count: Callable[[Block], int], least: int) -> Path | None:
        """The cheapest path once round with exactly the HMMAs and copies, and with at least `least`
        of what `count` counts.
        """
        gains = {n: self._gain(n, count) for n in self.loop}
        goal = (need.hmma, need.copies or 0, least)
        start = (self.entry, (0, 0, 0))
        queue: list[tuple[int, int, Done]] = [(0, *start)]
        come: dict[State, State] = {}
        best: dict[State, int] = {start: 0}
        while queue:
            cost, at, done = heapq.heappop(queue)
            if cost > best[at, done]:
                continue
            hmma, copies, counted = (a + b for a, b in zip(done, gains[at], strict=True))
            copies = 0 if need.copies is None else copies
            have = (hmma, copies, min(counted, least))
            if hmma > goal[0] or copies > goal[1]:
                continue
            for n in self.after[at]:
                total = cost + len(self.blocks[at].lines)
                if n == self.entry:
                    if have == goal:
                        return self._walk(come, (at, done))
                elif total < best.get((n, have), 1 << 30):
                    best[n, have] = total
                    come[n, have] = (at, done)
                    heapq.heappush(queue, (total, n, have))
        return None

    def totals(self, hmma: int, copies: int) -> list[tuple[int, int]]:
        """The HMMAs and copies of all paths once round, up to these numbers."""
        seen = {(self.entry, 0, 0)}
        todo, found = [*seen], set[tuple[int, int]]()
        while todo:
            at, had, copied = todo.pop()
            names = self.blocks[at].names
            one, two = had + names[self.product], copied + names["LDGSTS"]
            if one > hmma or two > copies:
                continue
            for n in self.after[at]:
                if n == self.entry:
                    found.add((one, two))
                elif (n, one, two) not in seen:
                    seen.add((n, one, two))
                    todo.append((n, one, two))
        return sorted(found)

    def _gain(self, number: int, count: Callable[[Block], int]) -> Done:
        block = self.blocks[number]
        names = block.names
        return names[self.product], names["LDGSTS"], count(block)

    def _walk(self, come: Mapping[State, State], last: State) -> Path:
        numbers = [last[0]]
        state = come.get(last)
        while state is not None:
            numbers.append(state[0])
            state = come.get(state)
        return Path(tuple(self.blocks[n] for n in reversed(numbers)))


def need_of(kernel: str, constants: Mapping[str, int]) -> Need:
    """What one visit executes.

    Args:
        kernel: "fwd", "dq" or "dkdv".
        constants: those that it is compiled with.
    """
    head, value = (-(-constants[f"NB_{name}_DIM"] // 16) for name in ("HEAD", "VALUE"))
    queries, keys = (
        math.prod(constants[f"NB_{side}_TILE_{axis}"] for axis in range(3))
        for side in ("QUERY", "KEY")
    )
    columns = queries if kernel == "dkdv" else keys
    output = 8 * value * (kernel == "fwd")
    if "NB_VECTOR" not in constants:  # for warpgroups: products are 16 channels or 16 columns deep
        steps = columns // 16
        hgmma = {
            "fwd": head + steps,
            "dq": head + value + steps,
            "dkdv": head + value + 2 * steps,
        }[kernel]
        return Need(hgmma, None, columns // 2, output, "HGMMA")
    blocks, threads = constants["NB_ROW_BLOCKS"], 32 * constants["NB_WARPS"]
    products = {
        "fwd": head + value,
        "dq": 2 * head + value,
        "dkdv": 2 * head + 2 * value,
    }[kernel]
    if (grads := constants.get("NB_GRADS", 3)) != 3:
        products = head + value if grads == 1 else 2 * head + value
    copies = 0
    for chunks in (2 * head, 2 * value):  # a power of two of lanes shares a vector
        lanes = math.gcd(chunks, 64)
        copies += max(1, columns * lanes // threads) * chunks // lanes
    copies += kernel == "dkdv"  # the terms of a query
    return Need(
        hmma=blocks * columns // 8 * products,
        copies=copies if constants["NB_VECTOR"] else None,
        scores=blocks * columns // 2,
        output=blocks * output,
    )


def listing(path: Path) -> str:
    """A path for reading: its instructions, with the number of each one's block."""
    head = f"{path.length} instructions: {', '.join(f'{n} {k}' for k, n in path.kinds.items())}"
    lines = [f"{block.number:5}  {line}" for block in path.blocks for line in block.lines]
    return "\n".join([head, *lines])
