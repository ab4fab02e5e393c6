"""Implements `attn_implementation="nbattn"`: its mask function, its attention function, and their
registration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import sym_node
from torch.nn.attention.flex_attention import BlockMask

from nbattn.axis import Axis
from nbattn.errors import InputError, kind
from nbattn.functional import attention
from nbattn.integrations import attention_classes, chunks, mask_functions
from nbattn.integrations.mask_functions import Window
from nbattn.mask import Mask
from nbattn.packages import install_line

_EAGER = 'model.set_attn_implementation("eager").'
# Arguments that models and trainers pass to every layer and that change no attention with a mask,
# which has the window already. Any other argument that is set raises an error.
_NO_EFFECT = {
    *("position_ids", "position_embeddings", "sliding_window", "deterministic", "layer_idx"),
    *("cache", "past_key_values", "use_cache", "num_items_in_batch", "logits_to_keep"),
    *("output_hidden_states", "output_router_logits", "return_dict"),
}
# Arguments that mask functions get for other implementations.
_UNUSED = {
    *("allow_is_causal_skip", "allow_is_bidirectional_skip", "allow_torch_fix", "use_vmap"),
    *("local_size", "dtype", "device", "config"),
}
# What models use of a mask that is a tensor.
_OF_MATRICES = {
    *("dtype", "size", "dim", "view", "reshape", "expand", "repeat", "repeat_interleave"),
    *("unsqueeze", "squeeze", "transpose", "float", "bool", "type", "type_as", "masked_fill"),
}
_WHY = {
    "output_attentions": "nbattn never computes the attention weights",
    "head_mask": "nbattn cannot switch heads off",
    "position_bias": "nbattn adds no bias to scores",
    **dict.fromkeys(
        ["cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "max_length_q", "max_length_k", "seq_idx"],
        "packed sequences are not a window",
    ),
}


@dataclass(frozen=True, eq=False)
class LayerMask(BlockMask):
    """The mask function's result, which the attention function gets through model, generate() and
    checkpoints.

    Transformers passes on tensors of 4 dimensions and `BlockMask`s unchanged, so this is a subclass
    of `BlockMask`, but has none of its contents.

    Args:
        window: the keys that a query attends to, relative to its own position.
        offset: the position of query 0 on the keys of this call. It differs in every decode step,
            so it is dynamic for compilers from the first step on.
        key_range: int32 `[B, 1, 2]`: the keys that are not padding; None if all are valid.
        sizes: (B, 1, queries, keys).
        borders: of chunks, if a sample has queries in several; then the mask is not one window.
    """

    window: Window
    offset: int
    key_range: Tensor | None
    sizes: tuple[int, int, int, int]
    borders: chunks.Borders | None = None

    @property
    def mask(self) -> Mask:
        """The mask, which has one axis."""
        left, right, *_ = self.window
        return Mask(Axis(left, right, causal=right == 0, align=self.offset))

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, 1, queries, keys)."""
        return self.sizes

    @property
    def ndim(self) -> int:
        """4: models ask whether a mask is one of a model, or padding of 2 dimensions."""
        return len(self.sizes)

    def __str__(self) -> str:
        return repr(self)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> LayerMask:
        """Returns the mask for a layer on another device, for models on several devices."""
        if device is torch.bool:  # as MPT asks; what it does with a matrix raises then
            return self
        if isinstance(device, torch.dtype):
            raise _combined("casts")
        if self.key_range is None:
            return self
        return replace(self, key_range=self.key_range.to(device, non_blocking=non_blocking))

    def __getattr__(self, name: str) -> Any:
        if name in _OF_MATRICES:
            raise _combined(f"asks for the {name} of")
        raise AttributeError(name)

    def __getitem__(self, index: object) -> BlockMask:
        raise _combined("indexes")

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise _combined(f"calls {getattr(function, '__name__', function)} on")


def _combined(verb: str) -> InputError:
    return InputError(
        f"the model {verb} its attention mask, which nbattn stores as a window, not as a matrix.",
        _EAGER,
    )


