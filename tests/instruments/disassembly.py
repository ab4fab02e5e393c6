"""Disassembles kernels with nvdisasm, which comes with the compiler's wheels or a toolkit."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path


@functools.cache
def nvdisasm() -> str | None:
    """Its path: the wheel's, else a toolkit's."""
    found = importlib.util.find_spec("nvidia")
    for root in (found and found.submodule_search_locations) or ():
        if (path := Path(root, "cu13", "bin", "nvdisasm")).is_file():
            return str(path)
    return shutil.which("nvdisasm")


def disassembled(cubin: bytes) -> str:
    """nvdisasm's text."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(nvdisasm()), "--print-code", "--no-dataflow", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def instructions(text: str) -> Counter[str]:
    """How often every instruction is in nvdisasm's text."""
    return Counter(re.findall(r"\*/\s+(?:@!?U?P\w+ +)?([A-Z][A-Z0-9_.x]+)", text))
