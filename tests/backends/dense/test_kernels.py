"""Tests of which kernel torch's SDPA takes on CUDA: a table read off torch's sources by hand, the
limits and costs that follow from a kernel, and the words for it in a plan.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from small_requests import all_of, request_for

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.backends.dense import kernels, run
from nbattn.backends.dense.kernels import SdpaCall, Taken
from nbattn.backends.dense.meaning import NoMask, TopLeftCausal
from nbattn.program.candidate import Candidate
from nbattn.program.device import DEVICES, DeviceInfo


class Case(NamedTuple):
    """What torch of a version, with a version of cuDNN, takes on a device; and where it says so."""

    on: str
    torch: tuple[int, int]
    cudnn: int
    call: dict[str, Any]
    kernel: str
    why: str


PLAIN: dict[str, Any] = {
    "queries": 256, "keys": 256, "heads": 8, "kv_heads": 8, "head_dim": 64, "value_dim": 64,
    "dtype": "bfloat16",
}  # fmt: skip
CAUSAL = {"causal": True}
TALL = CAUSAL | {"keys": 128}
GROUPED = {"kv_heads": 2}
MASKED = {"masked": True}
HALF, SINGLE, DOUBLE = {"dtype": "float16"}, {"dtype": "float32"}, {"dtype": "float64"}


def sizes(head: int, value: int | None = None) -> dict[str, Any]:
    return {"head_dim": head, "value_dim": head if value is None else value}


# Functions are of sdp_utils.cpp; "order" is the array sdp_priority_order of ATen/Context.h.
# fmt: off
CASES = [
    # The order: Flash, memory-efficient, math; cuDNN behind it, or first.
    Case("sm_80", (2, 8), 91002, {}, "flash", "order"),
    Case("sm_80", (2, 13), 92000, {}, "flash", "order; check_prefer_cudnn_attention: major 9, 10"),
    Case("sm_120", (2, 13), 92000, {}, "flash", "check_prefer_cudnn_attention: major 9, 10"),
    Case("sm_90", (2, 8), 91002, {}, "flash", "order; cuDNN first only since #162073, for 2.9"),
    Case("sm_90", (2, 9), 91002, {}, "flash", "#165801: compiled with cuDNN 9.8, ships 9.10.2"),
    Case("sm_90", (2, 9), 91300, {}, "cudnn", "#162073: CUDNN_VERSION >= 90900, 9 or 10, minor 0"),
    Case("sm_103", (2, 9), 91300, {}, "flash", "#162073: minor 0"),
    Case("sm_90", (2, 10), 91002, {}, "flash", "check_prefer_cudnn_attention: above 91500"),
    Case("sm_90", (2, 10), 91500, {}, "flash", "check_prefer_cudnn_attention: above 91500"),
    Case("sm_90", (2, 11), 91900, {}, "cudnn", "check_prefer_cudnn_attention: above 91500"),
    Case("sm_100", (2, 13), 92000, {}, "cudnn", "check_prefer_cudnn_attention"),
    Case("sm_103", (2, 13), 92000, {}, "cudnn", "check_prefer_cudnn_attention: minor 3"),
    Case("sm_90", (2, 13), 0, {}, "flash", "check_prefer_cudnn_attention: no cuDNN"),
    # Causal with two lengths: not Flash.
    Case("sm_80", (2, 8), 91002, CAUSAL, "flash", "check_flash_causal_non_square_seqlens"),
    Case("sm_80", (2, 8), 91002, TALL, "efficient", "check_flash_causal_non_square_seqlens"),
    Case("sm_80", (2, 13), 92000, TALL, "efficient", "check_flash_causal_non_square_seqlens"),
    Case("sm_80", (2, 13), 92000, {"keys": 128}, "flash", "the lengths of a plain call are free"),
    Case("sm_90", (2, 8), 91002, TALL, "efficient", "check_flash_causal_non_square_seqlens"),
    Case("sm_90", (2, 13), 92000, TALL, "cudnn", "cuDNN's checks have no such one"),
    # Masks: not Flash.
    Case("sm_80", (2, 13), 92000, MASKED, "efficient", "check_for_attn_mask"),
    Case("sm_90", (2, 13), 92000, MASKED, "cudnn", "check_attn_mask_shape: 2-d is fine"),
    # Grouped heads: the memory-efficient kernel since #191085.
    Case("sm_80", (2, 13), 92000, GROUPED, "flash", "supports_gqa of Flash"),
    Case("sm_80", (2, 13), 92000, GROUPED | TALL, "math", "supports_gqa=false of mem-efficient"),
    Case("sm_80", (2, 14), 92400, GROUPED | TALL, "efficient", "#191085; num_kv_heads in headers"),
    Case("sm_80", (2, 13), 92000, GROUPED | MASKED, "math", "supports_gqa=false of mem-efficient"),
    Case("sm_90", (2, 13), 92000, GROUPED | TALL, "cudnn", "supports_gqa of cuDNN"),
    # Head sizes.
    Case("sm_80", (2, 13), 92000, sizes(60), "flash", "pad_last_dim<8> in attention.cpp"),
    Case("sm_90", (2, 13), 92000, sizes(60), "flash", "check_cudnn_tensor_shapes: multiple of 8"),
    Case("sm_80", (2, 13), 92000, sizes(60) | TALL, "math", "minimum_gemm_alignment: 8"),
    Case("sm_80", (2, 13), 92000, sizes(64, 32), "efficient", "check_head_dim_size_flash: same"),
    Case("sm_80", (2, 13), 92000, sizes(256), "flash", "check_head_dim_size_flash: 256"),
    Case("sm_80", (2, 13), 92000, sizes(264), "efficient", "check_head_dim_size_flash: 256"),
    Case("sm_80", (2, 13), 92000, SINGLE | sizes(36), "efficient", "minimum_gemm_alignment: 4"),
    Case("sm_80", (2, 13), 92000, SINGLE | sizes(38), "math", "minimum_gemm_alignment: 4"),
    Case("sm_75", (2, 13), 92000, SINGLE | sizes(37), "efficient", "minimum_gemm_alignment: 1"),
    Case("sm_75", (2, 13), 92000, HALF | sizes(36), "math", "minimum_gemm_alignment: 8, major 7"),
    Case("sm_90", (2, 13), 92000, sizes(256), "cudnn", "check_cudnn_tensor_shapes: 9.10, 9.0"),
    Case("sm_90", (2, 9), 91300, sizes(256), "cudnn", "check_cudnn_tensor_shapes: 9.10, 9.0"),
    Case("sm_100", (2, 13), 92000, sizes(136), "flash", "check_cudnn_tensor_shapes: 128"),
    Case("sm_100", (2, 13), 92000, sizes(192, 128), "cudnn", "#172621: 192 and 128 on major 10"),
    Case("sm_100", (2, 10), 91600, sizes(192, 128), "efficient", "#172621 is of 2026-01: 2.11"),
    Case("sm_90", (2, 14), 92200, sizes(256), "flash", "head_dim_limit: cuDNN above 92200"),
    Case("sm_90", (2, 14), 92400, sizes(256), "cudnn", "head_dim_limit: cuDNN above 92200"),
    Case("sm_100", (2, 14), 92400, sizes(256), "cudnn", "head_dim_limit: cuDNN above 92200"),
    # Gradients.
    Case("sm_86", (2, 13), 92000, sizes(200) | {"gradient": True}, "efficient",
         "check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120"),
    Case("sm_120", (2, 13), 92000, sizes(224) | {"gradient": True}, "efficient", "the same"),
    Case("sm_120", (2, 13), 92000, sizes(256) | {"gradient": True}, "flash", "up to 224 only"),
    Case("sm_86", (2, 13), 92000, sizes(192) | {"gradient": True}, "flash", "above 192 only"),
    Case("sm_86", (2, 13), 92000, sizes(200), "flash", "gradients only"),
    Case("sm_80", (2, 13), 92000, sizes(200) | {"gradient": True}, "flash", "not on sm_80"),
    Case("sm_90", (2, 14), 92400, sizes(200) | {"gradient": True}, "flash",
         "check_cudnn_d256_bprop_head_dim"),
    Case("sm_90", (2, 14), 92400, sizes(200), "cudnn", "check_cudnn_d256_bprop_head_dim"),
    Case("sm_90", (2, 14), 92400, sizes(256) | {"gradient": True}, "cudnn", "the same: 256, 256"),
    # Dtypes.
    Case("sm_80", (2, 13), 92000, SINGLE, "efficient", "check_dtypes_low_precision"),
    Case("sm_90", (2, 13), 92000, SINGLE, "efficient", "check_dtypes_low_precision"),
    Case("sm_80", (2, 13), 92000, DOUBLE, "math", "can_use_mem_efficient_attention"),
    Case("sm_75", (2, 13), 92000, HALF, "efficient", "check_flash_attention_hardware_support"),
    Case("sm_75", (2, 13), 92000, {}, "math", "less_than_sm80_mem_efficient_dtypes"),
    # Lengths.
    Case("sm_90", (2, 13), 92000, {"keys": 1}, "flash", "check_cudnn_tensor_shapes: one key"),
    Case("sm_90", (2, 13), 92000, {"queries": 1}, "cudnn", "one query only with dropout"),
    Case("sm_90", (2, 13), 92000, {"keys": 0}, "math", "check_nonzero_sequence_lengths_dense"),
    Case("sm_80", (2, 13), 92000, {"queries": 0}, "math", "check_nonzero_sequence_lengths_dense"),
    # Deterministic algorithms.
    Case("sm_90", (2, 13), 92000, {"deterministic": True}, "flash", "check_cudnn_deterministic"),
]
# fmt: on


def device(on: str, version: tuple[int, int] = (2, 13), cudnn: int = 92000) -> DeviceInfo:
    return replace(DEVICES[on], torch=version, cudnn=cudnn)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[:4]}")
def test_torch_takes_the_kernel_that_its_sources_say(case: Case) -> None:
    call = SdpaCall(**(PLAIN | case.call))
    assert kernels.taken(device(case.on, case.torch, case.cudnn), call) == case.kernel, case.why


def test_grouped_heads_are_repeated_only_where_the_math_kernel_would_run() -> None:
    tall, plain = SdpaCall(**(PLAIN | GROUPED | TALL)), SdpaCall(**(PLAIN | GROUPED))
    of = kernels.of_call
    assert of(device("sm_80"), tall, training=False) == Taken("efficient", repeats=True)
    assert of(device("sm_80", (2, 14)), tall, training=False) == Taken("efficient")
    assert of(device("sm_90"), tall, training=True) == Taken("cudnn", "cudnn")
    assert of(device("sm_80"), plain, training=False) == Taken("flash")
    double = tall._replace(dtype="float64")
    assert of(device("sm_80"), double, training=True) == Taken("math", "math")


def test_the_backward_can_take_another_kernel() -> None:
    call = SdpaCall(**(PLAIN | sizes(200)))
    both = kernels.of_call(device("sm_86"), call, training=True)
    assert both == Taken("flash", "efficient")
    words = "by torch's Flash kernel, backward by its memory-efficient kernel"
    assert both.describe() == words


def sdpa(mask: Mask, shape: tuple[int, ...], name: str = "sdpa/causal", **named: Any) -> Candidate:
    plan = nbattn.plan(mask, shape, **({"device": "sm_80"} | named))
    (found,) = [candidate for candidate in plan.candidates if candidate.name == name]
    return found


def test_a_plan_names_the_kernel() -> None:
    """The project's own example: Flash does not take two lengths with is_causal."""
    mask, shape, key = Mask.causal("top-left"), (1, 7688, 8, 64), (1, 2048, 8, 64)
    found = sdpa(mask, shape, key_shape=key)
    assert found.work().startswith("is_causal, top-left, by torch's memory-efficient kernel; ")
    plan = nbattn.plan(mask, shape, key_shape=key, device="sm_80")
    assert plan.chosen.name == "flash:aten/virtual-pad"
    assert "is_causal, top-left, by torch's memory-efficient kernel; " in plan.explain()
    assert plan.explain().endswith("; for torch 2.13 with cuDNN 9.20.0")
    on_hopper = nbattn.plan(mask, shape, key_shape=key, device="sm_90")
    assert on_hopper.chosen.name == "sdpa/causal"
    assert "by torch's cuDNN kernel" in on_hopper.explain()
    older = nbattn.plan(mask, shape, key_shape=key, device=device("sm_90", (2, 10), 91002))
    assert older.chosen.name == "flash:aten/virtual-pad"