@torch.compiler.disable(  # pyright: ignore[reportUntypedFunctionDecorator]
    reason="nbattn needs the padding's values to make a mask"
)
def layer_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: object = None,
    attention_mask: Tensor | None = None,
    **named: Any,
) -> LayerMask:
    """The mask function: turns a model's mask into an nbattn window, key range and offset.

    Args:
        batch_size, q_length, kv_length: sizes of the call.
        q_offset, kv_offset: positions of its first query and of its first key.
        mask_function: transformers' rule for pairs of positions.
        attention_mask: `[B, length]` bool, True where a key is valid, from position 0 on.
        **named: arguments of transformers for other implementations.

    Raises:
        InputError: the rule is not a window, or a sample's valid keys are not one run.
    """
    for name in named.keys() - _UNUSED:
        raise InputError(
            f"transformers passes {name}= to mask functions, which nbattn does not know.",
            install_line("transformers"),
        )
    if torch.compiler.is_exporting():
        raise InputError(
            "torch.export has no values of the padding, from which nbattn makes its mask.",
            f"before the export: {_EAGER}",
        )
    window = mask_functions.read(mask_function, kv_offset + kv_length)
    offset = _changing(int(q_offset) - kv_offset)
    sizes = (batch_size, 1, q_length, kv_length)
    if window.chunks is not None:
        return _chunked(window, int(q_offset), kv_offset, sizes, attention_mask)
    if attention_mask is None:
        return LayerMask(window, offset, None, sizes)
    valid = _valid(attention_mask, batch_size, kv_length, kv_offset)
    stop = _stop(window, offset + q_length, kv_length)
    # padded text has a range even if no window reaches the padding, or compilers would recompile
    padded = not bool(attention_mask.all())
    return LayerMask(window, offset, _key_range(valid[:, :stop], padded=padded), sizes)


def _chunked(
    window: Window,
    q_offset: int,
    kv_offset: int,
    sizes: tuple[int, int, int, int],
    attention_mask: Tensor | None,
) -> LayerMask:
    """The mask of a chunked layer: a causal one with a range of keys, or pieces."""
    runs = window.chunks
    assert runs is not None
    batch, _, queries, keys = sizes
    valid = None
    if attention_mask is not None:
        valid = _key_range(_valid(attention_mask, batch, keys, kv_offset), padded=True)
    at = range(q_offset, q_offset + queries)
    starts = chunks.one_chunk(runs, at, keys, kv_offset)
    offset, window = q_offset - kv_offset, window._replace(chunks=None)
    if starts is None:
        places = chunks.borders(runs, kv_offset)
        return LayerMask(window, offset, valid, sizes, places)
    if valid is None:
        valid = torch.tensor([[[0, keys]]] * batch, dtype=torch.int32)
    starts = starts.expand(batch).to(valid)
    valid = torch.stack([valid[..., 0].maximum(starts[:, None]), valid[..., 1]], dim=-1)
    return LayerMask(window, _changing(offset), valid, sizes)


def _changing(number: int) -> int:
    """Makes a number dynamic for compilers (torch 2.9 or newer); older ones recompile at its second
    value.
    """
    dynamic = getattr(sym_node, "DynamicInt", int)
    return dynamic(number)


def _valid(attention_mask: Tensor, batch: int, kv_length: int, kv_offset: int) -> Tensor:
    """Returns which keys of the call are valid, `[B, kv_length]`; keys after the mask are not."""
    if attention_mask.dim() != 2 or attention_mask.shape[0] != batch:
        raise InputError(
            f"attention_mask is {list(attention_mask.shape)}, the batch {batch}.",
            f"attention_mask=torch.ones({batch}, {kv_offset + kv_length}), with 0 for padding.",
        )
    valid = attention_mask[:, kv_offset : kv_offset + kv_length].bool()
    return torch.nn.functional.pad(valid, (0, kv_length - valid.shape[1]))


