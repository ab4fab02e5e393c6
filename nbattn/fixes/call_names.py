"""Answers to arguments that have another name here, or another place, than in other libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from nbattn.axis import Axis, meant_truth, written
from nbattn.errors import InputError

# Other names of arguments.
_RENAMED = {
    "extra_key": ("additional_keys", "additional_key", "extra_keys"),
    "extra_value": ("additional_values", "additional_value", "extra_values"),
    "scale": ("qk_scale", "softmax_scale", "sm_scale", "scaling"),
    "softcap": ("logit_cap", "soft_cap", "logits_soft_cap", "attn_logit_softcapping"),
    "sink": ("s_aux", "sinks", "attention_sink", "attn_sink"),
    "return_lse": ("return_softmax_lse", "return_logsumexp", "return_attn_probs"),
    "backend": ("implementation", "attn_implementation", "sdp_backend"),
    "training": ("is_training", "train"),
    "device": ("arch",),
    "dtype": ("data_type", "torch_dtype"),
}
_CALL = "nbattn.attention(query, key, value, "
_FLAT = "query.flatten(1, -3).transpose(1, 2), key.flatten(1, -3).transpose(1, 2)"
# Attention by torch, with a matrix of bools or scores: exact, with the memory of all pairs.
DENSE = (
    "torch.nn.functional.scaled_dot_product_attention("
    f"{_FLAT}, value.flatten(1, -3).transpose(1, 2), attn_mask={{}}, enable_gqa=True)"
    ".transpose(1, 2).unflatten(1, query.shape[1:-2])"
)
PAIRS = "torch.from_numpy(mask.dense(query.shape[1:-2], key.shape[1:-2])).to(query.device)"
_BIASED = DENSE.format(f"{{}}.masked_fill(~{PAIRS}, float('-inf'))")
_PADDED = "key_range=nbattn.key_range_from({})"
_SWAPPED = "query.transpose({0}), key.transpose({0}), value.transpose({0})"
_TRANSPOSED = f"nbattn.attention({_SWAPPED}, mask).transpose({{0}})"
_SEQUENCES = (
    "torch.cat([nbattn.attention(query[None, a:b], key[None, a:b], value[None, a:b], mask)[0] "
    "for a, b in zip({0}[:-1], {0}[1:])])"
)


def _dropout(value: Any) -> tuple[str, str]:
    if not value:
        return "attention has no dropout of its weights.", f"{_CALL}mask)."
    why = "attention has no dropout of its weights; models drop out outputs, after a projection"
    return f"{why}.", f"torch.nn.functional.dropout({_CALL}mask), {value!r})."


def _window(value: Any) -> tuple[str, str]:
    why = "windows are part of the mask; here with the meaning of Flash."
    if value is None:
        return why, "mask=Mask.from_flash((-1, -1))."
    pair = tuple(value) if isinstance(value, (tuple, list)) and len(value) == 2 else (value, 0)
    return why, f"mask=Mask.from_flash({pair!r})."


def _sliding(value: Any) -> tuple[str, str]:
    why = "windows are part of the mask; here with the meaning of transformers, causal."
    return why, f"mask=Mask.from_transformers({value!r})."


def _kernel(value: Any) -> tuple[str, str]:
    size = tuple(value) if isinstance(value, (tuple, list)) else value
    why = "windows are part of the mask; here with the meaning of NATTEN."
    if value is None:
        return why, "mask=Mask.full(rank=query.dim() - 3)."
    return why, f"mask=Mask.neighborhood({size!r})."


def _causal(value: Any) -> tuple[str, str]:
    why = "whether an axis is causal is part of the mask."
    return why, 'mask=Mask.causal("top-left").' if meant_truth(value) else f"{_CALL}mask)."


_CHANNELS_FIRST = ("nchw", "bchw", "ncdhw", "channels_first")
_IMAGES = (*_CHANNELS_FIRST, "nhwc", "bhwc", "ndhwc", "channels_last")


def _layout(value: Any) -> tuple[str, str]:
    why = "tensors are [B, *space, H, D], in any strides"
    name = str(value).lower()
    if name in ("bshd", "bnhd", "blhd", "bthd", "btnh"):
        return f"{why}, which is {value!r}.", f"{_CALL}mask)."
    if name in _IMAGES:
        one = "{}.movedim(1, -1).unsqueeze(-2)" if name in _CHANNELS_FIRST else "{}.unsqueeze(-2)"
        called = ", ".join(one.format(x) for x in ("query", "key", "value"))
        back = ".squeeze(-2).movedim(-1, 1)" if name in _CHANNELS_FIRST else ".squeeze(-2)"
        whole = f"nbattn.attention({called}, mask){back}."
        return f"{why}; of {value!r} pass views with one head.", whole
    if name in ("thd", "nhd"):
        return f"{why}; {value!r} has no batch.", f"{_SEQUENCES.format('cu_seqlens')}."
    if name == "hnd":
        called = ", ".join(f"{x}.transpose(0, 1)[None]" for x in ("query", "key", "value"))
        whole = f"nbattn.attention({called}, mask)[0].transpose(0, 1)."
        return f"{why}; {value!r} has no batch.", whole
    axes = "0, 1" if name in ("sbhd", "nbhd", "lbhd") else "1, 2"
    return f"{why}; of {value!r} pass transposed views.", f"{_TRANSPOSED.format(axes)}."


def _lengths(word: str) -> Callable[[Any], tuple[str, str]]:
    first = "torch.arange(key.shape[1], device=key.device)"
    lengths = f"torch.as_tensor({word}, device=key.device)[:, None]"
    why = "the number of real keys of each sample is a range of keys."
    return lambda value: (why, f"{_PADDED.format(f'{first} < {lengths}')}.")


def _ignored(why: str) -> Callable[[Any], tuple[str, str]]:
    return lambda value: (why, f"{_CALL}mask).")


def _given(why: str, fix: str) -> Callable[[Any], tuple[str, str]]:
    return lambda value: (why, fix)


# What has another place than a renamed argument: the reason, and the code.
_ANSWERS: dict[str, Callable[[Any], tuple[str, str]]] = {
    **dict.fromkeys(
        ("dropout_p", "dropout", "attn_drop", "attention_dropout", "attn_dropout", "p"), _dropout
    ),
    **dict.fromkeys(("window_size", "window", "windows", "local_window_size"), _window),
    "sliding_window": _sliding,
    **dict.fromkeys(("kernel_size", "kernel", "neighborhood_size"), _kernel),
    **dict.fromkeys(("is_causal", "causal", "causal_mask"), _causal),
    **dict.fromkeys(
        ("layout", "qkv_layout", "input_layout", "tensor_layout", "qkv_format", "kv_layout"),
        _layout,
    ),
    **dict.fromkeys(
        ("precision", "kernel_options", "op", "score_function", "preferred_element_type"),
        _ignored("kernels and their options are chosen by backend=."),
    ),
    **{
        word: _lengths(word)
        for word in ("key_lengths", "seq_lens", "seqlens", "kv_lens", "key_value_seq_lengths")
    },
    "enable_gqa": _ignored("grouped heads are recognized by their shapes."),
    "num_heads": _ignored("the number of heads is that of the tensors [B, *space, H, D]."),
    "heads": _ignored("the number of heads is that of the tensors [B, *space, H, D]."),
    "training": _ignored("whether a backward follows is found from requires_grad."),
    "deterministic": _given(
        "determinism is a setting of torch.", "torch.use_deterministic_algorithms(True)."
    ),
    **dict.fromkeys(
        ("attn_mask", "attn_bias", "mask_mod", "block_mask", "mask_matrix"),
        _given(
            "a mask is an nbattn.Mask; torch takes a matrix, at the cost of all pairs.",
            f"{DENSE.format('attn_mask')}.",
        ),
    ),
    **dict.fromkeys(
        ("bias", "rpb", "relative_bias", "rel_pos_bias", "position_bias", "score_mod"),
        _given(
            "a bias of scores is not supported yet; torch adds a matrix [H, Nq, Nk], at the cost "
            "of all pairs.",
            f"{_BIASED.format('bias')}.",
        ),
    ),
    "key_padding_mask": _given(
        "padding is a range of keys; torch's key_padding_mask is True where a token is padding.",
        f"{_PADDED.format('~key_padding_mask')}.",
    ),
    **dict.fromkeys(
        ("attention_mask", "padding_mask", "kv_mask", "seq_mask"),
        _given(
            "padding is a range of keys; transformers' attention_mask is 1 where a token is real.",
            f"{_PADDED.format('attention_mask.bool()')}.",
        ),
    ),
    **dict.fromkeys(
        ("cu_seqlens", "cu_seqlens_q", "cu_seq_q", "cu_seqlens_k"),
        _given(
            "packed sequences are not supported yet; a call for each of them is exact.",
            f"{_SEQUENCES.format('cu_seqlens')}.",
        ),
    ),
    **dict.fromkeys(
        ("need_weights", "output_attentions", "return_weights", "return_attn_weights"),
        _ignored("attention never has its weights in memory, and cannot return them."),
    ),
}


def refusal(
    function: str, named: Mapping[str, Any], legal: Sequence[str], mask: object = None
) -> InputError:
    """Makes the error of the first argument that a function does not take.

    Args:
        function: its name.
        named: the unknown arguments with their values.
        legal: the names of its arguments.
        mask: the mask of the call, if any.
    """
    word, value = next(iter(named.items()))
    problem = f"{function}() takes no argument {word!r}"
    name = meant_name(word, legal)
    if name:
        return InputError(
            f"{problem}.", f"{name}={value!r}." if _is_plain(value) else f"{name}={word}."
        )
    related = _together(named)
    if related:
        return InputError(f"{problem}: windows are part of the mask.", f"mask={related}.")
    if word not in _ANSWERS:
        return InputError(f"{problem}; it takes {', '.join(legal)}.")
    why, fix = _ANSWERS[word](value)
    axes: tuple[Axis, ...] = getattr(mask, "axes", ())
    if len(axes) == 1 and fix.startswith("mask=Mask.causal"):
        fix = f"mask={written((replace(axes[0], right=0, causal=True),))}."
    is_of_mask = fix.startswith("mask=")
    return InputError(f"{problem}: {why}", fix if is_of_mask or function == "attention" else "")


def _together(named: Mapping[str, Any]) -> str:
    """The mask of arguments that define one together, as libraries take them; or nothing."""
    causal = next((meant_truth(named[n]) for n in ("causal", "is_causal") if n in named), None)
    if named.get("sliding_window") is not None and causal is False:
        return f"Mask.from_transformers({named['sliding_window']!r}, causal=False)"
    pair = named.get("window_size")
    if isinstance(pair, (tuple, list)) and len(pair) == 2 and causal:
        return f"Mask.from_flash({tuple(pair)!r}, causal=True)"
    if named.get("kernel_size") is not None:
        more = {n: named[n] for n in ("kernel_size", "dilation", "stride") if named.get(n)}
        if causal or (causal is None and len(more) > 1):
            more |= {"is_causal": True} if causal else {}
            return f"Mask.neighborhood({', '.join(f'{n}={v!r}' for n, v in more.items())})"
    return "Mask.from_flash(causal=True)" if named.get("causal") is True else ""


def meant_name(word: str, legal: Sequence[str]) -> str:
    """Returns the legal name of an argument that was probably meant, or an empty string.

    >>> meant_name("softmax_scale", ["scale"]), meant_name("retrun_lse", ["return_lse"])
    ('scale', 'return_lse')
    """
    for name, others in _RENAMED.items():
        if name in legal and word in others:
            return name
    if word in _ANSWERS:
        return ""
    return next(iter(get_close_matches(word, legal, n=1, cutoff=0.75)), "")


def _is_plain(value: object) -> bool:
    """Whether the value's repr is code that a message can show."""
    return (
        isinstance(value, (str, bool, int, float, tuple, list, type(None)))
        and len(repr(value)) < 60
    )