def test_the_kernel_decides_the_rate() -> None:
    """The same call by four kernels, from the fastest to the slowest."""
    shape, square = (1, 4096, 8, 64), Mask.causal()
    times = [
        sdpa(square, shape, device="sm_90"),
        sdpa(square, shape, device=device("sm_90", (2, 8), 91002)),
        sdpa(Mask.causal("top-left"), shape, device=device("sm_90", (2, 8), 91002),
             key_shape=(1, 4095, 8, 64)),
        sdpa(square, shape, device="sm_90", dtype="float64"),
    ]  # fmt: skip
    seconds = [found.cost.estimate for found in times if found.cost]
    assert seconds == sorted(seconds)
    shares = [later / sooner for sooner, later in pairwise(seconds)]
    assert 1.2 < shares[0] < 2  # 595 / 370
    assert 1.5 < shares[1] < 2.1  # twice the time, and the same launch
    assert shares[2] > 10


def test_flash_has_one_rate_through_both_doors() -> None:
    for on in ("sm_80", "sm_90", "sm_120"):
        named = {"device": device(on, (2, 8), 91002)}
        plan = nbattn.plan(Mask.full(), (1, 4096, 8, 64), **named)
        costs = {candidate.name: candidate.cost for candidate in plan.candidates}
        assert costs["sdpa/dense"] == costs["flash:aten/translate"]


