"""A kernel at its compile-time constants: all that the compiler, the cache and a launcher need."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel, specialised.

    Args:
        source: the file in `cuda/`.
        entry: its `extern "C"` kernel.
        constants: integers that the source takes as macros, sorted by name.
        threads: per block.
        shared_bytes: dynamic shared memory per block; the source asserts the same number.

    >>> Variant("fwd_simt.cu", "nb_fwd_simt", (("NB_HEAD_DIM", 64),), 128, 0).options
    ('-DNB_HEAD_DIM=64', '-DNB_SHARED_BYTES=0')
    """

    source: str
    entry: str
    constants: tuple[tuple[str, int], ...]
    threads: int
    shared_bytes: int

    @property
    def options(self) -> tuple[str, ...]:
        """What the compiler is told: integers only."""
        named = (*self.constants, ("NB_SHARED_BYTES", self.shared_bytes))
        return tuple(f"-D{name}={value:d}" for name, value in named)
