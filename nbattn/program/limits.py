"""Limits of a kernel family as data, and the reasons that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from nbattn.geometry import Axes
from nbattn.program.device import VENDORS, DeviceInfo
from nbattn.program.request import Needs

GRID = 65_535  # blocks in the second and in the third dimension of a CUDA grid
# The largest numbers of an axis for kernels that compute windows in 32 bits (`cuda/window.cuh`):
# then positions of a whole tile past the end fit, too. A tile has up to 192 rows, a dilation apart.
LARGEST = 1 << 25
LARGEST_DILATION = 1 << 23


class Reason(NamedTuple):
    """Why a candidate is refused: the name of the limit, and a sentence."""

    limit: str
    text: str


def whole_axes(axes: Axes) -> list[Reason]:
    """Returns the reasons against a kernel that supports only whole axes: one for every axis of
    which the tensors contain a part.
    """
    return [
        Reason("held", f"takes whole axes; the tensors hold a part of axis {number}")
        for number, axis in enumerate(axes)
        if axis.held is not None
    ]


def over_int32(axes: Axes) -> list[Reason]:
    """Returns the reasons against kernels that compute windows in 32 bits: one for every number of
    an axis that is too large.
    """
    reasons: list[Reason] = []
    for number, axis in enumerate(axes):
        queries, keys = axis.lengths
        sizes = {"queries": queries, "keys": keys, "offset": abs(axis.offset)}
        sizes |= {"dilation": axis.spec.dilation, "stride": axis.spec.stride}
        limits = dict.fromkeys(sizes, LARGEST) | {"dilation": LARGEST_DILATION}
        reasons += [
            Reason("size", f"takes {name} up to {limits[name]} on axis {number}, not {size}")
            for name, size in sizes.items()
            if size > limits[name]
        ]
    return reasons


def over_grid(samples: int, heads: int, most: int = GRID) -> Reason | None:
    """Returns the reason against a call whose samples or heads, each a dimension of the grid,
    exceed it; None if it can be launched.
    """
    for name, size in (("samples", samples), ("heads", heads)):
        if size > most:
            return Reason("grid", f"{size} {name} after folding are over the grid of {most}")
    return None


# Why kernels that read extra keys in a call of their own have no range of them.
READS_ALL_EXTRAS = ("extra_range", "extra keys are a call of their own, which reads all of them")
# What a call may have or not, by the name of the need and of the limit.
_FEATURES = ("softcap", "key_range", "extra_range", "relative_bias", "alibi_slopes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a backend, one per field.

    Args:
        name: the backend.
        kinds: the torch device types that it supports; empty means any.
        vendors: of the GPUs that it supports; empty means any. A GPU of an unknown one may be of
            any.
        dtypes: the names of the dtypes that it supports.
        softcap, key_range, extra_range, relative_bias, alibi_slopes, value_dim: whether it supports
            them (value_dim: a value size other than head_dim).
        lse: whether it returns a logsumexp, which sinks and extra keys need, too.
        lse_gradient: whether its backward uses a gradient of the logsumexp.
        deterministic: whether its backward is deterministic.
        grid: the maximum of samples and of heads, each after folding; 0 means no maximum.
        why: why it does not support something, by name.
    """

    name: str
    kinds: tuple[str, ...] = ()
    vendors: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32", "float64")
    softcap: bool = True
    key_range: bool = True
    extra_range: bool = False
    relative_bias: bool = False
    alibi_slopes: bool = False
    value_dim: bool = True
    lse: bool = True
    lse_gradient: bool = True
    deterministic: bool = True
    grid: int = 0
    why: tuple[tuple[str, str], ...] = ()

    def reasons(self, needs: Needs) -> list[Reason]:
        """Returns a reason for every limit that a request exceeds; lengths are not checked."""
        exceeded = [reason for reason in [self.wrong_device(needs.device)] if reason]
        if needs.dtype not in self.dtypes:
            exceeded.append(Reason("dtype", f"takes {', '.join(self.dtypes)}, not {needs.dtype}"))
        why = dict(self.why)
        exceeded += [
            Reason(name, f"has no {name}" + (f": {why[name]}" if name in why else ""))
            for name in _FEATURES
            if getattr(needs, name) and not getattr(self, name)
        ]
        if needs.value_dim != needs.head_dim and not self.value_dim:
            text = f"needs value_dim = head_dim, not {needs.value_dim} and {needs.head_dim}"
            exceeded.append(Reason("value_dim", text))
        if not self.lse and (needs.return_lse or needs.sink or needs.extra_keys):
            exceeded.append(
                Reason("lse", "returns no logsumexp, which return_lse, sink and extra keys need")
            )
        if needs.training and needs.return_lse and not self.lse_gradient:
            exceeded.append(
                Reason("lse_gradient", "its backward cannot use a gradient of the logsumexp")
            )
        if needs.deterministic and needs.training and not self.deterministic:
            exceeded.append(Reason("deterministic", "its backward is not deterministic"))
        return exceeded

    def wrong_device(self, device: DeviceInfo) -> Reason | None:
        """Returns the reason against a device; None if it is supported."""
        vendor = device.vendor
        if vendor and self.vendors and vendor not in self.vendors:
            needed = " or ".join(f"an {VENDORS[name]}" for name in self.vendors)
            text = f"needs {needed} GPU, and {device.name} is {VENDORS[vendor]}'s"
            return Reason("device", text)
        if self.kinds and device.kind not in self.kinds:
            return Reason("device", f"runs on {', '.join(self.kinds)}, not on {device.name}")
        return None
