"""One axis of a mask: its fields, the rules between them, its description and its integer code."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, Literal, SupportsIndex, cast

from nbattn.errors import MaskError, described, similar
from nbattn.symbolic import holds, is_symbolic

Align = Literal["top-left", "bottom-right"]
Border = Literal["clip", "shift", "wrap"]

ALIGNMENTS: tuple[Align, ...] = ("top-left", "bottom-right")
BORDERS: tuple[Border, ...] = ("clip", "shift", "wrap")
CODE_FIELDS = 9
MAX_RANK = 3
_LIMIT = 2**31 - 1
_UNLIMITED = -(2**62)  # encodes an unlimited side; no legal field can reach this number
_CHOICES = {
    "align": "align='top-left' puts query 0 on key 0, 'bottom-right' puts the last query on the "
    "last key, an int puts query 0 on that key.",
    "border": "border='clip' cuts windows, 'shift' moves them inward, 'wrap' is circular.",
}
_ELSEWHERE = {  # names of the same values of align and border in other libraries
    "top-left": ("upper-left", "causal-upper-left", "start", "first", "topleft"),
    "bottom-right": ("lower-right", "causal-lower-right", "end", "last", "bottomright"),
    "clip": ("cut", "crop", "truncate", "zero", "zeros", "none", "constant", "valid", "false"),
    "shift": ("inward", "natten", "neighborhood"),
    "wrap": ("circular", "periodic", "cyclic", "circle", "ring", "torus", "roll", "modulo"),
}
_UNCLEAR = ("bottom-left", "lower-left", "top-right", "upper-right")  # of no alignment


@dataclass(frozen=True, slots=True)
class Axis:
    """The keys of one axis that a query attends to: `left` and `right` neighbours of its own
    position.

        Axis(1, 1) on 5 queries and 5 keys        Axis(1, 1, border="shift")
        0 ■ ■ ⬚ ⬚ ⬚                               0 ■ ■ ■ ⬚ ⬚
        1 ■ ■ ■ ⬚ ⬚                               1 ■ ■ ■ ⬚ ⬚
        2 ⬚ ■ ■ ■ ⬚                               2 ⬚ ■ ■ ■ ⬚
        3 ⬚ ⬚ ■ ■ ■                               3 ⬚ ⬚ ■ ■ ■
        4 ⬚ ⬚ ⬚ ■ ■                               4 ⬚ ⬚ ■ ■ ■

    Args:
        left: neighbours before the centre, in dilated steps; None is unlimited.
        right: neighbours after the centre; None is unlimited. With stride 1 a window has
            `left + right + 1` keys.
        dilation: distance between neighbouring keys. A query attends only to keys whose distance
            from it is a multiple of the dilation.
        stride: every `stride` neighbouring queries share one window; stride = kernel size is
            Swin's window attention where it divides the grid. With a dilation, neighbours are
            queries on the same dilation grid.
        causal: the query attends to no key after its own position; then `right` is 0.
        align: needed where lengths differ: "top-left" puts query 0 on key 0, "bottom-right" puts
            the last query on the last key; an int is stored as "top-left" with that offset. None
            needs equal lengths, or an axis without limits.
        offset: moves the queries this many keys to the right, after the alignment.
        border: where a window leaves the axis, "clip" cuts it (Flash, sliding windows),
            "shift" moves it inward (NATTEN), "wrap" continues at the other end (circular axes).
        prefix: every query also attends to this many first keys (causal: only to those not after
            it).

    Raises:
        MaskError: a field is not an integer, is negative, or breaks a rule of its border.

    Queries can be without keys if `causal` and `stride > left + 1`, or if they lie outside the key
    axis: their output is 0 and their logsumexp is minus infinity.

    >>> Axis(7, causal=True) == Axis(7, 0, causal=True)
    True
    """

    left: int | None = None
    right: int | None = None
    _: KW_ONLY
    dilation: int = 1
    stride: int = 1
    causal: bool = False
    align: Align | int | None = None
    offset: int = 0
    border: Border = "clip"
    prefix: int = 0

    def __new__(cls, *args: Any, **named: Any) -> Axis:
        """Refuses names of other libraries, which `__init__` would refuse without a fix."""
        if len(args) > 2 or not _DEFAULTS.keys() >= named.keys():
            from nbattn.fixes import axis_names

            raise axis_names.refusal(args, named, [*_DEFAULTS])
        return object.__new__(cls)

    def __post_init__(self) -> None:
        _set = object.__setattr__
        truth("causal", self.causal)
        if self.causal and self.right is None:
            _set(self, "right", 0)
        for name in ("left", "right"):
            value = getattr(self, name)
            _set(
                self, name, None if value is None else whole(name, value, 0, f"{name}=None for all")
            )
        for name, low in (("dilation", 1), ("stride", 1), ("prefix", 0), ("offset", None)):
            _set(self, name, whole(name, getattr(self, name), low))
        if isinstance(self.align, str):
            _one_of("align", self.align, ALIGNMENTS)
        elif self.align is not None:
            _set(self, "offset", _place(self.align, self.offset))
            _set(self, "align", "top-left")
        _one_of("border", self.border, BORDERS)
        _check_rules(self)

    def __repr__(self) -> str:
        return _changed(self)

    @property
    def is_full(self) -> bool:
        """Whether every query attends to every key, at any lengths and alignment."""
        return self.dilation == 1 and self.left is None and self.right is None

    @property
    def has_causal_gaps(self) -> bool:
        """Whether a causal stride leaves queries without keys: the window that their group shares
        starts after them.

        >>> Axis(2, causal=True, stride=4).has_causal_gaps
        True
        """
        return (
            self.causal
            and self.left is not None
            and self.stride > self.left + 1
            and self.prefix == 0
        )


_DEFAULTS = {f.name: f.default for f in fields(Axis)}  # which compilers can read
# Without it, help() and editors show the arguments of `__new__`.
_signature = inspect.signature(object.__new__(Axis).__init__)
Axis.__signature__ = _signature  # pyright: ignore[reportAttributeAccessIssue]


def whole(name: str, value: SupportsIndex, low: int | None, hint: str = "") -> int:
    """Returns the value as an int.

    Raises:
        MaskError: it is not a whole number in the legal range; names the field, and the nearest
            legal number. `hint` is another fix, as code.
    """
    if type(value) is int or is_symbolic(value):
        integer = cast("int", value)
        if holds((-_LIMIT if low is None else low) <= integer) and holds(integer <= _LIMIT):
            return integer
    several = cast("Any", value).tolist() if len(getattr(value, "shape", ())) == 1 else value
    if isinstance(several, (tuple, list)) and several:
        fix = _of_several(name, several, low)
        raise MaskError(f"{name}={described(value)}, not an integer.", f"{fix}.")
    fixes = [f"{name}={nearest(value, low)}", *filter(None, [hint])]
    # where these are legal, mostly "no limit"
    if low is not None and (str(value).startswith("-") or str(value) == "inf"):
        fixes.reverse()
    fix = f"{', or '.join(fixes)}."
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise MaskError(f"{name}={described(value)}, not an integer.", fix) from None
    if low is not None and number < low:
        raise MaskError(f"{name}={number} is below {low}.", fix)
    if abs(number) > _LIMIT:
        problem = f"{name}={number} is beyond {_LIMIT}, the largest legal number."
        raise MaskError(problem, fix)
    return number


def _of_several(name: str, values: Sequence[Any], low: int | None) -> str:
    """The code for several numbers in the place of one: both sides of a window, the lengths of
    axes, or one number for all axes.
    """
    if name in ("left", "left_bound") and len(values) == 2:
        other, least = name.replace("left", "right"), None if low is None else 0
        sides = (nearest(values[0], low), nearest(values[1], least))
        return ", ".join(f"{n}={side}" for n, side in zip((name, other), sides, strict=True))
    if name == "rank":
        return f"rank={min(len(values), MAX_RANK)}"
    if name == "sliding_window" and len(values) == 2:
        return f"Mask.from_flash({tuple(values)!r}), with Flash's meaning"
    return f"{name}={nearest(values[0], low)}"


def nearest(value: object, low: int | None) -> int:
    """Returns the legal whole number that was probably meant.

    >>> nearest("3", 0), nearest(7.5, 0), nearest(-1, 0), nearest(None, 1), nearest(2**40, None)
    (3, 7, 0, 1, 2147483647)
    """
    try:
        number = int(float(value))  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, OverflowError):
        number = 0
    return min(max(number, -_LIMIT if low is None else low), _LIMIT)


def truth(name: str, value: object) -> bool:
    """Returns the value unchanged; raises a MaskError if it is not a bool."""
    if not isinstance(value, bool):
        problem = f"{name}={described(value)}, not a bool."
        raise MaskError(problem, f"{name}={meant_truth(value)}.")
    return value


def meant_truth(value: object) -> bool:
    """Returns the bool that was probably meant.

    >>> meant_truth(1), meant_truth("no"), meant_truth([0, 3])
    (True, False, True)
    """
    if isinstance(value, str):
        return value.strip().lower() not in ("", "0", "no", "n", "false", "off", "none")
    is_one = not getattr(value, "shape", ()) and not isinstance(value, (tuple, list))
    return bool(value) if is_one else True  # something is there, where only "whether" is asked


def likely(given: object, known: Sequence[str]) -> str:
    """Returns the known name that was probably meant, or an empty string.

    >>> likely("bottom_right", ALIGNMENTS), likely("periodic", BORDERS), likely("spiral", BORDERS)
    ('bottom-right', 'wrap', '')
    """
    if not isinstance(given, str):
        return ""
    plain = given.lower().replace("_", "-").replace(" ", "-")
    words = {word: name for name in known for word in (name, *_ELSEWHERE.get(name, ()))}
    if plain in _UNCLEAR:
        return ""
    return words.get(plain) or similar(given, known)


def _one_of(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        guess = likely(value, known)
        names = ", ".join(map(repr, known))
        raise MaskError(
            f"{name}={value!r} is not one of {names}.",
            f"{name}={guess!r}." if guess else _CHOICES[name],
        )


def _place(align: SupportsIndex, offset: int) -> int:
    """Returns the offset that an integer alignment stands for."""
    if isinstance(align, bool):
        raise MaskError(f"align={align} is a bool, not an integer.", _CHOICES["align"])
    place = whole("align", align, None, 'align="top-left", or align="bottom-right"')
    if not holds(offset == 0):
        place, offset = operator.index(place), operator.index(offset)
        raise MaskError(
            f"align={place} and offset={offset} both set the position of query 0.",
            f'align={place + offset}, or align={place}, or align="top-left", offset={offset}.',
        )
    return place


def _plain(side: int | None) -> int | None:
    """Returns a side as a plain int for a message: compilers cannot format symbolic numbers."""
    return None if side is None else operator.index(side)


def _check_rules(axis: Axis) -> None:
    """Checks the rules between fields that need no shape."""
    if axis.causal and (axis.right is None or not holds(axis.right == 0)):
        right = _plain(axis.right)
        raise MaskError(
            f"causal=True allows no keys to the right, but right={right}.",
            f"{_changed(axis, right=0)}, or {_changed(axis, causal=False)} for {right} keys ahead.",
        )
    if axis.border == "shift" and (axis.left is None or axis.right is None):
        sides = [side for side in (axis.left, axis.right) if side is not None]
        finite = _changed(
            axis, causal=False, left=max(sides, default=3), right=max(sides, default=3)
        )
        raise MaskError(
            f'border="shift" needs two finite sides, but left={axis.left}, right={axis.right}.',
            f"{_changed(axis, border='clip')}, or {finite}.",
        )
    if axis.border == "wrap":
        _check_circle(axis)
    if not holds(axis.prefix == 0) and (axis.border == "wrap" or not holds(axis.dilation == 1)):
        dilation = _plain(axis.dilation)
        conflict = 'border="wrap"' if dilation == 1 else f"dilation={dilation}"
        raise MaskError(
            f"prefix={_plain(axis.prefix)} and {conflict} cannot be combined.",
            instead_of_prefix(axis),
        )


def _check_circle(axis: Axis) -> None:
    """Checks what a circular axis does not support."""
    clipped = _changed(axis, border="clip")
    if axis.causal:
        raise MaskError(
            'border="wrap" is circular and does not support causal=True.',
            f"{_changed(axis, causal=False)}, which looks back around the circle, or {clipped}.",
        )
    if axis.align not in (None, "top-left"):
        raise MaskError(
            f'border="wrap" is circular and does not support align={axis.align!r}.',
            f"{_changed(axis, align=None)}, the same for as many queries as keys, or {clipped}.",
        )
    if not holds(axis.offset == 0):
        raise MaskError(
            f'border="wrap" is circular and does not support offset={_plain(axis.offset)}.',
            f"{', or '.join(filter(None, [_without_offset(axis), clipped]))}.",
        )


def _without_offset(axis: Axis) -> str:
    """The code of a circular axis that is the same without an offset: its sides are moved, or else
    the keys are; empty where neither helps.
    """
    offset, dilation, stride = map(operator.index, (axis.offset, axis.dilation, axis.stride))
    plain = _changed(axis, offset=0)
    if axis.left is None or axis.right is None:
        if offset % dilation == 0:
            return f"{plain}, which is the same"
    else:
        left, right = operator.index(axis.left) - offset, operator.index(axis.right) + offset
        if min(left, right) >= 0 and dilation == stride == 1:
            return f"{_changed(axis, offset=0, left=left, right=right)}, which is the same"
    if stride > 1 and offset % (dilation * stride):
        return ""
    return f"{plain}, with key.roll({-offset}, 1) and value.roll({-offset}, 1) on axis 0"


def instead_of_prefix(axis: Axis, more: str = "") -> str:
    """The code, for one axis, that attends to the prefix and to the window of the other keys, which
    has `more` arguments.
    """
    count, start = _plain(axis.prefix), operator.index(axis.offset)
    rest = f"Mask({_changed(axis, prefix=0)})"
    others = f"key_range=[[{count}, key.shape[1]]] * key.shape[0]"
    first = f"key[:, :{count}], value[:, :{count}]"
    if not axis.causal:
        first = f"extra_key=key[:, :{count}], extra_value=value[:, :{count}]"
        return f"nbattn.attention(query, key, value, {rest}, {more}{others}, {first})."
    own = f"{start} + key.shape[1] - query.shape[1]" if axis.align == "bottom-right" else f"{start}"
    return (
        f"nbattn.merge(*zip(nbattn.attention(query, key, value, {rest}, {more}{others}, "
        f"return_lse=True), nbattn.attention(query, {first}, Mask.causal({own}), "
        "return_lse=True)))[0]."
    )


def _changed(axis: Axis, **values: object) -> str:
    """The code of an axis with other values of some fields."""
    return _code({name: getattr(axis, name) for name in _DEFAULTS} | values)


def _code(values: dict[str, Any]) -> str:
    """The code of an axis with these fields; compilers cannot format symbolic numbers."""
    values = {n: operator.index(v) if is_symbolic(v) else v for n, v in values.items()}
    left, right = values["left"], values["right"]
    sides = "" if (left, right) == (None, None) else f"{left}, {right}"
    named = [
        f"{name}={values[name]!r}"
        for name, default in list(_DEFAULTS.items())[2:]
        if values[name] != default
    ]
    return f"Axis({', '.join(filter(None, [sides, *named]))})"


def describe(axis: Axis) -> str:
    """Describes one axis in words, as `print(mask)` shows it.

    >>> describe(Axis(8, dilation=2, causal=True, align="bottom-right"))
    '8 left, itself; dilation 2, causal, bottom-right'
    """
    sides = [f"{'all' if axis.left is None else axis.left} left", "itself"]
    sides = [s for s in sides if s != "0 left"]
    if axis.right != 0:
        sides.append(f"{'all' if axis.right is None else axis.right} right")
    keys = "every key" if axis.is_full else ", ".join(sides)
    notes = [
        f"{name} {value}" for name in ("dilation", "stride") if (value := getattr(axis, name)) > 1
    ]
    notes += ["causal"] * axis.causal
    notes += [str(axis.align)] * (axis.align is not None)
    notes += [f"offset {axis.offset:+d}"] * (axis.offset != 0)
    notes += [axis.border] * (axis.border != "clip") + [f"prefix {axis.prefix}"] * (axis.prefix > 0)
    notes += ["rows without keys: stride > left + 1"] * axis.has_causal_gaps
    return "; ".join(filter(None, [keys, ", ".join(notes)]))


def written(axes: Sequence[Axis]) -> str:
    """The mask of these axes as Python code."""
    return f"Mask({', '.join(map(repr, axes))})"


def encode(axis: Axis) -> tuple[int, ...]:
    """Returns the fields as integers; `decode` is the inverse."""
    return (
        _UNLIMITED if axis.left is None else axis.left,
        _UNLIMITED if axis.right is None else axis.right,
        axis.dilation,
        axis.stride,
        int(axis.causal),
        -1 if axis.align is None else ALIGNMENTS.index(cast("Align", axis.align)),
        axis.offset,
        BORDERS.index(axis.border),
        axis.prefix,
    )


def decode(code: Sequence[int]) -> Axis:
    """Returns the axis whose `encode` gave these integers."""
    left, right, dilation, stride, causal, align, offset, border, prefix = code
    return Axis(
        None if left == _UNLIMITED else left,
        None if right == _UNLIMITED else right,
        dilation=dilation,
        stride=stride,
        causal=bool(causal),
        align=None if align < 0 else ALIGNMENTS[align],
        offset=offset,
        border=BORDERS[border],
        prefix=prefix,
    )
