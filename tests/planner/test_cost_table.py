"""Tests of the cost table: what it decides, what it never changes, and which files are refused."""

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import cost_tables
import pytest
import torch
import torch_only
from cost_tables import ASKED, MASK, NAMES, RATES, REVERSED, SHAPE, entry, here, plan, write

import nbattn
from nbattn import Axis, Mask, cache, execute
from nbattn.backends.inputs import Inputs
from nbattn.errors import counted
from nbattn.planner import cost_table, planner
from nbattn.planner.cost_table import Entry
from nbattn.program.device import DEVICES, DeviceInfo

folder = cost_tables.folder  # the fixture: a cache of its own for every test
torch_only = torch_only.torch_only  # a fixture: no native kernels


REVERSED_FIRST = min(REVERSED, key=lambda name: REVERSED[name])


def last_line(current_plan: nbattn.Plan) -> str:
    return current_plan.explain().splitlines()[-1]


def order(current_plan: nbattn.Plan) -> tuple[str, ...]:
    return tuple(candidate.name for candidate in current_plan.candidates if not candidate.reasons)


def test_times_of_all_candidates_reverse_the_order(folder: Path) -> None:
    assert order(plan()) == NAMES
    write(folder, entry(REVERSED))
    current_plan = plan()
    assert order(current_plan) == NAMES[::-1]
    assert current_plan.chosen.name == "sdpa/mask"
    assert current_plan.verify()
    text = " ".join(current_plan.explain().split())
    assert " chosen sdpa/mask measured 1 ms explicit mask" in text
    assert " slower sdpa/dense+fold measured 3 ms (3x)" in text
    assert " ranked by measured times; device data of cpu:" in text
    assert current_plan.to_dict()["candidates"][0]["cost"]["measured"] == 1e-3


def test_attention_runs_what_was_measured_fastest(folder: Path) -> None:
    query = torch.randn(SHAPE)
    before = nbattn.attention(query, query, query, MASK)
    write(folder, entry({**REVERSED, "tiled/tile": 1e-4}))
    inputs = Inputs(query, query, query, scale=1.0)
    asked = execute.planned(
        MASK, inputs, backend="auto", require=(), forbid=(), training=False, deterministic=False,
        return_lse=False,
    )  # fmt: skip
    assert asked.chosen.name == "tiled/tile"
    torch.testing.assert_close(nbattn.attention(query, query, query, MASK), before)


def test_one_unmeasured_candidate_leaves_the_decision_to_bounds(folder: Path) -> None:
    write(folder, entry({"sdpa/mask": 1e-9}))
    current_plan = plan()
    assert order(current_plan) == NAMES
    assert "measured 1" not in "\n".join(current_plan.explain().splitlines()[:-1])
    assert last_line(current_plan).startswith(
        "  ranked by estimates (only 1 of 3 candidates are measured: sdpa/mask 1e-06 ms); "
        "device data of cpu"
    )


def test_requests_that_only_select_candidates_share_times(folder: Path) -> None:
    write(folder, entry(REVERSED))
    assert order(plan(backend="sdpa")) == ("sdpa/mask", "sdpa/dense+fold")
    assert order(plan(forbid=("mask",))) == ("tiled/tile", "sdpa/dense+fold")


