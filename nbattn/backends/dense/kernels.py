"""Which kernel torch's `scaled_dot_product_attention` takes on CUDA, and at what rate.

Torch tries kernels in an order and takes the first whose checks pass: Flash 2 ("flash"), CUTLASS's
memory-efficient one ("efficient"), cuDNN's ("cudnn"), and last plain products with all scores in
memory ("math"). The checks here are those of aten/src/ATen/native/transformers/cuda/sdp_utils.cpp
and sdp_utils_cpp.h, from torch 2.8 on, for calls without dropout; each one names its function.
Torch's own switches (`torch.backends.cuda.enable_flash_sdp`, `torch.nn.attention.sdpa_kernel`,
the variable TORCH_CUDNN_SDPA_DEPRIORITIZED) are not looked at: a call under them computes the same,
by the kernel that they leave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from nbattn.program.device import AMPERE_SHARE, DeviceInfo

NAMES = {
    "flash": "Flash kernel",
    "efficient": "memory-efficient kernel",
    "cudnn": "cuDNN kernel",
    "math": "math kernel",
}
_HALVES = ("float16", "bfloat16")
# cuDNN's published forward rate on sm_90 over the best published one, as AMPERE_SHARE: D=128, no
# mask, length 16k, fp16, in the paper of Flash 3.
_CUDNN_SHARE = 595 / 648
# The memory-efficient kernel takes nearly twice Flash 2's time at D=128 in fp16 on an A40: xformers
# issue 1074. No figure for other devices or dtypes is known; it is used for all.
_EFFICIENT_SHARE = 1 / 2
# Queries and keys of a causal call's tile, of the order of those in the kernels' sources. The math
# kernel has none: it computes all pairs.
TILES = {"flash": (128, 64), "efficient": (64, 64), "cudnn": (128, 128)}


class SdpaCall(NamedTuple):
    """What torch's checks look at in one call."""

    queries: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: str
    causal: bool = False
    masked: bool = False
    gradient: bool = False
    deterministic: bool = False


class Taken(NamedTuple):
    """The kernels that one call takes.

    Args:
        forward: of the forward, a key of `NAMES`.
        backward: of the backward, which repeats the forward with gradients; empty without one.
        repeats: whether key heads are repeated for their query heads, since with grouped heads
            torch would fall back to its math kernel.
    """

    forward: str
    backward: str = ""
    repeats: bool = False

    def describe(self) -> str:
        """Returns the kernels in words, "by torch's Flash kernel"."""
        words = f"by torch's {NAMES[self.forward]}"
        if self.backward not in ("", self.forward):
            words += f", backward by its {NAMES[self.backward]}"
        return words + ", key heads repeated" * self.repeats


def of_call(device: DeviceInfo, call: SdpaCall, *, training: bool) -> Taken:
    """Returns the kernels of a call: grouped key heads are repeated if torch would otherwise take
    its math kernel, and does not then.

    >>> from nbattn.program.device import named
    >>> of_call(named("sm_80"), SdpaCall(8, 4, 4, 2, 64, 64, "float16", causal=True), training=True)
    Taken(forward='efficient', backward='efficient', repeats=True)
    """
    plain, repeated = (
        _both(device, one, training=training) for one in (call, call._replace(kv_heads=call.heads))
    )
    if "math" in plain and "math" not in repeated:
        return Taken(*repeated, repeats=True)
    return Taken(*plain)


def _both(device: DeviceInfo, call: SdpaCall, *, training: bool) -> tuple[str, str]:
    backward = taken(device, call._replace(gradient=True)) if training else ""
    return taken(device, call), backward


def taken(device: DeviceInfo, call: SdpaCall) -> str:
    """Returns the kernel that torch takes for a call: a key of `NAMES`.

    >>> from nbattn.program.device import named
    >>> call = SdpaCall(7688, 2048, 8, 8, 64, 64, "bfloat16", causal=True)
    >>> taken(named("sm_80"), call), taken(named("sm_90"), call)
    ('efficient', 'cudnn')
    """
    return next(kernel for kernel in order(device) if not why_not(kernel, device, call))


