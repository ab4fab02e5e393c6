"""Owns `attn_implementation="nbattn"`: its mask function, its attention function, their names."""

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
from nbattn.integrations import mask_functions
from nbattn.integrations.mask_functions import Window
from nbattn.mask import Mask

_EAGER = 'attn_implementation="eager".'
# What models and trainers hand through to every layer and what changes no attention that has a
# mask: the window is in the mask already. Everything else that is set is refused.
_NO_EFFECT = {
    *("position_ids", "position_embeddings", "sliding_window", "deterministic", "layer_idx"),
    *("cache", "past_key_values", "use_cache", "num_items_in_batch", "logits_to_keep"),
    *("output_hidden_states", "output_router_logits", "return_dict"),
}
# What mask functions are told for the sake of other implementations.
_OTHERS = {
    *("allow_is_causal_skip", "allow_is_bidirectional_skip", "allow_torch_fix", "use_vmap"),
    *("local_size", "dtype", "device", "config"),
}
_WHY = {
    "output_attentions": "nbattn never has the attention weights",
    "head_mask": "nbattn cannot switch heads off",
    "position_bias": "nbattn adds no bias to scores",
    **dict.fromkeys(
        ["cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "max_length_q", "max_length_k", "seq_idx"],
        "packed sequences are no window",
    ),
}


@dataclass(frozen=True, eq=False)
class LayerMask(BlockMask):
    """What the mask function hands to the attention function, through model, generate() and
    checkpoints.

    Transformers passes on untouched what is a tensor of 4 dimensions or a `BlockMask`; this is one
    in name only.

    Args:
        window: the keys that a query reads, around its own position.
        offset: where query 0 stands on the keys of this call: another number in every step of a
            decode, which compilers are told from the first on.
        key_range: int32 `[B, 1, 2]`: the keys that are no padding; None where all are valid.
        sizes: (B, 1, queries, keys).
    """

    window: Window
    offset: int
    key_range: Tensor | None
    sizes: tuple[int, int, int, int]

    @property
    def mask(self) -> Mask:
        """The mask, of one axis."""
        left, right = self.window
        return Mask(Axis(left, right, causal=right == 0, align=self.offset))

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, 1, queries, keys)."""
        return self.sizes

    def __str__(self) -> str:
        return repr(self)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> LayerMask:
        """The mask for a layer on another device, as models spread over several ask for it."""
        if isinstance(device, torch.dtype):
            raise _combined("casts")
        if self.key_range is None:
            return self
        return replace(self, key_range=self.key_range.to(device, non_blocking=non_blocking))

    def __getitem__(self, index: object) -> BlockMask:
        raise _combined("indexes")

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise _combined(f"calls {getattr(function, '__name__', function)} on")


def _combined(verb: str) -> InputError:
    return InputError(
        f"the model {verb} its attention mask, which nbattn keeps as a rule and not as a matrix.",
        _EAGER,
    )


@torch.compiler.disable(  # pyright: ignore[reportUntypedFunctionDecorator]
    reason="nbattn reads the padding's values to make a mask"
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
    """The mask function: what a model asks for, as an nbattn mask, key range and offset.

    Args:
        batch_size, q_length, kv_length: sizes of the call.
        q_offset, kv_offset: positions of its first query and of its first key.
        mask_function: transformers' rule for pairs of positions.
        attention_mask: `[B, length]` bool, True where a key is valid, from position 0 on.
        **named: what transformers tells other implementations.

    Raises:
        InputError: the rule is no window, or the padding leaves more than one run of valid keys.
    """
    for name in named.keys() - _OTHERS:
        raise InputError(
            f"transformers passes {name}= to mask functions, which nbattn does not know.",
            'pip install "nbattn[transformers]"',
        )
    if torch.compiler.is_exporting():
        raise InputError(
            "torch.export: a mask is made of the values of the padding, which it does not have.",
            f"export with {_EAGER}",
        )
    window = mask_functions.read(mask_function, kv_offset + kv_length)
    offset = _changing(int(q_offset) - kv_offset)
    sizes = (batch_size, 1, q_length, kv_length)
    if attention_mask is None:
        return LayerMask(window, offset, None, sizes)
    valid = _valid(attention_mask, batch_size, kv_length, kv_offset)
    read = _last_read(window, offset + q_length, kv_length)
    # a padded text keeps its range when its padding has left a window: compilers tell the two apart
    padded = not bool(attention_mask.all())
    return LayerMask(window, offset, _key_range(valid[:, :read], padded=padded), sizes)


def _changing(number: int) -> int:
    """A number that compilers take for one of many, where torch (2.9 or newer) has a way to say so;
    elsewhere they find out at its second value.
    """
    dynamic = getattr(sym_node, "DynamicInt", int)
    return dynamic(number)


def _valid(attention_mask: Tensor, batch: int, kv_length: int, kv_offset: int) -> Tensor:
    """Which keys of the call are valid, `[B, kv_length]`: those the mask does not reach are not."""
    if attention_mask.dim() != 2 or attention_mask.shape[0] != batch:
        raise InputError(
            f"attention_mask is {list(attention_mask.shape)}, the batch {batch}.",
            f"attention_mask as [{batch}, length], 1 for tokens and 0 for padding.",
        )
    kept = attention_mask[:, kv_offset : kv_offset + kv_length].bool()
    return torch.nn.functional.pad(kept, (0, kv_length - kept.shape[1]))


def _last_read(window: Window, rows: int, keys: int) -> int:
    """One more than the last key that any query reads: what lies beyond needs no range."""
    return keys if window.right is None else max(0, min(keys, rows + window.right))


def _key_range(valid: Tensor, *, padded: bool) -> Tensor | None:
    """The run of valid keys of every sample, int32 `[B, 1, 2]`; None without padding."""
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
            "padding on the left or on the right only.",
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
        module: the layer that calls.
        query: `[B, H, queries, D]`.
        key, value: `[B, Hk, keys, D | Dv]`, not repeated.
        attention_mask: what `layer_mask` returned.
        dropout: of attention weights; 0 outside training.
        scaling: of the scores; default `D ** -0.5`.
        softcap: c, for `c * tanh(scores / c)`.
        s_aux: `[H]` sinks.
        is_causal: what the layer says of itself.
        **named: what models hand to every implementation.

    Returns:
        `[B, queries, H, Dv]`, and None for the weights.

    Raises:
        InputError: something is asked for that nbattn cannot do.
    """
    _refuse(module, dropout, named)
    sizes = (query.shape[0], 1, query.shape[2], key.shape[2])
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mask, key_range = _read_mask(attention_mask, sizes, is_causal, causal)
    out = attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        mask,
        scale=scaling,
        softcap=softcap,
        sink=s_aux,
        key_range=None if key_range is None else key_range.to(query.device),
    )
    return out, None


