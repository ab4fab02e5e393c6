"""Fixes of names: configurations that come with the package, and files beside the one meant."""

from fixes.row import Row

INSIDE = "import pathlib; monkeypatch.chdir(pathlib.Path(nbattn.__file__).parent)"
BESIDE = "import pathlib; monkeypatch.chdir(pathlib.Path(nbattn.__file__).parents[1] / 'configs')"

ROWS = [
    Row(
        call='load("video3d")',
        pasted='"video_3d"',
        fixed='config = load("video_3d")',
        means="config.masks['encoder'].rank == 3",
    ),
    Row(
        call='load("configs/nat_tiny.yaml")',
        pasted='"nat_tiny"',
        fixed='config = load("nat_tiny")',
        means="'stage4' in config.plans",
        given=INSIDE,
    ),
    Row(
        call='load("video3d.toml")',
        pasted='"video_3d.toml"',
        fixed='config = load("video_3d.toml")',
        means="config.masks['encoder'].rank == 3",
        given=BESIDE,
    ),
    Row(
        call='nbattn.cli.main(["plan", "mistrall"])',
        pasted='"mistral"',
        fixed='status = nbattn.cli.main(["plan", "mistral", "--device", "sm_90"])',
        means="status == 0",
        given="import nbattn.cli",
    ),
]
