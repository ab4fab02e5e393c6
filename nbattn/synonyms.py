"""Names that users bring from other libraries, by place, and the name of nbattn that they mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from nbattn.axis import likely

Synonyms = Mapping[str, Sequence[str]]  # name of nbattn → names of the same elsewhere

# Values of `backend=`.
BACKENDS: Synonyms = {
    "auto": ("any", "best", "default", "automatic", "none"),
    "reference": ("math", "eager", "naive", "dense", "manual", "ref", "plain"),
    "sdpa": ("scaled-dot-product-attention", "mem-efficient", "efficient", "cudnn", "torch-sdpa"),
    "tiled": ("pytorch", "torch", "python", "tile", "tiles"),
    "flash": ("flash-attention", "flash-attn", "flashattention", "flashattn", "fa"),
    "flash:aten": ("aten", "torch-flash", "flash-aten"),
    "flash:fa2": ("fa2", "flash2", "flash-2", "flash-attn-2", "flash-attention-2"),
    "flash:fa3": ("fa3", "flash3", "flash-3", "flash-attn-3", "flash-attention-3"),
    "flash:fa4": ("fa4", "flash4", "flash-4", "flash-attn-4", "flash-attention-4"),
    "cuda": ("gpu", "nvidia", "cupy", "nvrtc", "own", "cuda-kernels"),
    "triton": (
        *("triton-kernels", "openai-triton", "tl", "portable"),
        *("amd", "rocm", "hip", "intel", "xpu", "sycl", "oneapi"),
    ),
    "native": ("cpu", "c++", "cpp", "cxx", "compiled", "avx", "avx2", "avx512", "openmp"),
    "flex": ("flexattention", "flex-attention", "flex-attn", "block-mask"),
    "natten": ("na", "fna", "cutlass-fna", "hopper-fna", "flex-fna", "neighborhood"),
}
DTYPES: Synonyms = {
    "float16": ("half", "fp16", "f16", "16", "fp-16", "float-16"),
    "bfloat16": (
        "bf16",
        "bfloat",
        "bf-16",
        "b16",
        "brain-float",
        "fp8",
        "float8",
        "float8-e4m3fn",
        "float8-e5m2",
    ),
    "float32": ("float", "fp32", "f32", "single", "32", "full", "tf32", "fp-32"),
    "float64": ("double", "fp64", "f64", "64", "fp-64"),
}
# GPUs by the products and generations that have a compute capability.
DEVICES: Synonyms = {
    "cpu": ("host", "x86", "x86-64", "arm", "processor"),
    "sm_75": ("t4", "turing", "rtx2080", "rtx2080ti"),
    "sm_80": ("a100", "ampere", "a30", "a800"),
    "sm_86": ("a40", "a10", "a10g", "a6000", "rtxa6000", "rtx3080", "3080"),
    "sm_89": ("ada", "lovelace", "l4", "l40", "l40s", "rtx4080", "4080"),
    "sm_90": ("h100", "h200", "h800", "gh200", "hopper"),
    "sm_100": ("b200", "gb200", "b100", "blackwell"),
    "sm_103": ("b300", "gb300", "blackwell-ultra"),
    "sm_120": ("rtx5090", "5090", "rtx5080", "5080", "rtxpro6000"),
    "rtx_3090": ("rtx3090", "3090"),
    "rtx_4090": ("rtx4090", "4090"),
    "gfx90a": ("mi250", "mi250x", "mi210", "mi200", "cdna2"),
    "gfx942": ("mi300", "mi300x", "mi300a", "mi325x", "cdna3", "instinct", "amd", "rocm", "hip"),
    "gfx950": ("mi350x", "mi355x", "mi350", "cdna4"),
    "gfx1100": ("7900xtx", "7900xt", "rx7900xtx", "rx7900xt", "rdna3", "radeon"),
    "gfx1201": ("9070xt", "9070", "rx9070xt", "rx9070", "rdna4"),
    "xe": (
        *("pvc", "pontevecchio", "max1550", "1550", "max1100", "xehpc", "intel", "oneapi", "sycl"),
        *("arc", "a770", "b580", "b60", "battlemage", "alchemist"),
    ),
}
# Strategies, in `require=` and `forbid=`.
STRATEGIES: Synonyms = {
    "tile": ("tiles",),
    "mma": ("tensor-cores", "tensor-core", "wmma"),
    "wgmma": ("gmma", "tma", "hopper", "warpgroup", "warpgroups"),
    "mask": ("dense-mask", "attn-mask", "matrix"),
    "causal": ("is-causal",),
    "pad": ("padding",),
    "merge": ("lse", "join"),
    "split": ("chunk", "chunks"),
}
# Values of a layer's `layout=`.
LAYOUTS: Synonyms = {
    "channels_last": ("last", "nlc", "nhwc", "bhwc", "ndhwc", "blc"),
    "channels_first": ("first", "ncl", "nchw", "bchw", "ncdhw", "bcl"),
}
# Keys of the tables of a configuration.
SECTIONS: Synonyms = {
    "masks": ("attention", "patterns", "windows"),
    "layers": ("modules", "blocks", "model"),
    "plans": ("requests", "planner"),
}
LAYER_KEYS: Synonyms = {
    "mask": ("attention-mask", "attn-mask", "mask-name", "pattern"),
    "dim": (
        *("embed-dim", "embed-dims", "hidden-size", "hidden-dim", "d-model", "model-dim"),
        *("channels", "in-channels", "width", "features", "in-features", "n-embd", "query-dim"),
    ),
    "num_heads": (
        *("heads", "head", "nheads", "nhead", "n-heads", "n-head", "numheads"),
        *("num-attention-heads", "attention-heads", "number-of-heads"),
    ),
    "kv_heads": (
        *("num-kv-heads", "n-kv-heads", "num-key-value-heads", "num-heads-kv", "nheads-k"),
        *("key-heads", "num-key-heads", "kv-head", "num-query-groups", "kvheads"),
    ),
    "head_dim": (
        *("dim-head", "head-size", "d-head", "size-per-head", "headdim", "attention-head-dim"),
        *("d-k", "head-channels"),
    ),
    "qkv_bias": ("bias", "use-bias", "attention-bias", "add-qkv-bias", "in-proj-bias", "kv-bias"),
    "proj_drop": (
        *("proj-dropout", "projection-dropout", "out-dropout", "resid-dropout", "resid-pdrop"),
        *("output-dropout", "drop"),
    ),
    "scale": ("qk-scale", "softmax-scale", "sm-scale", "attention-scale", "scaling"),
    "relative_bias": ("rpb", "rel-pos-bias", "relative-position-bias", "use-rpb"),
    "qk_norm": ("use-qk-norm", "qknorm", "query-key-norm"),
    "context_dim": ("cross-attention-dim", "kv-dim", "kdim", "vdim", "encoder-dim"),
    "qk_transform": ("rope", "rotary", "rotary-emb", "position-embedding", "pos-embed"),
    "layout": ("data-format", "memory-format"),
    "backend": ("attn-implementation", "attention-backend", "implementation", "kernel", "impl"),
}
# Arguments of a layer's call.
LAYER_INPUTS: Synonyms = {
    "x": ("hidden-states", "input", "q", "query", "src", "tgt", "tokens"),
    "context": ("encoder-hidden-states", "k", "key", "key-value-states", "kv", "memory"),
    "extra_tokens": ("cls-token", "extra", "register-tokens", "registers", "text-tokens"),
    "update_extra": ("update-extras", "update-extra-tokens", "update-registers", "return-extra"),
    "alibi_slopes": ("alibi", "slopes"),
}
PLAN_KEYS: Synonyms = {
    "mask": LAYER_KEYS["mask"],
    "query": ("query-shape", "shape", "q", "q-shape", "input", "input-shape", "size", "tensor"),
    "key": ("key-shape", "k", "k-shape", "kv", "kv-shape", "key-value", "context", "memory"),
    "value_dim": ("dv", "v-dim", "vdim", "head-dim-v", "value-head-dim"),
    "dtype": ("precision", "torch-dtype", "data-type", "type", "compute-dtype"),
    "device": ("arch", "gpu", "target", "hardware", "platform", "accelerator"),
    "training": ("train", "requires-grad", "backward", "is-training", "grad", "needs-grad"),
    "backend": LAYER_KEYS["backend"],
    "require": ("requires", "required", "needs", "strategies", "allow"),
    "forbid": ("forbids", "forbidden", "exclude", "deny", "without"),
    "return_lse": ("lse", "return-logsumexp", "logsumexp", "return-softmax-lse", "needs-lse"),
    "extra_keys": (
        "extra-tokens",
        "registers",
        "num-registers",
        "additional-kv-length",
        "extra-kv",
    ),
    "softcap": ("logit-cap", "logits-soft-cap", "attn-logit-softcapping", "soft-cap", "tanh-cap"),
    "sink": ("sinks", "attention-sink", "has-sink", "s-aux"),
    "key_range": ("padding", "padding-mask", "key-padding-mask"),
    "grids": ("cu-seqlens", "seqlens", "varlen", "grid-sizes", "image-sizes"),
    "deterministic": ("determinism", "use-deterministic-algorithms"),
}
MASK_KEYS: Synonyms = {
    "axes": ("axis", "dims", "dimensions", "per-axis"),
    "neighborhood": ("neighbourhood", "natten", "nat", "na", "na1d", "na2d", "na3d", "dinat"),
    "sliding_window": ("window", "local", "swa", "sliding", "band", "banded", "local-window"),
    "causal": ("is-causal", "tril", "lower-triangular", "autoregressive", "decoder"),
    "full": ("dense", "all", "none", "global", "bidirectional", "everything"),
    "from_flash": ("flash", "flash-attn", "flash-attention"),
    "from_cudnn": ("cudnn",),
    "from_transformers": ("transformers", "hf", "huggingface"),
}
AXIS_KEYS: Synonyms = {
    "left": ("before", "past", "back", "lookback", "look-back", "window-left", "behind"),
    "right": ("after", "future", "ahead", "lookahead", "look-ahead", "window-right"),
    "dilation": ("dilations", "dilation-rate", "rate", "gap", "spacing", "atrous"),
    "stride": ("strides", "step", "query-stride", "group"),
    "causal": ("is-causal", "autoregressive", "masked"),
    "align": ("alignment", "anchor", "aligned"),
    "offset": ("q-offset", "position", "start", "cache-position"),
    "border": (
        *("boundary", "edge", "edges", "padding-mode", "pad-mode", "pad", "padding", "mode"),
        *("boundary-condition", "borders", "edge-mode"),
    ),
    "prefix": ("global-tokens", "num-global", "sink-tokens", "num-sinks", "sinks", "prefix-len"),
}
ARGUMENTS: Synonyms = {
    "kernel_size": ("kernel", "kernels", "window", "window-size", "k", "size", "ksize"),
    "dilation": AXIS_KEYS["dilation"],
    "stride": AXIS_KEYS["stride"],
    "is_causal": ("causal", "autoregressive"),
    "causal": ("is-causal", "autoregressive"),
    "window_size": ("window", "windows", "local-window"),
    "sliding_window": ("window", "window-size", "size"),
    "align": AXIS_KEYS["align"],
    "rank": ("ndim", "dims", "dim", "dimensions", "axes"),
}


def meant(given: object, known: Iterable[str], synonyms: Synonyms) -> str:
    """Returns the known name that was probably meant, or an empty string.

    >>> meant("flash_attention_2", ("auto", "flash:fa2"), BACKENDS)
    'flash:fa2'
    >>> meant("bf16", DTYPES, DTYPES), meant("torch.half", DTYPES, DTYPES)
    ('bfloat16', 'float16')
    """
    if not isinstance(given, str):
        return ""
    known = tuple(known)
    plain = _plain(given)
    for name in known:
        if plain in (_plain(name), *synonyms.get(name, ())):
            return name
    return "" if plain in _OTHER else likely(given, known)


def _plain(name: str) -> str:
    """A name as the tables have it: lower case, with hyphens, without `torch.`."""
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1-\2", name) if name[:1].islower() else name
    return re.sub(r"[\s_]+", "-", words.strip().lower()).removeprefix("torch.")


_GPU = ("gpu", "cuda", "nvidia", "accelerator")  # no certain one
# Similar to "cpu" or "mma", and something else.
_OTHER = ("tpu", "npu", "hpu", "ipu", "umma", "tcgen05")
_CAPABILITY = re.compile(r"(sm|compute|cc)?[-_ ]?(\d{1,3})(?:\.(\d))?[af]?")


def device(given: object, known: Iterable[str], gpu: str = "sm_90") -> str:
    """Returns the known device that was probably meant, or an empty string: by product, by
    generation, or by a compute capability, which takes the nearest older one. `gpu` stands for no
    certain GPU.

    >>> known = ("cpu", "sm_80", "sm_86", "sm_90")
    >>> [device(name, known) for name in ("H100", "NVIDIA A100-SXM4-80GB", "sm_87", "9.0", "GPU")]
    ['sm_90', 'sm_80', 'sm_86', 'sm_90', 'sm_90']
    """
    if not isinstance(given, str):
        return ""
    known, plain = tuple(known), _plain(given)
    words = {plain.replace("-", ""), *re.split(r"[-:]", plain)}
    for name in known:
        if words & set(DEVICES.get(name, ())):
            return name
    if number := _CAPABILITY.fullmatch(given.strip().lower()):
        wanted = int(number[2] + (number[3] or ""))
        numbered = [name for name in known if name.startswith("sm_")]
        older = [name for name in numbered if int(name[3:]) <= wanted]
        return max(older, key=lambda name: int(name[3:]), default="")
    if words & {*_GPU}:
        return gpu
    return "" if plain in _OTHER else likely(given, known)
