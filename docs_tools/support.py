"""The page of support tables, asked from the families themselves: each cell is a request, which a
backend accepts or refuses with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from docs_tools.markdown import Notes, table
from nbattn import Axis, Mask
from nbattn.backends import families
from nbattn.grids import PackedGrids, grids_of
from nbattn.planner import planner
from nbattn.program.candidate import Candidate
from nbattn.program.device import DEVICES, TORCH, DeviceInfo
from nbattn.program.request import DTYPES, Request, request_of

DEVICE_LIST = tuple(
    replace(device, providers=(*families.PACKAGES, "c++"))
    for name, device in DEVICES.items()
    if not name.startswith("rtx_")  # cards have the limits of their capability
)
# One GPU of each generation of NVIDIA's, and one of each other vendor's: the others of it have the
# same limits.
GENERATIONS = tuple(
    {
        (device.vendor, (device.capability or 0) // 10): device for device in reversed(DEVICE_LIST)
    }.values()
)[::-1]
GPUS = tuple(device.name for device in DEVICE_LIST if device.kind != "cpu")
_PIPES = ("mma", "wgmma", "simt")  # kinds of kernels of one backend, with different limits
COLUMNS = tuple(
    name
    for family in families.FAMILIES
    for row in family.backends
    if not row.is_model
    for name in (
        [f"{row.name}:{provider}" for provider in row.providers]
        or [f"{row.name} {pipe}" for pipe in _PIPES if pipe in family.strategies]
        or [row.name]
    )
)
WINDOW = Mask(Axis(63, 0, causal=True))
SHAPE = (1, 512, 4, 64)


@dataclass(frozen=True)
class Answer:
    """What a backend says to a request: whether it takes it, in training too, and why not."""

    forward: bool
    training: bool
    why: str = ""

    def sign(self, plain: Answer, notes: Notes) -> str:
        """The answer in a cell, beside that to the plain request, whose training it may lack."""
        if self.training or (self.forward and not plain.training):
            return "✓"
        return ("infer" if self.forward else "–") + notes.mark(self.why)


def ask(
    device: DeviceInfo,
    *,
    mask: Mask = WINDOW,
    shape: tuple[int, ...] = SHAPE,
    key_shape: tuple[int, ...] = (),
    dtype: str = "",
    trains: bool = True,
    **options: Any,
) -> dict[str, Answer]:
    """Returns the answer of every column to one request, without and with a backward pass.

    Args:
        device: the device; the request is otherwise as `nbattn.plan` makes it.
        mask, shape, key_shape, dtype: default: the plain window, in 16 bits.
        trains: whether the request with a backward pass is made; what takes it, takes the other.
        **options: further fields of the request.
    """
    request = request_of(
        *(mask, shape, key_shape or shape),
        dtype=dtype or ("float16" if device.name == "sm_75" else "bfloat16"),
        device=device,
        **{"value_dim": shape[-1], **options},
    )
    training: dict[str, str] = dict.fromkeys(COLUMNS, "not asked")
    if trains:
        training = _against(replace(request, training=True), COLUMNS)
    refused = [name for name, why in training.items() if why]
    forward = dict.fromkeys(COLUMNS, "") | _against(request, refused)
    return {
        name: Answer(
            not forward[name],
            not training[name],
            _written(forward[name] or training[name], device.name),
        )
        for name in COLUMNS
    }


def _against(request: Request, columns: Iterable[str]) -> dict[str, str]:
    """The reasons against some columns; none where one of a column's candidates is accepted."""
    axes = request.axes()
    found: dict[str, list[Candidate]] = {name: [] for name in columns}
    for backend in {name.split(" ")[0].partition(":")[0] for name in columns}:
        forced = replace(request, backend=backend)
        offers = (
            families.family_of(backend).candidates(forced, axes)
            if request.grids is None
            else planner.candidates(forced, axes)
        )
        for candidate in offers:
            if candidate.runner == backend:
                for name in {*_columns(candidate)} & {*found}:
                    found[name].append(candidate)
    return {name: _reason(candidates) for name, candidates in found.items()}


