"""Programs of Python in forks of one process that has loaded torch: loading it takes longer than
most of them run.

The process loads nothing else, uses no thread, and lives as long as the tests' own one.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

FILES = ("stdout", "stderr")


def run(
    arguments: list[str], env: dict[str, str], cwd: str | Path = "."
) -> subprocess.CompletedProcess[str]:
    """What `python -c CODE …` does, and `subprocess.run` returns, with the output as text."""
    option, code, *words = arguments
    assert option == "-c"
    with tempfile.TemporaryDirectory() as folder:
        asked = {
            "code": code,
            "words": words,
            "env": env,
            "folder": folder,
            "cwd": str(Path(cwd).resolve()),
        }
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        output = [Path(folder, name).read_text("utf-8") for name in FILES]
    return subprocess.CompletedProcess(arguments, status, *output)


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def close() -> None:
        server.communicate()  # which closes its input

    atexit.register(close)
    return server


def asked_of_a_fork() -> dict[str, Any] | None:
    """In each fork what to run; in the process itself None, at the end of its input."""
    import torch

    assert torch.get_num_threads() > 0
    for line in iter(sys.stdin.readline, ""):
        if not (child := os.fork()):
            return json.loads(line)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def become(asked: dict[str, Any]) -> None:
    """The output, folder, environment and arguments of a program, in the process that will be
    it.
    """
    for number, name in enumerate(FILES, 1):
        file = os.open(Path(asked["folder"], name), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = ["", *filter(None, places)]
    sys.argv[:] = ["-c", *asked["words"]]


if __name__ == "__main__" and (given := asked_of_a_fork()) is not None:
    become(given)
    exec(given["code"], {"__name__": "__main__"})
