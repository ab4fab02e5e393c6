"""The fixes of the command line: every line that a message shows is a command that runs."""

from __future__ import annotations

from fixes.row import Row

CONFIG = "configs/nat_tiny.toml"
GIVEN = """
import os, pathlib, shlex, tempfile
from nbattn.cli import main
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "configs").symlink_to(pathlib.Path(nbattn.__file__).parents[1] / "configs")
(folder / "masks.toml").write_text("[masks]\\na = { full = { rank = 2 } }\\n")
(folder / "two.toml").write_text("[masks]\\na = { full = { rank = 2 } }\\nb = { causal = {} }\\n")
(folder / "none.toml").write_text("[plans]\\n")
monkeypatch.chdir(folder)
monkeypatch.setenv("NBATTN_CACHE", str(folder / "cache"))
monkeypatch.setattr("nbattn.bench.why_unreliable", lambda kind: "")
monkeypatch.setattr("nbattn.bench.passes", lambda plan: [])
monkeypatch.setattr("nbattn.cli.bench.measure", lambda *rest: [nbattn.bench.Job("one", None)])
monkeypatch.setattr("nbattn.bench.record", lambda *rest: {})
def nbattn_command(line):
    try:
        return main(shlex.split(line)[1:])
    except SystemExit as stop:  # --help
        return stop.code
"""


def line(written: str, fixed: str, pasted: str = "", given: str = "") -> Row:
    """A command line that is wrong, and the one that its message shows, or that has its fix."""
    return Row(
        call=f"nbattn_command({written!r})",
        pasted=pasted or fixed,
        fixed=f"status = nbattn_command({fixed!r})",
        means="status in (0, 1)",
        given=GIVEN + given,
    )


