"""Measuring plans on this device: every usable candidate, checked against the chosen one, then
timed in interleaved rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nbattn import geometry, machine
from nbattn.errors import NbattnError
from nbattn.planner import devices, planner
from nbattn.planner.plan import Plan
from nbattn.program.candidate import Candidate
from nbattn.program.costs import ITEMSIZE, tensor_bytes
from nbattn.program.request import Request
from nbattn.timing import Action, Clock, Samples, clock, interleave

TRAINING_FLOPS = 3.5  # of a forward pass
# The largest error of a row over its own size and that of a typical row together: four times and
# more what rounding does. A key too many in one row of n is off by about 0.3 / sqrt(n).
TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "bfloat16": 2e-2, "float16": 4e-3}
DENSE_BYTES = 1 << 30  # of scores that the reference may hold
_DENSE_COPIES = {False: 3, True: 6}  # of the scores, at the reference's peak: forward, training
SOFTCAP = 20.0
QUIET = 0.3  # cores that other programs may use while several threads are timed


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate of a job: its time, or why it has none.

    Args:
        name: as the plan lists it.
        bound: the planner's, in seconds; None where there is none.
        error: the largest relative error of a row of the output or of a gradient, against the
            chosen candidate's.
        reason: why it was not timed; empty when it was.
        wrong: it ran and disagreed with the chosen one, or failed.
        samples: its times.
    """

    name: str
    bound: float | None
    error: float | None = None
    reason: str = ""
    wrong: bool = False
    samples: Samples | None = None

    @property
    def seconds(self) -> float | None:
        """What is reported."""
        return None if self.samples is None else self.samples.typical


