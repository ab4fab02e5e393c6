"""Counts the instructions that a tensor-core kernel issues in one visit, from its disassembly.

A visit is one iteration of the main loop. nvdisasm's text becomes a graph of basic blocks; the main
loop is the largest strongly connected part with HMMAs, and a path goes from its entry back to it.

* Interior: the cheapest path with the whole number of HMMAs and of 16-byte copies (LDGSTS) of the
  tile, both known in closed form. Inner loops go round as often as these numbers need.
* Masked: the cheapest path that besides puts each of the thread's scores through a select: an FSEL,
  or a predicated move of zero or of minus infinity. Where several parts of the code can mask (extra
  keys may have one of their own), the dearest counts.
* Rescale: the cheapest path with one more FMUL for each of the thread's output accumulators; None
  where no path has them, as when every visit rescales.

Every instruction on the path counts once, predicated or not. "Cheapest" leaves out what only some
visits or warps do. Three rules keep what no complete visit leaves out:

* Blocks that read the parameters of extra keys are not on the path, unless every path has them. A
  register counts as one where it is loaded with it before the loop and not written in the loop.
* A branch does not jump over a block of 64-bit multiplications (IMAD.WIDE) that copies nothing: it
  computes a column's address, and all columns of a complete visit are inside.
* A call of a function is as long as its instruction.

A path may combine branches that no visit takes together, and then counts too little: the remainder
of one tensor's unrolled loop of copies with the whole rounds of another's (18 instructions less for
a copy, in kernels whose loops have remainders); in dK/dV a branch for extra keys that reads no
parameter (215 less, twice, in kernels that find each visit by divisions). Logsumexp and delta of a
visit's queries are loaded by some warps of dK/dV only, and are not counted.
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

from nbattn.kernels import layout

KINDS: Mapping[str, tuple[str, ...]] = {
    "HMMA": ("HMMA",),
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
        *("EXIT", "CALL", "RET", "VOTE", "NOP", "SYNCS", "ARRIVES", "ELECT"),
    ),
}
OTHER = "other"  # uniform instructions, constants, conversions, special registers, global memory
_KIND = {name: kind for kind, names in KINDS.items() for name in names}
# Bytes of a kernel's parameters from the start of the constants, by the first digits of a target.
_PARAMETERS = {"80": 0x160, "86": 0x160, "89": 0x160, "90a": 0x210}
_NEWEST = 0x380  # of other targets

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", re.MULTILINE)
_LABEL = re.compile(r"^(\.L_[A-Za-z0-9_]+|\$\S+):", re.MULTILINE)
_TARGET = re.compile(r"`\((\.L_[A-Za-z0-9_]+|\$[^)]+)\)")
_NAME = re.compile(r"(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)")
_HIDES = re.compile(
    r"@!?P\d\s+(?:MOV|IMAD\.MOV\.U32|CS2R|FSEL)\b.*(?:RZ|-INF|0xff800000|-0x800000)$"
)
_LOAD = re.compile(r"U?LDCU?(?:\.\d+)?\s+U?R\d+, c\[0x0\]\[(0x[0-9a-f]+)\]")
_REGISTER = re.compile(r"\bU?R\d+\b")
_WRITES = re.compile(r"(?:@!?U?P\w+\s+)?([A-Z0-9.a-z_]+)\s+(?:U?P\w+, )*(U?R)(\d+)\b")
_CONSTANT = re.compile(r"c\[0x0\]\[(0x[0-9a-f]+)\]")


Done = tuple[int, int, int, int]  # HMMAs, copies, what is counted, whether through a block
State = tuple[int, Done]  # a block, and what was done before it


class Need(NamedTuple):
    """What one visit of a thread executes, in closed form: HMMAs, 16-byte copies (None where their
    number is not known), scores, and accumulators of the output (0 if nothing is rescaled).
    """

    hmma: int
    copies: int | None
    scores: int
    output: int


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


def writes(line: str) -> list[str]:
    """The registers that a line writes, in order: its first operand and, where it is wide, the
    registers after that.
    """
    found = _WRITES.match(line)
    if not found or found[1].partition(".")[0].endswith("SETP"):
        return []
    name, file, first = found[1], found[2], int(found[3])
    if re.search(r"^HMMA|\.128|^LDSM.*\.4", name):
        wide = 4
    else:
        wide = 2 if re.search(r"\.64|\.WIDE|^CS2R(?!\.32)|^LDSM.*\.2", name) else 1
    return [f"{file}{first + n}" for n in range(wide)]


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


def main_loop(blocks: list[Block]) -> tuple[set[int], int]:
    """The numbers of the main loop's blocks, and of its entry."""
    loops = [loop for loop in _loops(blocks) if _count(blocks, loop, "HMMA")]
    if not loops:
        raise ValueError("no loop with HMMAs")
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