def _stop(window: Window, rows: int, keys: int) -> int:
    """One more than the last key that any query attends to; later keys need no range."""
    return keys if window.right is None else max(0, min(keys, rows + window.right))


def _key_range(valid: Tensor, *, padded: bool) -> Tensor | None:
    """Returns the run of valid keys of every sample, int32 `[B, 1, 2]`; None without padding."""
    if not padded and bool(valid.all()):
        return None
    count = valid.sum(dim=1)
    start = valid.int().argmax(dim=1) if valid.shape[1] else count
    at = torch.arange(valid.shape[1], device=valid.device)
    run = (at >= start[:, None]) & (at < (start + count)[:, None])
    if not torch.equal(run, valid):
        sample = int((run != valid).any(dim=1).nonzero()[0])
        raise InputError(
            f"the padding of sample {sample} has holes: its valid tokens are not one run.",
            'model.set_attn_implementation("sdpa"), after apply(model): restore(model), or padding '
            "on the left or on the right only.",
        )
    return torch.stack([start, start + count], dim=-1)[:, None].int()


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **named: Any,
) -> tuple[Tensor, None]:
    """The attention function.

    Args:
        module: the calling layer.
        query: `[B, H, queries, D]`.
        key, value: `[B, Hk, keys, D | Dv]`, not repeated.
        attention_mask: the result of `layer_mask`.
        dropout: of attention weights; 0 outside training.
        scaling: factor of the scores; default `D ** -0.5`.
        softcap: c, for `c * tanh(scores / c)`.
        s_aux: `[H]` sinks.
        is_causal: whether the layer is causal.
        **named: arguments that models pass to every implementation.

    Returns:
        `[B, queries, H, Dv]`, and None for the weights.

    Raises:
        InputError: an argument asks for something that nbattn does not support.
    """
    refuse(module, dropout, named)
    sizes = (query.shape[0], 1, query.shape[2], key.shape[2])
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mask, key_range = read_mask(attention_mask, sizes, is_causal, causal)
    key_range = None if key_range is None else key_range.to(query.device)
    tensors = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))

    def run(query: Tensor, key: Tensor, value: Tensor, mask: Mask, valid: Tensor | None) -> Tensor:
        return attention(
            query, key, value, mask, scale=scaling, softcap=softcap, sink=s_aux, key_range=valid
        )

    if not isinstance(attention_mask, LayerMask) or attention_mask.borders is None:
        return run(*tensors, mask, key_range), None
    places, offset = attention_mask.borders, attention_mask.offset
    return chunks.attend(run, *tensors, places, offset=offset, key_range=key_range), None


def refuse(
    module: torch.nn.Module, dropout: float, named: dict[str, Any], otherwise: str = _EAGER
) -> None:
    """Raises an InputError for every argument that nbattn does not support.

    Args:
        module: the calling layer.
        dropout: of attention weights; 0 outside training.
        named: its arguments.
        otherwise: the code after which the model runs as it is.
    """
    # transformers checks this switch only when it is set after the implementation
    if getattr(getattr(module, "config", None), "output_attentions", False):
        named = {**named, "output_attentions": True}
    if dropout > 0:
        raise InputError(
            f"dropout={dropout} of attention weights, which nbattn does not support.",
            "model.eval(), or config.attention_dropout = 0.0 (the name differs between models), or "
            f"{otherwise}",
        )
    for name, value in named.items():
        if value is None or value is False or name in _NO_EFFECT:
            continue
        reason = _WHY.get(name, "nbattn does not know this argument")
        raise InputError(f"{name} is set: {reason}.", otherwise)


