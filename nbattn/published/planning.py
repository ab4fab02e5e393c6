"""Plans of a model: for layers that attend alike what would run, its work and its memory, against
the same layers without windows.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nbattn import functional
from nbattn.config import load
from nbattn.errors import InputError, counted, similar
from nbattn.mask import Mask
from nbattn.planner.plan import Plan
from nbattn.program.costs import BACKWARD_FLOPS
from nbattn.program.request import Request
from nbattn.published import grids, memory
from nbattn.published.models import Layers, Model

if TYPE_CHECKING:
    import torch

    from nbattn.program.device import DeviceInfo

AXES = {2: "rows and columns", 3: "frames, rows and columns"}
_NO_TEXT = ("self", "stage")  # kinds of layers without text


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LayerPlan:
    """The plans of layers that attend alike, for one of them.

    Args:
        layers: which, and how many.
        mask: their windows.
        windows: where these come from: "CONFIG/MASK", "own", "given", or "none".
        grid: its tokens per axis.
        text: tokens that attend together with the grid.
        plan: what would run.
        dense: what would run without windows: one attention of all tokens, text among them.
    """

    layers: Layers
    mask: Mask
    windows: str
    grid: tuple[int, ...]
    text: int
    plan: Plan
    dense: Plan

    def __repr__(self) -> str:
        ran = " and ".join(dict.fromkeys(part.chosen.name for part in memory.parts(self.plan)))
        return f"LayerPlan({self.name}, {self.grid}, {self.mask!r}, {ran})"

    @property
    def name(self) -> str:
        """Number and kind: "19 double"."""
        return f"{self.layers.count} {self.layers.kind}"

    @property
    def note(self) -> str:
        """What to know about the windows on this grid; mostly empty."""
        tiles = [axis.stride for axis in self.mask.axes]
        if "_sta/" not in self.windows or not any(map(operator.mod, self.grid, tiles)):
            return ""
        return (
            f"tiles of {by(tiles)} do not divide {by(self.grid)} tokens: sliding tile attention "
            "has no such grid, and here the last tiles are shorter"
        )

    @property
    def useful_flops(self) -> float:
        """FLOPs of the pairs that the mask allows, forward and for training backward."""
        return sum(map(_useful, memory.parts(self.plan)))

    @property
    def computed_flops(self) -> float:
        """FLOPs that the chosen candidates compute, among them those of pairs that they drop."""
        return _computed(self.plan)

    @property
    def dense_flops(self) -> float:
        """FLOPs without windows."""
        return _computed(self.dense)

    @property
    def seconds(self) -> float:
        """The planner's estimate for one layer, or the time that `nbattn tune` measured."""
        return _seconds(self.plan)

    @property
    def dense_seconds(self) -> float:
        """The same without windows."""
        return _seconds(self.dense)

    @property
    def speedup(self) -> float | None:
        """How many times as fast as without windows; None where a measured time would be compared
        with an estimate.
        """
        return self.dense_seconds / self.seconds if len(self.clocks()) == 1 else None

    def clocks(self) -> set[str]:
        """Returns what the times of all parts are: "estimated", "measured", or both."""
        parts = (*memory.parts(self.plan), self.dense)
        return {str(part.chosen.cost).partition(" ")[0] for part in parts}

    @property
    def tensor_bytes(self) -> int:
        """Bytes of q, k, v, the output and the logsumexp; for training, with gradients."""
        return memory.tensors(self.plan)

    @property
    def beside_bytes(self) -> int:
        """Bytes that the chosen candidates need beside these, as far as costs count them."""
        return memory.beside(self.plan)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            "kind": self.layers.kind,
            "layers": self.layers.count,
            "heads": self.layers.heads,
            "head_dim": self.layers.head_dim,
            "mask": repr(self.mask),
            "windows": self.windows,
            "grid": list(self.grid),
            "text": self.text,
            **{name: float(f"{getattr(self, name):.4g}") for name in _NUMBERS},
            "speedup": _rounded(self.speedup),
            "tensor_bytes": self.tensor_bytes,
            "beside_bytes": self.beside_bytes,
            "plan": self.plan.to_dict(),
            "dense": self.dense.to_dict(),
        }


