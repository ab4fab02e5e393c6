"""Other processes in which our own warnings are errors, as `pyproject.toml` has it for this one."""

from __future__ import annotations

STRICT = "import warnings; warnings.filterwarnings('error', module='nbattn')\n"
_RUN = "import runpy, sys; sys.argv[:] = sys.argv[1:]; runpy.run_"


def script(path: object, before: str = "") -> list[str]:
    """Arguments of Python for a file, run as a program after some lines."""
    place = "import os, sys; sys.path[0] = os.path.dirname(sys.argv[1])\n"
    return ["-c", f"{STRICT}{before}{place}{_RUN}path(sys.argv[0], run_name='__main__')", str(path)]


def module(name: str) -> list[str]:
    """Arguments of Python for a module, run as a program."""
    return ["-c", f"{STRICT}{_RUN}module(sys.argv[0], run_name='__main__', alter_sys=True)", name]