def _columns(candidate: Candidate) -> list[str]:
    """The columns of a candidate: all of its backend, where it does not say which."""
    name, traits = candidate.backend, {candidate.strategy, *candidate.traits}
    pipes = [f"{name} {pipe}" for pipe in _PIPES if pipe in traits]
    every = [one for one in COLUMNS if one == name or one.startswith((f"{name} ", f"{name}:"))]
    return pipes or every


def _reason(candidates: list[Candidate]) -> str:
    """Why none of a column's candidates is accepted: the reasons of those that have the fewest, but
    not those that a strategy has against itself.
    """
    sets = [one.reasons for one in candidates]
    if not sets:
        return "offers nothing"
    if not all(sets):
        return ""
    fewest = [
        reason for reasons in sets for reason in reasons if len(reasons) == min(map(len, sets))
    ]
    of_call = [one for one in fewest if one.limit not in families.STRATEGIES]
    of_mask = [one for one in fewest if one.limit == "mask"]
    return "; ".join(dict.fromkeys(reason.text for reason in of_call or of_mask or fewest))


def _written(why: str, device: str) -> str:
    """A reason that is the same for every device, with large numbers in groups."""
    why = why.replace(f" on {device}", " on it").replace(f"not {device}", "not this one")
    return re.sub(r"\d{5,}", lambda number: f"{int(number[0]):,}", why)


def devices_and_dtypes() -> str:
    """Which dtypes each backend takes on each device."""
    notes, rows = Notes(), []
    for device in DEVICE_LIST:
        answers = {dtype: ask(device, dtype=dtype) for dtype in DTYPES}
        cells = [_dtypes({d: answers[d][name] for d in DTYPES}, notes) for name in COLUMNS]
        rows.append([f"`{device.name}`", *cells])
    return _with_notes(_table("Device", rows), notes)


_WORDS = {
    DTYPES: "all",
    DTYPES[:3]: "16, 32",
    DTYPES[:2]: "16",
    (DTYPES[0], *DTYPES[2:]): "all but b16",
}


def _dtypes(answers: Mapping[str, Answer], notes: Notes) -> str:
    taken = {
        name: tuple(dtype for dtype in answers if getattr(answers[dtype], name))
        for name in ("training", "forward")
    }
    if not taken["forward"]:
        return "–"
    if taken["training"] == taken["forward"]:
        return _words(taken["training"])
    why = next(one.why for one in answers.values() if one.forward and not one.training)
    infer = f"infer {_words(taken['forward'])}{notes.mark(why)}"
    return f"{_words(taken['training'])}, {infer}" if taken["training"] else infer


def _words(dtypes: tuple[str, ...]) -> str:
    short = (name.replace("bfloat", "b").replace("float", "f") for name in dtypes)
    return _WORDS.get(dtypes) or ", ".join(short)


SIZES = (1, 2, 4, 8, 12, 16, 20, 32, 64, 80, 96, 112, 128, 136, 192, 256, 264, 512, 520, 1024)


def head_sizes() -> str:
    """Which head sizes each backend takes, in half precision and in float32."""
    taken: dict[str, list[str]] = {name: [] for name in COLUMNS}
    for dtype in ("", "float32"):
        answers = {
            device.name: [
                ask(device, shape=(1, 64, 1, size), dtype=dtype, trains=False) for size in SIZES
            ]
            for device in GENERATIONS
        }
        for name, cells in taken.items():
            sizes = {
                device: tuple(
                    size for size, one in zip(SIZES, of_size, strict=True) if one[name].forward
                )
                for device, of_size in answers.items()
            }
            cells.append(_by_device({d: _range(s) for d, s in sizes.items() if s}, str))
    return table(["Backend", "16 bits", "float32"], [(f"`{n}`", *c) for n, c in taken.items()])


