"""Tests of kernel sources: found in package and checkout, each header once, errors with lines."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import host_kernels
import probe_kernel
import pytest

from nbattn.errors import BackendError
from nbattn.kernels import sources

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = probe_kernel.write(tmp_path)
    monkeypatch.setattr(sources, "directory", lambda: folder)
    return folder


def preprocessed(text: str, *flags: str) -> list[str]:
    """The tokens that another compiler sees in a text."""
    command = ["gcc", "-x", "c", "-E", *flags, "-"]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("no gcc")
    return done.stdout.split()


def test_checkout_has_kernel_sources_beside_the_package():
    assert sources.directory() == ROOT / "cuda"
    assert sources.host_directory() == ROOT / "cpu"


def test_each_header_once_at_its_first_place(probe: Path):
    text = sources.amalgamate("probe.cu")
    assert text.count("#define SCALE 2") == text.count("struct Params") == 1
    assert text.index("#define SCALE") < text.index("struct Params") < text.index("nb_probe")
    assert "#pragma once" not in text
    assert re.findall(r"#include\s+(\S+)", text) == ['"emulator.h"', "<cuda_bf16.h>"]


def test_lines_keep_their_file_and_number(probe: Path, cases):
    """Every line has the file and number that #line markers give it."""
    place = ("", 0)
    found: dict[tuple[str, int], str] = {}
    for line in sources.amalgamate("probe.cu").splitlines():
        if marker := re.fullmatch(r'#line (\d+) "(.*)"', line):
            place = (marker[2], int(marker[1]))
            continue
        found[place] = line
        place = (place[0], place[1] + 1)
    for name, text in probe_kernel.FILES.items():
        for number, line in enumerate(text.splitlines(), 1):
            seen = found.get((f"cuda/{name}", number), "")
            replaced = line in ('#include "base.cuh"', '#include "params.h"', "#pragma once")
            assert seen == ("" if replaced else line), (name, number)
            cases("kernel sources: lines", 1)


def test_the_text_has_the_tokens_of_the_files(probe: Path):
    """gcc reading the files and gcc reading the one text see the same tokens."""
    (probe / "cuda_bf16.h").write_text("")
    flags = ("-P", f"-I{probe}")
    whole = preprocessed((probe / "probe.cu").read_text(), *flags)
    assert preprocessed(sources.amalgamate("probe.cu"), *flags) == whole


@pytest.mark.parametrize("name", probe_kernel.FILES)
def test_digest_changes_with_every_file(name: str, probe: Path):
    """The hash sees one more blank at the end, in every file."""
    before = sources.digest("probe.cu")
    assert sources.digest("probe.cu") == before
    path = probe / name
    path.write_text(path.read_text().removesuffix("\n") + " \n")
    assert sources.digest("probe.cu") != before


def test_digest_does_not_depend_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = set()
    for place in ("here", "there"):
        folder = probe_kernel.write(tmp_path / place)
        monkeypatch.setattr(sources, "directory", lambda folder=folder: folder)
        found.add(sources.digest("probe.cu"))
    assert len(found) == 1


def test_a_header_under_a_condition_is_refused(probe: Path):
    (probe / "probe.cu").write_text('int a;\n#if 0\n#  include "params.h"\n#endif\n')
    with pytest.raises(BackendError) as caught:
        sources.amalgamate("probe.cu")
    assert str(caught.value) == "cuda/probe.cu:3 includes params.h inside an #if"