@dataclass(frozen=True, slots=True)
class Job:
    """One plan as measured: a forward pass, or forward and backward.

    Args:
        name: the plan's.
        plan: made for `training` or not, as measured.
        rows: the chosen candidate first.
        skipped: why nothing was measured; empty when something was.
    """

    name: str
    plan: Plan
    rows: tuple[Row, ...] = ()
    skipped: str = ""

    @property
    def title(self) -> str:
        """The plan's name and the pass."""
        return f"{self.name} {'forward + backward' if self.plan.request.training else 'forward'}"

    @property
    def timed(self) -> list[tuple[str, float]]:
        """Names and seconds of what was timed, fastest first."""
        found = [(row.name, row.seconds) for row in self.rows if row.seconds is not None]
        return sorted(found, key=lambda pair: pair[1])

    @property
    def regret(self) -> float | None:
        """The chosen candidate's time over the best one's."""
        times = dict(self.timed)
        mine = times.get(self.plan.chosen.name)
        return None if mine is None else mine / min(times.values())

    @property
    def useful_flops(self) -> float:
        """FLOPs over the pairs that the mask allows."""
        request = self.plan.request
        lines = geometry.bind(request.mask, request.query_space, request.key_space)
        pairs = geometry.pairs(lines) + request.query_count * request.extra_keys
        passes = TRAINING_FLOPS if request.training else 1.0
        dims = request.head_dim + request.value_dim
        return 2.0 * request.batch * request.heads * pairs * dims * passes


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to measure.

    Args:
        clock: which clock; default: the device's, see `timing.clock`.
        rounds: of every job.
        seconds: of a job after which no round begins, and of one run by its bound: a candidate
            over it is skipped.
        backends: those to measure beside the chosen one; None is all.
        by_name: also candidates that only run by name, the reference among them.
    """

    clock: Clock | None = None
    rounds: int = 7
    seconds: float = 20.0
    backends: tuple[str, ...] | None = None
    by_name: bool = True


def disturbance(kind: str) -> str:
    """Why times would mislead now: several threads, timed by wall time, beside other programs."""
    threads = torch.get_num_threads()
    if kind != "cpu" or threads == 1:
        return ""
    others = machine.busy()
    if others is None or others <= QUIET:
        return ""
    return f"other programs use {others:.1f} cores: wall times of {threads} threads mislead"


def passes(plan: Plan) -> Iterator[Plan]:
    """The plans that a plan is measured as: a forward pass, and with training both passes."""
    if plan.request.training:
        yield planner.make(replace(plan.request, training=False))
    yield plan


def elsewhere(request: Request) -> str:
    """Why a request cannot run on this machine; empty when it can."""
    mine = ["cpu"]
    if torch.cuda.is_available():
        mine.append(devices.device_info("cuda").name)
    if request.device.kind == "meta":
        return "the meta device computes nothing"
    if request.device.kind not in ("cpu", "cuda"):
        mine += [request.device.kind] * _present(request.device.kind)
    if request.device.name in mine:
        return ""
    return f"planned for {request.device.name}; this machine has {' and '.join(mine)}"


def _present(kind: str) -> bool:
    try:
        torch.empty(0, device=kind)
    except (RuntimeError, AssertionError, NotImplementedError):
        return False
    return True


def candidates(plan: Plan, effort: Effort) -> list[Candidate]:
    """Those to measure, the chosen one first; "flash-model", a model of kernels for proofs, only
    where its name is given.
    """

    def wanted(one: Candidate) -> bool:
        if one.program is None or any(reason.limit != "backend" for reason in one.reasons):
            return False
        if one.reasons and not effort.by_name:
            return False
        if effort.backends is None:
            return one.runner != "flash-model"
        return bool({one.backend, one.runner} & {*effort.backends})

    others = (one for one in plan.candidates if one is not plan.chosen)
    return [plan.chosen, *filter(wanted, others)]


def obstacle(request: Request, candidate: Candidate, seconds: float) -> str:
    """Why a usable candidate is not run: memory, or time, as far as the planner knows it."""
    if candidate.backend == "reference":
        scores = request.batch * request.heads * request.query_count * request.key_count
        held = scores * max(4, ITEMSIZE[request.dtype]) * _DENSE_COPIES[request.training]
        if held > DENSE_BYTES:
            return f"{held / 2**30:.3g} GiB of dense scores, the limit is {DENSE_BYTES >> 30} GiB"
    cost = candidate.cost
    if cost is None or cost.seconds <= seconds:
        return ""
    which = "bound" if cost.measured is None else "measured time"
    return f"its {which} is {cost.seconds:.3g} s, the limit {seconds:g} s"


def measure(
    name: str, plan: Plan, effort: Effort, done: Callable[[str], None] = lambda name: None
) -> Job:
    """Check and time the candidates of one plan, as it is: see `passes`.

    Args:
        name: the plan's.
        plan: for a device of this machine; for others nothing is measured.
        effort: how long.
        done: called after every turn, with the candidate's name.

    >>> from nbattn import Mask, plan
    >>> small = plan(Mask.neighborhood(3), (1, 16, 1, 8), dtype="float32", device="cpu")
    >>> job = measure("small", small, Effort(rounds=1))
    >>> job.rows[0].name == small.chosen.name, job.regret >= 1
    (True, True)
    """
    request = plan.request
    skipped = elsewhere(request) or _too_large(request)
    if skipped:
        return Job(name, plan, (), skipped)
    waiting = {one.name: _row(request, one, effort.seconds) for one in candidates(plan, effort)}
    first = waiting[plan.chosen.name]
    if first.reason:  # nothing to compare the others with
        return Job(name, plan, tuple(waiting.values()), f"{first.name}: {first.reason}")
    with _deterministic(request.deterministic):
        rows, ready = _prepare(plan, Tensors.of(request), waiting)
        samples = interleave(
            ready,
            clock=effort.clock or clock(torch.get_num_threads(), request.device.kind),
            rounds=effort.rounds,
            budget=effort.seconds,
            done=done,
        )
    timed = tuple(replace(row, samples=samples.get(row.name)) for row in rows)
    return Job(name, plan, timed, "" if ready else f"{rows[0].name}: {rows[0].reason}")


def _row(request: Request, candidate: Candidate, seconds: float) -> Row:
    bound = None if candidate.cost is None else candidate.cost.bound
    return Row(candidate.name, bound, reason=obstacle(request, candidate, seconds))


def _prepare(
    plan: Plan, inputs: Tensors, waiting: dict[str, Row]
) -> tuple[list[Row], dict[str, Action]]:
    """Every candidate run once and compared with the chosen one, which comes first."""
    rows: list[Row] = []
    ready: dict[str, Action] = {}
    expected: list[Tensor] = []
    by_name = {one.name: one for one in plan.candidates}
    for name, row in waiting.items():
        if not row.reason:
            row, run, found = _try(plan, inputs, by_name[name], row, expected)
            if run is not None:
                ready[name] = run
                expected = expected or found
        rows.append(row)
        if not expected:
            break  # the chosen one failed: there is nothing to compare the others with
    return rows, ready


def _try(
    plan: Plan, inputs: Tensors, candidate: Candidate, row: Row, expected: list[Tensor]
) -> tuple[Row, Action | None, list[Tensor]]:
    """One candidate's first run: its row, and what to time unless it failed or disagrees."""
    run = inputs.runner(plan, candidate)
    try:
        found = run()
    except (NbattnError, RuntimeError) as failure:
        return replace(row, reason=f"fails: {str(failure)[:200]}", wrong=True), None, []
    error, limit = disagreement(found, expected or found), TOLERANCE[plan.request.dtype]
    if error <= limit:
        return replace(row, error=error), run, found
    reason = f"WRONG: a row is off by {error:.2g} of its size, the limit is {limit:g}"
    return replace(row, error=error, reason=reason, wrong=True), None, []