@pytest.mark.parametrize(
    ("kernel", "on", "dtype", "share"),
    [
        ("flash", "sm_80", "float16", 1), ("flash", "sm_90", "float16", 370 / 648),
        ("cudnn", "sm_90", "bfloat16", 595 / 648), ("cudnn", "sm_100", "bfloat16", 1),
        ("efficient", "sm_80", "float16", 0.5), ("efficient", "sm_90", "float16", 185 / 648),
        ("efficient", "sm_90", "float32", 0.5),
        ("math", "sm_80", "float64", 1),
    ],
)  # fmt: skip
def test_a_rate_is_a_share_of_the_peak(kernel: str, on: str, dtype: str, share: float) -> None:
    found = kernels.rate(kernel, DEVICES[on], dtype)
    assert found == pytest.approx(share * DEVICES[on].peak(dtype))


def test_the_math_kernel_multiplies_halves_in_float32() -> None:
    peak = DEVICES["sm_80"].peak("float32")
    assert kernels.rate("math", DEVICES["sm_80"], "float16") == peak


def test_the_math_kernel_computes_all_pairs_and_moves_their_scores() -> None:
    shape = (2, 1024, 4, 64)
    found = sdpa(Mask.causal(), shape, dtype="float64")
    dense = sdpa(Mask.full(), shape, "sdpa/dense", dtype="float64")
    assert found.cost is not None
    assert dense.cost is not None
    pairs = 2 * 4 * 1024 * 1024
    assert found.cost.computed_pairs == dense.cost.computed_pairs == pairs
    inputs = 4 * 2 * 1024 * 4 * 64 * 8
    assert dense.cost.bytes == inputs + 4 * 8 * pairs
    assert found.cost.bytes == inputs + 6 * 8 * pairs  # and the mask is added


