"""Fixes of masks and axes."""

from fixes.row import Row

ROWS = [
    Row(
        call='Axis(3, 3, align="bottom_right")',
        pasted="align='bottom-right'",
        fixed="axis = Axis(3, 3, align='bottom-right')",
        means="axis.align == 'bottom-right'",
    ),
]
