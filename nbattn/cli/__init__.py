"""The command line: one module per command; this module has exit codes and error messages.

A command module imports only the standard library when it is loaded, so that `doctor` works where
torch is broken. It defines `parser() -> Parser` and `run(options) -> int`.
"""

from __future__ import annotations

import atexit
import difflib
import importlib
import io
import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from nbattn.cli import screen
from nbattn.cli.in_options import in_options
from nbattn.cli.parser import Parser
from nbattn.errors import InputError, NbattnError
from nbattn.version import __version__

COMMANDS = ("plan", "mask", "doctor", "bench", "tune", "demo", "schema")
OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
_DESCRIPTION = """
Neighborhood attention for PyTorch: masks, plans and measurements.

commands:
{commands}

`nbattn COMMAND --help` has the options of a command, and examples.
"""
_EPILOG = """
start here:
  nbattn doctor
  nbattn mask --mask 'neighborhood((7, 7))' --query 16,16
  nbattn plan --mask 'neighborhood((7, 7))' --query 1,56,56,2,32

exit status:
  0    success
  1    the command ran, and its result is negative: a plan is not exact, a backend failed
  2    the command, a file or a shape is invalid; the message on stderr shows a correct form
  130  interrupted
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
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = "nbattn"
    try:
        if words and words[0] in COMMANDS:
            name = f"nbattn {words[0]}"
        status = _run(words)
        sys.stdout.flush()  # a closed pipe raises here, not at exit
        return status
    except NbattnError as error:
        has_mask = any(word.split("=")[0] == "--mask" for word in words)
        error.fix = in_options(error.fix, has_mask=has_mask)
        screen.complain(name, str(error))
    except ImportError as error:
        screen.complain(name, f"{error}.\n  fix:   nbattn doctor  # shows what to install")
    except KeyboardInterrupt:
        screen.complain(name, "interrupted.")
        return INTERRUPTED
    except BrokenPipeError:  # the reader, for example `head`, has closed the pipe
        _silence()
        return OK
    except (OSError, MemoryError) as error:
        _silence()
        reason = getattr(error, "strerror", None) or str(error) or "not enough memory"
        if file := getattr(error, "filename", None):
            reason = f"{file}: {reason}"
        screen.complain(name, f"{reason}.")
    return USAGE


def _silence() -> None:
    """Discard the rest of the output, so that nothing fails at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(words: list[str]) -> int:
    """Run the command that the first word names. Without any word, print the help: nothing was
    run, so the status is that of a command that is missing.
    """
    if not words:
        top().print_help()
        return USAGE
    first, *rest = words
    if first == "help":
        first, rest = (rest[0], ["--help"]) if rest else ("--help", [])
    if first.startswith("-"):
        top().read([first])
        return OK
    if first not in COMMANDS:
        _refuse(first, rest)
    module = importlib.import_module(f"nbattn.cli.{first}")
    options = module.parser().read(rest)
    options.command, options.words = first, rest
    return module.run(options)


def _refuse(first: str, rest: list[str]) -> NoReturn:
    """Raise an InputError for a word that is no command."""
    if first == "version":
        raise InputError(f"{first!r} is not a command.", "nbattn --version")
    near = difflib.get_close_matches(first, COMMANDS, 1)
    if not near:
        known = ", ".join(COMMANDS)
        raise InputError(f"{first!r} is not a command; the commands are {known}.", "nbattn --help")
    problem = f"{first!r} is not a command. Did you mean {near[0]}?"
    raise InputError(problem, shlex.join(["nbattn", near[0], *rest]))


def top() -> Parser:
    """Return the parser of the program itself, whose help lists the commands."""
    parsers = (importlib.import_module(f"nbattn.cli.{name}").parser() for name in COMMANDS)
    listed = "\n".join(f"  {one.command:<8} {one.summary}" for one in parsers)
    found = Parser("", "", _DESCRIPTION.format(commands=listed), _EPILOG)
    found.add_argument("--version", action="version", version=f"nbattn {__version__}")
    return found
