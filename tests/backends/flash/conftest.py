"""Fixtures that replace the Flash providers, which need a GPU, by stand-ins."""

from __future__ import annotations

from collections.abc import Iterator

import flash_stand_ins
import pytest
import torch

from nbattn.backends.flash import adapters as flash_backend

# The adapters


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All four providers, as stand-ins on the CPU."""
    modules = {
        "flash_attn.flash_attn_interface": flash_stand_ins.Flash2(),
        "flash_attn_interface": flash_stand_ins.Flash3(),
        "flash_attn.cute.interface": flash_stand_ins.Flash4(),
    }
    known = flash_backend.import_module
    monkeypatch.setattr(
        flash_backend, "import_module", lambda name: modules.get(name) or known(name)
    )
    aten, flash3 = (
        torch.library.Library("aten", "IMPL"),
        torch.library.Library("flash_attn_3", "DEF"),
    )
    aten.impl("_flash_attention_forward", flash_stand_ins.aten_forward, "CPU")
    aten.impl(flash_backend._WRITES, flash_stand_ins.aten_forward_into, "CPU")
    aten.impl("_flash_attention_backward", flash_stand_ins.aten_backward, "CPU")
    flash3.define(flash_stand_ins.FLASH3)
    flash3.impl("fwd", flash_stand_ins.flash3_forward, "CPU")
    flash_stand_ins.WRITTEN.clear()
    yield
    aten._destroy()
    flash3._destroy()
