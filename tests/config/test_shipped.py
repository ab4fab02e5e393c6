"""Tests of configurations that come with the package: found by bare names, and what was meant."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import nbattn
from nbattn import ConfigError, cli
from nbattn.config import shipped

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.iterdir())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mistake_of(source: str | Path) -> str:
    with pytest.raises(ConfigError) as caught:
        nbattn.load(source)
    assert caught.value.source == str(source)
    return str(caught.value).removeprefix(f"{source}: ")


@pytest.mark.parametrize("name", NAMES)
def test_a_bare_name_loads_what_is_shipped_without_optional_packages(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    assert nbattn.load(name) == nbattn.load(next(CONFIGS.glob(f"{name}.*")))


def test_the_command_line_takes_bare_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "video_3d", "train", "--device", "sm_90"]) == 0
    assert "Axis(6, 6, dilation=2, border='wrap')" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["plan", "video3d"]) == 2
    assert 'Did you mean "video_3d"?' in capsys.readouterr().err


def test_a_file_of_that_name_comes_first(elsewhere: Path) -> None:
    (elsewhere / "video_3d").write_text("")
    assert mistake_of("video_3d").startswith("unknown kind of file; legal: .toml")
    (elsewhere / "mistral").mkdir()  # a folder is no file
    assert nbattn.load("mistral").masks


def test_paths_are_no_bare_names(elsewhere: Path) -> None:
    missing = 'cannot be read: No such file or directory. Did you mean "video_3d"?'
    for source in ("video_3d.toml", "configs/video_3d.toml", Path("video_3d.toml")):
        assert mistake_of(source) == missing
    assert mistake_of(Path("video_3d")).startswith("unknown kind of file")
    assert mistake_of("./video_3d").startswith("unknown kind of file")
    assert mistake_of("").startswith("unknown kind of file")
    long = "n" * 5000 + ".toml"
    assert mistake_of(long) == "cannot be read: File name too long."


def test_an_unknown_name_lists_all_with_the_nearest() -> None:
    text = f"is not a shipped configuration; legal: {', '.join(NAMES)}; or the path of a file."
    assert mistake_of("zebra") == text
    assert mistake_of("hunyuan_vdeo") == f'{text} Did you mean "hunyuan_video"?'


def test_files_in_the_same_folder_are_meant_first(elsewhere: Path) -> None:
    shutil.copy(CONFIGS / "mistral.toml", elsewhere / "own_video.toml")
    shutil.copy(CONFIGS / "mistral.toml", elsewhere / "notes.txt")
    for wrong in ("own_video", "own_vidio.toml", "own_video.yaml"):
        assert mistake_of(wrong).endswith('Did you mean "own_video.toml"?')
    assert mistake_of("notes.toml").endswith("No such file or directory.")
    assert nbattn.load("own_video.toml").masks


def test_the_package_comes_before_the_checkout(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In site-packages, a foreign folder `configs` may lie beside the package."""
    inside, beside = elsewhere / "nbattn" / "configs", elsewhere / "configs"
    monkeypatch.setattr(shipped, "PLACES", (inside, beside))
    beside.mkdir()
    (beside / "foreign.toml").touch()
    assert mistake_of("foreign").startswith(
        "is not a shipped configuration; legal: none, the package has none; or"
    )
    shutil.copytree(CONFIGS, beside, dirs_exist_ok=True)
    assert nbattn.load("foreign") == nbattn.load({})
    shutil.copytree(CONFIGS, inside)
    assert mistake_of("foreign").startswith("is not a shipped")
    assert nbattn.load("nat_tiny").masks