@pytest.mark.parametrize(
    "other",
    [
        {"training": True}, {"dtype": "bfloat16"}, {"packed": True}, {"softcap": 2.0},
        {"sink": True}, {"key_range": True}, {"extra_keys": 1}, {"return_lse": True},
        {"deterministic": True}, {"value_dim": 16}, {"key_shape": (1, 28, 28, 1, 32)},
    ],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_another_request_has_no_times(folder: Path, other: dict[str, Any]) -> None:
    write(folder, entry(REVERSED))
    current_plan = plan(**other)
    assert all(
        candidate.cost is None or candidate.cost.measured is None
        for candidate in current_plan.candidates
    )
    assert "(the cost table has no times for this request)" in last_line(current_plan)


def test_different_masks_have_different_keys(cases: Callable[[str, int], None]) -> None:
    """The key holds the mask's repr: every field must show in it."""
    made: set[Axis] = set()
    for left, right, dilation, stride, causal, align, offset, border, prefix in product(
        (None, 0, 3), (None, 0, 3), (1, 2), (1, 2), (False, True), ("top-left", "bottom-right"),
        (0, 1), ("clip", "shift", "wrap"), (0, 2),
    ):  # fmt: skip
        try:
            axis = Axis(
                left, right, dilation=dilation, stride=stride, causal=causal, align=align,
                offset=offset, border=border, prefix=prefix,
            )  # fmt: skip
        except nbattn.MaskError:
            continue
        made.add(axis)
    request = plan().request
    keys = {cost_table.key(replace(request, mask=Mask(axis))) for axis in made}
    assert len(keys) == len(made) == len({tuple(Mask(axis).code()) for axis in made})
    cases("measured: masks with keys of their own", len(keys))


def test_rates_scale_every_bound_of_the_cpu_alike(folder: Path) -> None:
    before = plan()
    write(folder, entry({}, rates=RATES))
    after = plan()
    assert order(after) == order(before) == NAMES
    for old, new in zip(before.candidates, after.candidates, strict=True):
        assert (old.cost is None) == (new.cost is None)
        if old.cost is not None and new.cost is not None:
            assert new.cost.estimate == pytest.approx(old.cost.estimate / 2)  # 170e9 against 85e9
    threads = counted(torch.get_num_threads(), "thread")
    rates = f"nbattn tune, 2026-11-24, {here().model}, {threads}, float32 products"
    assert f"; device data of cpu: {rates}" in last_line(after)


def test_rates_of_a_gpu_are_what_was_measured() -> None:
    gpu = cost_table.Fingerprint("sm_90", "H100", 0, "2.13.0", "0.1.0")
    measured_device = Entry(gpu, "2026-11-24", RATES).device(DEVICES["sm_90"])
    assert measured_device.peak("float32") == 170e9
    assert measured_device.peak("float16") == DEVICES["sm_90"].peak("float16")
    assert (measured_device.bandwidth, measured_device.launch) == (9e9, 3e-6)
    assert measured_device.source == "nbattn tune, 2026-11-24, H100"


@pytest.mark.parametrize("installed", [(), ("cupy",), ("cupy", "natten")])
def test_measurements_of_a_gpu_hold_with_the_packages_that_are_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...]
) -> None:
    gpu = cost_table.Fingerprint("sm_90", "H100", 0, torch.__version__, nbattn.__version__)
    monkeypatch.setattr(cost_table, "fingerprint", lambda _name: gpu)
    here = replace(DEVICES["sm_90"], providers=installed)
    before = plan(device=here)
    reverse = order(before)[::-1]
    times = {name: 1e-3 * (1 + place) for place, name in enumerate(reverse)}
    write(folder, Entry(gpu, "2026-11-24", RATES, {cost_table.key(before.request): times}))
    rated = cost_table.device(here)
    assert rated == replace(rated, providers=installed, bandwidth=9e9)
    for device in (here, rated):
        current_plan = plan(device=device)
        assert order(current_plan) == reverse
        assert last_line(current_plan).startswith(
            "  ranked by measured times; device data of sm_90: "
        )


def test_your_own_device_data_are_never_replaced(folder: Path) -> None:
    mine = DeviceInfo("cpu", "cpu", (("float32", 1e9),), 1e9, 1e-6, "a guess")
    write(folder, entry(REVERSED, rates=RATES))
    current_plan = plan(device=mine)
    assert current_plan.request.device == mine
    assert "ranked by estimates (the device is your own DeviceInfo)" in last_line(current_plan)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"torch": "1.0"}, f"torch 1.0 (here {torch.__version__})"),
        ({"threads": 99}, f"threads 99 (here {torch.get_num_threads()})"),
        ({"nbattn": "0.0.1"}, f"nbattn 0.0.1 (here {nbattn.__version__})"),
        ({"model": "another"}, f"model another (here {here().model})"),
    ],
    ids=["torch", "threads", "nbattn", "model"],
)
def test_a_measurement_elsewhere_does_not_hold_here(
    folder: Path, changed: dict[str, Any], reason: str
) -> None:
    write(folder, entry(REVERSED, rates=RATES, **changed))
    current_plan = plan()
    assert order(current_plan) == NAMES
    assert current_plan.request.device == DEVICES["cpu"]
    assert f"ranked by estimates (the cost table is for {reason});" in last_line(current_plan)


