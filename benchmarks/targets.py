"""Targets of the CPU backend: ratios of peer time to nbattn time, and extra memory."""

from __future__ import annotations

from workloads import Workload

_MIB = 1 << 20
NEVER_SLOWER = 0.95  # target against SDPA where dense attention is the fastest method
GATHER_MEMORY = 50  # least ratio of gathered keys' extra memory to nbattn's, forward

Ratios = dict[str, float]


def _each(names: str, ratio: float) -> Ratios:
    return dict.fromkeys(names.split(), ratio)


_SMALL = _each("W3-28 W3-14 W4-28 W4-14", NEVER_SLOWER)
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


def ratio(workload: Workload, peer: str, pass_name: str) -> float | None:
    """Return the least allowed ratio of peer time to nbattn time; None without a target."""
    return RATIOS.get((peer, pass_name), {}).get(workload.name)


def memory(workload: Workload, itemsize: int, training: bool) -> int:
    """Return the limit of nbattn's extra memory, outputs included; independent of the window.

    Forward: the output and 48 MiB. Training: also the gradients, the float32 sums of the keys'
    and values' gradients, and 64 MiB instead of 48.
    """
    queries, keys = (
        workload.batch * workload.heads * workload.head_dim * count
        for count in (workload.queries, workload.key_count)
    )
    if not training:
        return queries * itemsize + 48 * _MIB
    return (2 * queries + 2 * keys) * itemsize + 2 * keys * 4 + 64 * _MIB
