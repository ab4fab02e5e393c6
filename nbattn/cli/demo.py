"""`nbattn demo`: denoise a photograph and train a classifier of digits on the CPU."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from nbattn.cli import values
from nbattn.cli.parser import Parser
from nbattn.errors import InputError
from nbattn.packages import install_line

_DESCRIPTION = """\
Denoise a photograph and classify handwritten digits by neighborhood attention, on the CPU and
without downloads: scikit-image contains the photograph, scikit-learn the digits.

The command computes and prints:
  denoise  the plan, its proof, and non-local means as one attention call beside scikit-image's
  digits   the loss of every epoch, the accuracy on the test set, the most frequent confusion

Both parts take about a minute on two cores. Pictures go to the output folder. The command writes no
other files, except the compiled CPU kernels in the cache (see `nbattn doctor`). Ctrl-C stops it;
pictures that are finished stay.
"""
_EPILOG = """\
examples:
  nbattn demo
  nbattn demo --part denoise --size 128
  nbattn demo --part digits --seed 7 --output /tmp/digits

needs:
  pip install matplotlib scikit-image scikit-learn

exit status:
  0   all targets are met: a gain of at least 5 dB, at least 97 % of the test set correct
  1   a target is missed
  2   an argument is invalid, or a package is missing
"""
_SIDE = values.whole(24, 512, "128")  # the search window is 21 wide, the photograph 512
_SEED = values.whole(0, (1 << 63) - 1)
_PACKAGES = ("matplotlib", "skimage", "sklearn")


def parser() -> Parser:
    """Return the parser of the command."""
    found = Parser("demo", "denoise a photograph and classify digits", _DESCRIPTION, _EPILOG)
    add = found.add_argument
    add("--part", choices=("denoise", "digits"), help="default: both")
    text = "folder; default: %(default)s"
    add("--output", type=values.folder, default=Path("demo-output"), metavar="FOLDER", help=text)
    text = "threads of torch; default: all cores"
    add("--threads", type=values.count, metavar="N", help=text)
    add("--seed", type=_SEED, default=0, metavar="N", help="random seed; default: 0")
    text = "denoise the middle SIZE x SIZE pixels; default: all 512"
    add("--size", type=_SIDE, metavar="SIZE", help=text)
    add("--epochs", type=values.count, metavar="N", help="training epochs; default: 30")
    return found


def run(options: argparse.Namespace) -> int:
    """Run the selected parts; return the exit status that the epilog lists."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        is_or_are = "is" if len(missing) == 1 else "are"
        raise InputError(
            f"the demo needs {', '.join(missing)}, which {is_or_are} not installed.",
            install_line("demo"),
        )
    from nbattn import demo

    values.check_folder(options.output)
    parts = demo.PARTS if options.part is None else (options.part,)
    all_met = demo.run(
        options.output,
        parts=parts,
        seed=options.seed,
        threads=options.threads,
        size=options.size,
        epochs=options.epochs,
    )
    return 0 if all_met else 1
