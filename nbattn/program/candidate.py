"""A candidate: one way to run a request, with its program and cost, or the reasons against it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nbattn.errors import counted
from nbattn.program.costs import Cost
from nbattn.program.limits import Reason
from nbattn.program.program import Program


@dataclass(frozen=True, slots=True, repr=False)
class Candidate:
    """One way to run a request.

    Args:
        backend: the backend that runs it, with its provider if it has several: "flash:aten".
        strategy: the name of what it does, one of its family's strategies.
        traits: the rewrites that it uses in addition.
        program: its calls, or None if they cannot express the mask.
        cost: its work and estimated time, or None without a program.
        reasons: why it is refused; empty if it is accepted. The planner adds the reasons that
            follow from `backend=`, `require=` and `forbid=`.
        note: what else there is to know of its run, for `explain()`.
    """

    backend: str
    strategy: str
    traits: tuple[str, ...]
    program: Program | None
    cost: Cost | None
    reasons: tuple[Reason, ...] = ()
    note: str = ""

    def __repr__(self) -> str:
        first = f"refused: {self.reasons[0].text}" if self.reasons else str(self.cost)
        more = f" (and {len(self.reasons) - 1} more)" if len(self.reasons) > 1 else ""
        return f"Candidate({self.name}, {first}{more})"

    @property
    def runner(self) -> str:
        """The backend without its provider, "flash"."""
        return self.backend.partition(":")[0]

    @property
    def name(self) -> str:
        """Backend, strategy and rewrites, as `explain()` lists them."""
        return "/".join([self.backend, "+".join([self.strategy, *self.traits])])

    def forbidden(self, names: Iterable[str]) -> list[Reason]:
        """The reasons that forbidden names of backends and strategies are against it."""
        has = {self.runner, self.backend, self.strategy, *self.traits}
        return [
            Reason("forbid", f"uses {name!r}, which is forbidden") for name in names if name in has
        ]

    def work(self) -> str:
        """Describes the work of an accepted candidate: arguments, computed scores, calls."""
        assert self.cost is not None
        assert self.program is not None
        arguments = sorted({call.arguments.describe() for call in self.program.calls})
        needed = 100 * self.cost.useful_pairs / max(self.cost.computed_pairs, 1)
        return (
            f"{'; '.join(arguments) or 'no pair to compute'}; "
            f"computes {short_count(self.cost.computed_pairs)} scores, {needed:.0f} % needed; "
            f"{counted(self.cost.calls, 'call')}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "cost": None if self.cost is None else self.cost.to_dict(),
            "program": None if self.program is None else self.program.to_dict(),
            "reasons": [list(reason) for reason in self.reasons],
        }


def short_count(number: int) -> str:
    """Returns a count as text of three digits and a letter.

    >>> short_count(812), short_count(5_880_000), short_count(10**12)
    ('812', '5.88M', '1T')
    """
    size, letter = next(
        (size, letter)
        for size, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"), (1, ""))
        if number >= size or size == 1
    )
    return f"{number / size:.3g}{letter}"


@lru_cache(1024)
def refused(
    backend: str, strategy: str, *reasons: Reason, traits: tuple[str, ...] = ()
) -> Candidate:
    """Returns a candidate without a program: the same object for the same reasons, since most
    plans contain it.
    """
    return Candidate(backend, strategy, traits, None, None, reasons)