def _range(sizes: tuple[int, ...]) -> str:
    """Sizes in words: the first, the last and the step of the tried sizes between them."""
    low, high = sizes[0], sizes[-1]
    for step in (1, 2, 4, 8, 16, 32):
        if sizes == tuple(s for s in SIZES if low <= s <= high and s % step == 0):
            last = f"{high:,}+" if high == SIZES[-1] else f"{high:,}"
            return f"{low} to {last}" + (f" by {step}" if step > 1 else "")
    return ", ".join(map(str, sizes))


FEATURES: Mapping[str, dict[str, Any]] = {
    "nothing more": {},
    "fewer heads of keys": {"key_shape": (*SHAPE[:-2], 2, SHAPE[-1])},
    "`value_dim` ≠ head size": {"value_dim": 32},
    "`return_lse`": {"return_lse": True},
    "`softcap`": {"softcap": True},
    "`sink`": {"sink": True},
    "`key_range`": {"key_range": True},
    "`key_range`, no window": {"key_range": True, "mask": Mask.full()},
    "extra keys": {"extra_keys": 4},
    "`extra_range`": {"extra_keys": 4, "extra_range": True},
    "`relative_bias`": {"relative_bias": True},
    "`alibi_slopes`": {"alibi_slopes": True},
    "`deterministic`": {"deterministic": True},
    "q, k, v in one tensor": {"layout": "packed"},
    "strided tensors": {"layout": "strided"},
}
_PLANE, _VOLUME = (1, 64, 64, 4, 64), (1, 16, 16, 16, 4, 64)
_LONG, _SHORT = (1, 4096, 4, 64), (1, 512, 4, 64)
_PACKED = PackedGrids(*[grids_of([(14, 14), (20, 33), (7, 9)])] * 2)
MASKS: Mapping[str, dict[str, Any]] = {
    "all keys": {"mask": Mask.full(), "shape": _LONG},
    "causal": {"mask": Mask.causal(), "shape": _LONG},
    "causal, bottom-right, 512 queries": {
        **{"mask": Mask.causal("bottom-right"), "shape": _SHORT, "key_shape": _LONG}
    },
    "window to the left": {"mask": Mask.sliding_window(255), "shape": _LONG},
    "window on both sides": {"mask": Mask.sliding_window(128, 128), "shape": _LONG},
    "… moved inward at borders": {"mask": Mask.neighborhood(255), "shape": _LONG},
    "… circular": {"mask": Mask(Axis(128, 128, border="wrap")), "shape": _LONG},
    "… 4 apart": {"mask": Mask.neighborhood(255, dilation=4), "shape": _LONG},
    "… with stride": {"mask": Mask.neighborhood(256, stride=64), "shape": _LONG},
    "window and prefix": {"mask": Mask(Axis(255, causal=True, prefix=4)), "shape": _LONG},
    "2 axes, 7×7": {"mask": Mask.neighborhood((7, 7)), "shape": _PLANE},
    "… 8 apart": {"mask": Mask.neighborhood((7, 7), dilation=8), "shape": _PLANE},
    "… blocks of 8×8": {"mask": Mask.neighborhood((8, 8), stride=8), "shape": _PLANE},
    "… one axis, the other all": {"mask": Mask(Axis(3, 3), Axis()), "shape": _PLANE},
    "3 axes, 5×7×7": {"mask": Mask.neighborhood((5, 7, 7)), "shape": _VOLUME},
    "… causal in time": {
        **{"mask": Mask(Axis(4, causal=True), Axis(3, 3), Axis(3, 3)), "shape": _VOLUME}
    },
    "packed grids of 3 sizes": {
        **{"mask": Mask.neighborhood((7, 7)), "shape": (919, 4, 64), "grids": _PACKED}
    },
}


