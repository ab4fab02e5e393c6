"""The memory of planned attention: its tensors, and what the chosen candidate needs beside them."""

from __future__ import annotations

from nbattn.planner.joint_plan import JointPlan
from nbattn.planner.plan import Plan
from nbattn.program import costs
from nbattn.program.request import Request

_EXACT = 4  # bytes of a number of the logsumexp and of sums


def parts(plan: Plan) -> tuple[Plan, ...]:
    """Returns the plans that a plan consists of: the grid's, and that of tokens beside it."""
    return plan.parts() if isinstance(plan, JointPlan) else (plan,)


def tensors(plan: Plan) -> int:
    """Returns the bytes of q, k, v, the output and the logsumexp, all tokens counted once; for
    training, with the gradients of q, k, v and the output.

    >>> import nbattn
    >>> plan = nbattn.plan(nbattn.Mask.full(), (1, 100, 2, 64), dtype="float16", device="cpu")
    >>> tensors(plan) == 4 * 100 * 2 * 64 * 2 + 100 * 2 * 4
    True
    """
    request = plan.request
    tokens = request.query_count + request.extra_keys
    size = costs.ITEMSIZE[request.dtype]
    rows = request.heads * (request.head_dim + request.value_dim)
    keys = request.kv_heads * (request.head_dim + request.value_dim)
    numbers = request.batch * tokens * (rows + keys) * size
    lse = request.batch * tokens * request.heads * max(_EXACT, size)
    return numbers * (1 + request.training) + lse


def beside(plan: Plan) -> int:
    """Returns the bytes that the chosen candidates need beside the tensors at one time, as far as
    costs count them: copies, and sums of parts that are merged. Parts run one after another.
    """
    return max(map(_beside, parts(plan)))


def _beside(plan: Plan) -> int:
    request, chosen = plan.request, plan.chosen
    assert chosen.cost is not None
    times = 2 * (1 + costs.BACKWARD_FLOPS * request.training)  # a copy is read and written
    moved = costs.tensor_bytes(request) * (1 + 2 * request.training)
    copied = max(0.0, chosen.cost.bytes - moved) / times
    return round(copied) + _merged(request) * ("merge" in chosen.traits)


def _merged(request: Request) -> int:
    """The bytes of an exact output, to which a part in the request's dtype is added."""
    size = costs.ITEMSIZE[request.dtype]
    outputs = request.batch * request.query_count * request.heads * request.value_dim
    return outputs * (max(_EXACT, size) + size)
