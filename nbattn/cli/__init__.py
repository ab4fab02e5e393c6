"""The command line: one module per command; this module has exit codes and error messages.

A command module imports only the standard library when it is loaded, so that `doctor` works where
torch is broken. It defines `add_parser(commands)`, which registers `run(options) -> int`.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import io
import os
import sys
from collections.abc import Sequence

from nbattn.errors import NbattnError
from nbattn.version import __version__

COMMANDS = ("plan", "mask", "doctor", "bench", "tune", "demo", "schema")
OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
_EPILOG = """
exit status:
  0   success
  1   the command ran, and its result is negative: a plan is not exact, a backend failed
  2   the command, a file or a shape is invalid; the message on stderr shows a correct form
  130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: default: the arguments of the process.

    Returns:
        The exit status, see `_EPILOG`.
    """
    if sys.stdout is None:  # the caller has closed it
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        atexit.register(sys.stdout.close)  # without it Python warns about an unclosed file
    if isinstance(sys.stdout, io.TextIOWrapper):  # file and plan names may not be ASCII
        sys.stdout.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    try:
        status = options.run(options)
        sys.stdout.flush()  # a closed pipe raises here, not at exit
        return status
    except NbattnError as error:
        print(f"nbattn {options.command}: {error}", file=sys.stderr)
        return USAGE
    except ImportError as error:
        hint = "  fix:   `nbattn doctor` shows what is missing or broken, and what to install."
        print(f"nbattn {options.command}: {error}.\n{hint}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, for example `head`, has closed the pipe
        _silence()
        return OK
    except (OSError, MemoryError) as error:
        _silence()
        reason = getattr(error, "strerror", None) or str(error) or "not enough memory"
        if name := getattr(error, "filename", None):
            reason = f"{name}: {reason}"
        print(f"nbattn {options.command}: {reason}.", file=sys.stderr)
        return USAGE


def _silence() -> None:
    """Discard the rest of the output, so that nothing fails at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """Return the parser with all commands."""
    top = argparse.ArgumentParser(
        prog="nbattn",
        description="Neighborhood attention: masks, plans and measurements.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"nbattn {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"nbattn.cli.{name}").add_parser(commands)
    return top
