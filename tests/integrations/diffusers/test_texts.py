"""Padding of text, as forward passes say it."""

from __future__ import annotations

import pytest
import torch
from integrations.diffusers.models import kept

from nbattn.errors import InputError
from nbattn.integrations.diffusers import texts


def test_a_count_of_tokens_whatever_their_places_are():
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]])
    found = texts.counted({"encoder_attention_mask": mask})
    assert found.tolist() == [[0, 2], [0, 2], [0, 0]]
    assert found.dtype is torch.int32


def test_a_run_of_tokens_left_right_and_none():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]])
    for given in (mask, mask.bool()):
        found = texts.masked({"encoder_hidden_states_mask": given})
        assert found is not None
        assert found[:3].tolist() == [[0, 2], [2, 4], [1, 3]]
        assert found[3, 0] == found[3, 1]
    assert texts.masked({}) is None
    with pytest.raises(InputError, match="sample 1's text has holes"):
        texts.masked({"encoder_hidden_states_mask": torch.tensor([[1, 1, 0], [1, 0, 1]])})


def test_ranges_behind_reference_images():
    valid = texts.masked({"encoder_hidden_states_mask": kept(True)})
    assert valid is not None
    assert texts.behind(valid, 0) is valid
    assert texts.behind(None, 4) is None
    found = texts.behind(valid, 4)
    assert found is not None
    assert found.tolist() == [[0, 9], [0, 7]]
    with pytest.raises(InputError, match="padded on the left"):
        texts.behind(torch.tensor([[0, 5], [2, 5]], dtype=torch.int32), 4)
