"""Tests of kernel sources: found in checkout and wheel, each header once, errors at their line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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


def test_error_of_a_missing_file_names_it(probe: Path):
    with pytest.raises(BackendError, match=re.escape(str(probe / "other.cu"))) as caught:
        sources.amalgamate("other.cu")
    assert "pip install --force-reinstall nbattn" in str(caught.value)


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


def test_wheel_contains_kernel_sources(tmp_path: Path):
    wheel = built(tmp_path)
    place = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, place], check=True)
    (place / "cuda").mkdir()
    (place / "cuda" / "params.h").write_text("#error foreign")
    code = "from nbattn.kernels import sources; print(sources.directory())"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(place)!r}); {code}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={},
    )
    assert done.stdout.strip() == str(place / "nbattn" / "cuda"), done.stderr
    shipped = {path.name: path.read_bytes() for path in (place / "nbattn" / "cuda").iterdir()}
    assert shipped == {path.name: path.read_bytes() for path in (ROOT / "cuda").iterdir()}


def built(folder: Path) -> Path:
    """The wheel of this checkout."""
    pytest.importorskip("hatchling", reason="no hatchling to build a wheel with")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_missing_sources_error_lists_the_searched_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "nbattn" / "kernels" / "sources.py"))
    with pytest.raises(BackendError) as caught:
        sources.directory()
    assert str(caught.value) == (
        f"the kernels' sources are missing: neither {tmp_path / 'nbattn' / 'cuda'} nor "
        f"{tmp_path / 'cuda'} has params.h\n  fix:   pip install --force-reinstall nbattn"
    )