_NUMBERS = ("useful_flops", "computed_flops", "dense_flops", "seconds", "dense_seconds")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ModelPlan:
    """The plans of all attention layers of a model, one forward (and for training one backward).

    Args:
        name, model: which model.
        size, frames: height and width in pixels, and the number of frames; 1 for an image.
        layers: layers that attend alike, together.
    """

    name: str
    model: Model
    size: tuple[int, int]
    frames: int
    layers: tuple[LayerPlan, ...]

    def __repr__(self) -> str:
        device, dtype = self.request.device.name, self.request.dtype
        times = f"{_ms(self.seconds)} against {_ms(self.dense_seconds)} without windows"
        clocks = " and ".join(sorted(self.clocks()))
        return f"ModelPlan({self.name}, {self.size}, {device}, {dtype}: {clocks} {times})"

    @property
    def request(self) -> Request:
        """The request of the first layer: device, dtype, and whether it is for training."""
        return self.layers[0].plan.request

    def names(self) -> list[str]:
        """Returns a name for each of the layers, with those of windows where kinds repeat."""
        kinds = [part.layers.kind for part in self.layers]
        return [
            part.name + f" {part.windows.rpartition('/')[2]}" * (kinds.count(part.layers.kind) > 1)
            for part in self.layers
        ]

    def total(self, number: str) -> float:
        """Returns a number of `LayerPlan`, such as "seconds", added up over all layers."""
        return sum(part.layers.count * getattr(part, number) for part in self.layers)

    @property
    def seconds(self) -> float:
        """The planner's estimate for all layers, one after another."""
        return self.total("seconds")

    @property
    def dense_seconds(self) -> float:
        """The same without windows."""
        return self.total("dense_seconds")

    @property
    def speedup(self) -> float | None:
        """How many times as fast all layers are as without windows; None as in `LayerPlan`."""
        return self.dense_seconds / self.seconds if len(self.clocks()) == 1 else None

    def clocks(self) -> set[str]:
        """Returns what the times of all layers are: "estimated", "measured", or both."""
        return {clock for part in self.layers for clock in part.clocks()}

    @property
    def peak_bytes(self) -> int:
        """The most bytes that the attention of one layer holds at a time."""
        return max(part.tensor_bytes + part.beside_bytes for part in self.layers)

    def verify(self) -> bool:
        """Whether every plan computes exactly its mask, as `Plan.verify`.

        Raises:
            AssertionError: one does not, with the first query that differs.
        """
        return all(part.plan.verify() for part in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON: every layer, and totals over all."""
        return {
            "model": self.name,
            "title": self.model.title,
            "source": self.model.source,
            "size": list(self.size),
            "frames": self.frames,
            "layers": [part.to_dict() for part in self.layers],
            "total": {name: float(f"{self.total(name):.4g}") for name in _NUMBERS},
            "speedup": _rounded(self.speedup),
            "peak_bytes": self.peak_bytes,
        }


def plan(
    model: str,
    size: tuple[int, int] | None = None,
    *,
    frames: int | None = None,
    text: int | None = None,
    mask: Mask | Mapping[str, Mask | None] | None = None,
    device: torch.device | str | DeviceInfo | None = None,
    dtype: torch.dtype | str = "bfloat16",
    training: bool = False,
) -> ModelPlan:
    """Plans the attention of a published model. Needs neither weights, diffusers nor the device.

    Args:
        model: a name of `published.MODELS`.
        size: height and width in pixels; default: what the model's windows were published for,
            else its pipeline's default.
        frames: of a video.
        text: tokens of text that attend together with the grid; default: the pipeline's.
        mask: windows for all layers, or by kind of layers ("double", "single", "self", "stage 1"),
            where None is every token to all; default: published windows. Layers without published
            windows attend to all.
        device, dtype, training: as in `nbattn.plan`.

    Raises:
        InputError: the model is unknown, or does not take the size, frames, text or mask.

    >>> from nbattn import published
    >>> flux = published.plan("flux", (4096, 4096), device="sm_90")
    >>> [(part.name, part.grid, part.text) for part in flux.layers]
    [('19 double', (256, 256), 512), ('38 single', (256, 256), 512)]
    >>> flux.dense_seconds > 3 * flux.seconds
    True
    """
    found = grids.named(model)
    size, frames = grids.checked(model, size, frames)
    tokens = _text(model, found, text)
    alike: dict[tuple[Any, ...], Layers] = {}
    for layers, grid in zip(found.layers, grids.of(found, size, frames), strict=True):
        windows, own = _windows(model, found, layers, mask)
        own_text = 0 if layers.kind.startswith(_NO_TEXT) else tokens
        key = (layers.kind, layers.heads, layers.head_dim, own, windows, grid, own_text)
        before = alike[key].count if key in alike else 0
        alike[key] = replace(layers, count=before + layers.count)
    options = {"device": device, "dtype": dtype, "training": training}
    planned = (
        _planned(layers, own, windows, grid, own_text, options)
        for (*_, own, windows, grid, own_text), layers in alike.items()
    )
    return ModelPlan(name=model, model=found, size=size, frames=frames, layers=tuple(planned))


def _text(name: str, model: Model, text: int | None) -> int:
    """The tokens of text that attend together with the grid."""
    if text is None:
        return model.text
    if not model.text:
        problem = f"text={text!r} is given, and no text attends together with the grid of {name}"
        raise InputError(f"{problem}: its cross attention is not planned.", "text=None")
    return grids.whole("text", text, 0)


def _windows(name: str, model: Model, layers: Layers, mask: Any) -> tuple[str, Mask]:
    """Where the windows of layers come from, and the mask."""
    full = Mask.full(model.rank)
    if mask is None:
        published = layers.windows
        if isinstance(published, Mask):
            return "own", published
        config, _, of_config = published.partition("/")
        return (published, load(config).masks[of_config]) if published else ("none", full)
    if isinstance(mask, Mapping):
        kinds = dict.fromkeys(one.kind for one in model.layers)
        for wrong in mask.keys() - kinds.keys():
            meant = similar(str(wrong), kinds) or next(iter(kinds))
            raise InputError(
                f"mask has {wrong!r}, and the layers of {name} are {', '.join(kinds)}.",
                f"mask={ {meant if kind == wrong else kind: one for kind, one in mask.items()}!r}",
            )
        mask = mask.get(layers.kind)
    if mask is None:
        return "none", full
    if not isinstance(mask, Mask):
        problem = f"mask={mask!r} is not a Mask, nor a table of masks by kind of layers."
        raise InputError(problem, f"mask={full!r}")
    if mask.rank != model.rank:
        kept = [
            *full.axes[: max(0, model.rank - mask.rank)],
            *mask.axes[max(0, mask.rank - model.rank) :],
        ]
        raise InputError(
            f"the mask has {counted(mask.rank, 'axis', 'axes')}, and tokens of {name} have "
            f"{model.rank}: {AXES[model.rank]}.",
            f"mask={Mask(*kept)!r}",
        )
    return "given", mask


def _planned(
    layers: Layers,
    mask: Mask,
    windows: str,
    grid: tuple[int, ...],
    text: int,
    options: dict[str, Any],
) -> LayerPlan:
    """Plans one layer; without windows it keeps the model's own attention."""
    heads = (layers.heads, layers.head_dim)
    dense = functional.plan(Mask.full(), (1, math.prod(grid) + text, *heads), **options)
    plan = dense
    if windows != "none":
        joint = {"extra_keys": text, "extra_queries": True} if text else {}
        plan = functional.plan(mask, (1, *grid, *heads), **joint, **options)
    return LayerPlan(
        layers=layers, mask=mask, windows=windows, grid=grid, text=text, plan=plan, dense=dense
    )


def by(lengths: Iterable[int]) -> str:
    """Returns lengths as text: "30 x 48 x 80"."""
    return " x ".join(map(str, lengths))


def _seconds(plan: Plan) -> float:
    return sum(part.chosen.cost.seconds for part in memory.parts(plan) if part.chosen.cost)


def _computed(plan: Plan) -> float:
    return sum(part.chosen.cost.flops for part in memory.parts(plan) if part.chosen.cost)


def _useful(plan: Plan) -> float:
    assert plan.chosen.cost is not None
    request = plan.request
    passes = 1 + BACKWARD_FLOPS * request.training
    return 2.0 * plan.chosen.cost.useful_pairs * passes * (request.head_dim + request.value_dim)


def _rounded(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")


def _ms(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:,.0f} s"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
