"""Answers to arguments that have another name here, or another place, than in other libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from nbattn import mistaken_masks, mistaken_windows, synonyms
from nbattn.axis import MAX_RANK
from nbattn.errors import InputError, similar
from nbattn.fixes.code import DENSE, FLAT, PAIRS
from nbattn.mask import Mask
from nbattn.mistaken_windows import CALL, Answer, Call

# Other names of arguments.
_RENAMED = {
    "query": ("q", "queries", "query_states", "query_layer", "xq"),
    "key": ("k", "keys", "key_states", "key_layer", "xk"),
    "value": ("v", "values", "value_states", "value_layer", "xv"),
    "query_shape": ("query", "shape", "q_shape"),
    "key_shape": ("key", "kv_shape", "k_shape"),
    "extra_key": ("additional_keys", "additional_key", "extra_keys"),
    "extra_value": ("additional_values", "additional_value", "extra_values"),
    "scale": ("qk_scale", "softmax_scale", "sm_scale", "scaling"),
    "softcap": ("logit_cap", "soft_cap", "logits_soft_cap", "attn_logit_softcapping"),
    "sink": ("s_aux", "sinks", "attention_sink", "attn_sink"),
    "grids": ("grid_sizes", "grid_shapes", "image_sizes", "shapes", "spatial_shapes", "sizes"),
    "return_lse": ("return_softmax_lse", "return_logsumexp", "return_attn_probs"),
    "backend": ("implementation", "attn_implementation", "sdp_backend"),
    "training": ("is_training", "train"),
    "device": ("arch",),
    "dtype": ("data_type", "torch_dtype"),
}
_WEIGHTS = "nbattn.attention_weights(query, key, mask, "
_OF_OUTPUTS = (
    "value",
    "extra_value",
    "grids",
    "key_grids",
    "backend",
    "require",
    "forbid",
    "return_lse",
)
_BIASED = DENSE.format(f"{{}}.masked_fill(~{PAIRS}, float('-inf'))")
_PADDED = "key_range=nbattn.key_range_from({})"
_SWAPPED = "query.transpose({0}), key.transpose({0}), value.transpose({0})"
_TRANSPOSED = f"nbattn.attention({_SWAPPED}, mask).transpose({{0}})"
_SEQUENCES = (
    "nbattn.attention(query, key, value, mask, grids=nbattn.grids_from({}), "
    "key_grids=nbattn.grids_from({}))"
)
_PACKED = "packed sequences are packed grids of one axis."
_SEGMENTS = "({}[:, None, :, None] == {}[:, None, None, :])"  # of queries and keys
_SCORED = (
    "torch.nn.attention.flex_attention.flex_attention("
    f"{FLAT}, value.flatten(1, -3).transpose(1, 2), score_mod={{}}, enable_gqa=True, "
    "block_mask=mask.to_flex(query.shape[1:-2], key.shape[1:-2], device=query.device))"
    ".transpose(1, 2).unflatten(1, query.shape[1:-2])"
)


def _dropout(call: Call) -> tuple[str, str]:
    if not call.value:
        return "attention has no dropout of its weights.", f"{CALL}mask)."
    why = "attention has no dropout of its weights; models drop out outputs, after a projection"
    return f"{why}.", f"torch.nn.functional.dropout({CALL}mask), {call.value!r})."


_CHANNELS_FIRST = ("nchw", "bchw", "ncdhw", "channels_first")
_IMAGES = (*_CHANNELS_FIRST, "nhwc", "bhwc", "ndhwc", "channels_last")


def _layout(call: Call) -> tuple[str, str]:
    value = call.value
    why = "tensors are [B, *space, H, D], in any strides"
    name = str(value).lower()
    if name in ("bshd", "bnhd", "blhd", "bthd", "btnh"):
        return f"{why}, which is {value!r}.", f"{CALL}mask)."
    if name in _IMAGES:
        one = "{}.movedim(1, -1).unsqueeze(-2)" if name in _CHANNELS_FIRST else "{}.unsqueeze(-2)"
        called = ", ".join(one.format(x) for x in ("query", "key", "value"))
        back = ".squeeze(-2).movedim(-1, 1)" if name in _CHANNELS_FIRST else ".squeeze(-2)"
        whole = f"nbattn.attention({called}, mask){back}."
        return f"{why}; of {value!r} pass views with one head.", whole
    if name in ("thd", "nhd"):
        return (
            f"{why}; {value!r} has no batch.",
            f"{_SEQUENCES.format('cu_seqlens', 'cu_seqlens')}.",
        )
    if name == "hnd":
        called = ", ".join(f"{x}.transpose(0, 1)[None]" for x in ("query", "key", "value"))
        whole = f"nbattn.attention({called}, mask)[0].transpose(0, 1)."
        return f"{why}; {value!r} has no batch.", whole
    axes = "0, 1" if name in ("sbhd", "nbhd", "lbhd") else "1, 2"
    return f"{why}; of {value!r} pass transposed views.", f"{_TRANSPOSED.format(axes)}."


def _lengths(call: Call) -> tuple[str, str]:
    if call.is_packed:
        return _PACKED, f"grids={call.word}."
    first = "torch.arange(key.shape[1], device=key.device)"
    lengths = f"torch.as_tensor({call.word}, device=key.device)[:, None]"
    why = "the number of real keys of each sample is a range of keys."
    return why, f"{_PADDED.format(f'{first} < {lengths}')}."


def _packed(call: Call) -> tuple[str, str]:
    ends = [n for n in call.named if n.startswith("cu_seq") or n.endswith("_indptr")]
    keys = next((n for n in ends if "k" in n), ends[0])
    key_grids = f", key_grids=nbattn.grids_from({keys})" * (keys != ends[0])
    return _PACKED, f"grids=nbattn.grids_from({ends[0]}){key_grids}."


def _longest(call: Call) -> tuple[str, str]:
    why = "the longest sequence is found from the shapes."
    if call.is_packed:
        return why, f"{_SEQUENCES.format(*['cu_seqlens'] * 2)}."
    return why, f"{CALL}mask)."


def _segments(call: Call) -> tuple[str, str]:
    """Numbers of segments `[B, N]`, of both or of queries and of keys."""
    keys = "kv_segment_ids" if "kv_segment_ids" in call.named else call.word
    queries = "q_segment_ids" if "q_segment_ids" in call.named else call.word
    if call.is_packed:
        counts = f"torch.unique_consecutive({queries}, return_counts=True)[1]"
        return _PACKED, f"grids={counts}, if the tokens of each lie side by side."
    why = "segments that share a row are not supported yet; torch takes a matrix, at the cost of "
    return f"{why}all pairs.", f"{DENSE.format(f'({PAIRS} & {_SEGMENTS.format(queries, keys)})')}."


def _matrix(call: Call) -> tuple[str, str]:
    """A matrix, or what other libraries have in its place; together with a mask, both hold."""
    why = "a mask is an nbattn.Mask; torch takes a matrix, at the cost of all pairs."
    if call.value is None:
        return why, f"{CALL}mask)."
    meant = mistaken_masks.instead_of(call.value, call.rank, call.word)
    if not isinstance(call.mask, Mask):
        return why, meant
    if "key_range=" in meant:
        return (
            why,
            f"key_range={meant.partition('key_range=')[2].partition(', if')[0].rstrip('.')}.",
        )
    kinds = str(getattr(call.value, "dtype", ""))
    if "bool" in kinds:
        return why, f"{DENSE.format(f'({PAIRS} & {call.word})')}."
    return why, f"{_BIASED.format(call.word)}." if "float" in kinds else ""


_RANKED = "nbattn.distributed.attention(query, key, value, mask, "
_RANKS = ("mesh", "shard", "space", "key_space", "query_shard")


def _across_ranks(call: Call) -> tuple[str, str]:
    """Words of attention over a space that is cut into parts, one for each rank."""
    named = dict.fromkeys(_RANKS[:3], call) | dict(call.named)  # a call is shown by its name
    shown = {n: repr(v) if _is_plain(v) else n for n, v in named.items() if n in _RANKS}
    code = f"{_RANKED}{', '.join(f'{name}={value}' for name, value in shown.items())})."
    return "attention across ranks is a function of its own.", code


def _weights(call: Call) -> tuple[str, str]:
    """Weights, which attention never has in memory, of the first query; or none."""
    if not call.value:
        return "attention never has its weights in memory.", f"{CALL}mask)."
    first = [0] if call.rank == 1 else [(0,) * call.rank]
    why = "attention never has its weights in memory; attention_weights has those of a few queries."
    return why, f"{_WEIGHTS}at={first})."


def _given(why: str, fix: str = f"{CALL}mask).") -> Answer:
    """An answer to any value; its code has `{}` in the place of the argument's name."""
    return lambda call: (why, fix.replace("{}", call.word))


