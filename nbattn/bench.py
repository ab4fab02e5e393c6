"""Measure plans on this device: check every usable candidate against the chosen one, then time
them in interleaved rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nbattn import biases, geometry, machine
from nbattn.backends import families
from nbattn.backends.inputs import GRADIENTS
from nbattn.errors import NbattnError
from nbattn.planner import devices, gpus, planner
from nbattn.planner.plan import Plan
from nbattn.program.candidate import Candidate
from nbattn.program.costs import ITEMSIZE, tensor_bytes
from nbattn.program.request import Request
from nbattn.timing import Action, Clock, Samples, clock, interleave

TRAINING_FLOPS = 3.5  # FLOPs of forward + backward, relative to a forward pass
# Limits of a row's error divided by (the row's norm + a typical row's norm): at least four times
# the rounding error. One extra key in a row of n keys gives an error of about 0.3 / sqrt(n).
TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "bfloat16": 2e-2, "float16": 4e-3}
DENSE_BYTES = 1 << 30  # the most bytes of scores for which the reference is measured
_DENSE_COPIES = {
    False: 3,
    True: 6,
}  # copies of the scores at the reference's memory peak, by training
SOFTCAP = 20.0
QUIET = 0.3  # cores that other programs may use while several threads are timed


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate of a job: its time, or the reason why it has none.

    Args:
        name: the candidate's name in the plan.
        estimate: the planner's, in seconds; None where there is none.
        error: the largest relative error of a row of the output or of a gradient, against the
            chosen candidate's.
        reason: why it was not timed; empty when it was.
        wrong: it failed, or its results differ from the chosen candidate's.
        samples: its times.
    """

    name: str
    estimate: float | None
    error: float | None = None
    reason: str = ""
    wrong: bool = False
    samples: Samples | None = None

    @property
    def seconds(self) -> float | None:
        """The reported time; None when it was not timed."""
        return None if self.samples is None else self.samples.typical