@pytest.mark.parametrize(
    ("kernel", "queries", "keys", "pairs"),
    [
        ("flash", 256, 256, 128 * 128 + 128 * 256), ("flash", 200, 100, 128 * 100 + 72 * 100),
        ("efficient", 128, 256, 64 * 64 + 64 * 128), ("efficient", 70, 300, 64 * 64 + 6 * 128),
        ("cudnn", 256, 1000, 128 * 128 + 128 * 256), ("math", 10, 20, 200),
    ],
)  # fmt: skip
def test_causal_calls_compute_whole_tiles(kernel: str, queries: int, keys: int, pairs: int) -> None:
    assert TopLeftCausal(0, Taken(kernel)).computed(queries, keys) == pairs


def test_too_many_scores_are_refused_with_both_numbers() -> None:
    shape = (1, 16_384, 9, 64)
    with pytest.raises(BackendError) as error:
        nbattn.plan(Mask.causal(), shape, dtype="float64", device="sm_80", backend="sdpa")
    text = (
        "sdpa/causal: torch would take its math kernel (float64: float16, float32, bfloat16) "
        "and keep 19.3 GB of scores, over the limit of 17.2 GB"
    )
    assert text in str(error.value)
    fits = sdpa(Mask.causal(), (1, 16_384, 8, 64), dtype="float64")
    assert not fits.reasons


def test_the_math_kernel_has_no_grid() -> None:
    shape = (65_536, 16, 1, 8)
    half, double = (sdpa(Mask.full(), shape, "sdpa/dense", dtype=d) for d in ("float16", "float64"))
    assert [reason.limit for reason in half.reasons] == ["grid"]
    assert not double.reasons


