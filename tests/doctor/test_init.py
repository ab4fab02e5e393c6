"""Tests of the doctor: its report is true, and nothing broken on a machine makes it fail."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import host_kernels
import pytest
from doctor_here import second_process
from host_kernels import needs_compiler
from probe_kernel import absent, needs_nvrtc

from nbattn import doctor
from nbattn.backends import families
from nbattn.cli import doctor as command
from nbattn.doctor import probe
from nbattn.errors import BackendError
from nbattn.kernels import check, compilers, cubins, host, launch, nvrtc, sources, toolkit
from nbattn.packages import install_line
from nbattn.planner import cost_table, devices, planner

ROOT = Path(__file__).resolve().parents[2]
NAMES = [name for name in families.BACKENDS[1:] if not name.startswith("flash-model:")]

# Backends that a CPU does not have, or not for training, and why.
NOT_HERE = {
    "flash": "runs on cuda, not on cpu",
    "cuda": "runs on cuda, not on cpu",
    "triton": "runs on cuda, xpu, not on cpu",
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


def put_stand_ins(folder: Path) -> Path:
    """Puts nothing in the place of what takes seconds to load."""
    for name in ("matplotlib", "skimage", "sklearn", "transformers", "diffusers"):
        (folder / f"{name}.py").touch()
    return folder


@pytest.fixture
def import_folder(tmp_path: Path) -> Path:
    """A folder to import from first."""
    return put_stand_ins(tmp_path)


@pytest.fixture(scope="module")
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that nothing has made."""
    return tmp_path_factory.mktemp("parent") / "cache"