_PADDINGS = "padding is a range of keys; {}."
# What has another place than a renamed argument.
_ANSWERS: dict[str, Answer] = {
    **mistaken_windows.ANSWERS,
    **dict.fromkeys(
        ("dropout_p", "dropout", "attn_drop", "attention_dropout", "attn_dropout", "p"), _dropout
    ),
    **dict.fromkeys(_RANKS, _across_ranks),
    **dict.fromkeys(
        ("layout", "qkv_layout", "input_layout", "tensor_layout", "qkv_format", "kv_layout"),
        _layout,
    ),
    **dict.fromkeys(
        (
            *("cu_seqlens", "cu_seqlens_q", "cu_seq_q", "cu_seqlens_k", "cu_seq_k"),
            *("cu_seq_lens_q", "cu_seq_lens_k", "qo_indptr", "kv_indptr"),
        ),
        _packed,
    ),
    **dict.fromkeys(
        (
            *("lengths", "seq_lens", "seqlens", "sequence_lengths"),
            *("key_lengths", "kv_lens", "key_value_seq_lengths"),
        ),
        _lengths,
    ),
    **dict.fromkeys(
        ("attn_mask", "attn_bias", "mask_mod", "block_mask", "mask_matrix", "mask_type"), _matrix
    ),
    **dict.fromkeys(
        ("segment_ids", "q_segment_ids", "kv_segment_ids", "document_ids", "seq_ids"), _segments
    ),
    **dict.fromkeys(
        ("block_table", "block_tables", "page_table"),
        _given(
            "pages of keys are not supported; gather those of each sample, all of them full.",
            "nbattn.attention(query, key[{}].flatten(1, 2), value[{}].flatten(1, 2), mask).",
        ),
    ),
    **dict.fromkeys(
        (
            *("precision", "kernel_options", "op", "score_function", "preferred_element_type"),
            *("num_splits", "pack_gqa", "softmax_precision", "disable_split_kv"),
        ),
        _given("kernels and their options are chosen by backend=."),
    ),
    "enable_gqa": _given("grouped heads are recognized by their shapes."),
    **dict.fromkeys(
        ("num_heads", "heads"),
        _given("the number of heads is that of the tensors [B, *space, H, D]."),
    ),
    "training": _given("whether a backward follows is found from requires_grad."),
    "deterministic": _given(
        "determinism is a setting of torch.", "torch.use_deterministic_algorithms(True)."
    ),
    "bias": _given(
        "a matrix of scores is added by torch, at the cost of all pairs; a table of relative "
        "positions is relative_bias=.",
        f"{_BIASED}.",
    ),
    **dict.fromkeys(
        ("rpb", "rel_pos_bias", "position_bias", "relative_position_bias"),
        _given("the table of relative positions is relative_bias=.", "relative_bias={}."),
    ),
    **dict.fromkeys(
        ("slopes", "alibi"), _given("ALiBi's slopes are alibi_slopes=.", "alibi_slopes={}.")
    ),
    "varlen": _given(_PACKED, f"{_SEQUENCES.format(*['cu_seqlens'] * 2)}."),
    "score_mod": _given("FlexAttention takes functions of scores.", f"{_SCORED}."),
    **dict.fromkeys(
        ("key_padding_mask", "src_key_padding_mask"),
        _given(
            _PADDINGS.format("torch's key_padding_mask is True where a token is padding"),
            f"{_PADDED.format('~{}')}.",
        ),
    ),
    **dict.fromkeys(
        ("attention_mask", "padding_mask", "kv_mask", "seq_mask"),
        _given(
            _PADDINGS.format("transformers' attention_mask is 1 where a token is real"),
            f"{_PADDED.format('{}.bool()')}.",
        ),
    ),
    **dict.fromkeys(
        ("need_weights", "output_attentions", "return_weights", "return_attn_weights"),
        _weights,
    ),
    **dict.fromkeys(("max_seqlen", "max_seqlen_q", "max_seqlen_k", "max_seqlen_kv"), _longest),
}