@dataclass(frozen=True, slots=True)
class Job:
    """The measurement of one plan: a forward pass, or forward and backward.

    Args:
        name: the plan's name.
        plan: the measured plan, whose request has `training` or not.
        rows: one per candidate, the chosen one first.
        skipped: why nothing was measured; empty when something was.
        interrupted: whether the user stopped it, so that rounds or rows are missing.
    """

    name: str
    plan: Plan
    rows: tuple[Row, ...] = ()
    skipped: str = ""
    interrupted: bool = False

    @property
    def title(self) -> str:
        """The plan's name and the pass."""
        return f"{self.name} {'forward + backward' if self.plan.request.training else 'forward'}"

    @property
    def timed(self) -> list[tuple[str, float]]:
        """(name, seconds) of every timed candidate, fastest first."""
        pairs = [(row.name, row.seconds) for row in self.rows if row.seconds is not None]
        return sorted(pairs, key=lambda pair: pair[1])

    @property
    def regret(self) -> float | None:
        """The chosen candidate's time divided by the best time; None when it was not timed."""
        times = dict(self.timed)
        chosen = times.get(self.plan.chosen.name)
        return None if chosen is None else chosen / min(times.values())

    @property
    def useful_flops(self) -> float:
        """FLOPs over the pairs that the mask allows."""
        request = self.plan.request
        if request.grids is not None:
            assert self.plan.chosen.cost is not None
            items = self.plan.chosen.cost.useful_pairs
            passes = TRAINING_FLOPS if request.training else 1.0
            return 2.0 * items * (request.head_dim + request.value_dim) * passes
        lines = geometry.bind(request.mask, request.query_space, request.key_space)
        pairs = geometry.pairs(lines) + request.query_count * request.extra_keys
        passes = TRAINING_FLOPS if request.training else 1.0
        dims = request.head_dim + request.value_dim
        return 2.0 * request.batch * request.heads * pairs * dims * passes


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to measure.

    Args:
        clock: default: the device's clock, see `timing.clock`.
        rounds: number of rounds per job.
        seconds: no round of a job begins after this time, and a candidate whose estimate for one
            run exceeds it is skipped.
        backends: backends to measure beside the chosen one; None means all.
        by_name: include candidates that only run by name, such as the reference.
    """

    clock: Clock | None = None
    rounds: int = 7
    seconds: float = 20.0
    backends: tuple[str, ...] | None = None
    by_name: bool = True


def why_unreliable(kind: str) -> str:
    """Return why times are unreliable now (several threads beside other programs); empty if not."""
    threads = torch.get_num_threads()
    if kind != "cpu" or threads == 1:
        return ""
    busy = machine.busy()
    if busy is None or busy <= QUIET:
        return ""
    return f"other programs use {busy:.1f} cores: wall times of {threads} threads are unreliable"


def passes(plan: Plan) -> Iterator[Plan]:
    """Yield the plans to measure for a plan: forward, and with training forward and backward."""
    if plan.request.training:
        yield planner.make(replace(plan.request, training=False))
    yield plan


def why_not_here(request: Request) -> str:
    """Return why a request cannot run on this machine; empty when it can."""
    names = ["cpu"]
    kinds = [kind for kind in (gpus.CUDA, gpus.XPU) if gpus.is_available(kind)]
    names += [devices.device_info(kind).name for kind in kinds]
    if request.device.kind == "meta":
        return "the meta device has no data to compute with"
    if request.device.kind not in ("cpu", gpus.CUDA, gpus.XPU):
        names += [request.device.kind] * _present(request.device.kind)
    if request.device.name in names:
        return ""
    return f"planned for {request.device.name}; this machine has {' and '.join(names)}"


def _present(kind: str) -> bool:
    try:
        torch.empty(0, device=kind)
    except (RuntimeError, AssertionError, NotImplementedError):
        return False
    return True


def candidates(plan: Plan, effort: Effort) -> list[Candidate]:
    """Return the candidates to measure, the chosen one first. Models of other backends are measured
    only when named.
    """

    def selected(candidate: Candidate) -> bool:
        if candidate.program is None or any(r.limit != "backend" for r in candidate.reasons):
            return False
        if candidate.reasons and not effort.by_name:
            return False
        if effort.backends is None:
            return not families.backend(candidate.runner).is_model
        return bool({candidate.backend, candidate.runner} & {*effort.backends})

    others = (candidate for candidate in plan.candidates if candidate is not plan.chosen)
    return [plan.chosen, *filter(selected, others)]


def why_skipped(request: Request, candidate: Candidate, seconds: float) -> str:
    """Return why a usable candidate is not run: dense memory or planned time; empty if it is."""
    if candidate.backend == "reference":
        pairs = request.batch * request.query_count * request.key_count
        if request.grids is not None:  # one grid after another; a backward keeps all of them
            pairs = int((request.grids.query.counts * request.grids.key.counts).sum())
        scores = request.heads * pairs
        size = scores * max(4, ITEMSIZE[request.dtype]) * _DENSE_COPIES[request.training]
        if size > DENSE_BYTES:
            return f"{size / 2**30:.3g} GiB of dense scores, the limit is {DENSE_BYTES >> 30} GiB"
    cost = candidate.cost
    if cost is None or cost.seconds <= seconds:
        return ""
    which = "estimate" if cost.measured is None else "measured time"
    return f"its {which} is {cost.seconds:.3g} s, the limit {seconds:g} s"


def measure(
    name: str, plan: Plan, effort: Effort, seen: Callable[[Row], None] = lambda row: None
) -> Job:
    """Check and time the candidates of one plan, without splitting it by `passes`.

    Args:
        name: the plan's name.
        plan: for a device of this machine; for other devices nothing is measured.
        effort: rounds, time and backends.
        seen: called with every row that is new or has new samples.

    Returns:
        The job. After a KeyboardInterrupt it has what was measured, and `interrupted` is True.

    >>> from nbattn import Mask, plan
    >>> small = plan(Mask.neighborhood(3), (1, 16, 1, 8), dtype="float32", device="cpu")
    >>> job = measure("small", small, Effort(rounds=1))
    >>> job.rows[0].name == small.chosen.name, job.regret >= 1
    (True, True)
    """
    request = plan.request
    skipped = why_not_here(request) or _too_large(request)
    if skipped:
        return Job(name, plan, (), skipped)
    rows = {c.name: _row(request, c, effort.seconds) for c in candidates(plan, effort)}
    first = rows[plan.chosen.name]
    if first.reason:  # without it there is no result to compare the others with
        return Job(name, plan, tuple(rows.values()), f"{first.name}: {first.reason}")
    interrupted = False
    try:
        with _deterministic(request.deterministic):
            _time(plan, rows, effort, seen)
    except KeyboardInterrupt:
        interrupted = True
    first = rows[plan.chosen.name]
    skipped = "interrupted" if interrupted else f"{first.name}: {first.reason}"
    is_timed = any(row.samples for row in rows.values())
    return Job(name, plan, tuple(rows.values()), "" if is_timed else skipped, interrupted)


def _time(plan: Plan, rows: dict[str, Row], effort: Effort, seen: Callable[[Row], None]) -> None:
    """Check and time the candidates; their rows in `rows` follow."""
    ready = _prepare(plan, Tensors.of(plan.request), rows, seen)

    def done(name: str, so_far: Samples) -> None:
        rows[name] = replace(rows[name], samples=so_far)
        seen(rows[name])

    interleave(
        ready,
        clock=effort.clock or clock(torch.get_num_threads(), plan.request.device.kind),
        rounds=effort.rounds,
        budget=effort.seconds,
        done=done,
    )


def _row(request: Request, candidate: Candidate, seconds: float) -> Row:
    estimate = None if candidate.cost is None else candidate.cost.estimate
    return Row(candidate.name, estimate, reason=why_skipped(request, candidate, seconds))


def _prepare(
    plan: Plan, inputs: Tensors, rows: dict[str, Row], seen: Callable[[Row], None]
) -> dict[str, Action]:
    """Run every candidate once, the chosen one first, and compare the others with it. Where the
    chosen one fails, the rows of the others are dropped: they cannot be compared.
    """
    ready: dict[str, Action] = {}
    expected: list[Tensor] = []
    by_name = {candidate.name: candidate for candidate in plan.candidates}
    for name, row in [*rows.items()]:
        if not row.reason:
            rows[name], run, outputs = _try(plan, inputs, by_name[name], row, expected)
            if run is not None:
                ready[name] = run
                expected = expected or outputs
        if not expected:
            failed = rows.pop(name)
            rows.clear()
            rows[name] = failed
        seen(rows[name])
        if not expected:
            break
    return ready


def _try(
    plan: Plan, inputs: Tensors, candidate: Candidate, row: Row, expected: list[Tensor]
) -> tuple[Row, Action | None, list[Tensor]]:
    """Run one candidate once; return its row, the function to time (None if wrong), its outputs."""
    run = inputs.runner(plan, candidate)
    try:
        outputs = run()
    except (NbattnError, RuntimeError) as failure:
        return replace(row, reason=f"fails: {str(failure)[:200]}", wrong=True), None, []
    error, limit = disagreement(outputs, expected or outputs), TOLERANCE[plan.request.dtype]
    if error <= limit:
        return replace(row, error=error), run, outputs
    reason = f"WRONG: a row differs by {error:.2g} of its norm, the limit is {limit:g}"
    return replace(row, error=error, reason=reason, wrong=True), None, []


def disagreement(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest of: norm of a row's error / (norm of the row + RMS of all norms)."""
    worst = 0.0
    for actual, wanted in zip(results, expected, strict=True):
        if actual.shape != wanted.shape:
            return math.inf
        if not actual.numel():
            continue
        a, b = actual.double(), wanted.double()
        finite = torch.isfinite(b)
        if not torch.equal(
            a[~finite], b[~finite]
        ):  # equal where rows without keys have -inf; NaN is never equal
            return math.inf
        a, b = torch.where(finite, a, 0.0), torch.where(finite, b, 0.0)
        size = b.norm(dim=-1)
        typical = size.square().mean().sqrt()
        error = (a - b).norm(dim=-1) / (size + typical).clamp_min(1e-300)
        largest = float(error.max())
        if not largest <= worst:  # also true for NaN
            worst = largest
            if math.isnan(worst):
                return math.inf
    return worst