@pytest.mark.parametrize(
    ("on", "named", "wrong"),
    [
        (device("sm_90"), {"training": True}, True),
        (device("sm_90"), {}, False),
        (device("sm_80"), {"training": True}, False),
        (device("sm_90", (2, 10), 91002), {"training": True}, False),
        (device("sm_90", (2, 15), 92600), {"training": True}, False),
    ],
)
def test_gradients_that_can_be_nan_are_refused(
    on: DeviceInfo, named: dict[str, Any], wrong: bool
) -> None:
    for length in (64, 192, 256, 200):
        found = sdpa(Mask.sliding_window(3), (1, length, 2, 64), "sdpa/mask", device=on, **named)
        expected = ["gradients"] * (wrong and length in (64, 192))
        assert [reason.limit for reason in found.reasons] == expected


def test_a_device_without_a_capability_has_no_kernel() -> None:
    mine = replace(DEVICES["sm_90"], name="mine")
    found = sdpa(Mask.causal(), (1, 256, 2, 64), device=mine)
    assert found.work().startswith("is_causal, top-left; ")


def test_repeated_heads_give_the_values_of_grouped_ones() -> None:
    """The public function, on the CPU."""
    torch.manual_seed(0)
    arrays = tuple(torch.randn(2, n, h, 16) for n, h in ((12, 4), (9, 2), (9, 2)))
    heads_first = run._heads_first(arrays)
    for arguments in (NoMask(), TopLeftCausal(0)):
        named = replace(arguments, taken=Taken("efficient", "efficient", repeats=True))
        outs = [run._public(one, heads_first, 0.25) for one in (arguments, named)]
        assert torch.allclose(*outs, rtol=1e-6, atol=1e-6)
        upward = torch.randn_like(outs[0])
        both = [run._public_backward(one, heads_first, 0.25, upward) for one in (arguments, named)]
        for mine, theirs in zip(*both, strict=True):
            assert mine.shape == theirs.shape
            assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_repeated_heads_do_reach_torch_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(query: torch.Tensor, key: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        seen.append((key.shape[1], named["enable_gqa"]))
        return attend(query, key, *rest, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    arrays = tuple(torch.randn(1, h, 8, 16) for h in (4, 2, 2))
    run._public(TopLeftCausal(0, Taken("efficient", repeats=True)), arrays, 1.0)
    run._public(TopLeftCausal(0, Taken("cudnn")), arrays, 1.0)
    assert seen == [(4, False), (2, True)]


def test_every_sdpa_program_on_a_named_gpu_names_its_kernel() -> None:
    masks = (Mask.causal(), Mask.full(), Mask.sliding_window(3), Mask(Axis(dilation=4)))
    for mask in masks:
        for on in ("sm_75", "sm_80", "sm_90", "sm_120"):
            request = request_for(mask, 64, device=DEVICES[on], dtype="float16", head_dim=16,
                                  value_dim=16)  # fmt: skip
            for found in all_of(request):
                if found.backend == "sdpa" and found.program is not None:
                    assert "by torch's" in found.work()


def bytes_and_flops(found: Candidate) -> tuple[float, float]:
    assert found.cost is not None
    return found.cost.bytes, found.cost.flops


def test_a_backward_on_a_gpu_repeats_the_forward() -> None:
    """Five products and two again, beside the forward's two; the CPU keeps its results."""
    shape = (1, 1024, 4, 64)
    for on, products in (("sm_80", 9 / 2), ("cpu", 7 / 2)):
        (_, once), (_, trained) = (
            bytes_and_flops(sdpa(Mask.full(), shape, "sdpa/dense", device=on, training=training))
            for training in (False, True)
        )
        assert trained == pytest.approx(products * once)


def test_repeated_heads_are_written_and_read() -> None:
    shape, key = (2, 512, 8, 64), (2, 256, 2, 64)
    mask, named = Mask.causal("top-left"), {"key_shape": key}
    (repeated, _), (grouped, _) = (
        bytes_and_flops(sdpa(mask, shape, device=device("sm_80", version), **named))
        for version in ((2, 13), (2, 14))
    )
    assert repeated - grouped == 2 * (2 * 256 * 8) * (64 + 64) * 2


def test_a_mask_over_an_odd_number_of_keys_is_padded_for_each_head() -> None:
    (odd, _), (even, _) = (
        bytes_and_flops(sdpa(Mask.sliding_window(3), (2, length, 4, 64), "sdpa/mask"))
        for length in (100, 112)
    )
    inputs = 4 * 2 * 4 * 64 * 2
    assert (odd, even) == (100 * inputs + 2 * 2 * 4 * 100 * 100 * 2, 112 * inputs)