def _refuse(module: torch.nn.Module, dropout: float, named: dict[str, Any]) -> None:
    """What nbattn cannot honour is refused, never dropped."""
    # transformers checks this switch only when it is set after the implementation
    if getattr(getattr(module, "config", None), "output_attentions", False):
        named = {**named, "output_attentions": True}
    if dropout > 0:
        raise InputError(
            f"dropout={dropout} of attention weights, which nbattn never has.",
            "config.attention_dropout = 0.0 (the name differs between models), or "
            f"model.eval(), or {_EAGER}",
        )
    for name, value in named.items():
        if value is None or value is False or name in _NO_EFFECT:
            continue
        why = _WHY.get(name, "nbattn does not know what it means")
        raise InputError(f"{name} is set: {why}.", _EAGER)


def _read_mask(
    given: object, sizes: tuple[int, ...], is_causal: bool | None, causal: bool
) -> tuple[Mask, Tensor | None]:
    """Mask and key range of a layer."""
    if given is None:
        if causal:
            raise InputError(
                "a causal layer has no mask: the model never asked nbattn's mask function.", _EAGER
            )
        return Mask.full(), None
    if not isinstance(given, LayerMask):
        shape = f" {list(given.shape)}" if isinstance(given, Tensor) else ""
        raise InputError(
            f"attention_mask is {kind(given)}{shape}, made by the caller or by the model.",
            f"attention_mask as [B, length], 1 for tokens and 0 for padding; or {_EAGER}",
        )
    if given.sizes != sizes:
        raise InputError(
            f"the mask is for (batch, 1, queries, keys) = {given.sizes}, the layer has {sizes}.",
            _EAGER,
        )
    if is_causal is False and given.window.right == 0 and sizes[2] > 1:
        raise InputError(
            "is_causal=False contradicts the causal mask that the model made.",
            "config.is_causal = False makes the model's masks bidirectional.",
        )
    return given.mask, given.key_range


def register(name: str = "nbattn") -> None:
    """Make `attn_implementation=name` work in every transformers model that uses its interface.

    Registers the attention function and the mask function; doing it twice changes nothing.

    Args:
        name: for `from_pretrained(..., attn_implementation=name)`, `from_config`, and
            `model.set_attn_implementation(name)`.

    Raises:
        InputError: a name that means something else to transformers, or a release of transformers
            whose masks are not known.
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


def unregister(name: str = "nbattn") -> None:
    """Take back what `register` did; a name that is not nbattn's stays."""
    from transformers import AttentionInterface, AttentionMaskInterface

    for interface, function in ((AttentionInterface, attend), (AttentionMaskInterface, layer_mask)):
        known = interface._global_mapping  # pyright: ignore[reportPrivateUsage]
        if known.get(name) is function:
            del known[name]


def _check_name(name: object, known: object) -> None:
    """Transformers gives a meaning to "eager", to "/", "|" and "flash" in names."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name) or "flash" in name:
        raise InputError(
            f"name={name!r} is no name of an implementation.",
            'letters, digits and "_", without "flash": register("nbattn").',
        )
    if name == "eager" or known not in (None, attend):
        raise InputError(f"{name!r} is an attention implementation already.", 'register("nbattn").')
