"""Gives an attention layer of diffusers windows: its own processor runs, with its projections,
norms and rotary embeddings, and only the attention that it calls is nbattn's.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

from diffusers.models import attention_dispatch
from torch import Tensor
from torch.nn import functional

from nbattn import symbolic
from nbattn.errors import InputError
from nbattn.integrations.diffusers import sequences
from nbattn.integrations.diffusers.families import RESTORE
from nbattn.integrations.diffusers.forwards import RUNNING
from nbattn.integrations.diffusers.tables import Layer
from nbattn.mask import Mask


def dispatch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    attention_kwargs: Any = None,
    *,
    backend: Any = None,
    parallel_config: Any = None,
) -> Tensor:
    """Attention of `[B, S, H, D]`, in the place of diffusers' `dispatch_attention_fn`."""
    mask = _mask(query)
    if mask is None:
        return attention_dispatch.dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            scale,
            enable_gqa,
            attention_kwargs,
            backend=backend,
            parallel_config=parallel_config,
        )
    _refuse(parallel_config=parallel_config, attention_kwargs=attention_kwargs)
    return _windows(query, key, value, mask, attn_mask, dropout_p, is_causal, scale)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention of `[B, H, S, D]`, in the place of torch's function."""
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    out = dispatch(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    return out.transpose(1, 2)


def _mask(query: Tensor) -> Mask | None:
    """The mask of the layer that runs; None where the attention is the model's own."""
    layer, forward = RUNNING.layer, RUNNING.forward
    assert layer is not None
    if forward is None:
        raise InputError(
            f"{layer.name} runs outside of a call of its model, which says the grid: call the "
            "model, not its blocks or model.forward; checkpoints are "
            "model.enable_gradient_checkpointing()."
        )
    # an adapter's images are keys for the images alone, without text: no windows
    tokens = forward.tokens
    may_adapt = layer.type != "self" and tokens.text > 0 and not layer.family.drops_padding
    if may_adapt and query.shape[1] == tokens.in_grid + tokens.further:
        return None
    return layer.masks[forward.part]


def _windows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    attn_mask: Any,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    """Attention of a whole sequence, with the windows of the layer that runs."""
    layer, forward = RUNNING.layer, RUNNING.forward
    assert layer is not None
    assert forward is not None
    tokens, family = forward.tokens, layer.family
    _refuse(dropout_p=dropout_p, is_causal=is_causal)
    if attn_mask is not None and tokens.valid is None:
        _refuse(attention_mask=attn_mask)
    beside = query.shape[1] - tokens.in_grid
    expected = 0 if layer.type == "self" else tokens.text + tokens.further
    fits = [beside >= 0, beside <= expected] if family.drops_padding else [beside == expected]
    if not all(map(symbolic.holds, [*fits, key.shape[1] == query.shape[1]])):
        raise InputError(
            f"{layer.name} attends from {query.shape[1]} to {key.shape[1]} tokens; the grid "
            f"{tuple(map(int, tokens.grid))} and {expected} tokens beside it are "
            f"{tokens.in_grid + expected}.",
            RESTORE,
        )
    if layer.type == "self":
        return sequences.attend_alone(query, key, value, mask, tokens, scale=scale)
    return sequences.attend(
        query,
        key,
        value,
        mask,
        tokens,
        before=tokens.text if family.text == "first" else 0,
        text=layer.text,
        scale=scale,
    )


_REASONS = {
    "parallel_config": "context parallel splits the sequence between ranks, not the grid",
    "attention_kwargs": "nbattn does not know what they mean",
    "attention_mask": "windows and a mask of one's own are not joined; padding of text is read "
    "from the arguments of the model that are made for it",
    "dropout_p": "nbattn has no dropout of attention weights",
    "is_causal": "the mask says what is causal",
}


def _refuse(**given: Any) -> None:
    """Refuses what a processor asks for and nbattn does not do."""
    for name, value in given.items():
        if isinstance(value, Tensor) or value:
            raise InputError(f"{name} is set: {_REASONS[name]}.", RESTORE)


def check(module: Any, layer: Layer) -> None:
    """Checks that nbattn can run the attention of a module of diffusers.

    Raises:
        InputError: its processor is none that nbattn knows.
    """
    own = _own(module.processor)
    if own.__name__ not in layer.family.processors:
        raise InputError(
            f"{layer.name} has the processor {own.__name__}; nbattn knows of this model "
            f"{', '.join(layer.family.processors)}."
        )


def install(module: Any, layer: Layer) -> None:
    """Gives an attention module of diffusers, which was checked, a processor with windows."""
    own = type(module.processor)
    processor = copy.copy(module.processor)  # layers may share one
    processor.__class__ = _windowed(own)
    processor.layer = layer
    module.processor = processor


def remove(module: Any) -> None:
    """Reverses `install`; other processors stay."""
    fused = getattr(module, "original_attn_processors", None) or {}  # come back when unfused
    for processor in (getattr(module, "processor", None), *fused.values()):
        if isinstance(processor, Windowed):
            processor.__class__ = _own(processor)
            del processor.layer


def _own(processor: Any) -> type:
    """The model's own class of a processor."""
    return type(processor).own if isinstance(processor, Windowed) else type(processor)


class Windowed:
    """What processors with windows have in common.

    Args:
        own: the model's own class of processors.
        layer: what they belong to.
    """

    own: type
    layer: Layer

    @property
    def _attention_backend(self) -> Any:
        return vars(self).get("_attention_backend")

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        if backend is not None:
            name = getattr(backend, "value", backend)
            raise InputError(
                f"the attention of {self.layer.name} is nbattn's. A backend that is set before "
                "apply() runs what has no windows.",
                "nbattn.integrations.diffusers.restore(model); "
                f'model.set_attention_backend("{name}"); '
                "nbattn.integrations.diffusers.apply(model, mask).",
            )
        vars(self)["_attention_backend"] = None

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (type(self).own, vars(self))


def _rebuild(own: Any, state: dict[str, Any]) -> Any:
    processor = own.__new__(own)
    processor.__class__ = _windowed(own)
    vars(processor).update(state)
    return processor


@functools.cache
def _windowed(own: type) -> type:
    """Returns the class of a processor with windows: its own class, but for the attention."""
    call = _rebound(own.__call__)

    @functools.wraps(own.__call__)  # diffusers passes on what the signature has
    def __call__(self: Any, *arguments: Any, **named: Any) -> Any:  # noqa: N807
        before, RUNNING.layer = RUNNING.layer, self.layer
        try:
            return call(self, *arguments, **named)
        finally:
            RUNNING.layer = before

    return type(f"Windowed{own.__name__}", (Windowed, own), {"__call__": __call__, "own": own})


def _rebound(function: Any) -> Callable[..., Any]:
    """Returns the same function, which finds nbattn as diffusers' and as torch's attention.

    Compilers look names up in the module of a function that has a `__name__` among its globals.
    """
    own = {name: value for name, value in function.__globals__.items() if name != "__name__"}
    torchs = types.ModuleType(functional.__name__)
    vars(torchs).update(
        {**vars(functional), "scaled_dot_product_attention": scaled_dot_product_attention}
    )
    replaced = {"dispatch_attention_fn": dispatch, "F": torchs}
    bound = types.FunctionType(
        function.__code__,
        {**own, **replaced},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    bound.__kwdefaults__ = function.__kwdefaults__
    return bound
