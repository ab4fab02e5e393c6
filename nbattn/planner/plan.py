"""The plan: what was chosen for a request, everything else that could have been, why not, and the
proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbattn import mistaken_places
from nbattn.errors import InputError
from nbattn.fixes.signatures import answering
from nbattn.planner import explain as explanation
from nbattn.planner import packed_proof, proof
from nbattn.program.blocks import Block
from nbattn.program.candidate import Candidate
from nbattn.program.device import DeviceInfo
from nbattn.program.request import Request

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes as MatplotlibAxes
    from numpy.typing import NDArray
    from torch import Tensor


# Assumed packages of GPUs in words.
_PACKAGES = {"cupy": ("CuPy", "NVRTC"), "triton": ("Triton",)}


def _assumed(device: DeviceInfo) -> str:
    """Which of the packages are counted on that a device like this one is assumed to have."""
    here = [package for package in device.assumed if package in device.providers]
    if here == ["c++"]:
        return "; assumes a C++ compiler"
    *names, last = [name for package in here for name in _PACKAGES[package]] or [""]
    both = f"{', '.join(names)} and {last} are" if names else f"{last} is"
    return f"; assumes that {both} installed" if last else ""


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """What will run for a request, and why. An immutable value; `print(plan.explain())` shows it.

    Args:
        request: what was asked.
        chosen: the accepted candidate with the lowest cost.
        candidates: all of them: accepted ones by cost, then refused ones with their reasons.
        note: why measured times did not decide; empty where nothing is known of any.

    >>> import nbattn
    >>> mask, shape = nbattn.Mask.neighborhood((7, 7)), (1, 56, 56, 2, 32)
    >>> plan = nbattn.plan(mask, shape, dtype="float32", device="cpu")
    >>> plan.chosen.backend, plan.verify()
    ('native', True)
    """

    request: Request
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    note: str = ""

    def __str__(self) -> str:
        return self.explain()

    def __repr__(self) -> str:
        cost = explanation.cost_of(self.chosen)
        return f"Plan({self.chosen.name}, {cost}, {self.request.summary()}, {self.request.mask!r})"

    def _repr_html_(self) -> str:
        """The choice and the candidates as a table, for notebooks."""
        from nbattn.pictures import notebook

        return notebook.of_plan(self)

    def _repr_svg_(self) -> str | None:
        """The figure of `plot` for notebooks; None without matplotlib."""
        from nbattn.pictures import tiles

        return tiles.svg(self)

    def explain(self, *, all: bool = False) -> str:
        """The plan in words: what was chosen, how to get a faster plan, the other candidates with
        their costs, and why backends were refused.

        Args:
            all: list every candidate with every reason, instead of one line per refused backend.

        >>> import nbattn
        >>> plan = nbattn.plan(nbattn.Mask.causal(), (1, 64, 2, 32), dtype="float32", device="cpu")
        >>> print(plan.explain().split(":")[0])
        plan    native/window
        """
        return explanation.explain(self, every=all)

    def decided_by(self) -> str:
        """What the candidates were ranked by, where the data of the device come from, and for which
        versions the kernels of torch were looked up.
        """
        measured = self.chosen.cost is not None and self.chosen.cost.measured is not None
        why = self.note or "no measurement of this request is known"
        ranked_by = "measured times" if measured else f"estimates ({why})"
        device = self.request.device
        return (
            f"ranked by {ranked_by}; device data of {device.name}: {device.source}"
            + _assumed(device)
            + f"; for {device.versions}" * device.may_be_nvidia
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data that JSON takes; the same for equal requests, everywhere."""
        return {
            "request": self.request.to_dict(),
            "chosen": self.chosen.name,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }

    def to_html(self, path: str | Path) -> None:
        """Writes a page for browsers that explores the plan: a query to drag and its keys, the
        tiles that the plan visits, every candidate, the request, and the result of `verify()`.

        It is one file that loads nothing else, and the same bytes for equal plans. Axes longer than
        4,096 have the rows of both ends and of the middle.

        Args:
            path: of the file, which is replaced.

        Raises:
            InputError: the path cannot be written.

        >>> import tempfile
        >>> import nbattn
        >>> mask, shape = nbattn.Mask.neighborhood((3, 3)), (1, 8, 8, 2, 32)
        >>> plan = nbattn.plan(mask, shape, dtype="float32", device="cpu")
        >>> with tempfile.NamedTemporaryFile(suffix=".html") as file:
        ...     plan.to_html(file.name)
        ...     file.read(15)
        b'<!doctype html>'
        """
        from nbattn.explorer import page

        page.write({"plan": self}, path)

    def support(self) -> NDArray[np.bool_]:
        """The (query, key) pairs that the chosen program computes, bool `[Nq, Nk]`, from index
        grids sent through it; of packed grids `[T, Tk]`, one block per grid.

        Raises:
            InputError: more than 2^26 pairs.
            AssertionError: a pair is computed twice, or (batch, head) slices differ.

        >>> import nbattn
        >>> mask = nbattn.Mask.causal()
        >>> plan = nbattn.plan(mask, (1, 3, 2, 32), dtype="float32", device="cpu")
        >>> plan.support().tolist()
        [[True, False, False], [True, True, False], [True, True, True]]
        """
        prove = proof if self.request.grids is None else packed_proof
        return prove.support(self.request, self.chosen)

    def verify(self) -> bool:
        """Whether the chosen program is the mask exactly, proved per axis without a matrix:
        time and memory grow with the lengths of the axes, not with their products. Packed grids are
        proved once per size.

        Raises:
            AssertionError: it is not, with the first query that differs.

        >>> import nbattn
        >>> mask, shape = nbattn.Mask.sliding_window(511), (1, 1_000_000, 8, 64)
        >>> nbattn.plan(mask, shape, device="sm_90").verify()
        True
        """
        prove = proof if self.request.grids is None else packed_proof
        return prove.verify(self.request, self.chosen)

    def schedule(self, *, backward: bool = False) -> Iterator[Block]:
        """The blocks that the chosen program computes, one after another.

        Args:
            backward: those of the backward pass. Flash and CUDA kernels walk the queries of every
                block of keys there, in other tiles; the rest computes the blocks of the forward
                again.

        Raises:
            InputError: a backward of a plan without training.

        >>> import nbattn
        >>> mask, shape = nbattn.Mask.sliding_window(40), (1, 256, 4, 64)
        >>> plan = nbattn.plan(mask, shape, dtype="float32", device="cpu", backend="native")
        >>> block = next(plan.schedule())
        >>> block.queries, block.keys
        ((range(0, 16),), ((range(0, 16),),))
        """
        if backward and not self.request.training:
            raise InputError(
                "the plan is for inference: it has no backward to show.",
                "training=True, an argument of nbattn.plan",
                self.request.summary(),
            )
        if self.request.grids is not None:
            return packed_proof.schedule(self.request, self.chosen, backward=backward)
        assert self.chosen.program is not None
        return chain.from_iterable(
            call.arguments.blocks(self.request, call, backward=backward)
            for call in self.chosen.program.calls
        )

    def plot(self, *, ax: MatplotlibAxes | None = None) -> MatplotlibAxes:
        """A figure of the blocks that the chosen program computes, as wide as a column of a paper,
        each in the colour of the share of its pairs that the mask allows. Needs matplotlib.

        One axis: queries down, keys across. Two axes: the grid of queries, a block of queries in
        the colour of its share over all keys that it computes; three axes: the middle plane of
        axis 0. Packed grids: the largest one; a joint attention: the grid's queries. Many blocks
        are shown at both ends and in the middle; more than 20,000 are not drawn, with the reason in
        the panel.

        Args:
            ax: matplotlib's Axes to draw into, of any size; default: a new figure of pyplot.

        Raises:
            InputError: matplotlib is missing.

        >>> import nbattn
        >>> shape = (1, 300, 2, 32)
        >>> plan = nbattn.plan(nbattn.Mask.causal(), shape, dtype="float32", device="cpu")
        >>> ax = plan.plot()
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('key', 'query')
        """
        from nbattn.pictures import tiles

        return tiles.draw(self, ax)

    def warmup(self) -> None:
        """Prepare what the first run would: cut tiles; on the current GPU, compile and load
        kernels, those of the backward too when the plan is for training.

        Raises:
            InputError: kernels are compiled for a GPU, and this machine has none.
        """
        from nbattn import plan_runs

        plan_runs.warmup(self)

    @answering(mistaken_places.refusal, own=1)
    def run(
        self, query: Tensor, key: Tensor, value: Tensor, **tensors: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention on tensors of the planned shapes, by exactly this plan.

        Args:
            query, key, value: as in `nbattn.attention`.
            **tensors: scale, softcap and the optional tensors, as in `nbattn.attention`.

        Raises:
            InputError: the tensors are not those of the request.

        >>> import nbattn
        >>> import torch
        >>> query = torch.randn(1, 14, 14, 2, 32)
        >>> mask = nbattn.Mask.neighborhood((7, 7))
        >>> plan = nbattn.plan(mask, query.shape, dtype="float32", device="cpu")
        >>> plan.run(query, query, query).shape
        torch.Size([1, 14, 14, 2, 32])
        """
        from nbattn import plan_runs

        return plan_runs.run(self, query, key, value, **tensors)
