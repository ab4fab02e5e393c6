"""A kernel with its compile-time constants, for the compiler, the cache and a launcher."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel with all its compile-time constants.

    Args:
        source: the file in `cuda/`.
        entry: the name of its `extern "C"` kernel.
        constants: (macro, integer) pairs for the source, sorted by name.
        threads: threads per block.
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
        """The constants as options of the compiler."""
        named = (*self.constants, ("NB_SHARED_BYTES", self.shared_bytes))
        return tuple(f"-D{name}={value:d}" for name, value in named)
