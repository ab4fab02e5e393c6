"""Runs the Triton kernels on CPU tensors with Triton's interpreter, as a launcher and function by
function.

The kernels' modules are executed a second time, and their functions rewritten for the interpreter.
The real modules are left alone, because other tests of the process compile them. Triton's own way
patches its language again at every call of a function by another one, which takes a third of the
time, and never undoes it; here the language is patched while a kernel runs, once.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbattn.backends.triton.kernels.numbers import Variant

PACKAGE = "nbattn.backends.triton.kernels"
FOLDER = Path(__file__).resolve().parents[2] / "nbattn" / "backends" / "triton" / "kernels"
# Imports of each module before it. `numbers` is shared: it has no kernels.
MODULES = (
    "window",
    "place",
    "scores",
    "tile",
    "forward",
    "delta",
    "grad_query",
    "grad_key",
    "grad_extra",
    "grad_table",
)
CONSTANT = "tl.constexpr"  # the annotation of a parameter that is no tensor
Change = tuple[str, str, str]  # a module, a text in it, and what stands there instead


class KernelError(Exception):
    """A kernel accessed what it must not."""


def missing() -> str | None:
    """Why there is no interpreter; None where there is one."""
    return None if util.find_spec("triton") else "triton is not installed"


def _interpreter() -> Any:
    import triton.runtime.interpreter as interpreter

    return interpreter


def _language() -> Any:
    import triton.language as language

    return language


@cache
def kernels(changes: tuple[Change, ...] = ()) -> Mapping[str, Mapping[str, Any]]:
    """The names of every module, with the functions rewritten for the interpreter.

    Args:
        changes: what is different from the package's modules.
    """
    import triton

    spaces: dict[str, dict[str, Any]] = {}
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        for module in MODULES:
            spaces[module] = _executed(module, changes, spaces)
    functions = {
        id(value): value.rewrite()
        for space in spaces.values()
        for value in [*space.values()]
        if isinstance(value, _interpreter().InterpretedFunction)
    }
    for space in spaces.values():
        space |= {name: functions.get(id(value), value) for name, value in space.items()}
    return spaces


def _executed(
    module: str, changes: tuple[Change, ...], spaces: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """The names of a module, executed again; it imports from the other copies."""
    path = FOLDER / f"{module}.py"
    text, name = path.read_text("utf-8"), str(path)
    for old, new in [change[1:] for change in changes if change[0] == module]:
        if text.count(old) != 1:
            raise ValueError(f"{module}.py has this text {text.count(old)} times, not once: {old}")
        text = text.replace(old, new)
        name = f"<{module}.py with {new!r} for {old!r}>"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    space: dict[str, Any] = {"__name__": f"{PACKAGE}.{module}"}
    tree = ast.parse(text, name)
    for node in [node for node in tree.body if isinstance(node, ast.ImportFrom)]:
        source = (node.module or "").rpartition(".")[2]
        if source in spaces:
            space |= {alias.name: spaces[source][alias.name] for alias in node.names}
            tree.body.remove(node)
    exec(compile(tree, name, "exec", dont_inherit=True), space)
    return space


@cache
def _standard() -> dict[str, Callable[..., Any]]:
    """Triton's functions that are kernels themselves, such as `zeros`, for the interpreter."""
    import triton

    language, interpreted = _language(), _interpreter().InterpretedFunction
    names = {
        node.attr
        for module in MODULES
        for node in ast.walk(ast.parse((FOLDER / f"{module}.py").read_text("utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.value.id == "tl"
    }
    kinds = (triton.runtime.jit.JITFunction, interpreted)
    return {
        name: interpreted(getattr(language, name).fn).rewrite()
        for name in sorted(names)
        if isinstance(getattr(language, name), kinds)
    }


@cache
def _numpy_types() -> Callable[[Any], Any]:
    """What Triton's function does, which builds a table for every question."""
    slow, pointer_type = _interpreter()._get_np_dtype, _language().pointer_type
    known: dict[str, Any] = {}

    def numpy_type(kind: Any) -> Any:
        scalar = kind.scalar
        if isinstance(scalar, pointer_type):
            return np.dtype(np.uint64)
        if scalar.name not in known:
            known[scalar.name] = slow(scalar)
        return known[scalar.name]

    return numpy_type


@cache
def _shape(sizes: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """A shape as Triton has it, as tensors have it, and its elements: half of the time of an
    interpreter that builds them for every result.
    """
    core = _language().core
    count = math.prod(sizes)
    assert count & (count - 1) == 0, "Triton's shapes are powers of two"
    return core.tuple(sizes), core.tuple([core.constexpr(n) for n in sizes]), core.constexpr(count)


def _tensor_init(tensor: Any, handle: Any, kind: Any) -> None:
    """In the place of `tensor.__init__`."""
    tensor.handle, tensor.type, tensor.dtype = handle, kind, kind.scalar
    _, tensor.shape, tensor.numel = kind.known if kind.is_block() else _shape(())


def _block_type_init(kind: Any, element: Any, shape: Any) -> None:
    """In the place of `block_type.__init__`."""
    sizes = tuple([getattr(size, "value", size) for size in shape])
    kind.element_ty, kind.known = element, _shape(sizes)
    kind.shape, kind.numel = kind.known[0], kind.known[2].value
    kind.name = "block"


@contextmanager
def language(*, overflow: bool = False) -> Iterator[Any]:
    """Triton's language computes with numpy.

    Args:
        overflow: whether integers that leave their type are errors, which takes time.
    """
    interpreter, tl, standard = _interpreter(), _language(), _standard()
    types = _numpy_types()
    builder = interpreter.interpreter_builder
    scope = interpreter._LangPatchScope()
    options = replace(builder.options, sanitize_overflow=overflow, debug=overflow)
    scope.set_attr(builder, "options", options)
    scope.set_attr(interpreter, "_get_np_dtype", types)
    try:
        for module in (tl, tl.core):
            interpreter._patch_builtin(module, builder, scope)
            interpreter._patch_lang_core(module, scope)
        interpreter._patch_builtin(tl.tensor, builder, scope)
        interpreter._patch_builtin(tl.math, builder, scope)
        interpreter._patch_lang_tensor(tl.tensor, scope)
        scope.set_attr(tl.tensor, "__init__", _tensor_init)
        scope.set_attr(tl.block_type, "__init__", _block_type_init)
        for name, function in standard.items():
            scope.set_attr(tl, name, function)
        with np.errstate(all="ignore"):  # infinities and NaN are in the kernels' rules
            yield scope
    finally:
        scope.restore()


def given(value: Any) -> Any:
    """A number, an array of a power of two of numbers, a tensor's pointer, or a tuple of these, as
    kernels see it.
    """
    interpreter, tl = _interpreter(), _language()
    if isinstance(value, tuple):
        parts = [given(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, np.ndarray):
        kind = getattr(tl, str(value.dtype).replace("bool", "int1"))
        return tl.tensor(interpreter.TensorHandle(value, kind), tl.block_type(kind, [*value.shape]))
    return interpreter._implicit_cvt(value)


def taken(value: Any) -> Any:
    """What a function of the kernels returned, as numbers and arrays."""
    if isinstance(value, tuple) or type(value).__name__ == "tuple":
        parts = [taken(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if not hasattr(value, "handle"):
        return getattr(value, "value", value)
    data = value.handle.data
    return data if value.type.is_block() else data.reshape(-1)[0].item()


def call(name: str, *values: Any, changes: tuple[Change, ...] = (), overflow: bool = True) -> Any:
    """What a function of the kernels, as `"window.window_of"`, returns for values."""
    module, function = name.split(".")
    body = kernels(changes)[module][function]
    kinds = [one.annotation for one in inspect.signature(body).parameters.values()]
    with language(overflow=overflow):
        seen = [
            value if kind == CONSTANT else given(value)
            for value, kind in zip(values, kinds, strict=True)
        ]
        return taken(body(*seen))


def parameters(kernel: str, changes: tuple[Change, ...] = ()) -> list[str]:
    """The parameters of a kernel before `V`."""
    *names, last = inspect.signature(kernels(changes)[kernel][kernel]).parameters
    assert last == "V"
    return names


@dataclass
class Launcher:
    """Launches kernels in the interpreter, in the place of Triton's launcher.

    numpy has no bfloat16. Tensors of that type are computed as float32, and results are rounded
    once: sums and places are those of the kernels, but no weight is rounded before a product.

    Args:
        check: whether an access outside of the elements of the given tensors is an error, as is an
            element that is stored twice.
        overflow: whether integers that leave their type are errors.
        changes: what is different from the package's kernels.
        launched: the kernels so far, with their grids and variants.
        loaded: the kernels that were to be compiled, with their variants.
    """

    check: bool = False
    overflow: bool = False
    changes: tuple[Change, ...] = ()
    launched: list[tuple[str, tuple[int, ...], Variant]] = field(default_factory=list)
    loaded: list[tuple[str, Variant]] = field(default_factory=list)

    def launch(
        self,
        kernel: str,
        grid: tuple[int, ...],
        arguments: Mapping[str, Any],
        variant: Variant,
        warps: int,
        stages: int,
    ) -> None:
        """Runs a kernel.

        Args:
            kernel: a function, in the module of its name.
            grid: programs on at most three axes.
            arguments: by the names of parameters; absent ones are None, others are not for it.
            variant: the parameter `V`.
            warps, stages: of no meaning here.

        Raises:
            KernelError: with `check`, an access that must not be.
        """
        body = kernels(self.changes)[kernel][kernel]
        self.launched.append((kernel, grid, variant))
        wide: dict[int, tuple[Tensor, Tensor]] = {}
        values = [
            _without_bfloat16(arguments.get(name), wide)
            for name in parameters(kernel, self.changes)
        ]
        builder = _interpreter().interpreter_builder
        builder.set_grid_dim(*(*grid, 1, 1)[:3])
        with language(overflow=self.overflow) as scope:
            if self.check:
                guard = _Guard(kernel, [v for v in values if isinstance(v, Tensor)])
                scope.set_attr(builder, "create_masked_load", guard.load(builder))
                scope.set_attr(builder, "create_masked_store", guard.store(builder))
            seen = [given(value) for value in values]
            for number in np.ndindex(*(*grid, 1, 1)[:3]):
                builder.set_grid_idx(*number)
                body(*seen, variant)
        for narrow, computed in wide.values():
            narrow.copy_(computed)

    def load(
        self, kernel: str, arguments: Mapping[str, Any], variant: Variant, warps: int, stages: int
    ) -> None:
        """Compiles nothing; the kernel must take what it is given to compile it."""
        del arguments, warps, stages
        assert kernel in kernels(self.changes)[kernel]
        self.loaded.append((kernel, variant))


def _without_bfloat16(value: Any, wide: dict[int, tuple[Tensor, Tensor]]) -> Any:
    """A tensor of bfloat16 as one of float32 with the same strides; views of a storage stay so."""
    if not isinstance(value, Tensor) or value.dtype != torch.bfloat16:
        return value
    storage = value.untyped_storage()
    if storage.data_ptr() not in wide:
        flat = torch.empty(0, dtype=value.dtype).set_(storage)  # type: ignore[call-overload]
        wide[storage.data_ptr()] = flat, flat.float()
    computed = wide[storage.data_ptr()][1]
    return computed.as_strided(value.shape, value.stride(), value.storage_offset())


class _Guard:
    """Finds accesses outside of the elements of tensors, and elements that are stored twice."""

    def __init__(self, kernel: str, tensors: list[Tensor]) -> None:
        self.kernel = kernel
        self.places = np.unique(np.concatenate([_places(tensor) for tensor in tensors]))
        self.stored = np.zeros(len(self.places), dtype=bool)

    def indices(self, pointers: Any, mask: Any, what: str) -> np.ndarray:
        at, active = np.broadcast_arrays(pointers.data, mask.data)
        at = at[active].ravel()
        found = np.minimum(np.searchsorted(self.places, at), len(self.places) - 1)
        if (self.places[found] != at).any():
            outside = int((self.places[found] != at).sum())
            raise KernelError(f"{self.kernel} {what} {outside} elements outside of its tensors")
        return found

    def load(self, builder: Any) -> Callable[..., Any]:
        plain = type(builder).create_masked_load

        def checked(pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
            self.indices(pointers, mask, "loads")
            return plain(builder, pointers, mask, *rest, **named)

        return checked

    def store(self, builder: Any) -> Callable[..., Any]:
        plain = type(builder).create_masked_store

        def checked(pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
            found = self.indices(pointers, mask, "stores")
            if self.kernel != "grad_table":  # which adds to entries by visits
                if self.stored[found].any() or len(np.unique(found)) < len(found):
                    raise KernelError(f"{self.kernel} stores an element twice")
                self.stored[found] = True
            return plain(builder, pointers, value, mask, *rest, **named)

        return checked


def _places(tensor: Tensor) -> np.ndarray:
    """The addresses of a tensor's elements."""
    at = np.zeros(1, dtype=np.int64)
    for length, step in zip(tensor.shape, tensor.stride(), strict=True):
        at = np.unique(at[:, None] + np.arange(length) * step)
    return (tensor.data_ptr() + at * tensor.element_size()).astype(np.uint64)