def test_a_device_that_is_not_here_is_planned_by_its_data(folder: Path) -> None:
    gpu = replace(here(), device="sm_90", model="H100", threads=0)
    write(folder, Entry(gpu, "2026-11-24", RATES))
    current_plan = plan(device="sm_90", dtype="float16")
    if not torch.cuda.is_available():
        assert current_plan.request.device == DEVICES["sm_90"]
        assert "(the cost table is for another machine's sm_90)" in last_line(current_plan)
    assert order(plan()) == NAMES


def test_a_change_of_threads_is_seen(folder: Path) -> None:
    threads = torch.get_num_threads()
    write(folder, entry(REVERSED, rates=RATES))
    assert plan().chosen.name == "sdpa/mask"
    try:
        torch.set_num_threads(threads + 1)
        changed = plan()
        made = planner.make(changed.request)
    finally:
        torch.set_num_threads(threads)
    assert changed.request.device == DEVICES["cpu"]
    reason = f"(the cost table is for threads {threads} (here {threads + 1}))"
    assert reason in last_line(changed)
    assert reason in last_line(made)
    assert plan().chosen.name == "sdpa/mask"


def test_known_calls_follow_the_number_of_threads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    write(folder, entry(REVERSED))
    ran: list[str] = []
    forward = execute.forward
    monkeypatch.setattr(
        execute, "forward", lambda p, *a, **k: (ran.append(p.chosen.name), forward(p, *a, **k))[1]
    )
    query = torch.randn(SHAPE)
    try:
        for number in (threads, threads + 1):
            torch.set_num_threads(number)
            nbattn.attention(query, query, query, MASK)
    finally:
        torch.set_num_threads(threads)
    assert ran == [REVERSED_FIRST, NAMES[0]]


def test_the_way_to_a_faster_plan_is_measured_like_the_plan(folder: Path) -> None:
    write(folder, entry(REVERSED))
    assert plan().explain().splitlines()[2] == (
        "faster  this is the fastest of the measured candidates."
    )
    text = plan(forbid=(REVERSED_FIRST.split("/")[1],)).explain()
    advice = f"faster  without forbid=: {REVERSED_FIRST}, measured "
    assert text.splitlines()[2].startswith(advice)
    text = plan(backend="sdpa", require=("fold",), forbid=("mask",)).explain()
    advice = f'faster  backend="auto" without require= and forbid=: {REVERSED_FIRST}, measured '
    assert text.splitlines()[2].startswith(advice)


def test_the_users_times_come_before_the_packages(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "shipped.json"
    shipped.write_text(cost_table.encode((entry({**REVERSED, "tiled/tile": 1e-5}, rates=RATES),)))
    monkeypatch.setattr(cost_table, "SHIPPED", shipped)
    planner.forget()
    assert plan().chosen.name == "tiled/tile"
    write(folder, entry({"sdpa/dense+fold": 1e-6}))
    current_plan = plan()
    assert order(current_plan) == ("sdpa/dense+fold", "tiled/tile", "sdpa/mask")
    assert current_plan.request.device.peak("float32") == 170e9


def test_no_table_comes_with_the_package_unmeasured() -> None:
    """If one does, it can be decoded, and this test names what it was measured on."""
    assert not cost_table.SHIPPED.exists()


def test_the_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, entry(REVERSED))
    reads: list[Path] = []
    read = cache.read
    monkeypatch.setattr(cache, "read", lambda path: (reads.append(path), read(path))[1])
    for batch in range(1, 9):
        nbattn.plan(MASK, (batch, *SHAPE[1:]), **ASKED)
    assert len(reads) == 1


