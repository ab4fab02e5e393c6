"""Answers to calls of attention() that do not fit: missing arguments, arguments by place, and names
of other libraries.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from nbattn import functional, mistaken_words
from nbattn.distributed import given
from nbattn.errors import InputError
from nbattn.fixes.signatures import Misfit
from nbattn.mask import Mask


class Options(TypedDict, total=False):
    """Arguments that `nbattn.attention` explains."""

    scale: float | None
    softcap: float | None
    sink: Tensor | None
    key_range: Tensor | Sequence[Any] | None
    extra_key: Tensor | None
    extra_value: Tensor | None
    extra_range: Tensor | Sequence[Any] | None
    relative_bias: Tensor | None
    alibi_slopes: Tensor | None
    backend: str
    require: Sequence[str]
    forbid: Sequence[str]


_PACKED = ("grids", "key_grids")
_NEEDED = ("query", "key", "value", "mask", "mesh", "shard", "space")
_OWN = (*_NEEDED, "key_space", "query_shard")
_OF_ONE = {
    name: parameter
    for name, parameter in inspect.signature(functional.attention).parameters.items()
    if name not in (*_OWN, *_PACKED)
}
NAMES = (*_OWN, *_OF_ONE)  # of all arguments
_RENAMED = {
    "mesh": ("device_mesh", "cp_mesh", "context_parallel_mesh", "sp_mesh"),
    "shard": ("shards", "sharding", "placements", "mesh_dims", "mesh_axes", "shard_dims", "spec"),
    "space": ("global_space", "full_space", "whole_space", "global_shape", "shape", "full_shape"),
    "key_space": ("kv_space", "context_space", "global_key_space"),
    "query_shard": ("q_shard", "query_placements", "shard_query"),
}
_GROUPS = ("group", "process_group", "cp_group", "pg", "sp_group")
_ONE, _CALL = "nbattn.attention(", "nbattn.distributed.attention("


def show(function: Any) -> None:
    """Gives the function the signature that help() and editors show, with all options."""
    own = inspect.signature(function)
    parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    function.__signature__ = own.replace(parameters=[*parameters, *_OF_ONE.values()])


def refusal(call: Misfit) -> InputError:
    """Makes the error of a call with too few arguments, or too many by place."""
    named = dict(call.named)
    by_place = dict(zip(_OWN, call.given, strict=False))
    if strange := strangers(named):
        return unknown(strange, by_place | named)
    if len(call.given) > len(call.places):
        problem = f"attention() takes 4 arguments by place, not {len(call.given)}; the rest by name"
    else:
        *most, last = call.missing
        problem = f"attention() needs {', '.join(most)}{' and ' * bool(most)}{last}"
    return InputError(f"{problem}.", f"{_whole(by_place | named)}.")


def strangers(named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that attention() does not take."""
    return {name: value for name, value in named.items() if name not in NAMES}


def check_local(given: Mapping[str, Any]) -> None:
    """Checks that no argument is a distributed tensor: its placements say what is cut.

    Raises:
        InputError: one is.
    """
    for name, value in given.items():
        if isinstance(value, Tensor) and hasattr(value, "placements"):
            fix = f"{name}={name}.to_local()."
            if name in _NEEDED:
                fix = f"{_ONE}query, key, value, mask), of DTensors; or {fix}"
            problem = "is a DTensor, not this rank's part: its placements say how it is cut"
            raise InputError(f"{name} {problem}.", fix)


def unknown(strange: Mapping[str, Any], values: Mapping[str, Any]) -> InputError:
    """Makes the error of an argument that attention() does not take.

    Args:
        strange: all of these.
        values: all arguments of the call.
    """
    for word, value in strange.items():
        problem = f"attention() takes no argument {word!r}"
        if word in _PACKED:
            code = ", ".join(["query, key, value, mask", *(f"{n}={n}" for n in strange)])
            why = "packed grids are not sharded, but every rank can have grids of its own"
            return InputError(f"{problem}: {why}.", f"{_ONE}{code}).")
        if word in _GROUPS:
            return InputError(
                f"{problem}: ranks are those of a DeviceMesh.", f"mesh={given.mesh_of_group(word)}."
            )
        name = next((name for name, words in _RENAMED.items() if word in words), "")
        if name == "shard" and isinstance(values.get("mesh"), DeviceMesh):
            shard = given.names_of(value, _rank(values), values["mesh"].mesh_dim_names or ())
            return InputError(f"{problem}.", f"shard={shard!r}.")
        if name:
            return InputError(f"{problem}.", f"{name}={_code(word, value)}.")
    shape = getattr(values.get("query"), "shape", None)
    known = {n: v for n, v in values.items() if n in NAMES and n not in _NEEDED[:4]}
    error = mistaken_words.refusal("attention", strange, NAMES, values.get("mask"), shape, known)
    return InputError(error.problem, _across_ranks(error.fix, values), error.where)


def _across_ranks(fix: str, values: Mapping[str, Any]) -> str:
    """A fix of a call in one process as one of this call; empty if there is none."""
    if "grids" in fix:
        return ""
    if "key.shape[1]" in fix:  # all keys
        space = values.get("key_space") or values.get("space")
        if not isinstance(space, (int, tuple, list)):
            return ""
        length = space if isinstance(space, int) else space[0]
        fix = fix.replace("key.shape[1]", str(length))
    if fix.startswith("key_range="):
        return f"{fix.rstrip('.')}, of the whole space."
    return fix.replace(_ONE, _CALL)


def _whole(values: Mapping[str, Any]) -> str:
    """The call as code, with what was given, and examples of what was not."""
    shown = {name: _code(name, value) for name, value in values.items()}
    mesh, rank = values.get("mesh"), _rank(values)
    shown.setdefault("mask", f"Mask.full(rank={rank})")
    shown.setdefault("mesh", given.new_mesh())
    if "shard" not in shown:
        names = isinstance(mesh, DeviceMesh) and mesh.mesh_dim_names
        shown["shard"] = repr(given.example(names or ("x",), rank))
    note = ""
    if "space" not in shown:
        shape = getattr(values.get("query"), "shape", ())
        space = given.whole_space(shape, mesh, values.get("shard"), rank)
        shown["space"] = repr(space) if space else "space"
        note = ", if all ranks have as much" if space else ""
    tensors = ", ".join(shown.pop(name, name) for name in _NEEDED[:4])
    return f"{_CALL}{tensors}, {', '.join(f'{n}={shown[n]}' for n in NAMES if n in shown)}){note}"


def _rank(values: Mapping[str, Any]) -> int:
    """The number of axes of the call's space."""
    mask = values.get("mask")
    dimensions = getattr(values.get("query"), "ndim", 4)
    return mask.rank if isinstance(mask, Mask) else min(max(dimensions - 3, 1), 3)


def _code(name: str, value: Any) -> str:
    """The value of an argument as code: its name, if that is shorter."""
    plain = isinstance(value, (str, bool, int, float, tuple, list, type(None)))
    return repr(value) if plain and len(repr(value)) < 60 else name
