"""Tests of writing cost tables: what stays, what is dropped, and many writers at once."""

import multiprocessing
import os
import warnings
from dataclasses import replace
from pathlib import Path

import cost_tables
import pytest
import torch
import torch_only
from cost_tables import NAMES, RATES, REVERSED, entry, here, plan, write

import nbattn
from nbattn import InputError, cache, tune
from nbattn.planner import cost_table
from nbattn.planner.cost_table import Entry
from nbattn.program.device import DEVICES

folder = cost_tables.folder  # the fixture: a cache of its own for every test
torch_only = torch_only.torch_only  # a fixture: no native kernels


def test_saving_keeps_other_devices_and_other_requests(folder: Path) -> None:
    path = folder / cost_table.NAME
    older = Entry(here(), "2026-01-01", RATES, {'{"a": 1}': {"x": 1.0}, '{"b": 2}': {"x": 2.0}})
    foreign = entry(REVERSED, torch="1.0")
    write(folder, older, foreign)
    newer = Entry(here(), "2026-02-02", None, {'{"b": 2}': {"y": 3.0}})
    assert tune.save(path, newer) == ""
    merged, unchanged = cost_table.decode(path.read_bytes())
    assert unchanged == foreign
    assert merged == replace(newer, times={'{"a": 1}': {"x": 1.0}, '{"b": 2}': {"y": 3.0}})
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in folder.iterdir()] == [cost_table.NAME]


def test_plans_use_saved_times(folder: Path) -> None:
    assert plan().chosen.name == NAMES[0]
    tune.save(folder / cost_table.NAME, entry(REVERSED))
    assert plan().chosen.name == NAMES[-1]


def test_a_damaged_table_is_replaced_and_reported(folder: Path) -> None:
    path, ours = folder / cost_table.NAME, entry(REVERSED)
    path.write_text("{")
    assert tune.save(path, ours).startswith("is damaged: JSONDecodeError")
    assert plan().chosen.name == NAMES[-1]


def test_a_link_is_not_written_through(folder: Path) -> None:
    target = folder.parent / "precious"
    target.write_text("mine")
    (folder / cost_table.NAME).symlink_to(target)
    with pytest.raises(nbattn.InputError) as caught:
        tune.save(folder / cost_table.NAME, Entry(here(), "2026-11-24"))
    assert caught.value.problem == (
        f"the cost table cannot be written: {folder / cost_table.NAME} is a symbolic link."
    )
    assert target.read_text() == "mine"


def test_a_full_disk_leaves_the_old_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, entry(REVERSED))
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(nbattn.InputError, match="No space left on device"):
        tune.save(path, entry({}, rates=RATES))
    assert path.read_bytes() == before
    assert [file.name for file in folder.iterdir()] == [cost_table.NAME]


def test_the_oldest_entries_are_dropped(folder: Path) -> None:
    many = [Entry(replace(here(), torch=str(n)), "2026-11-24") for n in range(2 * tune.ENTRIES)]
    table = tune.joined(many, entry(REVERSED))
    assert len(table) == tune.ENTRIES
    assert table[0].fingerprint == here()


def _writer(path: Path, number: int) -> None:
    for turn in range(5):
        times = {f'{{"n": {number}, "turn": {turn}}}': {"x": 1.0}}
        tune.save(path, Entry(here(), "2026-11-24", None, times))


def test_eight_processes_write_and_lose_nothing(folder: Path) -> None:
    path = folder / cost_table.NAME
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork after threads, from 3.12 on
        writers = [context.Process(target=_writer, args=(path, n)) for n in range(8)]
        for one in writers:
            one.start()
    while any(one.is_alive() for one in writers):
        content = cache.read(path)
        assert content is None or len(cost_table.decode(content)) == 1
    assert [one.exitcode for one in writers] == [0] * 8
    (merged,) = cost_table.decode(path.read_bytes())
    assert len(merged.times) == 40
    assert [file.name for file in folder.iterdir()] == [cost_table.NAME]


@pytest.mark.parametrize(
    ("name", "kind", "variable"),
    [("sm_90", "cuda", "CUDA_VISIBLE_DEVICES"), ("xe", "xpu", "ZE_AFFINITY_MASK")],
)
def test_several_models_are_shown_one_by_one(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: str, variable: str
) -> None:
    monkeypatch.setattr(cost_table, "fingerprint", lambda _: None)
    monkeypatch.setattr(torch.get_device_module(kind), "device_count", lambda: 2)
    with pytest.raises(InputError) as error:
        tune.this_device(DEVICES[name])
    assert error.value.problem == (
        f"{name} cannot be measured: this machine has none, or several models of it. "
        f"{variable}=0 shows one."
    )
    monkeypatch.setattr(torch.get_device_module(kind), "device_count", lambda: 1)
    with pytest.raises(InputError, match=f"{name} cannot be measured: this machine has none\\."):
        tune.this_device(DEVICES[name])


def test_every_type_of_gpu_has_sizes_to_measure() -> None:
    kinds = {info.kind for info in DEVICES.values()}
    assert kinds == {*tune._PRODUCTS} == {*tune._COPIED} == {"cpu", *tune._SHOWS_ONE}