def disagreement(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest error of a row `[D]` over its size and the root mean square of all together."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            return math.inf
        if not one.numel():
            continue
        a, b = one.double(), other.double()
        finite = torch.isfinite(b)
        if not torch.equal(a[~finite], b[~finite]):  # the -inf of rows without keys; never NaN
            return math.inf
        a, b = torch.where(finite, a, 0.0), torch.where(finite, b, 0.0)
        size = b.norm(dim=-1)
        typical = size.square().mean().sqrt()
        error = (a - b).norm(dim=-1) / (size + typical).clamp_min(1e-300)
        largest = float(error.max())
        if not largest <= worst:  # NaN too
            worst = largest
            if math.isnan(worst):
                return math.inf
    return worst


@dataclass(frozen=True, slots=True)
class Tensors:
    """What a request is measured on: random, the same every time."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad: Tensor
    extras: dict[str, Any]

    @classmethod
    def of(cls, request: Request) -> Tensors:
        """Tensors of the request's shapes, dtype, device and layout."""
        device = torch.device(request.device.kind)
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            dtype = getattr(torch, request.dtype)
            return torch.randn(shape, generator=generator, dtype=dtype).to(device)

        batch, heads, kv_heads = request.batch, request.heads, request.kv_heads
        dim, value_dim, extra = request.head_dim, request.value_dim, request.extra_keys
        keys = (batch, *request.key_space)
        query = drawn(batch, *request.query_space, heads, dim)
        key, value = drawn(*keys, kv_heads, dim), drawn(*keys, kv_heads, value_dim)
        if request.layout == "packed":
            query, key, value = _packed(query, key, value)
        extras: dict[str, Any] = {}
        if extra:
            extras["extra_key"] = drawn(batch, extra, kv_heads, dim)
            extras["extra_value"] = drawn(batch, extra, kv_heads, value_dim)
        if request.sink:
            extras["sink"] = drawn(heads)
        if request.softcap:
            extras["softcap"] = SOFTCAP
        if request.key_range:  # an eighth of every axis is padding
            ranges = [[0, length - length // 8] for length in request.key_space]
            extras["key_range"] = torch.tensor([ranges] * batch, dtype=torch.int32, device=device)
        return cls(query, key, value, drawn(*query.shape[:-1], value_dim), extras)

    def runner(self, plan: Plan, candidate: Candidate) -> Callable[[], list[Tensor]]:
        """A function that runs one candidate's program and returns the output, then the logsumexp
        and the gradients where the request has them.
        """
        request = plan.request
        leaves = {"query": self.query, "key": self.key, "value": self.value}
        leaves |= {
            n: self.extras[n] for n in ("sink", "extra_key", "extra_value") if n in self.extras
        }
        if request.training:
            leaves = {n: t.detach().requires_grad_() for n, t in leaves.items()}
        given: dict[str, Any] = {**self.extras, **leaves}
        own = replace(plan, chosen=candidate)

        def run() -> list[Tensor]:
            with torch.set_grad_enabled(request.training):
                out = own.run(**given)
                outputs = list(out) if isinstance(out, tuple) else [out]
                if not request.training:
                    return outputs
                grads = torch.autograd.grad(outputs[0], list(leaves.values()), self.grad)
                return [*(t.detach() for t in outputs), *grads]

        return run


def _packed(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same as views of one tensor, head after head; of two where queries and keys differ in
    space.
    """
    together = [query, key, value] if query.shape[:-2] == key.shape[:-2] else [key, value]
    joined = torch.cat([t.flatten(-2) for t in together], dim=-1)
    parts = joined.split([t.shape[-2] * t.shape[-1] for t in together], dim=-1)
    views = [part.unflatten(-1, t.shape[-2:]) for part, t in zip(parts, together, strict=True)]
    return (query, views[0], views[1]) if len(views) == 2 else (views[0], views[1], views[2])


def _too_large(request: Request) -> str:
    """Whether the tensors alone, with gradients, are over half of this machine's memory."""
    needed = tensor_bytes(request) * (1 + 2 * request.training)
    have = machine.memory()
    if request.device.kind == "cuda":
        have = torch.cuda.get_device_properties(torch.device("cuda")).total_memory
    if not have or needed <= have / 2:
        return ""
    return f"its tensors take {needed / 2**30:.3g} GiB of {have / 2**30:.3g} GiB of memory"


@contextmanager
def _deterministic(wanted: bool) -> Generator[None]:
    """Torch's switch as the request has it."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def record(jobs: Sequence[Job], effort: Effort) -> dict[str, Any]:
    """Everything that was measured, as plain data for JSON."""
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
        "candidates": [
            {
                "name": row.name,
                "bound": row.bound,
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
