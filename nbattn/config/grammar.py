"""The grammar of configurations: masks, layers and plans as dataclasses, their pydantic schemas,
and the checks that need more than one field.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from pydantic import GetCoreSchemaHandler, ValidationInfo, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

from nbattn import synonyms
from nbattn.axis import Axis
from nbattn.backends import families
from nbattn.errors import InputError, NbattnError
from nbattn.mask import Mask
from nbattn.mask_tables import CONSTRUCTORS
from nbattn.program.device import DEVICES
from nbattn.program.request import DTYPES

if TYPE_CHECKING:
    from nbattn.nn import NeighborhoodAttention
    from nbattn.planner.plan import Plan

STRICT = {"extra": "forbid", "strict": True}


class _Arguments:
    """The table of a mask constructor's arguments, made from its signature."""

    def __init__(self, constructor: Callable[..., Mask]) -> None:
        self.constructor = constructor
        hints = get_type_hints(constructor)
        entries: list[Any] = [
            (p.name, hints[p.name])
            if p.default is p.empty
            else (p.name, hints[p.name], field(default=p.default))
            for p in inspect.signature(constructor).parameters.values()
        ]
        namespace = {"__pydantic_config__": STRICT, "__doc__": f"Arguments of Mask.{self.name}."}
        self.table = make_dataclass(self.name, entries, kw_only=True, namespace=namespace)

    @property
    def name(self) -> str:
        return self.constructor.__name__

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def build(table: Any) -> Mask:
            return self.constructor(**vars(table))

        schema = handler.generate_schema(self.table)
        return core_schema.no_info_after_validator_function(build, schema)


class MaskTable:
    """A mask as a table of one entry: `axes`, or the name of a mask constructor."""

    arguments: Mapping[str, _Arguments] = {
        name: _Arguments(function) for name, function in CONSTRUCTORS.items()
    }
    keys = ("axes", *CONSTRUCTORS)
    table = make_dataclass(
        "MaskTable",
        [
            ("axes", tuple[Axis, ...] | None, field(default=None)),
            *(
                (name, Annotated[Mask | None, marker], field(default=None))
                for name, marker in arguments.items()
            ),
        ],
        kw_only=True,
        namespace={
            "__pydantic_config__": STRICT
            | {"json_schema_extra": {"minProperties": 1, "maxProperties": 1}},
            "__doc__": "A mask, by exactly one entry.",
        },
    )

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        schema = handler.generate_schema(self.table)
        return core_schema.no_info_after_validator_function(self.build, schema)

    def build(self, table: Any) -> Mask:
        """Returns the mask of a validated table."""
        entries = {name: value for name, value in vars(table).items() if value is not None}
        if len(entries) != 1:
            raise EntriesError(*entries)
        (value,) = entries.values()
        return value if isinstance(value, Mask) else Mask(*value)


class _Named:
    """A mask by its name in the same file. The context maps names to masks; None is a mask whose
    mistakes are reported already.
    """

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_after_validator_function(
            self.find, core_schema.str_schema(strict=True)
        )

    def find(self, name: str, info: ValidationInfo) -> Mask | None:
        masks: Mapping[str, Mask | None] = info.context or {}
        if name not in masks:
            raise UnknownNameError(name, tuple(masks))
        return masks[name]


class EntriesError(ValueError):
    """A mask's table without an entry, or with several; the arguments are their names."""


