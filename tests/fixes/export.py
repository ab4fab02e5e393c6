"""Fixes of masks that an exported graph of standard operators cannot check."""

from __future__ import annotations

from fixes.row import Row

_GIVEN = """
from nbattn.export import decompositions

class Attend(torch.nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def forward(self, query, key, value):
        return attention(query, key, value, self.mask)

def rewritten(module, *shapes):
    program = torch.export.export(module, (q, k, k), dynamic_shapes=shapes)
    return program.run_decompositions(decompositions()).module()

n, m = (torch.export.Dim(name, min=4, max=64) for name in "nm")
"""
_MEANS = "torch.allclose(found(q, k, k), attend(q, k, k), atol=1e-5)"

ROWS = [
    Row(
        given=_GIVEN,
        call="rewritten(Attend(Mask(Axis(3, 1))), {1: n}, {1: m}, {1: m})",
        pasted="Axis(3, 1, align='top-left')",
        fixed="attend = Attend(Mask(Axis(3, 1, align='top-left')))\n"
        "found = rewritten(attend, {1: n}, {1: m}, {1: m})",
        means=_MEANS,
    ),
    Row(
        given=_GIVEN,
        call="mask = Mask(Axis(2, 1, border='wrap', dilation=2))\n"
        "rewritten(Attend(mask), {1: n}, {1: n}, {1: n})",
        pasted='2 * torch.export.Dim("n")',
        fixed="attend = Attend(Mask(Axis(2, 1, border='wrap', dilation=2)))\n"
        'length = 2 * torch.export.Dim("n")\n'
        "found = rewritten(attend, {1: length}, {1: length}, {1: length})",
        means=_MEANS,
    ),
    Row(
        given=_GIVEN,
        call="class Cached(torch.nn.Module):\n"
        "    def forward(self, query, key, value):\n"
        "        mask = Mask.sliding_window(3, align=key.shape[1] - query.shape[1])\n"
        "        return attention(query, key, value, mask)\n"
        "rewritten(Cached(), {1: n}, {1: m}, {1: m})",
        pasted='align="bottom-right"',
        fixed='attend = Attend(Mask.sliding_window(3, align="bottom-right"))\n'
        "found = rewritten(attend, {1: n}, {1: m}, {1: m})",
        means=_MEANS,
    ),
    Row(
        given="mask, grids, line = Mask.sliding_window(3), torch.tensor([5, 7]), q[0]\n"
        "class Packed(torch.nn.Module):\n"
        "    def forward(self, line):\n"
        "        return attention(line, line, line, mask, grids=grids)\n"
        "def exported():\n"
        "    return torch.export.export(Packed(), (line,), strict=False)",
        call="exported()",
        pasted="grids=grids.tolist()",
        fixed="sizes = grids; grids=grids.tolist(); program = exported()",
        means="torch.allclose(program.module()(line), attention(line, line, line, mask, "
        "grids=sizes), atol=1e-5)",
    ),
]
