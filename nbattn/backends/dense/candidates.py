"""Dense attention as candidates: the reference; SDPA without a mask, causal, or with a matrix."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from nbattn import geometry
from nbattn.backends.dense import costs, kernels, meaning
from nbattn.backends.dense.kernels import SdpaCall, Taken
from nbattn.geometry import Axes
from nbattn.program.bands import CAUSAL
from nbattn.program.candidate import Candidate
from nbattn.program.dense_pieces import Piece, dense_pieces, fold_into_heads
from nbattn.program.limits import Limits, Reason, over_grid, whole_axes
from nbattn.program.program import Call, Program, View, whole
from nbattn.program.request import Request

_SDPA_ON = {"cpu": meaning.SDPA_CPU, "cuda": meaning.SDPA_CUDA}


def candidates(request: Request, axes: Axes) -> list[Candidate]:
    """Returns the reference, SDPA by pieces, and SDPA with the mask as a matrix."""
    call = Call(whole(request.query_space), whole(request.key_space), meaning.DenseMask(axes))
    matrix, useful = Program((call,)), geometry.pairs(axes)
    return [
        _reference(request, axes, matrix, useful),
        _sdpa_dense(request, axes, useful),
        _sdpa_mask(request, axes, matrix, useful),
    ]


def _reference(request: Request, axes: Axes, matrix: Program, useful: int) -> Candidate:
    """Returns the reference, which computes all pairs."""
    reasons = meaning.REFERENCE.reasons(request.needs) + whole_axes(axes)
    cost = costs.reference(request, useful)
    return Candidate("reference", "dense", (), matrix, cost, tuple(reasons))


def _sdpa_limits(request: Request) -> Limits:
    """Returns the limits of the kernels known for a device, else those of the public function."""
    known = request.device.kind == "cpu" or request.device.may_be_nvidia
    return _SDPA_ON[request.device.kind] if known else meaning.SDPA


def _with_kernels(request: Request, program: Program) -> tuple[Program, list[Reason]]:
    """Returns the program with the kernels that torch takes for its calls on NVIDIA's GPUs, and the
    reasons against the first call that one of them cannot run.
    """
    if not request.device.may_be_nvidia or request.device.capability is None:
        return program, _over_grid(request, program)
    calls, reasons = [], []
    for call in program.calls:
        one = _torch_call(request, call)
        taken = kernels.of_call(request.device, one, training=request.training)
        assert isinstance(call.arguments, meaning.DenseArguments)
        arguments = replace(call.arguments, taken=taken)
        calls.append(replace(call, arguments=arguments))
        reasons += _against(request, calls[-1], taken, one)
    return Program(tuple(calls)), reasons[:1]


def _torch_call(request: Request, call: Call) -> SdpaCall:
    """Returns what torch's checks see of a call."""
    _, heads = call.query.batch_and_heads(request.batch, request.heads)
    return SdpaCall(
        queries=call.query.count,
        keys=call.key.count,
        heads=heads,
        kv_heads=heads // request.heads_per_key_head,
        head_dim=request.head_dim,
        value_dim=request.value_dim,
        dtype=request.dtype,
        causal=isinstance(call.arguments, meaning.TopLeftCausal),
        masked=isinstance(call.arguments, meaning.DenseMask),
        deterministic=request.deterministic,
    )


def _against(request: Request, call: Call, taken: Taken, one: SdpaCall) -> list[Reason]:
    """Returns the reasons against the kernels of one call: their grid, the math kernel's memory,
    gradients that can be NaN.
    """
    samples, heads = call.query.batch_and_heads(request.batch, request.heads)
    reasons: list[Reason] = []
    used = {taken.forward, taken.backward} - {""}
    if used != {"math"}:
        reasons += [reason for reason in [over_grid(samples, heads)] if reason]
    scores = kernels.score_bytes(request.dtype, samples * heads * one.queries * one.keys)
    if "math" in used and scores > meaning.SCORES_LIMIT:
        why = kernels.why_not("efficient", request.device, one)
        text = (
            f"torch would take its math kernel ({why}) and keep {scores / 1e9:.3g} GB of scores, "
            f"over the limit of {meaning.SCORES_LIMIT / 1e9:.3g} GB"
        )
        reasons.append(Reason("memory", text))
    if taken.backward == "cudnn":
        wrong = kernels.nan_gradients(request.device, one._replace(gradient=True))
        reasons += [Reason("gradients", wrong)] * bool(wrong)
    return reasons


