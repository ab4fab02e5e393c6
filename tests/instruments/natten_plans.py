"""Plans for natten's kernels on a device that has the package."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import nbattn
from nbattn import Mask
from nbattn.program import device

HERE = replace(device.DEVICES["sm_90"], providers=("natten",))


def planned(mask: Mask, space: tuple[int, ...], **named: Any) -> Any:
    shape = (1, *space, 2, 32)
    return nbattn.plan(mask, shape, **{"device": HERE, "backend": "natten"} | named)
