"""Tests of transformers' DiNAT on nbattn, against attention in plain torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import oracle
import pytest
import torch
from torch import Tensor, nn

from nbattn import InputError
from nbattn.integrations import natten
from nbattn.integrations.natten import dinat


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def natten_uninstalled_after() -> Iterator[None]:
    yield
    natten.restore_dinat()
    natten.uninstall()
    assert not natten.is_installed()


# Transformers' DiNAT.


def dense_forward(self: Any, hidden: Tensor, output_attentions: Any = False) -> tuple[Tensor, ...]:
    """DiNAT's attention in plain torch: all pairs, the enumerator's mask, the bias looked up."""
    batch, rows, columns, channels = hidden.shape
    heads, size = self.num_attention_heads, self.attention_head_size
    query, key, value = (
        part(hidden).reshape(batch, rows * columns, heads, size).transpose(1, 2)
        for part in (self.query, self.key, self.value)
    )
    kernel, step = self.kernel_size, self.dilation
    allowed = torch.from_numpy(oracle.natten_matrix((rows, columns), kernel, 1, step, False))
    y, x = (t.flatten() // step for t in torch.meshgrid(
        torch.arange(rows), torch.arange(columns), indexing="ij"))  # fmt: skip
    table = [(t[None] - t[:, None] + kernel - 1).clamp(0, 2 * kernel - 2) for t in (y, x)]
    scores = query @ key.mT / size**0.5 + self.rpb[:, table[0], table[1]]
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    found = (weights @ value).transpose(1, 2).reshape(batch, rows, columns, channels)
    return (found,)


@pytest.fixture
def dinat_model(natten_uninstalled_after: None) -> Any:
    pytest.importorskip("transformers")
    natten.install(replace=True)
    natten.repair_dinat()
    from transformers import DinatConfig, DinatForImageClassification

    torch.manual_seed(0)
    config = DinatConfig(
        embed_dim=16, depths=[2, 2, 1], num_heads=[2, 4, 8], kernel_size=3,
        dilations=[[1, 4], [1, 3], [2]], num_labels=5, layer_scale_init_value=0.5,
        drop_path_rate=0.0,
    )  # fmt: skip
    model = DinatForImageClassification(config).double()
    for name, parameter in model.named_parameters():
        if name.endswith("rpb"):
            nn.init.normal_(parameter)
    return model


def test_dinat_runs_and_trains_as_in_plain_torch(
    dinat_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps 13x18, 7x9 and 4x5: odd, dilations that divide nothing, the last ones below K d."""
    model, labels = dinat_model.train(), torch.tensor([1, 3])
    x = random(2, 3, 52, 72)
    results = []
    attention = sys.modules[dinat._MODULE].NeighborhoodAttention
    seen: list[tuple[int, ...]] = []

    def watched(self: Any, hidden: Tensor, output_attentions: Any = False) -> tuple[Tensor, ...]:
        seen.append((*hidden.shape[1:3], self.dilation))
        return dense_forward(self, hidden)

    for forward in (attention.forward, watched):
        monkeypatch.setattr(attention, "forward", forward)
        model.zero_grad()
        out = model(x, labels=labels)
        out.loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        results.append((out.logits, grads))
    assert seen == [(13, 18, 1), (13, 18, 4), (7, 9, 1), (9, 9, 3), (6, 6, 2)]
    (found, ours), (wanted, theirs) = results
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-8, atol=1e-10, msg=name)
        if name.endswith("rpb"):
            assert grad.abs().sum() > 0


def test_dinat_takes_the_fused_path_unless_it_drops_weights(
    dinat_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = random(1, 3, 52, 72)
    weighted = dinat_model.eval()(x, output_attentions=True).logits
    monkeypatch.setattr(dinat.unfused, "scores", None)
    torch.testing.assert_close(dinat_model(x).logits, weighted, rtol=1e-10, atol=1e-10)
    layer: Any = dinat_model.dinat.encoder.levels[0].layers[0].attention.self
    layer.dropout.p = 0.5
    with pytest.raises(TypeError, match="NoneType"):
        dinat_model.train()(x)


def test_dinat_gives_its_weights_when_asked(dinat_model: Any) -> None:
    out = dinat_model.eval()(random(1, 3, 52, 72), output_attentions=True)
    assert out.attentions[0].shape[-1] == 9
    torch.testing.assert_close(out.attentions[0].sum(-1).mean().item(), 1.0)


def test_without_the_repair_dinat_fails_as_with_any_natten(dinat_model: Any) -> None:
    """Its heads are [B, X, Y, H, D]; should this pass one day, the repair may go."""
    natten.restore_dinat()
    with pytest.raises(InputError, match=r"rpb is|is more than its"):
        dinat_model(random(1, 3, 52, 72))
