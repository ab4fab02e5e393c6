"""The plan of a joint attention: those of both parts, in one value that shows and proves them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from nbattn.errors import InputError
from nbattn.mask import Mask
from nbattn.planner import planner
from nbattn.planner.plan import Plan
from nbattn.planner.planner import Signature

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

_EXTRAS = "extra tokens as queries"


@dataclass(frozen=True, slots=True, repr=False)
class JointPlan(Plan):
    """What will run for `joint_attention`, and why: the plan of the grid's queries, and in `extras`
    that of the extra tokens as queries. Request, candidates and schedule are those of the grid.

    Args:
        extras: the plan for queries `[B, E, 1, …, H, D]` over all tokens.

    >>> import nbattn
    >>> mask, shape = nbattn.Mask.neighborhood((7, 7)), (1, 56, 56, 2, 32)
    >>> options = {"extra_keys": 77, "extra_queries": True, "device": "cpu"}
    >>> plan = nbattn.plan(mask, shape, dtype="float32", **options)
    >>> plan.extras.request.query_space, plan.verify()
    ((77, 1), True)
    """

    extras: Plan = field(kw_only=True)

    def __repr__(self) -> str:
        return f"JointPlan({self.parts()[0]!r}, extras={self.extras!r})"

    def _repr_html_(self) -> str:
        """Both plans as tables, for notebooks."""
        return "".join(part._repr_html_() for part in self.parts())

    def parts(self) -> tuple[Plan, Plan]:
        """The plan of the grid's queries alone, and that of the extra tokens."""
        return Plan(**{f.name: getattr(self, f.name) for f in fields(Plan)}), self.extras

    def explain(self, *, all: bool = False) -> str:
        """Both plans in words, each as `Plan.explain`.

        Args:
            all: as in `Plan.explain`.
        """
        grid, extras = (part.explain(all=all) for part in self.parts())
        return f"{grid}\n\n{_EXTRAS}\n{extras}"

    def to_dict(self) -> dict[str, Any]:
        """The grid's plan as plain data that JSON takes, with that of the extra tokens."""
        return {**self.parts()[0].to_dict(), "extras": self.extras.to_dict()}

    def support(self) -> NDArray[np.bool_]:
        """The pairs that both programs compute, bool `[Nq + E, Nk + E]`, extra tokens last.

        Raises:
            InputError, AssertionError: as `Plan.support`.
        """
        import numpy as np

        rows = [part.support() for part in self.parts()]
        keys = [np.ones((len(part), self.request.extra_keys), dtype=np.bool_) for part in rows]
        return np.block([[part, every] for part, every in zip(rows, keys, strict=True)])

    def verify(self) -> bool:
        """Whether both programs are exact, proved as by `Plan.verify`.

        Raises:
            AssertionError: one is not, with the first query that differs.
        """
        grid, extras = self.parts()
        return grid.verify() and extras.verify()

    def warmup(self) -> None:
        """Prepares what the first run of both would."""
        for part in self.parts():
            part.warmup()

    def run(self, query: Tensor, key: Tensor, value: Tensor, **tensors: Any) -> Any:
        """Joint attention on tensors of the planned shapes, by exactly these plans.

        Args:
            query, key, value: as in `nbattn.joint_attention`.
            **tensors: extra_query, extra_key and extra_value; scale, softcap and the optional
                tensors, as in `nbattn.joint_attention`.

        Raises:
            InputError: the tensors are not those of the request.
        """
        from nbattn import plan_runs

        return plan_runs.run_joint(self, query, key, value, **tensors)


def planned(signature: Signature) -> JointPlan:
    """Returns the plan of a signature whose extra keys are queries, too.

    Raises:
        InputError: of packed grids, whose extra tokens are not those of one matrix of pairs.
    """
    if signature.grids is not None:
        raise InputError(
            "extra_queries: packed grids have no plan with extra tokens as queries, only the call: "
            "joint_attention(..., grids=grids)."
        )
    batch, *space, heads, dim = signature.query_shape
    tokens = (batch, signature.extra_keys, *[1] * (len(space) - 1))
    # queries beside packed keys are of another tensor; with another shape, layouts count keys alone
    is_apart = signature.layout == "packed" and tokens == tuple(signature.key_shape[:-2])
    extras = signature._replace(
        mask=Mask.full(len(space)),
        query_shape=(*tokens, heads, dim),
        layout="strided" if is_apart else signature.layout,
        relative_bias=False,
        alibi_slopes=False,
    )
    grid = planner.planned(signature)
    whole = {f.name: getattr(grid, f.name) for f in fields(Plan)}
    return JointPlan(**whole, extras=planner.planned(extras))