IMAGE = "nbattn plan --mask 'full(2)' --query 2,8,8,4,16 --device cpu"
DEMO = """
import nbattn.demo
monkeypatch.setattr("nbattn.demo.run", lambda *given, **named: True)
"""
REFUSED_TABLE = """
(folder / "cache").mkdir()
(folder / "cache").chmod(0o777)
"""
ROWS = [
    line(
        f"nbattn plan {CONFIG} stage1 --query 1,56,56,2 --device cpu",
        f"nbattn plan {CONFIG} stage1 --query 1,56,56,2,64 --device cpu",
        "--query 1,56,56,2,64",
    ),
    line("nbattn shema", "nbattn schema"),
    line("nbattn frobnicate", "nbattn --help"),
    line(f"nbattn plan {CONFIG} --al", f"nbattn plan {CONFIG} --all"),
    line(f"nbattn plan {CONFIG} --frobnicate", "nbattn plan --help"),
    line("nbattn schema now", "nbattn schema"),
    line(f"nbattn plan {CONFIG} --device", f"nbattn plan {CONFIG} --device cpu"),
    line("nbattn plan", "nbattn plan --mask 'sliding_window(511)' --query 1,4096,8,64"),
    line(
        "nbattn plan --mask 'full(2)' --query 30,8,64 --key-grids 5x6",
        "nbattn plan --mask 'full(2)' --query 30,8,64 --key-grids 5x6 --grids 5x6",
        "--grids 5x6",
    ),
    line(f"nbattn plan {CONFIG} stage4 --mask block --query 1,8,8,2,32",
         f"nbattn plan {CONFIG} stage4"),
    line(
        "nbattn plan --mask 'causal()' --query 2,12,4,16 --grids 12,12 --device cpu",
        "nbattn plan --mask 'causal()' --query 24,4,16 --grids 12,12 --device cpu",
        "--query 24,4,16",
    ),
    line("nbattn plan masks.toml", "nbattn plan masks.toml --mask a --query 1,32,32,8,64"),
    line(f"{IMAGE} --mesh 2,2,2", f"{IMAGE} --mesh 2,2,2 --shard 0,1,batch"),
    line(f"{IMAGE} --mesh 3 --shard heads", f"{IMAGE} --mesh 1 --shard heads"),
    line(f"{IMAGE} --shard 0,1", f"{IMAGE} --shard 0,1 --mesh 2,2"),
    line(f"{IMAGE} --mesh 2 --extra-keys 4 --extra-queries",
         f"{IMAGE} --extra-keys 4 --extra-queries"),
    line(f"nbattn plan {CONFIG} --device cpu --mesh 2 --plot a.png",
         f"nbattn plan {CONFIG} stage1 --device cpu --mesh 2 --plot a.png"),
    line(f"nbattn plan {CONFIG} stage44", f"nbattn plan {CONFIG} stage4"),
    line(f"nbattn plan {CONFIG} --mask blok --query 1,8,8,2,32",
         f"nbattn plan {CONFIG} --mask block --query 1,8,8,2,32", "--mask block"),
    line(f"nbattn plan {CONFIG} stage4 --query 1x8x8x2x32",
         f"nbattn plan {CONFIG} stage4 --query 1,8,8,2,32"),
    line("nbattn mask --mask causal() --query '(8)'", "nbattn mask --mask causal() --query 8",
         "--query 8"),
    line("nbattn mask --query 3,3", "nbattn mask --mask 'neighborhood((7, 7))' --query 3,3"),
    line("nbattn mask masks.toml", "nbattn mask masks.toml --query 16,16"),
    line("nbattn mask masks.toml --query 5,6,7", "nbattn mask masks.toml --query 5,6",
         "--query 5,6"),
    line("nbattn mask two.toml", "nbattn mask two.toml a --query 16,16"),
    line("nbattn mask none.toml --query 9,9",
         "nbattn mask --mask 'neighborhood((7, 7))' --query 9,9", "--mask 'neighborhood((7, 7))'"),
    line("nbattn mask masks.toml b --query 9,9", "nbattn mask masks.toml a --query 9,9"),
    line("nbattn mask --mask 'causal()' --query 9 --at 3",
         "nbattn mask --mask 'causal()' --query 9", "--query 9"),
    line("nbattn mask masks.toml --query 9,9 --at 9,9",
         "nbattn mask masks.toml --query 9,9 --at 4,4", "--at 4,4"),
    line("nbattn mask --mask 'causal()' --query 3 --kind axes",
         "nbattn mask --mask 'causal()' --query 3 --kind axes --svg mask.svg",
         "--kind axes --svg mask.svg"),
    line("nbattn mask --mask 'causal()' --query 3 --svg mask.svg --kind axis",
         "nbattn mask --mask 'causal()' --query 3 --svg mask.svg --kind axes", "--kind axes"),
    line("nbattn mask --mask 'causal()' --query 3 --png mask.svg",
         "nbattn mask --mask 'causal()' --query 3 --png mask.png", "--png mask.png"),
    line("nbattn mask --mask 'causal()' --query 3 --device sm_90",
         "nbattn mask --mask 'causal()' --query 3 --html mask.html --device sm_90",
         "--html mask.html --device sm_90"),
    line(f"nbattn plan {CONFIG} --device cpu --svg plan.svg",
         f"nbattn plan {CONFIG} stage1 --device cpu --svg plan.svg"),
    line("nbattn mask --mask 'causal()' --query x", "nbattn mask --mask 'causal()' --query 8",
         "--query 8"),
    line("nbattn mask --mask 'causal()' --query 9999999",
         "nbattn mask --mask 'causal()' --query 1024", "--query 1024"),
    line("nbattn mask --mask 'Axis(3' --query 8", "nbattn mask --mask 'Axis(3, 3)' --query 8",
         "--mask 'Axis(3, 3)'"),
    line("nbattn mask --mask 'neighborhod((7, 7))' --query 8,8",
         "nbattn mask --mask 'neighborhood((7, 7))' --query 8,8", "neighborhood"),
    line("nbattn version", "nbattn --version"),
    line("nbattn mask --mask 'causal()' 5", "nbattn mask --mask 'causal()' --query 5"),
    line("nbattn mask --mask 'causal' --query 8", "nbattn mask --mask 'causal()' --query 8",
         "--mask 'causal()'"),
    line("nbattn mask --mask 7 --query 8", "nbattn mask --mask 'neighborhood(7)' --query 8",
         "neighborhood(7)"),
    line("nbattn mask --mask 'neighborhood(7, 7)' --query 8,8",
         "nbattn mask --mask 'neighborhood((7, 7))' --query 8,8", "neighborhood((7, 7))"),
    line(f"nbattn bench {CONFIG} --backends tild", f"nbattn bench {CONFIG} --backends tiled",
         "--backends tiled"),
    line(f"nbattn bench {CONFIG} --json no/where.json", f"nbattn bench {CONFIG} --json where.json",
         "--json where.json"),
    line("nbattn demo --output two.toml", "nbattn demo --output two.toml-pictures",
         "--output two.toml-pictures", DEMO),
    line("nbattn tune --device sm_75", "nbattn tune --device cpu --dry-run", "--device cpu"),
    line("nbattn tune --device cpu", "nbattn tune --device cpu --dry-run --output costs.json",
         "--output costs.json", "monkeypatch.setenv('NBATTN_CACHE', 'off')"),
    line("nbattn tune --device cpu", "nbattn tune --device cpu --dry-run --output costs.json",
         "--output costs.json", REFUSED_TABLE),
    line("nbattn tune --device cpu", "nbattn tune --device cpu --dry-run --threads 1",
         "--threads 1", "monkeypatch.setattr('nbattn.bench.why_unreliable', lambda kind: 'busy')"),
    Row(
        call="nbattn.tune.save(folder / 'link.json', None)",
        pasted="--output costs.json",
        fixed="nbattn_command('nbattn tune --device cpu --dry-run --output costs.json')",
        given=GIVEN + "import nbattn.tune\n(folder / 'link.json').symlink_to('away')",
    ),
    Row(
        call="nbattn_command('nbattn bench configs/nat_tiny.toml --png times.png')",
        pasted="pip install matplotlib",
        given=GIVEN + "import sys\nmonkeypatch.setitem(sys.modules, 'matplotlib', None)",
    ),
    Row(
        call="nbattn_command('nbattn demo')",
        pasted="pip install matplotlib scikit-image scikit-learn",
        given=GIVEN + "monkeypatch.setattr('importlib.util.find_spec', lambda name: None)",
    ),
    Row(
        call="from nbattn.demo import digits\ndigits.load_digits()",
        pasted="pip install scikit-learn",
        given="import sys\nmonkeypatch.setitem(sys.modules, 'sklearn', None)\n"
        "monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)",
    ),
]  # fmt: skip
