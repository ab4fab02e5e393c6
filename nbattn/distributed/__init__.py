"""Attention across ranks: every rank has a part of the space, and receives only the keys that its
queries attend to.
"""

from __future__ import annotations

from nbattn.distributed.sharded import attention as attention
