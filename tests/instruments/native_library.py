"""Whether this machine has the native kernels: names and marks for lists of backends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from nbattn.kernels import host

MISSING = host.missing()
NAMES = () if MISSING else ("native",)  # for loops; parameters are skipped, and counted
needs_library = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def backends(names: Iterable[str]) -> list[Any]:
    """Backends as parameters; "native" is skipped where there can be no library."""
    return [pytest.param(n, marks=needs_library if n == "native" else ()) for n in names]
