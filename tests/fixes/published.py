"""The fixes of plans of published models, in Python and on the command line."""

from __future__ import annotations

from fixes.row import Row
from fixes.terminal import GIVEN as TERMINAL
from fixes.terminal import line

GIVEN = "from nbattn import published"


def row(name: str, wrong: str, right: str, means: str = "out.seconds > 0") -> Row:
    """A row of `published.plan`, without and with a legal argument."""
    return Row(
        f"published.plan({name}, {wrong}, device='cpu')",
        right,
        f"out = published.plan({name}, {right}, device='cpu')",
        means,
        GIVEN,
    )


ROWS = [
    Row(
        'published.plan(model="hunyuanvideo", device="cpu")',
        'model="hunyuan_video"',
        'out = published.plan(model="hunyuan_video", device="cpu")',
        "out.model.title == 'HunyuanVideo'",
        GIVEN,
    ),
    row("'flux'", "size=(1000, 700)", "size=(992, 704)", "out.layers[0].grid == (62, 44)"),
    row("'flux'", "size=1024", "size=(1024, 1024)", "out.layers[0].grid == (64, 64)"),
    row("'flux'", "frames=9", "frames=None", "out.frames == 1"),
    row("'wan'", "frames=80", "frames=81", "out.layers[0].grid[0] == 21"),
    row("'wan'", "frames=2.5", "frames=1", "out.layers[0].grid[0] == 1"),
    row("'wan'", "frames=-3", "frames=1", "out.layers[0].grid[0] == 1"),
    row("'wan'", "text=512", "text=None", "out.layers[0].text == 0"),
    row(
        "'flux'",
        "mask={'dual': Mask.neighborhood((9, 9)), 'single': None}",
        "mask={'double': Mask(Axis(4, 4, border='shift'), Axis(4, 4, border='shift')), "
        "'single': None}",
        "[part.windows for part in out.layers] == ['given', 'none']",
    ),
    row("'flux'", "mask='exact'", "mask=Mask(Axis(), Axis())"),
    row(
        "'wan'",
        "mask=Mask.neighborhood((9, 9))",
        "mask=Mask(Axis(), Axis(4, 4, border='shift'), Axis(4, 4, border='shift'))",
        "out.layers[0].mask.rank == 3",
    ),
    line(
        "nbattn plan --size 512x512 --device cpu",
        "nbattn plan --model flux --size 512x512 --device cpu",
    ),
    line(
        "nbattn plan --model flux --query 1,8,8,2,16 --device cpu",
        "nbattn plan --model flux --device cpu",
    ),
    line(
        "nbattn plan flux_4k --model flux --device cpu",
        "nbattn plan flux_4k --model flux --device cpu --mask exact",
        "--mask exact",
    ),
    Row(
        call="nbattn_command('nbattn plan --model flux --device cpu --plot flux.png')",
        pasted="pip install matplotlib",
        given=TERMINAL + "import sys\nmonkeypatch.setitem(sys.modules, 'matplotlib', None)",
    ),
]
