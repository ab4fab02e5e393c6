"""Tests of the wheel and the sdist: what they contain, and that a wheel alone finds its files."""

from __future__ import annotations

import email
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch_forks

ROOT = Path(__file__).resolve().parents[2]
CARRIED = ("configs", "cpu", "cuda")  # folders of the repository that lie in the wheel's package

pytest.importorskip("hatchling", reason="no hatchling to build a wheel with")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this checkout."""
    from hatchling import build

    folder = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(ROOT)
        build.build_wheel(str(folder))
        build.build_sdist(str(folder))
    return folder


def files(*parts: str) -> dict[str, bytes]:
    """The files of a folder of the repository by their paths in it, without what Python leaves."""
    folder = ROOT.joinpath(*parts)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_has_the_package_and_nothing_else(built: Path) -> None:
    expected = {f"nbattn/{path}": content for path, content in files("nbattn").items()}
    for folder in CARRIED:
        expected |= {f"nbattn/{folder}/{path}": text for path, text in files(folder).items()}
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        found = {name: wheel.read(name) for name in wheel.namelist()}
    facts = {name: found.pop(name) for name in list(found) if ".dist-info/" in name}
    assert found == expected
    assert "nbattn/py.typed" in found
    (metadata,) = (text for name, text in facts.items() if name.endswith("METADATA"))
    parsed = email.message_from_bytes(metadata)
    assert parsed["Requires-Python"] == ">=3.11"
    assert metadata.endswith((ROOT / "README.md").read_bytes())
    assert any(name.endswith("licenses/LICENSE") for name in facts)
    (scripts,) = (text for name, text in facts.items() if name.endswith("entry_points.txt"))
    assert b"nbattn = nbattn.cli:main" in scripts


def test_the_sdist_builds_the_wheel_and_runs_the_tests(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in (*CARRIED, "nbattn", "tests", "docs", "docs_tools", "examples", "benchmarks"):
        assert {f"{folder}/{path}" for path in files(folder)} <= names
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "Makefile",
        "CHANGELOG.md",
        "mkdocs.yml",
    } <= names
    assert not any(
        name.startswith((".ci", ".git/", ".venv", "build", "dist", "site/")) for name in names
    )


LOAD = """
import sys
sys.path[:0] = [{place!r}]
import nbattn
from nbattn.config import shipped
from nbattn.kernels import sources
print(sources.directory(), sources.host_directory(), shipped.path("weather").parent)
print(nbattn.load("video_3d"))
"""


def test_a_wheel_alone_finds_its_files(built: Path, tmp_path: Path) -> None:
    place = tmp_path / "site"
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(place)
    (place / "cuda").mkdir()  # NVIDIA's, beside the package
    (place / "cuda" / "params.h").write_text("#error foreign")
    done = torch_forks.run(["-c", LOAD.format(place=str(place))], {**os.environ}, tmp_path)
    folders = [str(place / "nbattn" / name) for name in ("cuda", "cpu", "configs")]
    assert done.stdout.splitlines() == [
        " ".join(folders),
        "Config(masks: encoder; layers: block; plans: train, train_hopper)",
    ], done.stderr
