"""Targets of the CPU backends: ratios of peer time to nbattn time, parts of the FMA peak, scaling
with threads, extra memory, and the times of small calls.
"""

from __future__ import annotations

from workloads import Workload

_MIB = 1 << 20
NEVER_SLOWER = 0.95  # target against SDPA where dense attention is the fastest method
GATHER_MEMORY = 50  # least ratio of gathered keys' extra memory to nbattn's, forward

Ratios = dict[str, float]


def _each(names: str, ratio: float) -> Ratios:
    return dict.fromkeys(names.split(), ratio)


_SMALL = _each("W3-28 W3-14 W3-7 W4-28 W4-14", NEVER_SLOWER)
RATIOS: dict[tuple[str, str], Ratios] = {
    ("sdpa-mask", "forward"): {
        **_SMALL, **_each("W1 W2 W3 W4 W4b", 10), **_each("W5 W6", 6), "W5b": 2.5,
        **_each("W7a W7b", NEVER_SLOWER),
    },
    ("sdpa-mask", "training"): {
        **_SMALL, **_each("W1 W3 W4 W4b", 10), **_each("W5 W6", 5.5), "W5b": 2.3,
        **_each("W7a W7b", NEVER_SLOWER),
    },
    ("sdpa-causal", "forward"): {"W7a": 0.95, "W7b": 1.5},
    ("sdpa-causal", "training"): {"W7a": 1.0, "W7b": 1.6},
    ("flex", "forward"): {
        "W1": 0.9, "W2": 1.3, "W3": 8, "W4": 40, "W5": 3.5, "W6": 8,
    },
    ("flex-lookup", "forward"): {"W1": 0.85, "W3": 2.5, "W4": 12, "W5": 1.4, "W6": 2},
    ("gather", "forward"): {**_each("W3 W4 W4b", 14), **_each("W2 W5 W5b W6", 35)},
    ("gather", "training"): _each("W2 W3 W4 W4b W5 W5b W6", 12),
}  # fmt: skip


# Against the tile loop, float32 only: it does less arithmetic in 16 bits.
_TRAINING: Ratios = {"W1": 1.6, "W3": 2.7, "W4": 2, "W5": 1.9, "W6": 2.3}
_TILED: dict[tuple[str, int], Ratios] = {
    ("forward", 1): {
        **_each("W1 W2", 1.7), **_each("W3 W3-28", 2.7), "W3-B1": 4.5, "W3-14": 2.8, "W4": 2,
        "W5": 1.8, "W6": 2.3, "LTX": 2,
    },
    ("forward", 2): {
        **_each("W1 W2", 2), **_each("W3 W3-28", 3.2), "W3-B1": 4.5, "W3-14": 2.8, "W4": 2.7,
        "W5": 2.1, "W6": 2.7, "LTX": 2,
    },
    ("training", 1): _TRAINING,
    ("training", 2): _TRAINING,
}  # fmt: skip
# The least part of the measured FMA peak that useful pairs reach: float32, forward.
PEAK = {"W1": 0.58, **_each("LTX W5b", 0.48), **_each("W5 W6", 0.38)}
FLEX_TILED = 1.0
BUILD = 1.5  # limit of the time of a build without AVX-512, relative to the usual build
PADDED = 1.15  # limit of the time with `key_range`, relative to keys sliced by hand
# Limits of small calls of one thread without gradients: seconds; None: SDPA's time.
CALLS = {"16 tokens": 35e-6, "7x7, 7x7": 45e-6, "7x7, 3x3": 45e-6, "14x14, 7x7": None}


def ratio(
    workload: Workload, peer: str, pass_name: str, dtype: str = "float32", threads: int = 1
) -> float | None:
    """Return the least allowed ratio of peer time to nbattn time; None without a target."""
    if peer.endswith("-float32"):  # nbattn's own time in float32
        return NEVER_SLOWER
    if peer == "flex-tiled":
        return FLEX_TILED if pass_name == "forward" else None
    if peer == "tiled":
        known = _TILED[pass_name, min(threads, 2)] if dtype == "float32" else {}
        return known.get(workload.name)
    return RATIOS.get((peer, pass_name), {}).get(workload.name)


def peak(workload: Workload, pass_name: str, dtype: str) -> float | None:
    """Return the least part of the FMA peak; None without a target."""
    return PEAK.get(workload.name) if (pass_name, dtype) == ("forward", "float32") else None


def scaling(seconds: float, busy: bool = False) -> float:
    """Return the least ratio of the time of one thread, which is given, to that of two threads;
    `busy`: beside other programs on all cores.
    """
    if busy:
        return NEVER_SLOWER
    if seconds > 20e-3:
        return 1.85
    return 1.65 if seconds >= 5e-3 else NEVER_SLOWER


def memory(
    workload: Workload, itemsize: int, training: bool, native: bool = False, threads: int = 1
) -> int:
    """Return the limit of nbattn's extra memory, outputs included; independent of the window.

    Forward: the output and 48 MiB. Training: also the gradients, the float32 sums of the keys'
    and values' gradients, and 64 MiB instead of 48. The native kernels: output, gradients and 1 MiB
    for every thread; in training two float32 numbers (logsumexp and delta) for every row.
    """
    queries, keys = (
        workload.batch * workload.heads * workload.head_dim * count
        for count in (workload.queries, workload.key_count)
    )
    if native:
        rows = 2 * 4 * queries // workload.head_dim if training else 0
        tensors = 2 * queries + 2 * keys if training else queries
        return tensors * itemsize + rows + threads * _MIB
    if not training:
        return queries * itemsize + 48 * _MIB
    return (2 * queries + 2 * keys) * itemsize + 2 * keys * 4 + 64 * _MIB
