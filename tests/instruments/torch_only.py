"""A fixture for tests of measurements and of their table: there the candidates are torch's own, the
same with and without a C++ compiler.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from nbattn.backends.native import meaning
from nbattn.planner import planner


@pytest.fixture(autouse=True)
def torch_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The native kernels are refused, and plans made before or after know nothing of it."""
    monkeypatch.setattr(meaning, "NATIVE", replace(meaning.NATIVE, kinds=("none",)))
    planner.forget()
    yield
    monkeypatch.undo()
    planner.forget()
