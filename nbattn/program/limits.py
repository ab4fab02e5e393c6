"""Limits of a kernel family as data, and the reasons that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from nbattn.geometry import Axes
from nbattn.program.request import Needs

GRID = 65_535  # blocks in the second and in the third dimension of a CUDA grid


class Reason(NamedTuple):
    """Why a candidate was refused: which limit, and the sentence."""

    limit: str
    text: str


def whole_axes(axes: Axes) -> list[Reason]:
    """Why a kernel that takes whole axes cannot compute a part of one."""
    return [
        Reason("held", f"takes whole axes; the tensors hold a part of axis {number}")
        for number, axis in enumerate(axes)
        if axis.held is not None
    ]


def over_grid(samples: int, heads: int, most: int = GRID) -> Reason | None:
    """Why a call of so many samples and heads, each a dimension of the grid, cannot be launched."""
    for name, size in (("samples", samples), ("heads", heads)):
        if size > most:
            return Reason("grid", f"{size} {name} after folding are over the grid of {most}")
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a backend cannot do, each field one limit.

    Args:
        name: the backend.
        kinds: torch device types; empty is any.
        dtypes: by name.
        softcap, key_range, value_dim: whether it takes them (value_dim: a value size other than
            head_dim).
        lse: whether it returns a logsumexp, which sinks and extra keys need too.
        lse_gradient: whether its backward uses a gradient of the logsumexp.
        deterministic: whether its bits repeat.
        grid: the most samples and the most heads, each after folding; 0 is any.
    """

    name: str
    kinds: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32", "float64")
    softcap: bool = True
    key_range: bool = True
    value_dim: bool = True
    lse: bool = True
    lse_gradient: bool = True
    deterministic: bool = True
    grid: int = 0

    def reasons(self, needs: Needs) -> list[Reason]:
        """Every limit that a request breaks, whatever its lengths."""
        found: list[Reason] = []
        if self.kinds and needs.device.kind not in self.kinds:
            found.append(
                Reason("device", f"runs on {', '.join(self.kinds)}, not on {needs.device.name}")
            )
        if needs.dtype not in self.dtypes:
            found.append(Reason("dtype", f"takes {', '.join(self.dtypes)}, not {needs.dtype}"))
        if needs.softcap and not self.softcap:
            found.append(Reason("softcap", "has no softcap"))
        if needs.key_range and not self.key_range:
            found.append(Reason("key_range", "has no key_range"))
        if needs.value_dim != needs.head_dim and not self.value_dim:
            text = f"needs value_dim = head_dim, not {needs.value_dim} and {needs.head_dim}"
            found.append(Reason("value_dim", text))
        if not self.lse and (needs.return_lse or needs.sink or needs.extra_keys):
            found.append(
                Reason("lse", "returns no logsumexp, which return_lse, sink and extra keys need")
            )
        if needs.training and needs.return_lse and not self.lse_gradient:
            found.append(
                Reason("lse_gradient", "its backward cannot use a gradient of the logsumexp")
            )
        if needs.deterministic and needs.training and not self.deterministic:
            found.append(Reason("deterministic", "its backward does not repeat bit by bit"))
        return found