def order(device: DeviceInfo) -> tuple[str, ...]:
    """Returns the kernels in the order in which torch tries them (`priority_order`).

    cuDNN's kernel comes first or, behind "math", which takes every call, never.
    """
    others = ("flash", "efficient", "math")
    return ("cudnn", *others) if _prefers_cudnn(device) else others


def _prefers_cudnn(device: DeviceInfo) -> bool:
    """`check_prefer_cudnn_attention`: since 2.9 (pull request 162073) on sm_90 and sm_100 with
    cuDNN 9.9, since 2.10 with more than 9.15.0, and on sm_103 too.

    2.9 compares the version that it was compiled with: 9.8 for the wheels of CUDA 12, which come
    with 9.10 (issue 165801). Those of CUDA 13 come with 9.13.
    """
    number = device.capability
    if device.torch >= (2, 10):
        return number in (90, 100, 103) and device.cudnn > 91500
    return device.torch == (2, 9) and number in (90, 100) and device.cudnn >= 91100


def why_not(kernel: str, device: DeviceInfo, call: SdpaCall) -> str:
    """Returns why torch does not take a kernel for a call; empty if it can.

    >>> from nbattn.program.device import named
    >>> why_not("flash", named("sm_80"), SdpaCall(8, 4, 2, 2, 64, 64, "float16", causal=True))
    'is_causal with 8 queries and 4 keys'
    """
    if kernel == "math":
        return ""
    if not call.queries or not call.keys:  # check_nonzero_sequence_lengths_dense
        return "no queries or no keys"
    return _CHECKS[kernel](device, call)


def _why_not_flash(device: DeviceInfo, call: SdpaCall) -> str:
    number, size = device.capability or 0, call.head_dim
    if call.masked:  # check_for_attn_mask
        return "an explicit mask"
    if size != call.value_dim or size > 256:  # check_head_dim_size_flash
        return f"head sizes {size} and {call.value_dim}: one size up to 256"
    if not 80 <= number <= 121:  # check_flash_attention_hardware_support
        return f"sm_{number}: sm_80 to sm_121"
    # check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120
    if call.gradient and 192 < size <= 224 and (86 <= number <= 89 or number >= 120):
        return f"gradients for head size {size} on sm_{number}"
    if call.causal and call.queries != call.keys:  # check_flash_causal_non_square_seqlens
        return f"is_causal with {call.queries} queries and {call.keys} keys"
    return _not_half(call)  # check_dtypes_flash_attention


def _why_not_efficient(device: DeviceInfo, call: SdpaCall) -> str:
    number = device.capability or 0
    if not 50 <= number <= 121:  # check_mem_efficient_hardware_support
        return f"sm_{number}: sm_50 to sm_121"
    known = ("float16", "float32", *("bfloat16",) * (number >= 80))
    if call.dtype not in known:  # can_use_mem_efficient_attention
        return f"{call.dtype}: {', '.join(known)}"
    unit = _alignment(number, call.dtype)
    if call.head_dim % unit or call.value_dim % unit:  # check_head_dim_size_mem_efficient
        return f"head sizes {call.head_dim} and {call.value_dim}: multiples of {unit}"
    # check_batch_size_and_num_heads_dense; pull request 191085 added groups in 2.14
    if call.heads != call.kv_heads and device.torch < (2, 14):
        return f"{call.heads} query heads over {call.kv_heads} key heads"
    return ""


def _alignment(number: int, dtype: str) -> int:
    """`minimum_gemm_alignment`: 16 bytes with tensor cores."""
    if number >= 80:
        return 8 if dtype in _HALVES else 4
    return 8 if number >= 70 and dtype in _HALVES else 1


