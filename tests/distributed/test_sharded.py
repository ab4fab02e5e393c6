"""Tests of attention across ranks: random problems on 2 to 8 processes against the definition."""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks
import sharded_problems
import torch
import torch.distributed as dist

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch without gloo")
FEATURES = {
    *("sink", "softcap", "scale", "extra_key", "extra_range", "key_range", "alibi_slopes"),
    *("relative_bias", "lse", "cross lengths", "grouped heads", "other value dim"),
    *("replicated queries", "empty chunks", "clip", "shift", "wrap", "1 axes", "2 axes", "3 axes"),
}


@pytest.mark.parametrize(("count", "number"), [(2, 50), (3, 50), (4, 70), (8, 40)])
def test_ranks_are_one_process(count: int, number: int, tmp_path: Path) -> None:
    """Output, logsumexp and all gradients, on random masks, meshes and arguments."""
    compare(count, number, count, tmp_path)


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(100, 104))
@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_ranks_are_one_process_in_many_problems(count: int, seed: int, tmp_path: Path) -> None:
    compare(count, 400, seed, tmp_path)


def compare(count: int, number: int, seed: int, folder: Path) -> None:
    problems, features = sharded_problems.problems(seed, count, number)
    wanted = FEATURES | ({"batch across ranks", "2 cut"} if count > 3 else set())
    assert wanted <= features.keys(), wanted - features.keys()
    torch.save(problems, folder / "problems")
    ranks.run(sharded_problems.work, count, folder / "problems")