def read_mask(
    attention_mask: object,
    sizes: tuple[int, ...],
    is_causal: bool | None,
    causal: bool,
    otherwise: str = _EAGER,
) -> tuple[Mask, Tensor | None]:
    """Returns mask and key range of a layer, from the result of `layer_mask`.

    Args:
        attention_mask: what the layer was given.
        sizes: (batch, 1, queries, keys) of the layer.
        is_causal: what the model says.
        causal: whether the layer is causal.
        otherwise: the code after which the model runs as it is.
    """
    if attention_mask is None:
        if causal:
            raise InputError(
                "a causal layer has no mask: the model did not call nbattn's mask function.",
                otherwise,
            )
        return Mask.full(), None
    if not isinstance(attention_mask, LayerMask):
        shape = f" {list(attention_mask.shape)}" if isinstance(attention_mask, Tensor) else ""
        raise InputError(
            f"attention_mask is {kind(attention_mask)}{shape}, made by the caller or by the model.",
            f"attention_mask=torch.ones({sizes[0]}, {sizes[3]}), with 0 for padding; or "
            f"{otherwise}",
        )
    if attention_mask.sizes != sizes:
        raise InputError(
            f"the mask is for (batch, 1, queries, keys) = {attention_mask.sizes}, "
            f"the layer has {sizes}.",
            otherwise,
        )
    if is_causal is False and attention_mask.window.right == 0 and sizes[2] > 1:
        raise InputError(
            "is_causal=False contradicts the causal mask that the model made.",
            "model.config.is_causal = False makes the model's masks bidirectional.",
        )
    return attention_mask.mask, attention_mask.key_range


def register(name: str = "nbattn") -> None:
    """Makes `attn_implementation=name` work in every transformers model that uses its interface.

    Registers the attention function and the mask function; a second call changes nothing.

    Args:
        name: for `from_pretrained(..., attn_implementation=name)`, `from_config`, and
            `model.set_attn_implementation(name)`.

    Raises:
        InputError: transformers uses the name for something else, or nbattn does not know the masks
            of this release of transformers.
        ImportError: transformers is not installed.

    >>> register()
    >>> from transformers import AttentionInterface
    >>> "nbattn" in AttentionInterface().valid_keys()
    True
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    _check_name(name, AttentionInterface().get(name))
    mask_functions.check()
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, layer_mask)
    attention_classes.watch(name)


def unregister(name: str = "nbattn") -> None:
    """Reverses `register`; names of other implementations stay."""
    from transformers import AttentionInterface, AttentionMaskInterface

    for interface, function in ((AttentionInterface, attend), (AttentionMaskInterface, layer_mask)):
        functions = interface._global_mapping  # pyright: ignore[reportPrivateUsage]
        if functions.get(name) is function:
            del functions[name]
    attention_classes.forget(name)


def _check_name(name: object, current: object) -> None:
    """Refuses "eager", and "/", "|" and "flash" in names: they have a meaning in transformers."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name) or "flash" in name:
        raise InputError(
            f"name={name!r} cannot be the name of an implementation.",
            'register("nbattn"): letters, digits and "_", without "flash".',
        )
    if name == "eager" or current not in (None, attend):
        raise InputError(
            f"{name!r} is already another attention implementation.", 'register("nbattn").'
        )


def apply(model: Any) -> Any:
    """Makes a model with ALiBi, Bloom or MPT, run on nbattn, in place: these do not use
    transformers' attention interface, so `register` does not reach them.

    Weights, configuration and classes of models do not change, so checkpoints are the same. The
    biases are exact; in half precision transformers rounds Bloom's, and its scores.

    Args:
        model: a Bloom or MPT model of transformers, or a module that has such models.

    Returns:
        The model.

    Raises:
        InputError: another model. A call of the model: what `attend` refuses, such as dropout of
            attention weights in training and `output_attentions`.

    >>> from transformers import BloomConfig, BloomForCausalLM
    >>> model = apply(BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=1, n_head=2)))
    >>> model(torch.tensor([[1, 2, 3]])).logits.shape
    torch.Size([1, 3, 250880])
    """
    from nbattn.integrations import alibi_models

    return alibi_models.apply(model)


def restore(model: Any) -> Any:
    """Reverses `apply`; a model that it did not change stays. Returns the model."""
    from nbattn.integrations import alibi_models

    return alibi_models.restore(model)