def _over_grid(request: Request, program: Program) -> list[Reason]:
    """Returns the reason against the first call that exceeds the grid, if there is one."""
    most = _sdpa_limits(request).grid
    sizes = (call.query.batch_and_heads(request.batch, request.heads) for call in program.calls)
    reasons = (over_grid(*both, most) for both in sizes if most)
    return [reason for reason in reasons if reason][:1]


def _sdpa_dense(request: Request, axes: Axes, useful: int) -> Candidate:
    """Returns unmasked or causal calls on views: folded, trimmed, with extra keys merged."""
    reasons = _sdpa_limits(request).reasons(request.needs)
    per_axis = [dense_pieces(axis) for axis in axes]
    for number, pieces in enumerate(per_axis):
        if isinstance(pieces, str):
            reasons.append(Reason("mask", f"axis {number}: {pieces}"))
    programs = None
    if not any(isinstance(pieces, str) for pieces in per_axis):
        programs = _product(request, [p for p in per_axis if not isinstance(p, str)])
        if isinstance(programs, Reason):
            reasons.append(programs)
            programs = None
    if programs is None:
        return Candidate("sdpa", "dense", (), None, None, tuple(reasons))
    strategy, traits, program = programs
    program, against = _with_kernels(request, program)
    reasons += against
    return Candidate(
        "sdpa",
        strategy,
        traits,
        program,
        costs.sdpa(request, program, useful),
        tuple(reasons),
    )


def _product(
    request: Request, per_axis: list[list[Piece]]
) -> tuple[str, tuple[str, ...], Program] | Reason:
    """Returns the calls of all combinations of pieces, or why SDPA does not support one of them."""
    if request.layout == "contiguous":
        per_axis = [*per_axis[:-1], [fold_into_heads(piece) for piece in per_axis[-1]]]
    calls: list[Call] = []
    for pieces in product(*per_axis):
        arguments = _arguments(pieces)
        if isinstance(arguments, Reason):
            return arguments
        views = (View(tuple(p.query for p in pieces)), View(tuple(p.key for p in pieces)))
        calls.append(Call(*views, arguments))
    causal = any(isinstance(call.arguments, meaning.TopLeftCausal) for call in calls)
    return "causal" if causal else "dense", _traits(request, calls), Program(tuple(calls))


def _arguments(pieces: tuple[Piece, ...]) -> meaning.NoMask | meaning.TopLeftCausal | Reason:
    """Returns the arguments of a dense kernel: causal if the only axis longer than 1 is causal."""
    long = [n for n, p in enumerate(pieces) if max(p.query.length, p.key.length) > 1]
    causal = [n for n in long if pieces[n].band == CAUSAL]
    if not causal:
        return meaning.NoMask()
    if long == causal[:1]:
        return meaning.TopLeftCausal(long[0])
    second = next(n for n in long if n != causal[0])
    text = f"axis {causal[0]} is causal and axis {second} is longer than 1"
    return Reason("mask", f"{text}: is_causal would mask in raster order over both")


def _traits(request: Request, calls: list[Call]) -> tuple[str, ...]:
    """Returns the names of the rewrites that a program uses."""
    traits = {"fold"} if any(call.query.groups > 1 for call in calls) else set[str]()
    traits |= {"split"} if len(calls) > 1 else set()
    traits |= {"merge"} if request.extra_keys else set()
    if len(calls) == 1:
        sizes = (calls[0].query, request.query_count), (calls[0].key, request.key_count)
        traits |= {"trim"} if any(v.count * v.groups < size for v, size in sizes) else set()
    return tuple(sorted(traits))


def _sdpa_mask(request: Request, axes: Axes, matrix: Program, useful: int) -> Candidate:
    """Returns one call with the mask as a matrix, for small problems."""
    reasons = _sdpa_limits(request).reasons(request.needs)
    count = request.query_count * request.key_count
    if count > meaning.MASK_LIMIT:
        reasons.append(
            Reason("mask", f"a matrix of {count} pairs is over the limit of {meaning.MASK_LIMIT}")
        )
    if request.extra_keys:
        reasons.append(Reason("extra_keys", "extra keys have no column in the matrix"))
    if not count:
        reasons.append(Reason("mask", "does not support zero pairs of queries and keys"))
    elif geometry.has_empty_queries(axes):
        reasons.append(Reason("mask", "does not support queries without keys"))
    matrix, against = _with_kernels(request, matrix)
    reasons += against
    if reasons:
        return Candidate("sdpa", "mask", (), None, None, tuple(reasons))
    return Candidate("sdpa", "mask", (), matrix, costs.sdpa(request, matrix, useful))