def by_question(
    title: str,
    questions: Mapping[str, dict[str, Any]],
    devices: Iterable[DeviceInfo] = GENERATIONS,
) -> str:
    """One row per request, over all devices on which a backend runs the plain window."""
    notes, rows = Notes(), []
    plain = {device.name: ask(device) for device in devices}
    for text, question in questions.items():
        answers = {device.name: ask(device, **question) for device in devices}
        cells = []
        for name in COLUMNS:
            runs = [device for device in answers if plain[device][name].forward]
            found = {
                device: answers[device][name].sign(plain[device][name], notes) for device in runs
            }
            cells.append(_by_device(found, str))
        rows.append([text, *cells])
    return _with_notes(_table(title, rows), notes)


def _by_device(found: Mapping[str, Any], written: Callable[[Any], str]) -> str:
    """Values of devices in one cell: the most frequent one, and the devices that have others."""
    groups: dict[Any, list[str]] = {}
    for device, value in found.items():
        groups.setdefault(value, []).append(device)
    ranked = sorted(groups.items(), key=lambda group: -len(group[1]))
    if not ranked:
        return "–"
    (most, first), *others = ranked
    is_mixed = len(first) > 1 and not {*first} <= {*GPUS}
    start = written(most) if not others or is_mixed else f"{_names(first)} {written(most)}"
    return "; ".join([start, *(f"{_names(names)} {written(value)}" for value, names in others)])


def _names(devices: list[str]) -> str:
    return "GPU" if len(devices) > 1 and {*devices} <= {*GPUS} else ", ".join(devices)


def _table(title: str, rows: Iterable[list[str]]) -> str:
    return table([title, *(f"`{name}`" for name in COLUMNS)], rows, centred=len(COLUMNS))


def _with_notes(text: str, notes: Notes) -> str:
    return f"{text}\n\n{notes.listed()}" if notes.numbers else text


_PAGE = """# Support

What each backend takes, when it is asked for by name (`backend="flash:fa2"`). Every cell is a request: the backend's own limits
accept it or refuse it with a reason. `python -m docs_tools` writes this page from the code; a test compares them.

These tables are about limits, not about speed, and nothing has been run on a GPU yet. They assume that the packages of all backends
are installed, and torch {torch}. What would run for a request, and why the rest does not, is shown by
[a plan](../concepts/plans.md).

| Sign | Meaning |
|---|---|
| ✓ | supported, forward and backward |
| infer | forward only |
| – | refused |
| ¹ | the reason, in the list below the table |

`cuda mma`, `cuda wgmma` and `cuda simt` are three kinds of kernels of the backend `cuda`: with tensor cores, with those of Hopper and
copies by tensor maps, and without. `flash-model` computes the programs of `flash` on any device, for tests.

## Devices and dtypes

A causal window of 64 keys on {length} tokens, {heads} heads of size {size}. "16" is float16 and bfloat16, "32" is float32, "all" is
these and float64.

{dtypes}

## Head sizes

The smallest and the largest head size that is accepted, among sizes from 1 to {most}; "{most}+" where no limit was found.

{sizes}

## Features

The same window. The devices are one of each generation ({generations}), where the
backend runs; on a device where it never trains, ✓ means forward only.

{features}

## Masks

On one axis 4,096 tokens, on two axes 64×64, on three 16×16×16. `sdpa` runs any mask of up to 4,194,304 pairs of a query and a key as a
matrix; these spaces have four times as many.

{masks}
"""


def markdown() -> str:
    """Returns the page."""
    return _PAGE.format(
        torch=".".join(map(str, TORCH)),
        **dict(zip(("length", "heads", "size"), SHAPE[1:], strict=True)),
        most=f"{SIZES[-1]:,}",
        generations=", ".join(device.name for device in GENERATIONS),
        dtypes=devices_and_dtypes(),
        sizes=head_sizes(),
        features=by_question("Feature", FEATURES),
        masks=by_question("Mask", MASKS),
    )