def _why_not_cudnn(device: DeviceInfo, call: SdpaCall) -> str:
    number, sizes = device.capability or 0, (call.head_dim, call.value_dim)
    if call.deterministic:  # check_cudnn_deterministic
        return "deterministic algorithms"
    if not 80 <= number <= 121:  # check_cudnn_hardware_support
        return f"sm_{number}: sm_80 to sm_121"
    # check_cudnn_tensor_shapes
    largest = _largest_in_cudnn(device, sizes)
    if max(sizes) > largest or any(size % 8 for size in sizes):
        return f"head sizes {sizes[0]} and {sizes[1]}: multiples of 8 up to {largest}"
    if call.keys == 1:
        return "1 key"
    if call.gradient and _has_wide_heads(device) and not _trains_in_cudnn(sizes):
        return f"gradients for head sizes {sizes[0]} and {sizes[1]}"
    return _not_half(call)  # check_dtypes_low_precision


def _has_wide_heads(device: DeviceInfo) -> bool:
    """Whether torch uses cuDNN's kernels for head size 256, forward and backward."""
    number = device.capability or 0
    return device.torch >= (2, 14) and device.cudnn > 92200 and (number == 90 or number // 10 == 10)


def _largest_in_cudnn(device: DeviceInfo, sizes: tuple[int, int]) -> int:
    """`head_dim_limit` of `check_cudnn_tensor_shapes`."""
    number = device.capability or 0
    if _has_wide_heads(device):
        return 256
    if device.torch < (2, 14) and number == 90 and device.cudnn >= 91000:
        return 256
    special = sizes == (192, 128) and device.torch >= (2, 11) and device.cudnn >= 91100
    hopper = number == 90 and device.torch >= (2, 14)
    return 192 if special and (number // 10 == 10 or hopper) else 128


def _trains_in_cudnn(sizes: tuple[int, int]) -> bool:
    """`check_cudnn_d256_bprop_head_dim`."""
    return max(sizes) <= 128 or sizes in ((192, 128), (256, 256))


def _not_half(call: SdpaCall) -> str:
    return "" if call.dtype in _HALVES else f"{call.dtype}: {', '.join(_HALVES)}"


_CHECKS: Mapping[str, Callable[[DeviceInfo, SdpaCall], str]] = {
    "flash": _why_not_flash,
    "efficient": _why_not_efficient,
    "cudnn": _why_not_cudnn,
}


def nan_gradients(device: DeviceInfo, call: SdpaCall) -> str:
    """Returns why the gradients of a call could be NaN; empty if they are sound.

    With an explicit mask and 64 keys in the last block of 128, cuDNN's backward on sm_90 overflows
    in rows with a small logsumexp: PyTorch issue 196678, with the versions that torch prefers,
    until 9.25.1.
    """
    wrong = call.gradient and call.masked and call.keys % 128 == 64
    if not wrong or device.capability != 90 or not 91500 < device.cudnn <= 92501:
        return ""
    return (
        f"the gradients of torch's cuDNN kernel can be NaN with a mask over {call.keys} keys, "
        "which end in half a block of 128 (PyTorch issue 196678)"
    )


def rate(kernel: str, device: DeviceInfo, dtype: str) -> float:
    """Returns the FLOP/s of a kernel: an estimate, the device's peak times a published share.

    Products of the math kernel are in float32 if the inputs are half precision, unless
    `torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp` was called.
    """
    if kernel == "math":
        return device.peak("float32" if dtype in _HALVES else dtype)
    ampere = AMPERE_SHARE if device.capability == 90 and dtype in _HALVES else 1.0
    if kernel == "cudnn":
        return device.peak(dtype) * (_CUDNN_SHARE if device.capability == 90 else 1.0)
    return device.peak(dtype) * ampere * (_EFFICIENT_SHARE if kernel == "efficient" else 1.0)


def score_bytes(dtype: str, pairs: int) -> int:
    """Returns the bytes of the score matrix that the math kernel keeps, float32 or wider."""
    return pairs * (8 if dtype == "float64" else 4)
