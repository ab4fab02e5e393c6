"""Runs transformers' models with ALiBi on nbattn: Bloom and MPT, which have no attention interface.

Their biases count from the sequence's start (Bloom) or from its end (MPT). Both differ from
nbattn's, slope times distance, by one number per query, which no softmax shows; so does the start
that padding moves.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.bloom import modeling_bloom as bloom
from transformers.models.mpt import modeling_mpt as mpt

from nbattn.errors import InputError, kind
from nbattn.functional import attention
from nbattn.integrations import attention_classes
from nbattn.integrations import transformers as interface

_NAME = "nbattn"
_OTHERWISE = "nbattn.integrations.transformers.restore(model)."


class BloomAttention(bloom.BloomAttention):
    """Bloom's attention, run by nbattn."""

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        alibi: Tensor,
        attention_mask: object,
        layer_past: Any = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        **named: Any,
    ) -> Any:
        """Maps `[B, N, C]` to the same shape, and None for the weights.

        Its slopes are float32: those in `alibi` are rounded to the model's dtype.
        """
        named["output_attentions"] = output_attentions
        interface.refuse(self, _dropped(self, self.attention_dropout.p), named, _OTHERWISE)
        query, key, value = self._reshape(self.query_key_value(hidden_states))
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        slopes = bloom._get_alibi_slopes(self.num_heads, query.device)  # pyright: ignore
        heads = _attend(query, key, value, attention_mask, self.inv_norm_factor, slopes)
        out = bloom.dropout_add(self._merged(heads), residual, self.hidden_dropout, self.training)
        return out, None

    def _merged(self, heads: Tensor) -> Tensor:
        """The last projection; in slices where Bloom's own is, which leaves out the bias then."""
        if not (self.pretraining_tp > 1 and self.slow_but_exact):
            return self.dense(heads)
        slices = (t.chunk(self.pretraining_tp, dim=-1) for t in (heads, self.dense.weight))
        return torch.stack([part @ weight.T for part, weight in zip(*slices, strict=True)]).sum(0)


class MptAttention(mpt.MptAttention):
    """MPT's attention, run by nbattn."""

    def forward(
        self,
        hidden_states: Tensor,
        position_bias: Tensor,
        cache: Any = None,
        attention_mask: object = None,
        **named: Any,
    ) -> Any:
        """Maps `[B, N, C]` to the same shape, and None for the weights.

        Its slopes are the bias at a distance of 1.
        """
        interface.refuse(self, _dropped(self, self.attn_dropout_p), named, _OTHERWISE)
        mixed = self.Wqkv(hidden_states)
        if self.clip_qkv:
            mixed = mixed.clamp(min=-self.clip_qkv, max=self.clip_qkv)
        query, key, value = (
            t.unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2)
            for t in mixed.chunk(3, dim=2)
        )
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx, kwargs=named)
        slopes = -position_bias[:, 0, -2]
        heads = _attend(query, key, value, attention_mask, self.softmax_scale, slopes)
        return self.out_proj(heads), None


class MptBlock(mpt.MptBlock):
    """MPT's block, which does not tell its attention that weights are asked for."""

    def forward(self, *arguments: Any, output_attentions: bool = False, **named: Any) -> Any:
        """Refuses `output_attentions`."""
        interface.refuse(self, 0.0, {"output_attentions": output_attentions}, _OTHERWISE)
        return super().forward(*arguments, **named)


# A class of transformers, and what replaces it in a model: the same weights, another forward.
_REPLACED: dict[type[nn.Module], type[nn.Module]] = {
    bloom.BloomAttention: BloomAttention,
    mpt.MptAttention: MptAttention,
    mpt.MptBlock: MptBlock,
}
_MODELS = (bloom.BloomPreTrainedModel, mpt.MptPreTrainedModel)


def apply(model: Any) -> Any:
    """Gives a Bloom or MPT model nbattn's attention, in place, and returns it."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model is {_shown(model)}, not a model of transformers.",
            "nbattn.integrations.transformers.apply("
            'transformers.AutoModelForCausalLM.from_pretrained("bigscience/bloom-560m")).',
        )
    if not any(isinstance(part, _MODELS) for part in model.modules()):
        raise _other(model)
    interface.register(_NAME)
    _exchange(model, _REPLACED, _NAME)
    return model


def restore(model: Any) -> Any:
    """Reverses `apply`, and returns the model."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model is {_shown(model)}, not the model that apply() was given.")
    _exchange(model, {ours: theirs for theirs, ours in _REPLACED.items()}, "eager")
    return model


def _exchange(
    model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]], implementation: str
) -> None:
    """Exchanges the classes of a model's parts: copies and pickles of the model keep the change."""
    for part in model.modules():
        known: Any = part
        if isinstance(part, _MODELS):
            known.config._attn_implementation = implementation
        chosen: Any = classes.get(type(part))
        if chosen is not None:
            known.__class__ = chosen
            if "_old_forward" in vars(part):  # accelerate's hooks call what was the forward pass
                known._old_forward = MethodType(chosen.forward, part)


def _shown(given: object) -> str:
    return "None" if given is None else kind(given)


def _other(model: nn.Module) -> InputError:
    """The answer to a model that is neither Bloom nor MPT."""
    name, config = type(model).__name__, getattr(model, "config", None)
    if getattr(config, "model_type", None) == "falcon" and getattr(config, "alibi", False):
        return InputError(
            f"{name} rounds ALiBi's slopes and biases to bfloat16, whatever its dtype: by up to 9 "
            "at 2,048 tokens of 32 heads. nbattn's are exact, not those that it was trained with.",
        )
    if not isinstance(model, PreTrainedModel):
        return InputError(f"{name} is no Bloom and no MPT of transformers.")
    attention_classes.check(type(model), _NAME)
    if model._can_set_attn_implementation():  # pyright: ignore[reportPrivateUsage]
        return InputError(
            f"{name} uses transformers' attention interface: apply() is for Bloom and MPT.",
            'nbattn.integrations.transformers.register(); model.set_attn_implementation("nbattn").',
        )
    return InputError(
        f"{name} has an attention that nbattn does not replace: neither Bloom nor MPT."
    )


def _dropped(module: nn.Module, probability: float) -> float:
    return probability if module.training else 0.0


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: object, scale: float | None, slopes: Tensor
) -> Tensor:
    """Attention of `[B, H, N, D]`, as `[B, N, C]`."""
    sizes = (query.shape[0], 1, query.shape[2], key.shape[2])
    window, valid = interface.read_mask(mask, sizes, None, True, _OTHERWISE)
    out = attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        window,
        scale=scale,
        key_range=None if valid is None else valid.to(query.device),
        alibi_slopes=slopes,
    )
    return out.flatten(-2)
