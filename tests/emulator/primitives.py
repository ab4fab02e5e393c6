"""The numbers with which the kernels of `primitives.cu` are launched."""

from __future__ import annotations

from nbattn.kernels import layout


def numbers(channel_stride: int = 1) -> bytes:
    """All zero but for a stride of the queries."""
    strides = [0] * 6 * len(layout.STRIDES)
    strides[5] = channel_stride
    return layout.pack_numbers(
        strides,
        0.0,
        0.0,
        [0] * 3 * len(layout.AXIS),
        [0] * 3 * len(layout.HELD),
        [0] * len(layout.COUNTS),
    )