def refusal(
    function: str,
    named: Mapping[str, Any],
    legal: Sequence[str],
    mask: object = None,
    shape: Sequence[int] | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> InputError:
    """Makes the error of an argument that a function does not take: the first whose fix keeps the
    rest of the call, if there is one.

    Args:
        function: its name.
        named: the unknown arguments with their values.
        legal: the names of its arguments.
        mask: the mask of the call, if any.
        shape: that of the query, if it has one.
        options: its other arguments, None where they were not given.
    """
    rank = mask.rank if isinstance(mask, Mask) else 1 if shape is None else len(shape) - 3
    rank, is_packed = min(max(rank, 1), MAX_RANK), shape is not None and len(shape) == 3
    answers = {
        word: _answer(Call(word, value, named, mask, rank, is_packed), legal)
        for word, value in named.items()
    }
    word = min(answers, key=lambda name: _loss(answers[name][1]))
    why, fix = answers[word]
    if function != "attention":  # which has no tensors
        fix = fix.partition("; or nbattn.")[0] if fix.partition("=")[0] in legal else ""
    given = {name: value for name, value in options.items() if value is not None}
    return InputError(
        f"{function}() takes no argument {word!r}{why}", _with_options(fix, given, named)
    )


def _answer(call: Call, legal: Sequence[str]) -> tuple[str, str]:
    """What is said of an argument after its name, and the fix."""
    if meant_name(call.word, legal):
        return ".", f"{', '.join(_renamed(call.named, legal))}."
    if call.word not in _ANSWERS:
        return f"; it takes {', '.join(legal)}.", ""
    why, fix = mistaken_windows.together(call) or _ANSWERS[call.word](call)
    return f": {why}", fix


def _loss(fix: str) -> int:
    """How much of the rest of a call a fix leaves out: an argument keeps all of it, a call of torch
    its matrix, a call of attention around which something is done that, and a plain one nothing.
    """
    if fix == f"{CALL}mask).":
        return 4
    whole = ("nbattn.attention", "nbattn.distributed.", "torch.cat(", "torch.nn.functional.drop")
    return 3 if fix.startswith(whole) else 2 if fix.startswith("torch.") or not fix else 1


def _with_options(fix: str, given: Mapping[str, Any], named: Mapping[str, Any]) -> str:
    """The fix with the options of the call, if it is a whole call; empty if they have no place."""
    if _loss(fix) < 2 or not given:
        return fix
    shown = {n: repr(v) if _is_plain(v) else n for n, v in given.items()}
    if fix.startswith(_WEIGHTS):
        more = "".join(f"{n}={value}, " for n, value in shown.items() if n not in _OF_OUTPUTS)
        return fix.replace(_WEIGHTS, f"{_WEIGHTS}{more}")
    if "enable_gqa" in fix:  # torch's attention
        if {*given} - {"scale", "backend"}:
            return ""
        return fix.replace("enable_gqa=True", f"enable_gqa=True, scale={shown.get('scale')}")
    if "return_lse" in given and not fix.endswith("mask)."):  # the results are a pair
        return ""
    code = ", ".join(f"{name}={value}" for name, value in shown.items())
    return fix.replace(", mask)", f", mask, {code})").replace(_RANKED, f"{_RANKED}{code}, ")


def _renamed(named: Mapping[str, Any], legal: Sequence[str]) -> list[str]:
    """The arguments that have another name here, as code."""
    meant = {name: meant_name(name, legal) for name in named}
    values = {n: _meant_value(other, named[n]) for n, other in meant.items() if other}
    return [
        f"{meant[name]}={value!r}" if _is_plain(value) else f"{meant[name]}={name}"
        for name, value in values.items()
    ]


def _meant_value(name: str, value: object) -> object:
    """The value of an argument, in nbattn's word for it."""
    if name == "device":
        return synonyms.device(value, synonyms.DEVICES) or value
    table = {"backend": synonyms.BACKENDS, "dtype": synonyms.DTYPES}.get(name)
    if table is None or not isinstance(value, str):
        return value
    return synonyms.meant(value, table, table) or ("auto" if name == "backend" else value)


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
    return similar(word, legal, 0.75)


def _is_plain(value: object) -> bool:
    """Whether the value's repr is code that a message can show."""
    return (
        isinstance(value, (str, bool, int, float, tuple, list, type(None)))
        and len(repr(value)) < 60
    )
