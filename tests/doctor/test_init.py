"""Tests of the doctor: its report is true, and nothing broken on a machine makes it fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import host_kernels
import pytest
from host_kernels import needs_compiler
from probe_kernel import absent, needs_nvrtc

from nbattn import doctor
from nbattn.backends import families
from nbattn.cli import doctor as command
from nbattn.kernels import check, compilers, cubins, host, nvrtc, sources
from nbattn.planner import cost_table

ROOT = Path(__file__).resolve().parents[1]
NAMES = [name for name in families.BACKENDS[1:] if not name.startswith("flash-model:")]

# Backends that a CPU does not have, or not for training, and why.
NOT_HERE = {
    "flash": "runs on cuda, not on cpu",
    "cuda": "runs on cuda, not on cpu",
    "flex": "its CPU kernel has no backward",
    "natten": "needs the package natten, which is not installed",
}

# What replaces a package → how its import ends.
BROKEN = {
    "missing": (
        "raise ModuleNotFoundError(\"No module named 'torch'\")",
        "No module named 'torch'",
    ),
    "library": ("raise OSError('libcudart.so.12: cannot open')", "OSError: libcudart.so.12"),
    "exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "odd": ("class Odd(BaseException):\n    def __str__(self): 1 / 0\nraise Odd", "Odd"),
    "half": ("", "AttributeError: module 'torch' has no attribute '__version__'"),
    "crash": ("import os\nos.abort()", "the process ended with status -6 at: torch"),
    "noise": ("print('nbattn-doctor is fun')\nraise ValueError(1)", "ValueError: 1"),
    "syntax": ("def", "SyntaxError"),
}
FIXES = {"missing": "pip install torch", "library": "pip install --force-reinstall torch"}


def run(
    *arguments: str, path: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    places = os.pathsep.join(map(str, filter(None, [path, ROOT])))
    return subprocess.run(
        [sys.executable, "-m", "nbattn", "doctor", *arguments],
        env={**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
    )


@pytest.fixture
def import_folder(tmp_path: Path) -> Path:
    """A folder to import from first, with nothing in the place of what takes seconds to load."""
    for name in ("matplotlib", "skimage", "sklearn", "transformers"):
        (tmp_path / f"{name}.py").touch()
    return tmp_path


@pytest.fixture
def own_cache(tmp_path: Path) -> Path:
    """A cache folder that has only the kernels of this CPU: to compile them takes long."""
    folder = tmp_path / "cache"
    folder.mkdir(0o700)
    if host.missing() is None:
        host.library()
        if (kept := host.STORE.folder()) is not None and kept.is_dir():
            shutil.copytree(kept, folder / "libraries")
    return folder


@pytest.fixture(scope="module")
def healthy_report() -> dict[str, object]:
    done = run("--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_every_backend_of_the_planner_is_tried(healthy_report) -> None:
    found = {
        backend["name"]: backend
        for backend in healthy_report["backends"]
        if backend["device"] == "cpu"
    }
    assert list(found) == NAMES
    for name, backend in found.items():
        family = name.partition(":")[0]
        if family in NOT_HERE:
            assert NOT_HERE[family] in backend["reason"]
            continue
        assert backend["usable"]
        assert backend["max_error"] <= 1e-4
    assert found["reference"]["max_error"] == 0
    assert healthy_report["usable"] is True


def test_report_of_this_machine(healthy_report) -> None:
    assert (
        healthy_report["torch"]["version"].split("+")[0] == metadata.version("torch").split("+")[0]
    )
    assert healthy_report["torch"]["devices"][0] == {"name": "cpu"}
    assert healthy_report["nbattn"]["path"] == str(ROOT / "nbattn")
    assert healthy_report["machine"]["cores"] == os.cpu_count()
    packages = {package["name"]: package for package in healthy_report["packages"]}
    assert list(packages)[:4] == ["torch", "numpy", "pydantic", "rich"]
    assert packages["numpy"]["installed"] == metadata.version("numpy")
    assert packages["pyyaml"]["extras"] == ["yaml"]
    assert packages["matplotlib"]["extras"] == ["viz", "demo"]
    assert "hypothesis" not in packages
    for name in ("torch", "numpy", "pydantic", "rich"):
        assert packages[name]["importable"] is True
        assert packages[name]["fits"] is True


@pytest.mark.parametrize("way", BROKEN)
def test_a_broken_torch_is_reported_not_raised(way: str, import_folder: Path) -> None:
    source, words = BROKEN[way]
    (import_folder / "torch.py").write_text(source)
    done = run("--json", path=import_folder)
    assert (done.returncode, done.stderr) == (1, "")
    facts = json.loads(done.stdout)
    assert words in facts["torch"]["error"]
    assert facts["torch"].get("fix") == FIXES.get(way, facts["torch"].get("fix"))
    assert [backend["usable"] for backend in facts["backends"]] == [False] * len(NAMES)
    assert all(words in backend["reason"] for backend in facts["backends"])
    assert facts["usable"] is False


def test_a_broken_numpy_and_rich_and_yaml(import_folder: Path) -> None:
    for name in ("numpy", "rich", "yaml"):
        (import_folder / f"{name}.py").write_text(f"raise RuntimeError('{name} is broken')")
    done = run("--json", path=import_folder)
    facts = json.loads(done.stdout)
    packages = {package["name"]: package for package in facts["packages"]}
    for name in ("numpy", "rich", "pyyaml"):
        assert packages[name]["importable"] is False
    assert packages["rich"]["error"] == "RuntimeError: rich is broken"
    assert done.stderr == ""
    assert done.returncode == 1
    assert not any(backend["usable"] for backend in facts["backends"])


def test_an_optional_package_that_crashes_costs_no_backend(import_folder: Path) -> None:
    (import_folder / "yaml.py").write_text("import os\nos.abort()")
    done = run("--json", path=import_folder)
    facts = json.loads(done.stdout)
    assert done.returncode == 0
    usable = {backend["name"] for backend in facts["backends"] if backend["usable"]}
    assert usable >= {"reference", "tiled", "sdpa", "flash-model"}
    (yaml,) = (package for package in facts["packages"] if package["import_name"] == "yaml")
    assert yaml["error"] == "the process ended with status -6 at: import yaml"


def test_an_import_that_hangs_is_ended(
    import_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = import_folder / "there"
    (import_folder / "torch.py").write_text(
        f"import time\nopen({str(there)!r}, 'w').close()\ntime.sleep(3600)"
    )
    monkeypatch.syspath_prepend(import_folder)
    monkeypatch.setattr(doctor, "SECONDS", 1)

    class Started(subprocess.Popen):
        """Its second begins where the import hangs, however long the start of Python takes."""

        def communicate(self, *given, **named):
            while self.poll() is None and not there.exists():
                time.sleep(0.01)
            return super().communicate(*given, **named)

    monkeypatch.setattr(doctor.subprocess, "Popen", Started)
    facts = doctor.report()
    assert facts["torch"] == {"error": "the process took longer than 1 s at: torch"}
    assert facts["usable"] is False


def test_failing_parts_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such luck")

    for part in ("_python", "_machine", "_packages", "_second_process", "_cache", "_backends"):
        monkeypatch.setattr(doctor, part, fail)
    facts = doctor.report()
    words = {"error": "RuntimeError: no such luck"}
    for part in ("python", "machine", "packages", "torch", "cache", "backends"):
        assert facts[part] == words
    assert facts["usable"] is False
    rows = list(command.rows(facts))
    assert ("torch", "error", "RuntimeError: no such luck") in rows
    assert ("backend", "error", "RuntimeError: no such luck") in rows


def test_text_and_json_reports_agree(healthy_report, capsys: pytest.CaptureFixture[str]) -> None:
    command.show(list(command.rows(healthy_report)))
    text = capsys.readouterr().out
    assert text.isascii()
    assert "\x1b" not in text
    for backend in healthy_report["backends"]:
        assert f"{backend['name']} on {backend['device']}" in text
    for package in healthy_report["packages"]:
        assert re.search(rf"^(package| ) +{re.escape(package['name'])} ", text, re.M)
    assert re.search(
        rf"^torch +version +{re.escape(healthy_report['torch']['version'])}$", text, re.M
    )
    assert re.search(r'^ +natten +not installed; pip install "nbattn\[natten\]"$', text, re.M)
    folder = re.escape(os.environ["NBATTN_CACHE"])
    assert re.search(rf"^environment +NBATTN_CACHE +{folder}$", text, re.M)


def test_a_table_on_a_terminal(
    healthy_report, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "50")
    table = list(command.rows(healthy_report))
    command.show(table)
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "│" in text
    assert max(map(len, text.splitlines())) <= 50
    assert "…" not in text
    for _, name, _ in table:
        assert name.split()[0][:10] in text
    monkeypatch.setitem(sys.modules, "rich.table", None)
    command.show(table)
    assert capsys.readouterr().out.startswith("(plain: rich does not work here: ModuleNotFound")


def test_a_wrong_backend_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    from nbattn import functional

    attention = functional.attention

    def off(*tensors: object, backend: str) -> object:
        return attention(*tensors, backend=backend) * (1.1 if backend == "tiled" else 1)

    monkeypatch.setattr(functional, "attention", off)
    assert doctor._try("sdpa", "cpu")["usable"] is True
    found = doctor._try("tiled", "cpu")
    assert found["usable"] is False
    assert found["reason"].startswith("wrong by ")


def test_a_refusal_keeps_its_reason() -> None:
    found = doctor._try("no-such-backend", "cpu")
    assert found["usable"] is False
    assert "no-such-backend" in found["reason"]


@pytest.mark.parametrize(
    ("wanted", "version", "fits"),
    [
        ("", "1", True),
        (">=2.8", "2.13.0+cpu", True),
        (">=2.8", "2.7.1", False),
        (">=14.2,<15", "15.0", False),
        (">=14.2,<15", "14.2", True),
        ("==0.21.7", "0.21.7", True),
        ("==0.21.7", "0.21.6", False),
        (">=2", "2", True),
        ("~=2", "2", None),
    ],
)
def test_version_ranges(wanted: str, version: str, fits: bool | None) -> None:
    assert doctor._fits(wanted, version) is fits


def test_requirements_of_an_installation_are_those_of_the_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheel = [
        "torch>=2.8",
        "pyyaml; extra == 'yaml'",
        'cupy-cuda12x<15,>=14.2; extra == "cuda12"',
        "nbattn[yaml]; extra == 'all'",
        "pytest>=9; extra == 'dev'",
    ]
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "nbattn" / "doctor.py"))
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: wheel)
    assert list(doctor._requirements()) == [
        ("torch", ">=2.8", ""),
        ("pyyaml", "", "yaml"),
        ("cupy-cuda12x", "<15,>=14.2", "cuda12"),
    ]


def test_environment_variables_are_those_the_source_reads() -> None:
    sources = [path.read_text("utf-8") for path in (ROOT / "nbattn").rglob("*.py")]
    found = {name for text in sources for name in re.findall(r"\"(NBATTN_[A-Z]+)\"", text)}
    assert found == set(doctor.VARIABLES)


def test_report_of_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBATTN_CACHE", "off")
    assert doctor._cache() == {"path": None, "exists": False}
    monkeypatch.delenv("NBATTN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cost_table.forget()
    folder = tmp_path / "nbattn"
    assert doctor._cache() == {"path": str(folder), "exists": False}
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "b").write_bytes(b"12345")
    (folder / "gone").symlink_to("nowhere")
    folder.chmod(0o777)
    found = doctor._cache()
    assert (found["files"], found["mode"]) == (2, "drwxrwxrwx")
    assert found["bytes"] == 5 + len("nowhere")
    assert found["others_may_write"] is True
    folder.chmod(0o700)
    assert doctor._cache()["others_may_write"] is False
    cost_table.forget()
    assert doctor._cache()["costs"] == "nothing measured"
    (folder / "costs.json").write_text("{}")
    cost_table.forget()
    assert (
        doctor._cache()["costs"] == f"{folder / 'costs.json'} has format None, this version reads 1"
    )
    cost_table.forget()


@needs_nvrtc
def test_kernels_compile(healthy_report) -> None:
    facts = healthy_report["kernels"]
    assert facts["compiler"]["version"] == "{}.{}".format(*nvrtc.version())
    assert facts["compile"]["kernel"] == "nb_delta"
    assert 0 < facts["compile"]["registers"] <= 255
    assert facts["cubins"]["path"] == str(Path(os.environ["NBATTN_CACHE"], "cubins"))
    assert facts["cubins"]["works"] is True


@needs_nvrtc
def test_a_cached_kernel_is_not_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBATTN_CACHE", str(tmp_path / "cache"))
    asked: list[str] = []
    compiles = nvrtc.compile
    monkeypatch.setattr(
        nvrtc, "compile", lambda variant, arch: asked.append(arch) or compiles(variant, arch)
    )
    cubins.forget()
    report = check.keeps("80")
    assert asked == ["80"]
    (cubin,) = (tmp_path / "cache" / "cubins").iterdir()
    assert report == {
        "path": str(cubin.parent),
        "files": 1,
        "bytes": cubin.stat().st_size,
        "works": True,
        "seconds": report["seconds"],
    }
    monkeypatch.setenv("NBATTN_CACHE", "off")
    assert check.keeps("80") == {"path": None}
    cubins.forget()


@needs_nvrtc
def test_kernel_cache_writable_by_others_is_reported(import_folder: Path, own_cache: Path) -> None:
    folder = own_cache / "cubins"
    folder.mkdir()
    folder.chmod(0o777)
    done = run(path=import_folder, NBATTN_CACHE=str(own_cache))
    (line,) = (line for line in done.stdout.splitlines() if line.split()[:1] == ["cubins"])
    assert "works no" in line
    assert f"{folder} is writable by others: chmod go-w {folder}" in line
    assert list(folder.iterdir()) == []


def test_kernels_without_cupy_or_nvrtc_name_what_to_install(
    import_folder: Path, healthy_report
) -> None:
    assert absent() or healthy_report["kernels"]["cubins"]["works"]
    (import_folder / "sitecustomize.py").write_text(
        "import sys, importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'cupy' else find(name, *rest)\n"
        "from nbattn.errors import BackendError\n"
        "from nbattn.kernels import toolkit\n"
        "def library(): raise BackendError('NVRTC is nowhere.', fix=toolkit.FIX)\n"
        "toolkit.library = library\n"
    )
    facts = json.loads(run("--json", path=import_folder).stdout)
    fix = 'pip install "nbattn[cuda13]"'
    assert facts["kernels"]["launcher"]["missing"].startswith(f"CuPy is not installed: {fix}")
    for part in ("compiler", "compile"):
        assert facts["kernels"][part]["error"].startswith("BackendError: NVRTC is nowhere. fix: ")
    assert facts["usable"] is True


@needs_compiler
def test_cpu_kernels_are_compiled_and_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_kernels(tmp_path, monkeypatch)
    compiler = check.host_compiler()
    assert Path(compiler["path"].split()[0]).is_file()
    report = check.host_library()
    (path,) = (tmp_path / "cache" / "libraries").iterdir()
    assert report == {
        "lanes": 16,
        "compiler": compiler["version"],
        "seconds": report["seconds"],
        "path": str(path),
        "bytes": path.stat().st_size,
        "works": True,
    }
    path.parent.chmod(0o777)
    report = check.host_library()
    assert (report["works"], report["path"]) == (False, str(path.parent))
    assert report["problem"].startswith(f"{path.parent} is writable by others: chmod go-w")
    monkeypatch.setenv("NBATTN_CACHE", "off")
    assert check.host_library()["path"] is None
    host.forget()


@needs_compiler
def test_cpu_kernels_that_do_not_compile_show_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cpu_kernels(tmp_path, monkeypatch)
    (folder / "cpu" / "lanes.h").write_text("#error no lanes\n")
    found = doctor._guarded(lambda: doctor._kernels("CPU library", {}))
    assert found["error"].startswith("BackendError: the CPU kernels do not compile with ")
    assert "cpu/lanes.h:1" in found["error"]
    assert "no lanes" in found["error"]
    host.forget()


def cpu_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small kernels, and a cache of their own."""
    host_kernels.write(folder)
    monkeypatch.setattr(sources, "host_directory", lambda: folder / "cpu")
    monkeypatch.setenv("NBATTN_CACHE", str(folder / "cache"))
    host.forget()
    return folder


def test_without_a_compiler_the_cpu_kernels_name_what_to_install(
    import_folder: Path,
) -> None:
    nothing = {"CXX": "", "PATH": "/nowhere", "NBATTN_CACHE": str(import_folder / "cache")}
    facts = json.loads(run("--json", path=import_folder, **nothing).stdout)
    for part in ("CPU compiler", "CPU library"):
        assert facts["kernels"][part]["error"] == (
            "BackendError: no C++ compiler for the CPU kernels fix: "
            + compilers.fix().replace("  ", " ")
        )
    assert facts["usable"] is True


def test_importing_doctor_loads_only_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import nbattn.doctor, nbattn.cli.doctor\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    flags = [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(flags, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['nbattn']"
