"""`nbattn demo`: denoise a photograph and train a classifier of digits on the CPU."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from nbattn.cli import values
from nbattn.errors import InputError

_DESCRIPTION = """\
Denoise a photograph and classify handwritten digits by neighborhood attention, on the CPU and
without downloads: scikit-image contains the photograph, scikit-learn the digits.

The command computes and prints:
  denoise  the plan and its proof; PSNR, SSIM and time of non-local means as one attention call,
           beside scikit-image's own; the largest error against the dense reference
  digits   the loss of every epoch; the accuracy on the test set; the most frequent confusion

Pictures go to the output folder. The command writes no other files.
"""
_EPILOG = """\
examples:
  nbattn demo                               both parts, about a minute on two cores
  nbattn demo --part denoise --size 128     a small piece of the photograph, in seconds
  nbattn demo --part digits --seed 7 --output /tmp/digits

needs:
  pip install "nbattn[demo]"                matplotlib, scikit-image, scikit-learn

exit status:
  0   all targets are met: a gain of at least 5 dB, at least 97 % of the test set correct
  1   a target is missed
  2   an argument is invalid, or a package is missing
"""
_PACKAGES = ("matplotlib", "skimage", "sklearn")


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "demo",
        help="denoise a photograph and classify digits",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", choices=("denoise", "digits"), help="default: both")
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="folder; default: %(default)s"
    )
    parser.add_argument("--threads", type=_positive, help="threads of torch; default: all cores")
    parser.add_argument("--seed", type=_seed, default=0, help="random seed; default: 0")
    parser.add_argument(
        "--size", type=_side, help="denoise the middle SIZE x SIZE pixels; default: all 512"
    )
    parser.add_argument("--epochs", type=_positive, help="training epochs; default: 30")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the selected parts; return the exit status that the epilog lists."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"the demo needs {', '.join(missing)}, which is not installed.",
            'pip install "nbattn[demo]".',
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


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _seed(text: str) -> int:
    number = int(text)
    if not 0 <= number < 1 << 63:
        raise argparse.ArgumentTypeError(f"{number} is not in 0 … 2^63 - 1")
    return number


def _side(text: str) -> int:
    number = int(text)
    if number < 24:  # the search window is 21 pixels wide
        raise argparse.ArgumentTypeError(f"{number} is below 24; the search window is 21 wide")
    if number > 512:
        raise argparse.ArgumentTypeError(f"{number} is above 512, the side of the photograph")
    return number
