"""Literal pictures of one-axis masks: a name, the axis, a row of ■ and . per query."""

# fmt: off
from nbattn import Axis

PICTURES = [
("odd window", Axis(1, 1), """
    ■■...
    ■■■..
    .■■■.
    ..■■■
    ...■■"""),
("even window, one more on the left", Axis(2, 1), """
    ■■...
    ■■■..
    ■■■■.
    .■■■■
    ..■■■"""),
("only keys ahead", Axis(0, 2), """
    ■■■..
    .■■■.
    ..■■■
    ...■■
    ....■"""),
("diagonal", Axis(0, 0), """
    ■...
    .■..
    ..■.
    ...■"""),
("unlimited", Axis(), """
    ■■■■
    ■■■■
    ■■■■"""),
("offset on a square", Axis(1, 0, offset=1), """
    ■■..
    .■■.
    ..■■
    ...■"""),
("unlimited, wide rectangle", Axis(prefix=1, offset=2), """
    ■■■■
    ■■■■"""),
("unlimited on the left", Axis(None, 1), """
    ■■..
    ■■■.
    ■■■■
    ■■■■"""),
("unlimited on the right", Axis(1, None), """
    ■■■■
    ■■■■
    .■■■
    ..■■"""),
("causal", Axis(causal=True), """
    ■...
    ■■..
    ■■■.
    ■■■■"""),
("causal window", Axis(2, causal=True), """
    ■.....
    ■■....
    ■■■...
    .■■■..
    ..■■■.
    ...■■■"""),
("window larger than the axis", Axis(9, 9), """
    ■■■
    ■■■
    ■■■"""),
("causal window larger than the axis", Axis(9, causal=True), """
    ■..
    ■■.
    ■■■"""),
("shift at both borders", Axis(1, 1, border="shift"), """
    ■■■...
    ■■■...
    .■■■..
    ..■■■.
    ...■■■
    ...■■■"""),
("shift, even window", Axis(2, 1, border="shift"), """
    ■■■■..
    ■■■■..
    ■■■■..
    .■■■■.
    ..■■■■
    ..■■■■"""),
("shift, only keys ahead", Axis(0, 2, border="shift"), """
    ■■■..
    .■■■.
    ..■■■
    ..■■■
    ..■■■"""),
("shift, window larger than the axis", Axis(3, 3, border="shift"), """
    ■■■■
    ■■■■
    ■■■■
    ■■■■"""),
("shift and causal, tall rectangle", Axis(2, causal=True, border="shift", align="top-left"), """
    ■...
    ■■..
    ■■■.
    .■■■
    .■■■
    .■■■"""),
("clip and causal, tall rectangle", Axis(2, causal=True, align="top-left"), """
    ■...
    ■■..
    ■■■.
    .■■■
    ..■■
    ...■"""),
("shift and causal, window larger than the axis", Axis(5, causal=True, border="shift", align=0), """
    ■..
    ■■.
    ■■■
    ■■■"""),
("shift, positions before the axis", Axis(1, 1, border="shift", align="top-left", offset=-2), """
    ■■■.
    ■■■.
    ■■■.
    ■■■.
    .■■■
    .■■■"""),
("shift, wide rectangle at the bottom", Axis(1, 1, border="shift", align="bottom-right"), """
    ..■■■.
    ...■■■
    ...■■■"""),
("even stride", Axis(1, 1, stride=2), """
    ■■■...
    ■■■...
    ..■■■.
    ..■■■.
    ....■■
    ....■■"""),
("odd stride, last group partial", Axis(1, 1, stride=3), """
    ■■■....
    ■■■....
    ■■■....
    ...■■■.
    ...■■■.
    ...■■■.
    .....■■"""),
("even stride, even window, last group partial", Axis(2, 1, stride=4), """
    ■■■■..
    ■■■■..
    ■■■■..
    ■■■■..
    ...■■■
    ...■■■"""),
("stride and shift, last group partial", Axis(1, 1, stride=3, border="shift"), """
    ■■■.....
    ■■■.....
    ■■■.....
    ...■■■..
    ...■■■..
    ...■■■..
    .....■■■
    .....■■■"""),
("stride, groups past the last key", Axis(2, 0, stride=2, align="top-left"), """
    ■■..
    ■■..
    .■■■
    .■■■
    ...■
    ...■"""),
("stride, a group across the last key", Axis(2, 0, stride=2, align="top-left"), """
    ■■.
    ■■.
    ■■■
    ■■■
    ...
    ..."""),
("stride with a positive offset", Axis(1, 1, stride=2, align="top-left", offset=1), """
    ■■■...
    ..■■■.
    ..■■■.
    ....■■
    ....■■"""),
("stride with a negative offset", Axis(1, 0, stride=3, align="top-left", offset=-2), """
    ....
    ....
    ■■..
    ■■..
    ■■..
    ..■■"""),
("causal stride", Axis(3, causal=True, stride=2), """
    ■.....
    ■■....
    ■■■...
    ■■■■..
    ..■■■.
    ..■■■■"""),
("causal stride two with empty rows", Axis(0, causal=True, stride=2), """
    .....
    .■...
    .....
    ...■.
    ....■"""),
("causal stride three with empty rows", Axis(1, causal=True, stride=3), """
    .......
    .■.....
    .■■....
    .......
    ....■..
    ....■■.
    .....■■"""),
("wrap", Axis(1, 1, border="wrap"), """
    ■■..■
    ■■■..
    .■■■.
    ..■■■
    ■..■■"""),
("wrap, only keys behind", Axis(2, 0, border="wrap"), """
    ■..■■
    ■■..■
    ■■■..
    .■■■.
    ..■■■"""),
("wrap, one key short of the circle", Axis(1, 1, border="wrap"), """
    ■■.■
    ■■■.
    .■■■
    ■.■■"""),
("wrap larger than the circle", Axis(2, 2, border="wrap"), """
    ■■■■
    ■■■■
    ■■■■
    ■■■■"""),
("wrap, unlimited on one side", Axis(None, 0, border="wrap"), """
    ■■■
    ■■■
    ■■■"""),
("wrap with stride", Axis(1, 1, stride=2, border="wrap"), """
    ■■■...
    ■■■...
    ..■■■.
    ..■■■.
    ■...■■
    ■...■■"""),
("wrap with dilation", Axis(1, 0, dilation=2, border="wrap"), """
    ■...■.
    .■...■
    ■.■...
    .■.■..
    ..■.■.
    ...■.■"""),
("dilation with remainder", Axis(1, 1, dilation=2), """
    ■.■....
    .■.■...
    ■.■.■..
    .■.■.■.
    ..■.■.■
    ...■.■.
    ....■.■"""),
("dilation and shift with remainder", Axis(1, 1, dilation=2, border="shift"), """
    ■.■.■..
    .■.■.■.
    ■.■.■..
    .■.■.■.
    ..■.■.■
    .■.■.■.
    ..■.■.■"""),
("dilation and causal", Axis(1, causal=True, dilation=3), """
    ■......
    .■.....
    ..■....
    ■..■...
    .■..■..
    ..■..■.
    ...■..■"""),
("dilation, unlimited", Axis(dilation=2, align="top-left"), """
    ■.■.■
    .■.■.
    ■.■.■
    .■.■."""),
("dilation with stride", Axis(1, 1, dilation=2, stride=2), """
    ■.■.■...
    .■.■.■..
    ■.■.■...
    .■.■.■..
    ....■.■.
    .....■.■
    ....■.■.
    .....■.■"""),
("dilation with a negative offset", Axis(1, 0, dilation=2, offset=-1), """
    .....
    ■....
    .■...
    ■.■..
    .■.■."""),
("dilation larger than the axis", Axis(2, 2, dilation=4, align="top-left"), """
    ■..
    .■.
    ..■
    ...
    ■.."""),
("wide rectangle, top-left", Axis(1, 0, align="top-left"), """
    ■.....
    ■■....
    .■■..."""),
("wide rectangle, bottom-right", Axis(1, 0, align="bottom-right"), """
    ..■■..
    ...■■.
    ....■■"""),
("tall rectangle, top-left", Axis(1, 0, align="top-left"), """
    ■..
    ■■.
    .■■
    ..■
    ...
    ..."""),
("tall rectangle, bottom-right", Axis(1, 0, align="bottom-right"), """
    ...
    ...
    ...
    ■..
    ■■.
    .■■"""),
("tall rectangle, bottom-right, keys ahead", Axis(0, 2, align="bottom-right"), """
    ■..
    ■■.
    ■■■
    .■■
    ..■"""),
("causal wide rectangle, top-left", Axis(causal=True, align="top-left"), """
    ■....
    ■■...
    ■■■.."""),
("causal wide rectangle, bottom-right", Axis(causal=True, align="bottom-right"), """
    ■■■..
    ■■■■.
    ■■■■■"""),
("causal tall rectangle, bottom-right", Axis(causal=True, align="bottom-right"), """
    ...
    ...
    ■..
    ■■.
    ■■■"""),
("positive offset", Axis(1, 0, align=2), """
    .■■..
    ..■■.
    ...■■
    ....■"""),
("negative offset", Axis(1, 1, align="top-left", offset=-2), """
    ....
    ■...
    ■■..
    ■■■.
    .■■■"""),
("bottom-right with a negative offset", Axis(0, 0, align="bottom-right", offset=-1), """
    .■..
    ..■."""),
("bottom-right with a positive offset", Axis(1, 0, align="bottom-right", offset=1), """
    .■■.
    ..■■
    ...■"""),
("one place", Axis(3, 3), """
    ■"""),
("one place, shift", Axis(2, 0, border="shift"), """
    ■"""),
("one place, wrap", Axis(1, 1, border="wrap"), """
    ■"""),
("one place, causal stride", Axis(0, causal=True, stride=4), """
    ■"""),
("one query after many keys", Axis(3, causal=True, align="bottom-right"), """
    ..■■■■"""),
("many queries, one key", Axis(1, 1, align="top-left"), """
    ■
    ■
    .
    ."""),
("prefix", Axis(1, 0, prefix=2), """
    ■■....
    ■■....
    ■■■...
    ■■■■..
    ■■.■■.
    ■■..■■"""),
("prefix and causal", Axis(1, causal=True, prefix=2), """
    ■.....
    ■■....
    ■■■...
    ■■■■..
    ■■.■■.
    ■■..■■"""),
("prefix and shift", Axis(1, 1, border="shift", prefix=1), """
    ■■■..
    ■■■..
    ■■■■.
    ■.■■■
    ■.■■■"""),
("prefix larger than the axis", Axis(0, 0, prefix=9), """
    ■■■
    ■■■
    ■■■"""),
("prefix and causal stride", Axis(0, causal=True, stride=2, prefix=1), """
    ■....
    ■■...
    ■....
    ■..■.
    ■...■"""),
("prefix and causal, tall rectangle", Axis(0, causal=True, align="bottom-right", prefix=1), """
    ..
    ..
    ■.
    ■■"""),
("prefix, tall rectangle", Axis(0, 0, align="bottom-right", prefix=1), """
    ■.
    ■.
    ■.
    ■■"""),
]
