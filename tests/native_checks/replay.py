"""Runs the passes of recorded problems in a process of its own, without torch.

`python replay.py LIBRARY CASES RESULTS PLACE…` reads a list of `Case`, and writes for each place a
list of the outputs' bytes. A place is where a tensor lies: "end" and "start" are flush with a page
that may not be touched, behind the tensor or before it; "heap" is a block of malloc, which the
address sanitizer watches. Inputs, and outputs of earlier passes, are read-only in pages. Outputs
are filled with NaN beforehand. The last line on stderr names what was running when it died.
"""

from __future__ import annotations

import ctypes
import mmap
import pickle
import struct
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

PAGE = mmap.PAGESIZE
_READ, _WRITE = mmap.PROT_READ, mmap.PROT_WRITE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = (ctypes.c_size_t,)
_libc.free.argtypes = (ctypes.c_void_p,)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Data(NamedTuple):
    """Memory of an input, and the bytes of a contiguous tensor of its shape."""

    memory: bytes
    size: int


class Step(NamedTuple):
    """One pass: what follows the pointers in its argument, and the sizes of its outputs."""

    numbers: bytes
    writes: dict[str, int]


class Case(NamedTuple):
    name: str
    inputs: dict[str, Data]
    steps: tuple[Step, ...]
    pointers: tuple[str, ...]


class Pages:
    """Bytes in pages of their own, with a page on each side that may not be touched."""

    def __init__(self, content: bytes, place: str) -> None:
        self.inner = max(-(-len(content) // PAGE), 1) * PAGE
        self.map = mmap.mmap(-1, self.inner + 2 * PAGE)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.map)) + PAGE
        self.start = self.inner - len(content) if place == "end" else 0
        self.address, self.size = self.base + self.start, len(content)
        ctypes.memmove(self.address, content, self.size)
        _protect(self.base - PAGE, PAGE, 0)
        _protect(self.base + self.inner, PAGE, 0)

    def freeze(self) -> None:
        """Lets nobody write from now on."""
        _protect(self.base, self.inner, _READ)

    def free(self) -> None:
        _protect(self.base - PAGE, self.inner + 2 * PAGE, _READ | _WRITE)


class Heap:
    """Bytes in a block of malloc of exactly their size."""

    def __init__(self, content: bytes, place: str) -> None:
        self.size, self.address = len(content), _libc.malloc(len(content))
        ctypes.memmove(self.address, content, self.size)

    def freeze(self) -> None:
        pass

    def free(self) -> None:
        _libc.free(self.address)


def _protect(address: int, size: int, access: int) -> None:
    if _libc.mprotect(address, size, access):
        raise OSError(ctypes.get_errno(), "mprotect")


def run(
    library: ctypes.CDLL, case: Case, place: str, say: Callable[[str], object]
) -> dict[str, bytes]:
    """The outputs of all passes of a case; says what runs before it does."""
    memory = Heap if place == "heap" else Pages
    held = {name: memory(data.memory, place) for name, data in case.inputs.items()}
    results: dict[str, bytes] = {}
    for one in held.values():
        one.freeze()
    for number, step in enumerate(case.steps):
        say(f"{case.name}, pass {number}, {place}\n")
        outputs = {name: memory(b"\xff" * size, place) for name, size in step.writes.items()}
        held |= outputs
        addresses = [held[name].address if name in held else 0 for name in case.pointers]
        job = memory(struct.pack(f"<{len(addresses)}Q", *addresses) + step.numbers, place)
        job.freeze()
        library.nb_native_run(ctypes.c_void_p(job.address))
        job.free()
        for name, one in outputs.items():
            one.freeze()
            results[name] = ctypes.string_at(one.address, one.size)
    for one in held.values():
        one.free()
    return results


def main(arguments: Sequence[str]) -> None:
    path, cases, target, *places = arguments
    library = ctypes.CDLL(path)
    library.nb_native_run.restype = None
    recorded = pickle.loads(Path(cases).read_bytes())
    say = partial(print, end="", file=sys.stderr, flush=True)
    results = {place: [run(library, case, place, say) for case in recorded] for place in places}
    Path(target).write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from native_checks import replay  # the module that the pickled classes come from

    replay.main(sys.argv[1:])