def test_the_state_is_what_doctor_shows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cost_table.state() == {"path": str(folder / "costs.json"), "devices": [], "problem": ""}
    write(folder, entry(REVERSED))
    (device,) = cost_table.state()["devices"]
    assert (device["device"], device["torch"], device["requests"]) == ("cpu", torch.__version__, 1)
    monkeypatch.setenv("NBATTN_CACHE", "cache")
    cost_table.forget()
    reason = "NBATTN_CACHE='cache' is neither an absolute path nor \"off\""
    assert cost_table.state() == {"path": None, "devices": [], "problem": reason}


def test_cache_off_reads_no_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, entry(REVERSED))
    monkeypatch.setenv("NBATTN_CACHE", "off")
    planner.forget()
    assert cost_table.path() is None
    assert "(no measurement of this request is known)" in last_line(plan())


# Tables that cannot be used: planning goes on, by bounds, with one warning that gives the reason.


def good(folder: Path) -> dict[str, Any]:
    return json.loads(cost_table.encode((entry(REVERSED, rates=RATES),)))


def damaged_table(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        table = good(folder)
        change(table)
        return json.dumps(table).encode()

    return make


def first(table: dict[str, Any]) -> dict[str, Any]:
    return table["devices"][0]


def replace_rate(entry: dict[str, Any], what: str, number: float) -> None:
    """One number of an entry."""
    if what == "time":
        entry["times"][0]["seconds"]["sdpa/mask"] = number
    elif what == "float32":
        entry["rates"]["flops"][what] = number
    else:
        entry["rates"][what] = number


BROKEN: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda f: b"", "is damaged: JSONDecodeError"),
    "truncated": (lambda f: json.dumps(good(f)).encode()[:-9], "is damaged: JSONDecodeError"),
    "binary": (lambda f: b"\xff" * 64, "is damaged: UnicodeDecodeError"),
    "deep": (lambda f: b"[" * 100_000, "is damaged: RecursionError"),
    "a list": (lambda f: b"[]", "has format 'list', this version reads 1"),
    "no format": (lambda f: b"{}", "has format None, this version reads 1"),
    "later format": (
        damaged_table(lambda t: t.update(format=2)),
        "has format 2, this version reads 1",
    ),
    "no devices": (damaged_table(lambda t: t.pop("devices")), "is damaged: KeyError: 'devices'"),
    "device a number": (damaged_table(lambda t: t.update(devices=[1])), "is damaged: TypeError"),
    "no fingerprint": (
        damaged_table(lambda t: first(t).pop("fingerprint")),
        "is damaged: KeyError",
    ),
    "unknown device": (
        damaged_table(lambda t: first(t)["fingerprint"].update(device="abacus")),
        "is damaged: ValueError: device 'abacus' is not known",
    ),
    "threads true": (
        damaged_table(lambda t: first(t)["fingerprint"].update(threads=True)),
        "is damaged: ValueError: threads is True",
    ),
    "negative time": (
        damaged_table(lambda t: first(t)["times"][0]["seconds"].update({"sdpa/mask": -1})),
        "is damaged: ValueError: -1 is not between 1e-12 and 1e+06",
    ),
    "nan": (
        damaged_table(
            lambda t: first(t)["times"][0]["seconds"].update({"sdpa/mask": float("nan")})
        ),
        "is damaged: ValueError: nan is not between 1e-12 and 1e+06",
    ),
    "time a text": (
        damaged_table(lambda t: first(t)["times"][0]["seconds"].update({"sdpa/mask": "1"})),
        "is damaged: TypeError: '1' is not a number",
    ),
    "huge integer": (
        damaged_table(lambda t: first(t)["rates"].update(bandwidth=10**400)),
        "is damaged: ValueError: 1000",
    ),
    **{
        f"{what} {number}": (
            damaged_table(lambda t, what=what, number=number: replace_rate(first(t), what, number)),
            f"is damaged: ValueError: {number} is not between {legal}",
        )
        for what, numbers, legal in (
            ("float32", (1e308, 1e22, 0.9, 1e-310, 5e-324), "1e+00 and 1e+21"),
            ("bandwidth", (1e308, 1e22, 0.9, 1e-310, 5e-324), "1e+00 and 1e+21"),
            ("launch", (1e308, 2e6, 1e-320), "1e-12 and 1e+06"),
            ("time", (1e308, 2e6, 1e-13, 5e-324), "1e-12 and 1e+06"),
        )
        for number in numbers
    },
    "no float32": (
        damaged_table(lambda t: first(t)["rates"]["flops"].pop("float32")),
        "is damaged: ValueError: float32 has no rate",
    ),
    "huge file": (lambda f: b" " * (cache.LIMIT + 1), "is over 16 MiB"),
}