def visit(text: str, need: Need, extra: tuple[int, ...] = ()) -> Visit:
    """The paths of one visit.

    Args:
        text: nvdisasm's.
        need: what a visit executes.
        extra: offsets, in the constant bank, of the parameters of extra keys.
    """
    blocks = graph(text)
    loop = Loop(blocks, extra)
    interior = loop.path(need, lambda block: 0, 0)
    if interior is None:
        text = f"no path with {need.hmma} HMMAs and {need.copies} copies"
        raise ValueError(f"{text}; there are {loop.totals(3 * need.hmma, 3 * (need.copies or 0))}")
    hidden = sum(map(selects, interior.blocks)) + need.scores
    masked = [
        path
        for block in (blocks[n] for n in loop.allowed)
        if selects(block) and block not in interior.blocks
        if (path := loop.path(need, selects, hidden, through=block.number))
    ]
    if not masked:
        raise ValueError(f"no path with {need.scores} more selects")
    scaled = sum(map(multiplies, interior.blocks)) + need.output
    rescale = loop.path(need, multiplies, scaled) if need.output else None
    return Visit(interior, max(masked, key=lambda path: path.length), rescale)


def selects(block: Block) -> int:
    """Scores that a block can hide."""
    return sum(name_of(x) == "FSEL" or _HIDES.match(x) is not None for x in block.lines)


def multiplies(block: Block) -> int:
    """Numbers that a block multiplies."""
    return block.names["FMUL"] + 2 * block.names["FMUL2"]


