"""Runs one kernel of a program alone, for measuring tiles: its launches are recorded in a pass of
the whole program and repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from nbattn.backends.cuda import measured_tiles, run
from nbattn.backends.cuda.meaning import CudaArguments
from nbattn.backends.cuda.tiles import Tiles
from nbattn.backends.inputs import Attempt, Inputs, KernelRun
from nbattn.geometry import Axes
from nbattn.kernels import launch
from nbattn.kernels.launch import Launcher
from nbattn.kernels.tensor_maps import TensorMap
from nbattn.kernels.variant import Variant
from nbattn.program.candidate import Candidate
from nbattn.program.program import Program
from nbattn.program.request import Request


@dataclass
class Recorder:
    """A launcher that keeps what another one launched."""

    launcher: Launcher
    launches: list[tuple[Variant, int, dict[str, Tensor], bytes, Sequence[TensorMap]]] = field(
        default_factory=list[Any]
    )

    def launch(
        self,
        variant: Variant,
        blocks: int,
        tensors: Mapping[str, Tensor],
        numbers: bytes,
        maps: Sequence[TensorMap] = (),
    ) -> None:
        """Launch and keep the arguments, tensors included."""
        self.launcher.launch(variant, blocks, tensors, numbers, maps)
        self.launches.append((variant, blocks, dict(tensors), numbers, maps))

    def load(self, variant: Variant) -> None:
        """As the other launcher."""
        self.launcher.load(variant)

    def of(self, kernel: str) -> Callable[[], None]:
        """A function that repeats the launches of one kernel: of fwd, delta, dq, dkdv or dbias."""
        launches = [one for one in self.launches if one[0].entry.startswith(f"nb_{kernel}")]
        if not launches:
            raise ValueError(f"no launch of {kernel}")

        def repeat() -> None:
            for one in launches:
                self.launcher.launch(*one)

        return repeat


def attempts(
    candidate: Candidate, request: Request, axes: Axes, inputs: Inputs, grad_out: Tensor, most: int
) -> Iterator[Iterator[Attempt]]:
    """For every kernel of a candidate: its own tile first, then those with the lowest estimates.

    Args:
        inputs, grad_out: what the passes are run on.
        most: tiles of a kernel besides its own.
    """
    assert candidate.program is not None
    arguments = candidate.program.calls[0].arguments
    assert isinstance(arguments, CudaArguments)
    (instructions,) = candidate.traits
    for kernel, name in measured_tiles.FIELDS.items():
        own: Tiles | None = getattr(arguments, name)
        if own is None:
            continue
        ranked = measured_tiles.ranked(kernel, instructions, request, axes, arguments.build)[:most]
        tiles = dict.fromkeys((own, *(one.tiles for one in ranked)))
        runs = kernels(candidate.program, kernel, tiles, inputs, grad_out)
        yield ((measured_tiles.name(kernel, one), attempt) for one, attempt in runs)


def kernels(
    program: Program,
    kernel: str,
    tiles: Iterable[Tiles],
    inputs: Inputs,
    grad_out: Tensor,
    launcher: Launcher | None = None,
) -> Iterable[tuple[Tiles, Callable[[], KernelRun]]]:
    """Every tile of one kernel, with a function that runs the passes that it belongs to once.

    Args:
        program: a program of the CUDA kernels; its other kernels keep their tiles.
        kernel: "fwd", "dq", "dkdv" or "dbias"; all but the first need a program with a backward.
        inputs, grad_out: what the passes are run on.
    """
    (call,) = program.calls
    arguments = call.arguments
    assert isinstance(arguments, CudaArguments)
    known = launcher or launch.launcher()
    for one in tiles:
        named: dict[str, Any] = {measured_tiles.FIELDS[kernel]: one}
        changed = Program((replace(call, arguments=replace(arguments, **named)),))
        yield one, lambda changed=changed: _passes(changed, kernel, inputs, grad_out, known)


def _passes(
    program: Program, kernel: str, inputs: Inputs, grad_out: Tensor, launcher: Launcher
) -> KernelRun:
    """Run the forward and, for its kernels, the backward."""
    taken = Recorder(launcher)
    out, lse = run.forward(program, inputs, return_lse=True, launcher=taken)
    assert lse is not None
    if kernel == "fwd":
        return KernelRun(taken.of(kernel), [out, lse])
    grads = run.backward(program, inputs, out, lse, grad_out, None, launcher=taken)
    results = {
        "dq": [grads.query],
        "dkdv": [grads.key, grads.value],
        "dbias": [grads.relative_bias],
    }
    return KernelRun(taken.of(kernel), [one for one in results[kernel] if one is not None])
