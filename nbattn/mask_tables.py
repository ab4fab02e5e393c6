"""Masks as plain data, in the grammar of configuration files: what `Mask.to_dict` returns, and what
`Mask.from_dict` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from nbattn.axis import Axis
from nbattn.errors import MaskError
from nbattn.mask import Mask

CONSTRUCTORS: Mapping[str, Callable[..., Mask]] = {
    "neighborhood": Mask.neighborhood,
    "sliding_window": Mask.sliding_window,
    "causal": Mask.causal,
    "full": Mask.full,
    "from_flash": Mask.from_flash,
    "from_cudnn": Mask.from_cudnn,
    "from_transformers": Mask.from_transformers,
}


def table_of(mask: Mask) -> dict[str, Any]:
    """Returns a mask as plain data, by its axes.

    >>> table_of(Mask(Axis(8, causal=True), Axis()))
    {'axes': [{'left': 8, 'causal': True}, {}]}
    """
    tables = [changed_fields(axis) for axis in mask.axes]
    for table in tables:
        if table.get("causal"):
            del table["right"]  # which is then 0
    return {"axes": tables}


def changed_fields(value: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass that differ from their defaults; tuples become lists."""
    default = {name: f.default for name, f in value.__dataclass_fields__.items()}
    plain = {name: getattr(value, name) for name in default}
    return {
        name: list(item) if isinstance(item, tuple) else item
        for name, item in plain.items()
        if item != default[name]
    }


def mask_of(table: object) -> Mask:
    """Returns the mask of plain data.

    The grammar of files tells what is wrong, and what was meant: it needs pydantic, and is loaded
    only for data that is no mask as it stands.

    Raises:
        ConfigError: lists every mistake.
    """
    mask = _built(table)
    if mask is None:
        from nbattn import config

        return config.mask_of(table)
    return mask


def _built(table: object) -> Mask | None:
    """Returns the mask of data without mistakes; None where there may be one."""
    if not isinstance(table, dict) or len(cast("dict[Any, Any]", table)) != 1:
        return None
    ((name, given),) = cast("dict[Any, Any]", table).items()
    try:
        if name == "axes" and isinstance(given, list):
            return Mask(*[Axis(**axis) for axis in cast("list[Any]", given)])
        return CONSTRUCTORS[name](**given)
    except (MaskError, TypeError, KeyError):
        return None
