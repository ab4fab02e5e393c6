"""The cost of a candidate: its work, counted in closed form, and the one number that ranks
candidates.

That number is the measured time if there is one, else an estimate, the roofline bound max(flops /
rate, bytes / bandwidth) + copies / bandwidth + calls x launch, with the rates of
`program/device.py`. On the CPU the tiled engine's estimate is the fitted model of
`backends/tiled/costs.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nbattn.program.device import DEVICES
from nbattn.program.program import View
from nbattn.program.request import Request

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
BACKWARD_FLOPS = 2.5  # times the forward's: five matrix products instead of two


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Work of one candidate, forward and (when training) backward.

    Args:
        useful_pairs: (query, key) pairs that the mask allows, over batch and heads.
        computed_pairs: pairs that the kernels compute in the forward.
        backward_pairs: pairs that they compute in the backward; 0 without a backward.
        flops: of the computed pairs, forward and backward.
        bytes: the least that is moved: inputs and outputs once, copies twice.
        calls: kernel launches.
        estimate: seconds by this model, the roofline bound; never a measured time.
        measured: seconds on this device, or None.
    """

    useful_pairs: int
    computed_pairs: int
    backward_pairs: int
    flops: float
    bytes: float
    calls: int
    estimate: float
    measured: float | None = None

    @property
    def seconds(self) -> float:
        """The number that ranks candidates: the measured time, else the estimate."""
        return self.estimate if self.measured is None else self.measured

    def __str__(self) -> str:
        label = "estimated" if self.measured is None else "measured"
        seconds = self.seconds
        return f"{label} {seconds:.3g} s" if seconds >= 1 else f"{label} {seconds * 1e3:.3g} ms"

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, rounded so that it prints the same on every machine."""
        plain = asdict(self)
        return {name: float(f"{x:.4g}") if isinstance(x, float) else x for name, x in plain.items()}


def tensor_bytes(request: Request) -> int:
    """Returns the bytes of q, k, v and the output, each counted once."""
    query = request.query_count * request.heads * (request.head_dim + request.value_dim)
    key = (
        (request.key_count + request.extra_keys)
        * request.kv_heads
        * (request.head_dim + request.value_dim)
    )
    return request.batch * (query + key) * ITEMSIZE[request.dtype]


def roofline(
    request: Request,
    *,
    useful: int,
    computed: int,
    calls: int,
    backward: int | None = None,
    copied: float = 0,
    rate: float | None = None,
    backward_calls: int | None = None,
    backward_flops: float = BACKWARD_FLOPS,
) -> Cost:
    """Returns the cost of work at a device's rates.

    Args:
        useful, computed: pairs per (batch, head), without those of extra keys.
        calls: kernel launches, forward.
        backward: computed pairs of the backward; default: those of the forward.
        copied: bytes of copies.
        rate: FLOP/s; default: the device's peak.
        backward_calls: launches of the backward; default: twice the forward's.
        backward_flops: of a pair in the backward, in those of the forward.
    """
    items = request.batch * request.heads
    extra = request.query_count * request.extra_keys
    passes = 1 + backward_flops * request.training
    pairs = items * (computed + extra)
    backward = items * ((computed if backward is None else backward) + extra) * request.training
    flops = 2.0 * (pairs + backward_flops * backward) * (request.head_dim + request.value_dim)
    moved = tensor_bytes(request) * (1 + 2 * request.training)
    again = 2 * calls if backward_calls is None else backward_calls
    count = calls + again * request.training
    device = request.device
    work = max(flops / (rate or device.peak(request.dtype)), moved / device.bandwidth)
    estimate = work + 2 * copied * passes / device.bandwidth + count * device.launch
    moved += 2 * copied * passes
    return Cost(
        useful_pairs=items * (useful + extra),
        computed_pairs=pairs,
        backward_pairs=backward,
        flops=flops,
        bytes=moved,
        calls=count,
        estimate=estimate,
    )


def one_call(request: Request, useful: int, visited: int) -> Cost:
    """Returns the cost of one call of another library's kernel on whole tensors."""
    rate = sdpa_rate(request)
    return roofline(request, useful=useful, computed=visited, calls=1, rate=rate)


def sdpa_rate(request: Request) -> float | None:
    """Returns the FLOP/s of torch's dense attention on the CPU, where its kernel is slower with
    small heads; None on other devices.
    """
    if request.device.kind != "cpu":
        return None
    dims = request.head_dim + request.value_dim
    return min(75e9, 150e9 * dims / (dims + 128)) * cpu_speed(request)


def cpu_speed(request: Request) -> float:
    """Returns the speed of the request's CPU relative to the CPU that the models were fitted on."""
    return request.device.peak("float32") / DEVICES["cpu"].peak("float32")


def copies(request: Request, view: View) -> bool:
    """Whether folding this view copies memory: its groups merge neither into heads nor, for one
    sample, into batch.
    """
    folded = [axis for axis in view.axes if axis.groups > 1]
    if not folded:
        return len(view.axes) > 1 and not view.is_whole
    in_batch = [axis for axis in folded if axis.into == "batch"]
    return len(view.axes) > 1 or (bool(in_batch) and request.batch > 1)
