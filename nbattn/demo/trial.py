"""One run of a denoiser in the demo: its picture and its cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trial:
    """A denoised picture and its cost."""

    name: str
    picture: np.ndarray  # [H, W, C]
    seconds: float
    processor_seconds: float
    memory: int  # bytes by which the peak memory of the process grew