@pytest.mark.parametrize("number", [1.0, 1e21])
@pytest.mark.parametrize("what", ["float32", "bandwidth"])
def test_smallest_and_largest_rates_of_a_table_can_be_planned(
    folder: Path, what: str, number: float
) -> None:
    """The rates of all dtypes move with float32's, and stay in the range of a device."""
    path = folder / cost_table.NAME
    path.write_bytes(damaged_table(lambda t: replace_rate(first(t), what, number))(folder))
    path.chmod(0o600)
    cost_table.forget()
    for device in ("cpu", "sm_90"):
        plan = nbattn.plan(Mask.sliding_window(3), (2, 96, 2, 16), device=device)
        assert 0 < plan.chosen.cost.estimate < float("inf")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_is_left_alone_with_one_warning(folder: Path, name: str) -> None:
    make, reason = BROKEN[name]
    path = folder / cost_table.NAME
    path.write_bytes(make(folder))
    path.chmod(0o600)
    refused(f"{path} {reason}")


def refused(reason: str) -> None:
    planner.forget()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        current_plan = plan()
        nbattn.plan(MASK, (3, *SHAPE[1:]), **ASKED)
    assert len(caught) == 1
    assert str(caught[0].message).startswith("nbattn plans without measured costs: ")
    assert reason in str(caught[0].message)
    assert order(current_plan) == NAMES
    assert reason in last_line(current_plan)


def link(folder: Path) -> None:
    (folder / cost_table.NAME).rename(folder.parent / "elsewhere.json")
    (folder / cost_table.NAME).symlink_to(folder.parent / "elsewhere.json")


def linked_folder(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


def pipe(folder: Path) -> None:
    (folder / cost_table.NAME).unlink()
    os.mkfifo(folder / cost_table.NAME)


UNSAFE: dict[str, tuple[Callable[[Path], object], str]] = {
    "group may write the directory": (
        lambda f: f.chmod(0o770),
        "is writable by others: chmod go-w",
    ),
    "all may write the directory": (lambda f: f.chmod(0o777), "is writable by others: chmod go-w"),
    "group may write the file": (
        lambda f: (f / cost_table.NAME).chmod(0o620),
        "costs.json is writable by others: chmod go-w",
    ),
    "the file is a link": (link, "costs.json is a symbolic link"),
    "the directory is a link": (linked_folder, "cache is a symbolic link"),
    "the file is a pipe": (pipe, "costs.json is not a file"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_a_table_that_others_could_have_written_is_refused(folder: Path, name: str) -> None:
    change, reason = UNSAFE[name]
    write(folder, entry(REVERSED))
    change(folder)
    refused(reason)


def test_another_users_table_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, entry(REVERSED))
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    refused(f"{folder} belongs to user {mine}, not to {mine + 1}")


def test_a_relative_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBATTN_CACHE", "cache")
    refused("NBATTN_CACHE='cache' is neither an absolute path nor \"off\"")


def test_where_warnings_are_errors_the_second_plan_works(folder: Path) -> None:
    (folder / cost_table.NAME).write_text("{")
    planner.forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="plans without measured costs"):
            plan()
        assert order(plan()) == NAMES


def test_default_folders_of_the_cost_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NBATTN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cost_table.path() == tmp_path / ".cache" / "nbattn" / "costs.json"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cost_table.path() == tmp_path / "xdg" / "nbattn" / "costs.json"


# Writing.


def test_a_table_survives_writing_and_reading(folder: Path) -> None:
    ours = entry(REVERSED, rates=RATES)
    assert cost_table.decode(cost_table.encode((ours, entry({})))) == (ours, entry({}))