@pytest.fixture(scope="module")
def healthy_report(empty_cache: Path) -> dict[str, object]:
    """The quick report of this machine, whose cache is empty."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("NBATTN_CACHE", str(empty_cache))
        return doctor.report()


@pytest.fixture(scope="module")
def deep_report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The report of this machine with compilations, as the command prints it."""
    done = run("--json", "--deep", path=put_stand_ins(tmp_path_factory.mktemp("imports")))
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_every_backend_of_the_planner_is_tried(deep_report) -> None:
    found = {
        backend["name"]: backend
        for backend in deep_report["backends"]
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
    assert deep_report["usable"] is True


def test_quick_report_has_the_same_backends_and_compiles_nothing(
    healthy_report, deep_report, empty_cache: Path
) -> None:
    quick = [(b["name"], b["device"], b["usable"]) for b in healthy_report["backends"]]
    assert quick == [(b["name"], b["device"], b["usable"]) for b in deep_report["backends"]]
    assert list(healthy_report) == list(deep_report)
    assert healthy_report["packages"][0]["importable"] is True
    assert not empty_cache.exists()
    (native,) = (b for b in healthy_report["backends"] if b["name"] == "native")
    if native["usable"]:
        assert native["tried"] is False
        assert healthy_report["kernels"]["CPU library"]["works"] is False
        assert (
            healthy_report["verdict"]["cpu"]
            == "CPU: ready, native kernels, compiled when first needed."
        )


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
        assert packages[name]["fits"] is True


@pytest.mark.parametrize("way", BROKEN)
def test_a_broken_torch_is_reported_not_raised(
    way: str, import_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, words = BROKEN[way]
    (import_folder / "torch.py").write_text(source)
    monkeypatch.syspath_prepend(import_folder)
    facts = doctor.report()
    assert words in facts["torch"]["error"]
    assert facts["torch"].get("fix") == FIXES.get(way, facts["torch"].get("fix"))
    assert [backend["usable"] for backend in facts["backends"]] == [False] * len(NAMES)
    assert all(words in backend["reason"] for backend in facts["backends"])
    assert facts["usable"] is False
    assert facts["verdict"]["cpu"] == "CPU: not ready, torch does not work."
    assert len(facts["advice"]) == 1


def test_a_broken_numpy_and_rich_and_yaml(import_folder: Path) -> None:
    for name in ("numpy", "rich", "yaml"):
        (import_folder / f"{name}.py").write_text(f"raise RuntimeError('{name} is broken')")
    done = run("--json", "--deep", path=import_folder)
    facts = json.loads(done.stdout)
    packages = {package["name"]: package for package in facts["packages"]}
    for name in ("numpy", "rich", "pyyaml"):
        assert packages[name]["importable"] is False
    assert packages["rich"]["error"] == "RuntimeError: rich is broken"
    assert done.stderr == ""
    assert done.returncode == 1
    assert not any(backend["usable"] for backend in facts["backends"])


def test_an_optional_package_that_crashes_costs_no_backend(
    import_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (import_folder / "yaml.py").write_text("import os\nos.abort()")
    monkeypatch.syspath_prepend(import_folder)
    monkeypatch.setattr(probe, "tried", probe.planned)
    found = doctor._second_process(["--deep", "yaml"], lambda part: None)
    assert found["crash"] == "the process ended with status -6 at: import yaml"
    assert found["tiled on cpu"]["usable"] is True
    package = {"import_name": "yaml", "installed": "6"}
    assert doctor._loads(package, found, deep=True)["error"] == found["crash"]


def test_an_import_that_hangs_is_ended(
    import_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = import_folder / "there"
    (import_folder / "torch.py").write_text(
        f"import time\nopen({str(there)!r}, 'w').close()\ntime.sleep(3600)"
    )
    monkeypatch.syspath_prepend(import_folder)
    monkeypatch.setattr(doctor, "SECONDS", 0.1)

    class Waiting(threading.Timer):
        """Its second begins where the import hangs, however long the start of Python takes."""

        def run(self) -> None:
            while not there.exists():
                time.sleep(0.01)
            super().run()

    monkeypatch.setattr(doctor.threading, "Timer", Waiting)
    facts = doctor.report()
    assert facts["torch"] == {"error": "the process took longer than 0.1 s at: torch"}
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
    text = "\n".join(command.lines(facts))
    assert text.startswith("CPU: not ready, torch does not work. GPU: unknown.\nTo do:\n")
    assert text.count("RuntimeError: no such luck") >= 5


def test_a_wrong_backend_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    from nbattn import functional

    attention = functional.attention

    def off(*tensors: object, backend: str) -> object:
        return attention(*tensors, backend=backend) * (1.1 if backend == "tiled" else 1)

    monkeypatch.setattr(functional, "attention", off)
    assert probe.ran("sdpa", "cpu")["usable"] is True
    found = probe.ran("tiled", "cpu")
    assert found["usable"] is False
    assert found["reason"].startswith("wrong by ")


def test_a_refusal_keeps_its_reason() -> None:
    for name, forward_only in (("natten", False), ("flex", True)):
        found = probe.ran(name, "cpu")
        assert found == {
            "usable": False,
            "tried": True,
            "reason": NOT_HERE[name],
            "forward_only": forward_only,
        }
        assert probe.planned(name, "cpu") == {**found, "tried": False}


def test_names_of_parts_are_passed_on_before_they_are_tried() -> None:
    seen: list[str] = []
    facts: dict[str, object] = {}
    doctor._note(f'{doctor.MARK}{{"at": "torch"}}\n', facts, seen.append)
    doctor._note("nbattn-doctor is fun", facts, seen.append)
    assert (seen, facts) == (["torch"], {"at": "torch"})


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
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "nbattn" / "doctor" / "__init__.py"))
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
    assert doctor._cache()["contents"] == {
        "a": {"files": 1, "bytes": 5},
        "gone": {"files": 1, "bytes": len("nowhere")},
    }
    (folder / "costs.json").write_text("{}")
    cost_table.forget()
    assert (
        doctor._cache()["costs"] == f"{folder / 'costs.json'} has format None, this version reads 1"
    )
    cost_table.forget()


@needs_nvrtc
def test_kernels_compile(deep_report) -> None:
    facts = deep_report["kernels"]
    assert facts["compiler"]["version"] == "{}.{}".format(*nvrtc.version())
    assert facts["compile"]["kernel"] == "nb_delta"
    assert 0 < facts["compile"]["registers"] <= 255
    assert facts["cubins"]["path"] == str(Path(os.environ["NBATTN_CACHE"], "cubins"))
    assert facts["cubins"]["works"] is True
    rows = dict(command.groups(deep_report)["GPU kernels"])
    assert rows["NVRTC"].startswith(f"{facts['compiler']['version']}, ")
    assert re.fullmatch(r"nb_delta for sm_\d+ in [\d.]+ s, \d+ registers", rows["compilation"])
    assert rows["cubins"].startswith("kept in the cache, loaded in ")


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
    assert check.keeps("80") == {"path": None, "problem": "not kept: the cache is off"}
    cubins.forget()


@needs_nvrtc
def test_kernel_cache_writable_by_others_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cubins"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("NBATTN_CACHE", str(tmp_path))
    cubins.forget()
    found = probe.kernels("cubins", {}, deep=True)
    cubins.forget()
    assert found["works"] is False
    assert f"{folder} is writable by others: chmod go-w {folder}" in found["problem"]
    assert list(folder.iterdir()) == []


def test_kernels_without_cupy_or_nvrtc_name_what_to_install(
    deep_report, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert absent() or deep_report["kernels"]["cubins"]["works"]
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "cupy" else find(name, *rest),
    )

    def library() -> str:
        raise BackendError("NVRTC is nowhere.", fix=toolkit.FIX)

    monkeypatch.setattr(toolkit, "library", library)
    monkeypatch.setattr(launch, "missing", launch.missing.__wrapped__)  # what is found is kept
    fix = install_line("cuda13")
    missing = probe.kernels("launcher", {}, deep=True)["missing"]
    assert missing.startswith(f"CuPy is not installed: {fix}")
    found = doctor.guarded(lambda: probe.kernels("compiler", {}, deep=False))
    assert "NVRTC" in str(found)


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
    found = doctor.guarded(lambda: probe.kernels("CPU library", {}, deep=True))
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


def forget() -> None:
    """Kernels of CPUs are looked for again, and devices and plans are made again."""
    host.forget()
    devices._data.cache_clear()
    planner.forget()


@pytest.fixture
def forgotten_before_and_after() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.mark.usefixtures("forgotten_before_and_after")
def test_without_a_compiler_the_cpu_kernels_name_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"CXX": "", "PATH": "/nowhere", "NBATTN_CACHE": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor, "_second_process", second_process)
    facts = doctor.report()
    assert facts["kernels"]["CPU compiler"]["error"] == (
        "BackendError: no C++ compiler for the CPU kernels fix: "
        + compilers.fix().replace("  ", " ")
    )
    assert facts["kernels"]["CPU library"]["works"] is False
    assert facts["usable"] is True
    assert facts["verdict"]["cpu"] == "CPU: ready, kernels in plain torch."
    (advice,) = facts["advice"]
    assert advice.startswith(install_line("native"))


def test_importing_doctor_loads_only_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import nbattn.doctor.probe, nbattn.cli.doctor\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    flags = [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(flags, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['nbattn']"


# GPUs of others.


def test_gpus_are_listed_by_vendor(monkeypatch: pytest.MonkeyPatch) -> None:
    """AMD's have no capability of NVIDIA's, which kernels would be compiled for."""
    properties = {
        "name": "AMD Instinct MI300X",
        "major": 9,
        "minor": 4,
        "gcnArchName": "gfx942:sramecc+:xnack-",
        "total_memory": 1 << 37,
    }
    amd: Any = SimpleNamespace(
        device_count=lambda: 1, get_device_properties=lambda _: SimpleNamespace(**properties)
    )
    none: Any = SimpleNamespace(device_count=lambda: 0)
    torch: Any = SimpleNamespace(cuda=amd, xpu=none, version=SimpleNamespace(hip="7.0"))
    gpu = {"model": "AMD Instinct MI300X", "memory_bytes": 1 << 37}
    cpu = {"name": "cpu"}
    assert probe._devices(torch) == [cpu, {"name": "cuda:0", **gpu, "architecture": "gfx942"}]
    torch.version.hip = None
    assert probe._devices(torch) == [cpu, {"name": "cuda:0", **gpu, "capability": [9, 4]}]
    torch.cuda, torch.xpu = none, amd
    assert probe._devices(torch) == [cpu, {"name": "xpu:0", **gpu}]


def test_triton_is_tried_only_where_a_gpu_is_or_deeply(monkeypatch: pytest.MonkeyPatch) -> None:
    for listed, deep, is_tried in (
        ([{"name": "cpu"}], False, False),
        ([{"name": "cpu"}], True, True),
        ([{"name": "cpu"}, {"name": "xpu:0"}], False, True),
        ([{"name": "cpu"}, {"name": "mps"}], False, False),
    ):
        monkeypatch.setattr(probe, "_torch_facts", lambda listed=listed: {"devices": listed})
        monkeypatch.setattr(doctor, "names", list)
        parts = probe._parts([], deep)
        first, find = next(parts)
        assert first == "torch"
        find()
        assert ("kernels: Triton" in [name for name, _ in parts]) == is_tried


def test_triton_names_the_vendor_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from triton.runtime import driver

    from nbattn.backends.triton import launch

    def found(*, has_gpu: bool = True) -> dict[str, Any]:
        devices = [{"name": "cpu"}, *[{"name": "cuda:0"}] * has_gpu]
        return probe.kernels("Triton", {"devices": devices}, deep=False)

    def target(name: str) -> SimpleNamespace:
        return SimpleNamespace(get_current_target=lambda: SimpleNamespace(backend=name))

    version = metadata.version("triton")
    for backend, vendor in (("cuda", "NVIDIA"), ("hip", "AMD"), ("xpu", "Intel"), ("new", "new")):
        monkeypatch.setattr(driver, "_active", target(backend))
        assert found() == {"version": version, "vendor": vendor}

    def fail() -> None:
        raise RuntimeError("0 active drivers")

    monkeypatch.setattr(driver, "_active", SimpleNamespace(get_current_target=fail))
    facts = {"version": version, "vendor": None}
    why = f"{version}, finds no GPU: RuntimeError: 0 active drivers"
    assert found() == {**facts, "problem": why}
    assert found(has_gpu=False) == {**facts, "problem": f"{version}, without a GPU"}
    monkeypatch.setattr(launch, "missing", lambda: "Triton is not installed")
    assert found() == {"missing": "Triton is not installed"}


def test_the_version_of_triton_is_read_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert doctor._triton() is None
    folder = tmp_path / "triton"
    folder.mkdir()
    (folder / "__init__.py").write_text("__version__ = '3.6.0+xpu'\nraise ImportError\n")
    importlib.invalidate_caches()
    assert doctor._triton() == "3.6.0+xpu"