class Loop:
    """The main loop's graph, without what no complete visit to keys of the grid does."""

    def __init__(self, blocks: list[Block], extra: tuple[int, ...]) -> None:
        self.blocks = blocks
        self.loop, self.entry = main_loop(blocks)
        self.allowed = set(self.loop)
        self.after = {
            n: tuple(x for x in blocks[n].after if x in self.loop and not self._skips(n, x))
            for n in self.loop
        }
        held = self._held(extra)
        for n in sorted(self.loop):
            if self._reads(n, extra, held) and self._is_avoidable(n):
                self.allowed.discard(n)

    def _reads(self, number: int, offsets: tuple[int, ...], held: frozenset[str]) -> bool:
        """Whether a block reads one of the constants, or a register that holds one."""
        for line in self.blocks[number].lines:
            if any(int(x, 16) in offsets for x in _CONSTANT.findall(line)):
                return True
            if held & {*_REGISTER.findall(line)}:
                return True
        return False

    def _held(self, offsets: tuple[int, ...]) -> frozenset[str]:
        """Registers that the loop only reads, and that were last loaded with a constant."""
        last: dict[str, int | None] = {}
        for block in self.blocks[: self.entry]:
            for line in block.lines:
                found = _LOAD.match(line)
                for n, register in enumerate(writes(line)):
                    last[register] = int(found[1], 16) + 4 * n if found else None
        written = {x for n in self.loop for line in self.blocks[n].lines for x in writes(line)}
        return frozenset(r for r, at in last.items() if at in offsets and r not in written)

    def _is_avoidable(self, number: int) -> bool:
        if number == self.entry:
            return False
        rest = self.allowed - {number}
        return self.entry in _reached(self.entry, lambda n: [x for x in self.after[n] if x in rest])

    def _skips(self, number: int, target: int) -> bool:
        """Whether an edge jumps over the next block, which computes an address."""
        over = number + 1
        if target == over or over not in self.blocks[number].after:
            return False
        block = self.blocks[over]
        wide = any(re.match(r"(@\S+ )?IMAD\.WIDE", line) for line in block.lines)
        does = block.names
        return wide and target in block.after and not (does["LDGSTS"] or does["HMMA"])

    def path(
        self, need: Need, count: Callable[[Block], int], least: int, through: int | None = None
    ) -> Path | None:
        """The cheapest path once round with exactly the HMMAs and copies, and with at least `least`
        of what `count` counts, through one block if that is given.
        """
        gains = {n: self._gain(n, count, through) for n in self.allowed}
        goal = (need.hmma, need.copies or 0, least, int(through is not None))
        start = (self.entry, (0, 0, 0, 0))
        queue: list[tuple[int, int, Done]] = [(0, *start)]
        come: dict[State, State] = {}
        best: dict[State, int] = {start: 0}
        while queue:
            cost, at, done = heapq.heappop(queue)
            if cost > best[at, done]:
                continue
            hmma, copies, counted, passed = (a + b for a, b in zip(done, gains[at], strict=True))
            copies = 0 if need.copies is None else copies
            have = (hmma, copies, min(counted, least), passed and 1)
            if hmma > goal[0] or copies > goal[1]:
                continue
            for n in self.after[at]:
                total = cost + len(self.blocks[at].lines)
                if n == self.entry:
                    if have == goal:
                        return self._walk(come, (at, done))
                elif n in self.allowed and total < best.get((n, have), 1 << 30):
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
            one, two = had + names["HMMA"], copied + names["LDGSTS"]
            if one > hmma or two > copies:
                continue
            for n in self.after[at]:
                if n == self.entry:
                    found.add((one, two))
                elif n in self.allowed and (n, one, two) not in seen:
                    seen.add((n, one, two))
                    todo.append((n, one, two))
        return sorted(found)

    def _gain(self, number: int, count: Callable[[Block], int], through: int | None) -> Done:
        block = self.blocks[number]
        names = block.names
        return names["HMMA"], names["LDGSTS"], count(block), int(number == through)

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
    blocks, threads = constants["NB_ROW_BLOCKS"], 32 * constants["NB_WARPS"]
    products = {
        "fwd": head + value,
        "dq": 2 * head + value,
        "dkdv": 2 * head + 2 * value,
    }[kernel]
    if (grads := constants.get("NB_GRADS", 3)) != 3:
        products = head + value if grads == 1 else 2 * head + value
    copies = sum(-(-columns * 2 * chunks // threads) for chunks in (head, value))
    return Need(
        hmma=blocks * columns // 8 * products,
        copies=copies if constants["NB_VECTOR"] else None,
        scores=blocks * columns // 2,
        output=8 * blocks * value if kernel == "fwd" else 0,
    )


def extra_parameters(target: str) -> tuple[int, ...]:
    """Offsets, in a target's constants, of all words of the parameters of extra keys."""
    start = _PARAMETERS.get(target, _NEWEST)
    pointers = [8 * layout.POINTERS.index(name) for name in ("extra_key", "extra_value")]
    count = layout.SIZE - 4 * (len(layout.COUNTS) - layout.COUNTS.index("extra"))
    words = [x for at in pointers for x in (at, at + 4)]
    return tuple(start + x for x in (*words, count))


def listing(path: Path) -> str:
    """A path for reading: its instructions, with the number of each one's block."""
    head = f"{path.length} instructions: {', '.join(f'{n} {k}' for k, n in path.kinds.items())}"
    lines = [f"{block.number:5}  {line}" for block in path.blocks for line in block.lines]
    return "\n".join([head, *lines])
