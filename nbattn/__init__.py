"""Neighborhood attention: one masking spec, a planner that compiles it exactly, and engines that run it."""

from __future__ import annotations
from nbattn.errors import MaskError
from nbattn.axis import Axis
from nbattn.mask import Mask