def test_headers_of_both_folders_once(tmp_path: Path):
    """A header of `cuda` is the same one from `cpu` and from its own folder."""
    folder = host_kernels.write(tmp_path)
    text = sources.amalgamate("kernels.cpp", folder / "cpu")
    assert text.count("#define LANES 16") == text.count("#define VERSION 1") == 1
    assert re.findall(r'#include "(.*)"', text) == ["emulator.h"]
    places = [line for line in text.splitlines() if line.startswith("#line")]
    assert places == [
        '#line 1 "cpu/kernels.cpp"', '#line 1 "cpu/lanes.h"', '#line 1 "cuda/params.h"',
        '#line 1 "cuda/base.cuh"', '#line 3 "cuda/params.h"', '#line 3 "cpu/lanes.h"',
        '#line 2 "cpu/kernels.cpp"',
    ]  # fmt: skip
    (folder / "cpu" / "base.cuh").write_text("int of_cpu;\n")
    (folder / "cpu" / "lanes.h").write_text('#include "base.cuh"\n')
    text = sources.amalgamate("kernels.cpp", folder / "cpu")
    assert text.count("int of_cpu;") == text.count("#define VERSION 1") == 1


@pytest.mark.parametrize("header", ["../secret.h", "../../cuda/base.cuh", "/etc/hosts", "a/b.h"])
def test_headers_elsewhere_are_left_to_the_compiler(header: str, tmp_path: Path):
    folder = host_kernels.write(tmp_path)
    (tmp_path / "secret.h").write_text("int secret;\n")
    (folder / "cpu" / "kernels.cpp").write_text(f'#include "{header}"\n')
    text = sources.amalgamate("kernels.cpp", folder / "cpu")
    assert text == f'#line 1 "cpu/kernels.cpp"\n#include "{header}"\n'


def test_error_of_a_missing_file_names_it(probe: Path):
    with pytest.raises(BackendError, match=re.escape(str(probe / "other.cu"))) as caught:
        sources.amalgamate("other.cu")
    assert sources.again() in str(caught.value)


def test_the_kernels_of_this_version_can_be_read(cases):
    names = [path.name for path in sources.directory().glob("*.cu*")]
    assert names
    for name in names:
        text = sources.amalgamate(name)
        left = re.findall(r'#include "(.*)"', text)
        assert not any((sources.directory() / header).exists() for header in left)
        cases("kernel sources: files", 1)


@pytest.mark.parametrize("places", [("nbattn/cuda", "cuda"), ("nbattn/cuda",), ("cuda",)])
def test_sources_inside_the_package_come_first(
    places: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In site-packages, NVIDIA's package `cuda` lies beside it."""
    (tmp_path / "cuda").mkdir()
    for place in places:
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "params.h").touch()
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "nbattn" / "kernels" / "sources.py"))
    assert sources.directory() == tmp_path / places[0]
    with pytest.raises(BackendError, match=r"nor .*cpu has kernels\.cpp"):
        sources.host_directory()


def test_missing_sources_error_lists_the_searched_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "nbattn" / "kernels" / "sources.py"))
    with pytest.raises(BackendError) as caught:
        sources.directory()
    assert str(caught.value) == (
        f"the kernels' sources are missing: neither {tmp_path / 'nbattn' / 'cuda'} nor "
        f"{tmp_path / 'cuda'} has params.h\n  fix:   {sources.again()}"
    )


AGAIN = "pip install --force-reinstall --no-deps"
WHEEL = {"url": "file:///w/nbattn.whl", "archive_info": {}}
CHECKOUT = {"url": "file:///a%20b", "dir_info": {"editable": True}}
GIT = {"url": "https://x/n.git", "vcs_info": {"vcs": "git"}}


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (None, f"{AGAIN} nbattn"),
        (WHEEL, f"{AGAIN} file:///w/nbattn.whl"),
        (GIT, f"{AGAIN} git+https://x/n.git"),
        (CHECKOUT, "git -C '/a b' restore cpu cuda"),
    ],
)
def test_sources_are_repaired_from_where_nbattn_came(
    facts: object, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(read_text=lambda name: facts and json.dumps(facts))
    monkeypatch.setattr(metadata, "distribution", lambda name: found)
    assert sources.again() == line


def test_sources_of_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    root = shlex.quote(str(Path(sources.__file__).parents[2]))
    assert sources.again() == f"git -C {root} restore cpu cuda"