class UnknownNameError(ValueError):
    """An unknown name; the arguments are the name and the known names."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LayerConfig:
    """A layer of a configuration: the arguments of `nbattn.NeighborhoodAttention`.

    Args:
        mask: in a file, the name of a mask.
        dtype: a name; default: torch's.
        device: as torch names it; default: torch's.

    The others are as in the layer.

    >>> LayerConfig(mask=Mask.neighborhood((7, 7)), dim=64, num_heads=2).num_heads
    2
    """

    mask: Annotated[Mask, _Named()]
    dim: int
    num_heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool = True
    proj_drop: float = 0.0
    scale: float | None = None
    qk_norm: bool = False
    context_dim: int | None = None
    relative_bias: bool = False
    layout: Annotated[str, WithJsonSchema({"enum": [*synonyms.LAYOUTS]})] = "channels_last"
    backend: Annotated[str, WithJsonSchema({"enum": [*families.BACKENDS]})] = "auto"
    device: str | None = None
    dtype: Annotated[str | None, WithJsonSchema({"enum": [*DTYPES, None]})] = None

    def __repr__(self) -> str:
        return _written(self)

    def build(self, **modules: Any) -> NeighborhoodAttention:
        """Makes the layer.

        Args:
            **modules: the argument that a file cannot have: `qk_transform=`.

        Raises:
            InputError: the arguments do not fit.
        """
        from nbattn.nn import NeighborhoodAttention

        return NeighborhoodAttention(**_values(self), **modules)

    def mistakes(self) -> Iterator[tuple[str, Exception]]:
        """Yields the errors of the layer: of every field alone, else of all fields together.

        If the mask has mistakes, which are reported already, a full mask replaces it.
        """
        import torch

        from nbattn.nn import NeighborhoodAttention, options

        arguments = _values(self) | {"mask": self.mask or Mask.full()}
        for name in ("backend", "layout", "device", "dtype"):  # its device may be elsewhere
            del arguments[name]
        heads = max(1, self.kv_heads or 1)
        base = {"mask": arguments["mask"], "dim": 1, "num_heads": heads, "head_dim": 1}
        with torch.device("meta"):
            errors = list(_unknown("backend", (self.backend,), families.BACKENDS))
            errors += _unknown("layout", (self.layout,), tuple(synonyms.LAYOUTS))
            errors += _unknown("dtype", (self.dtype or DTYPES[0],), DTYPES)
            values = {
                n: value for n, value in arguments.items() if value is not None and n != "mask"
            }
            errors += _each(NeighborhoodAttention, base, values)
            errors += _caught("device", lambda: options.factory(self.device, None))
            yield from errors or _caught("", lambda: _built(NeighborhoodAttention, arguments))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PlanConfig:
    """A plan request of a configuration: the arguments of `nbattn.plan`.

    Args:
        mask: in a file, the name of a mask.
        query, key: shapes `[B, *space, H, D]` and `[B, *key_space, Hk, D]`, or with grids
            `[T, H, D]` and `[Tk, Hk, D]`; key: default query.
        device: a name; default: the device of this machine.

    The others are as in `nbattn.plan`.

    >>> mask = Mask.causal("top-left")
    >>> request = PlanConfig(mask=mask, query=(1, 2048, 8, 64), key=(1, 512, 8, 64))
    >>> request.plan(dtype="bfloat16", device="sm_90").chosen.name
    'sdpa/causal'
    """

    mask: Annotated[Mask, _Named()]
    query: tuple[int, ...]
    key: tuple[int, ...] | None = None
    value_dim: int | None = None
    dtype: Annotated[str, WithJsonSchema({"enum": [*DTYPES]})] = "bfloat16"
    device: str | None = None
    training: bool = False
    backend: Annotated[str, WithJsonSchema({"enum": [*families.BACKENDS]})] = "auto"
    require: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    return_lse: bool = False
    extra_keys: int = 0
    extra_queries: bool = False
    softcap: float | None = None
    sink: bool = False
    key_range: bool = False
    extra_range: bool = False
    relative_bias: bool = False
    alibi_slopes: bool = False
    grids: tuple[tuple[int, ...], ...] | None = None
    key_grids: tuple[tuple[int, ...], ...] | None = None
    deterministic: bool | None = None
    packed: bool = False

    def __repr__(self) -> str:
        return _written(self)

    def plan(self, **changes: Any) -> Plan:
        """Makes the plan.

        Args:
            **changes: arguments that replace those of the file, such as `device="sm_90"`.

        Raises:
            InputError, MaskError, BackendError: as `nbattn.plan`.
        """
        from nbattn import functional

        values = _values(self) | changes
        shapes = values.pop("query"), values.pop("key")
        return functional.plan(values.pop("mask"), *shapes, **values)

    def mistakes(self) -> Iterator[tuple[str, Exception]]:
        """Yields the errors that `plan` would raise on every machine, each with its key."""
        from nbattn import arguments, biases, geometry, grids, packing
        from nbattn.planner import devices

        key = self.query if self.key is None else self.key
        value = (*key[:-1], key[-1] if self.value_dim is None and key else self.value_dim or 0)

        def shapes() -> None:
            if self.mask and (self.grids is not None or self.key_grids is not None):
                if self.grids is None:
                    raise InputError("key_grids is given, but not grids.")
                packed = packing.packed_of(self.mask, self.grids, self.key_grids)
                packing.check_shapes(self.mask, packed, self.query, key, value, in_plan=True)
                table, slopes = self.relative_bias, self.alibi_slopes
                grids.check(self.mask, packed, table=table, slopes=slopes)  # pyright: ignore
            elif self.mask:
                arguments.check_shapes(self.mask, self.query, key, value, in_plan=True)
                axes = geometry.bind(self.mask, self.query[1:-2], key[1:-2])
                table, slopes = self.relative_bias, self.alibi_slopes
                biases.check(self.mask, axes, table=table, slopes=slopes)

        names = ("query", "key", "value_dim", "extra_keys")
        base = dict(zip(names, ((1,), None, None, 0), strict=True)) | {"flags": {}}
        errors = list(_each(arguments.check_plan, base, {n: getattr(self, n) for n in names}))
        yield from errors or _caught("", shapes)
        yield from _caught("softcap", lambda: arguments.check_numbers(None, self.softcap))
        if self.device is not None and not devices.is_device(self.device):
            yield "device", UnknownNameError(self.device, tuple(DEVICES))
        traits = (*families.STRATEGIES, *families.BACKENDS[1:])
        yield from _unknown("dtype", (self.dtype,), DTYPES)
        yield from _unknown("backend", (self.backend,), families.BACKENDS)
        yield from _unknown("require", self.require, traits)
        yield from _unknown("forbid", self.forbid, traits)


def _written(config: LayerConfig | PlanConfig) -> str:
    """Returns an entry as code, without defaults."""
    default = {f.name: f.default for f in fields(config)}
    given = ((name, value) for name, value in _values(config).items() if value != default[name])
    listed = (f"{name}={value!r}" for name, value in given)
    return f"{type(config).__name__}({', '.join(listed)})"


def _values(config: LayerConfig | PlanConfig) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(config)}


def _each(
    function: Callable[..., object],
    base: Mapping[str, Any],
    tested: Mapping[str, Any],
) -> Iterator[tuple[str, Exception]]:
    """Yields the errors of each tested argument alone; `base` has legal other arguments."""
    for name, value in tested.items():
        yield from _caught(name, lambda n=name, v=value: function(**{**base, n: v}))


def _built(layer: Callable[..., object], arguments: Mapping[str, Any]) -> None:
    """Builds a layer; replaces torch's message for weights that no memory can hold."""
    try:
        layer(**arguments)
    except (RuntimeError, TypeError) as error:
        if isinstance(error, NbattnError):
            raise
        raise InputError("its weights are larger than a tensor can be.") from None


def axis_mistakes(axis: Mapping[str, Any]) -> Iterator[tuple[str, Exception]]:
    """Yields the errors of every field of an axis alone."""
    known = {f.name for f in fields(Axis)}
    return _each(Axis, {}, {n: v for n, v in axis.items() if n in known and n != "border"})


def constructor_mistakes(name: str, given: Mapping[str, Any]) -> Iterator[tuple[str, Exception]]:
    """Yields the errors of every argument of a mask constructor alone."""
    required = {"neighborhood": {"kernel_size": 2**31 - 1}, "sliding_window": {"left": 0}}
    return _each(CONSTRUCTORS[name], required.get(name, {}), given)


def _unknown(
    key: str, names: tuple[str, ...], known: tuple[str, ...]
) -> Iterator[tuple[str, Exception]]:
    return ((key, UnknownNameError(name, known)) for name in names if name not in known)


def _caught(key: str, check: Callable[[], object]) -> Iterator[tuple[str, Exception]]:
    try:
        check()
    except NbattnError as error:
        yield key, error
