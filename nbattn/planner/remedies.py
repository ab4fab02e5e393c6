"""What makes a refused request run: the fix of the planner's error, tried before it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from nbattn.backends import families
from nbattn.planner import devices, gpus
from nbattn.program.device import DEVICES
from nbattn.program.request import Request

_MOST = 3  # changes of one fix
_GPU = "sm_90"  # planned for where this machine has no GPU
_NARROWER = {"float64": ("float32", "bfloat16", "float16"), "float32": ("bfloat16", "float16")}
_DTYPES = ("float16", "float32", "bfloat16")


class Outcome(NamedTuple):
    """What the planner answers: the name of the candidate that runs, else the limits exceeded."""

    chosen: str
    limits: frozenset[str]


Ask = Callable[[Request], Outcome]


class Change(NamedTuple):
    """One thing to do differently, and the request after it.

    Args:
        request: the request after it.
        line: what is done before the call, such as an installation.
        tensors: the methods by which query, key and value are changed.
        arguments: what is passed instead; in a plan also instead of the changed tensors.
    """

    request: Request
    line: str = ""
    tensors: str = ""
    arguments: str = ""


def fix(request: Request, ask: Ask) -> str:
    """Returns what to write so that a refused request runs: the fewest changes that keep its
    backend, else the backend that "auto" takes.
    """
    if request.backend == families.AUTO:
        return _relaxed(request, ask)
    kept = _kept(request, ask)
    if not kept:
        return _auto(request, ask)
    needs_gpu = (kept[-1].request.device.kind, request.device.kind) == ("cuda", "cpu")
    if needs_gpu and not gpus.kind():
        return f"{_auto(request, ask)}; or, with a GPU: {_written(kept)}"
    return _written(kept)


def _kept(request: Request, ask: Ask) -> tuple[Change, ...]:
    """Returns the fewest changes after which the backend runs the request; each answers a limit
    that the one before has left, and the device changes once.
    """
    level: list[tuple[Change, ...]] = [()]
    for _ in range(_MOST):
        longer: list[tuple[Change, ...]] = []
        for changes in level:
            now = changes[-1].request if changes else request
            is_here = now.device.kind == request.device.kind
            for change in _changes(now, ask(now).limits, may_move=is_here):
                if ask(change.request).chosen:
                    return (*changes, change)
                longer.append((*changes, change))
        level = longer
    return ()


def _changes(request: Request, limits: frozenset[str], *, may_move: bool) -> Iterator[Change]:
    """What answers a limit, and changes neither the mask nor the backend."""
    for name in ("require", "forbid"):
        if name not in limits:
            continue
        yield Change(replace(request, **{name: ()}), arguments=f"{name}=()")
    if "deterministic" in limits:
        line = "torch.use_deterministic_algorithms(False) (in a plan: deterministic=False)"
        yield Change(replace(request, deterministic=False), line)
    if {"copy", "layout"} & limits and request.layout != "contiguous":
        yield Change(replace(request, layout="contiguous"), tensors=".contiguous()")
    if "device" in limits and may_move and request.device.kind in ("cpu", gpus.CUDA, gpus.XPU):
        yield _moved(request)
    if {"package", "provider"} & limits:
        for package in _packages(request):
            providers = (*request.device.providers, package)
            device = replace(request.device, providers=tuple(sorted(providers)))
            yield Change(replace(request, device=device), families.install(package, device.kind))
    if "dtype" in limits:
        for dtype in _NARROWER.get(request.dtype, _DTYPES):
            to = f".to(torch.{dtype})"
            yield Change(replace(request, dtype=dtype), tensors=to, arguments=f'dtype="{dtype}"')


def _moved(request: Request) -> Change:
    """The request on the other kind of device."""
    if request.device.kind != "cpu":
        cpu = devices.device_info("cpu")
        return Change(replace(request, device=cpu), tensors=".cpu()", arguments='device="cpu"')
    gpu = devices.device_info(None) if gpus.kind() else DEVICES[_GPU]
    argument, tensors = f'device="{gpu.name}"', f".{gpu.kind}()"
    return Change(replace(request, device=gpu), tensors=tensors, arguments=argument)


def _packages(request: Request) -> list[str]:
    """The packages of the backend's family that the device lacks."""
    needed = families.packages_of(request.backend)
    return [name for name in needed if name not in request.device.providers]


def _written(changes: tuple[Change, ...]) -> str:
    """The changes as a user writes them."""
    lines = dict.fromkeys(change.line for change in changes if change.line)
    arguments = ", ".join(change.arguments for change in changes if change.arguments)
    if methods := "".join(change.tensors for change in changes):
        tensors = ", ".join(f"{name}{methods}" for name in ("query", "key", "value"))
        arguments = f"{tensors}  # in a plan: {arguments}" if arguments else tensors
    return "; then ".join([*lines, *filter(None, [arguments])])


def _auto(request: Request, ask: Ask) -> str:
    """The backend that "auto" takes, with what else has to go."""
    free = replace(request, backend=families.AUTO)
    if chosen := ask(free).chosen:
        return f'backend="auto", which takes {chosen}'
    free = replace(free, require=(), forbid=())
    dropped = ", ".join(f"{name}=()" for name in ("require", "forbid") if getattr(request, name))
    return f'backend="auto", {dropped}: it takes {ask(free).chosen}'


def _relaxed(request: Request, ask: Ask) -> str:
    """The names of require= and forbid= with as few as possible left out."""
    for name in ("forbid", "require"):
        names = getattr(request, name)
        for left_out in reversed(names):
            kept = tuple(n for n in names if n != left_out)
            if chosen := ask(replace(request, **{name: kept})).chosen:
                return f"{name}={kept}, which takes {chosen}"
    free = ask(replace(request, require=(), forbid=())).chosen
    return f"require=(), forbid=(), which takes {free}" if free else 'backend="reference"'
