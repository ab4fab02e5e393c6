"""Replaces the operators by torch's standard ones in graphs that other programs than torch run: for
`torch.onnx.export` on its own, for other formats by `decompositions()`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nbattn import ops
from nbattn.backends.dense.reference import DENSE_MASK, ENTRIES
from nbattn.backends.inputs import Inputs
from nbattn.errors import BackendError
from nbattn.export import graph_masks, graph_steps, standard_form
from nbattn.mask import Mask, from_code
from nbattn.symbolic import untraced


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Returns a table for `torch.export.ExportedProgram.run_decompositions`, after which a program
    contains attention in torch's standard operators, for converters to other formats.

    `torch.onnx.export(layer, (x,), dynamo=True)` needs no table. The graph is for inference.

    >>> from nbattn import Mask, NeighborhoodAttention
    >>> layer = NeighborhoodAttention(8, 2, Mask.neighborhood(3))
    >>> program = torch.export.export(layer, (torch.randn(1, 6, 8),))
    >>> program = program.run_decompositions(decompositions())
    >>> any("nbattn" in str(node.target) for node in program.graph.nodes)
    False
    """
    return {ops.FORWARD: forward, DENSE_MASK: dense_mask, ENTRIES: bias_entries}


def fvcore_handles() -> dict[str, Callable[[list[Any], list[Any]], int]]:
    """Returns what makes fvcore count attention: the multiply-adds of the pairs that the mask
    allows, for `fvcore.nn.FlopCountAnalysis.set_op_handle`.

    >>> sorted(fvcore_handles())  # FlopCountAnalysis(...).set_op_handle(**fvcore_handles())
    ['nbattn::forward']
    """
    return {"nbattn::forward": _traced_flops}


def _traced_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Counts the multiply-adds of the forward operator in a trace, from its arguments."""
    return ops.forward_flops(*map(traced, inputs)) // 2


def traced(value: Any) -> Any:
    """Returns an argument of an operator in a trace: of a tensor, its shape."""
    kind = value.type().kind()
    if kind == "TensorType":
        return tuple(value.type().sizes())
    found = value.toIValue()
    if found is None and kind == "ListType":
        return [number.toIValue() for number in value.node().inputs()]
    return found


def is_wanted(code: Sequence[int], space: Sequence[int], key_space: Sequence[int]) -> bool:
    """Whether standard operators take the place of one that is about to be recorded, with this code
    of a mask and these lengths.

    While `torch.export` captures, it does not know yet which symbols `dynamic_shapes` makes equal,
    so that an operator that may be refused stays until the program is decomposed.
    """
    if not _is_onnx_export():
        return False
    if not space:
        raise _of_grids()
    is_captured = torch.compiler.is_exporting()
    return not is_captured or graph_masks.refusal(code, space, key_space) is None


def is_wanted_at_once() -> bool:
    """Whether a graph for ONNX is captured in which operators cannot be replaced later: a trace, or
    a program without autograd.
    """
    if torch.compiler.is_dynamo_compiling():
        return False
    is_traced: bool = torch._C._is_tracing()  # pyright: ignore[reportPrivateUsage]
    return (is_traced or torch.is_inference_mode_enabled()) and _is_onnx_export()


def _is_onnx_export() -> bool:
    onnx: Any = sys.modules.get("torch.onnx")
    return onnx is not None and onnx.is_in_onnx_export()


def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The forward operator, in standard operators."""
    inputs, options = ops.inputs_of(arguments)
    mask = _legal(options.mask, inputs.space, inputs.key.shape[1:-2])
    out, lse = standard_form.attend(inputs, mask)
    is_used = options.return_lse or options.training
    return out, lse if is_used else inputs.query.new_empty(0, dtype=torch.float32)


def attend(inputs: Inputs, mask: Mask) -> tuple[Tensor, Tensor]:
    """Computes attention in standard operators."""
    if inputs.grids is not None:
        raise _of_grids()
    space, key_space = (untraced(t.shape[1:-2]) for t in (inputs.query, inputs.key))
    _legal(mask.code(), space, key_space)
    return standard_form.attend(inputs, mask)


def _of_grids() -> BackendError:
    return BackendError(
        "packed grids are no standard operators: in an ONNX graph each grid is a sample of its own."
    )


def dense_mask(
    like: Tensor, code: Sequence[int], space: Sequence[int], key_space: Sequence[int]
) -> Tensor:
    """The operator of the reference's mask, in standard operators."""
    mask = _legal(code, space, key_space)
    return graph_masks.dense_mask(mask, space, key_space, like.device)


def bias_entries(
    like: Tensor, code: Sequence[int], space: Sequence[int], key_space: Sequence[int]
) -> Tensor:
    """The operator of the reference's entries of a table, in standard operators."""
    mask = _legal(code, space, key_space)
    places = graph_steps.whole(mask.axes, (space, key_space), like.device)
    return graph_steps.entries_of(places).squeeze(0)


def _legal(code: Sequence[int], space: Sequence[int], key_space: Sequence[int]) -> Mask:
    """Returns the mask of a code, or raises the error of one that the graph would have to check."""
    error = graph_masks.refusal(code, space, key_space)
    if error is not None:
        raise error
    return from_code(code)


def _dense_mask_or_standard(
    like: Tensor, code: Sequence[int], space: Sequence[int], key_space: Sequence[int]
) -> Tensor:
    if is_wanted(code, space, key_space):
        return dense_mask(like, code, space, key_space)
    with torch._C._AutoDispatchBelowAutograd():  # pyright: ignore[reportPrivateUsage]
        return DENSE_MASK(like, code, space, key_space)


def _bias_entries_or_standard(
    like: Tensor, code: Sequence[int], space: Sequence[int], key_space: Sequence[int]
) -> Tensor:
    if is_wanted(code, space, key_space):
        return bias_entries(like, code, space, key_space)
    with torch._C._AutoDispatchBelowAutograd():  # pyright: ignore[reportPrivateUsage]
        return ENTRIES(like, code, space, key_space)


_library = torch.library.Library("nbattn", "FRAGMENT")
_library.impl("dense_mask", _dense_mask_or_standard, "Autograd")
_library.impl("bias_entries", _bias_entries_or_standard, "Autograd")