@dataclass(frozen=True, slots=True)
class Tensors:
    """The input tensors of a request: random, with a fixed seed."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad: Tensor
    extras: dict[str, Any]

    @classmethod
    def of(cls, request: Request) -> Tensors:
        """Create tensors of the request's shapes, dtype, device and layout."""
        device = torch.device(request.device.kind)
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            dtype = getattr(torch, request.dtype)
            return torch.randn(shape, generator=generator, dtype=dtype).to(device)

        batch, heads, kv_heads = request.batch, request.heads, request.kv_heads
        dim, value_dim, extra = request.head_dim, request.value_dim, request.extra_keys
        spaces = [[*request.key_space]]
        keys = (batch, *request.key_space)
        query = random(batch, *request.query_space, heads, dim)
        if request.grids is not None:
            query, keys, batch = query[0], request.key_space, len(request.grids)
            spaces = request.grids.key.array.tolist()
        key, value = random(*keys, kv_heads, dim), random(*keys, kv_heads, value_dim)
        if request.layout == "packed":
            query, key, value = _packed(query, key, value)
        extras: dict[str, Any] = {}
        if extra:
            extras["extra_key"] = random(batch, extra, kv_heads, dim)
            extras["extra_value"] = random(batch, extra, kv_heads, value_dim)
        if request.sink:
            extras["sink"] = random(heads)
        if request.softcap:
            extras["softcap"] = SOFTCAP
        if request.key_range:  # the last eighth of every axis is padding
            ranges = [[[0, n - n // 8] for n in space] for space in spaces]
            ranges = ranges if request.grids is not None else ranges * batch
            ranges = torch.tensor(ranges, dtype=torch.int32, device=device)
            extras["key_range"] = ranges.reshape(batch, request.mask.rank, 2)
        if request.extra_range:  # so is the last eighth of the extra keys
            ranges = [[0, extra - extra // 8]] * batch
            extras["extra_range"] = torch.tensor(ranges, dtype=torch.int32, device=device)
        if request.relative_bias:
            extras["relative_bias"] = random(heads, *biases.table_sizes(request.mask.axes))
        if request.alibi_slopes:
            slopes = 2.0 ** -torch.linspace(1, 8, heads)
            extras["alibi_slopes"] = slopes.to(device)
        return cls(query, key, value, random(*query.shape[:-1], value_dim), extras)

    def runner(self, plan: Plan, candidate: Candidate) -> Callable[[], list[Tensor]]:
        """Return a function that runs one candidate's program and returns the output, then the
        logsumexp and the gradients if the request has them.
        """
        request = plan.request
        leaves = {"query": self.query, "key": self.key, "value": self.value}
        leaves |= {n: self.extras[n] for n in GRADIENTS[3:] if n in self.extras}
        if request.training:
            leaves = {n: t.detach().requires_grad_() for n, t in leaves.items()}
        inputs: dict[str, Any] = {**self.extras, **leaves}
        variant = replace(plan, chosen=candidate)

        def run() -> list[Tensor]:
            with torch.set_grad_enabled(request.training):
                out = variant.run(**inputs)
                outputs = list(out) if isinstance(out, tuple) else [out]
                if not request.training:
                    return outputs
                grads = torch.autograd.grad(outputs[0], list(leaves.values()), self.grad)
                return [*(t.detach() for t in outputs), *grads]

        return run


def _packed(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tensors as views of one tensor, head after head; of key and value only where
    queries and keys differ in space.
    """
    together = [query, key, value] if query.shape[:-2] == key.shape[:-2] else [key, value]
    joined = torch.cat([t.flatten(-2) for t in together], dim=-1)
    parts = joined.split([t.shape[-2] * t.shape[-1] for t in together], dim=-1)
    views = [part.unflatten(-1, t.shape[-2:]) for part, t in zip(parts, together, strict=True)]
    return (query, views[0], views[1]) if len(views) == 2 else (views[0], views[1], views[2])


def _too_large(request: Request) -> str:
    """Return a text if the tensors and gradients exceed half of the memory; else an empty one."""
    needed = tensor_bytes(request) * (1 + 2 * request.training)
    available = machine.memory()
    kind = request.device.kind
    if kind in (gpus.CUDA, gpus.XPU):
        module = torch.get_device_module(kind)
        available = module.get_device_properties(torch.device(kind)).total_memory
    if not available or needed <= available / 2:
        return ""
    return f"its tensors take {needed / 2**30:.3g} GiB of {available / 2**30:.3g} GiB of memory"


@contextmanager
def _deterministic(wanted: bool) -> Generator[None]:
    """Set torch's deterministic switch as the request has it, and restore it afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def record(jobs: Sequence[Job], effort: Effort) -> dict[str, Any]:
    """Return all measurements as plain data for JSON."""
    return {
        "format": 1,
        "date": machine.now(),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "threads": torch.get_num_threads(),
        "rounds": effort.rounds,
        "jobs": [_plain(job) for job in jobs],
    }


def _plain(job: Job) -> dict[str, Any]:
    best = job.timed[0][0] if job.timed else None
    return {
        "plan": job.name,
        "pass": "training" if job.plan.request.training else "forward",
        "request": job.plan.request.to_dict(),
        "chosen": job.plan.chosen.name,
        "best": best,
        "regret": job.regret,
        "useful_flops": job.useful_flops,
        "skipped": job.skipped,
        "interrupted": job.interrupted,
        "candidates": [
            {
                "name": row.name,
                "estimate": row.estimate,
                "error": row.error if row.error is None or math.isfinite(row.error) else "inf",
                "reason": row.reason,
                "wrong": row.wrong,
                "seconds": row.seconds,
                "clock": None if row.samples is None else row.samples.clock.title,
                "samples": [] if row.samples is None else list(row.samples.seconds),
            }
            for row in job.rows
        ],
    }
