"""Forward passes: threads, checkpoints, compilers, offloading, caches, and refused calls."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import HookRegistry
from diffusers.hooks.layer_skip import AttentionProcessorSkipHook
from integrations.diffusers.models import MODELS, Small, in_float32, output, window
from torch import Tensor, nn

from nbattn import Mask
from nbattn.errors import InputError
from nbattn.integrations.diffusers import apply, forwards, restore

CPU = torch.device("cpu")
SAME = {"rtol": 0.0, "atol": 1e-10}


def windowed(name: str) -> Any:
    return apply(MODELS[name].model(), window(MODELS[name]))


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_threads_with_different_resolutions(name: str):
    small, model = MODELS[name], windowed(name)
    sizes = [small.sizes[number % 2] for number in range(8)]
    arguments = [small.inputs(size) for size in sizes]
    expected = [output(model, given) for given in arguments]
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda given: output(model, given), arguments)
        for part, same in zip(found, expected, strict=True):
            torch.testing.assert_close(part, same, **SAME)


def gradients(small: Small, model: Any) -> list[Tensor]:
    """The gradients of two forward passes with different sizes and one backward pass."""
    model.zero_grad()
    given = [in_float32(model, small.inputs(size, padded=True)) for size in small.sizes]
    losses = [model(**arguments, return_dict=False)[0].sin().sum() for arguments in given]
    sum(losses).backward()
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("name", MODELS)
def test_checkpoints_of_two_resolutions_before_a_backward_pass(name: str):
    small, model = MODELS[name], windowed(name).train()
    expected = gradients(small, model)
    model.enable_gradient_checkpointing()
    for found, same in zip(gradients(small, model), expected, strict=True):
        torch.testing.assert_close(found, same, rtol=1e-5, atol=1e-5)
    assert isinstance(model._gradient_checkpointing_func, forwards.Checkpoints)
    restore(model)
    assert not isinstance(model._gradient_checkpointing_func, forwards.Checkpoints)
    model.disable_gradient_checkpointing()


def test_checkpoints_of_two_threads():
    small, model = MODELS["wan"], windowed("wan").train().float()
    model.enable_gradient_checkpointing()
    arguments = [in_float32(model, small.inputs(small.sizes[number % 2])) for number in range(8)]

    def gradient(given: dict[str, Any]) -> Tensor:
        latents = given["hidden_states"].clone().requires_grad_()
        out = model(**(given | {"hidden_states": latents})).sample
        return torch.autograd.grad(out.sin().sum(), latents)[0]

    expected = [*map(gradient, arguments)]
    with ThreadPoolExecutor(2) as pool:
        for found, same in zip(pool.map(gradient, arguments), expected, strict=True):
            torch.testing.assert_close(found, same)


class Graphs:
    """A compiler that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, _: Any) -> Any:
        self.count += 1
        return graph.forward


def resolutions(small: Small) -> list[tuple[int, ...]]:
    grids = [(4, 5), (6, 4), (5, 9), (7, 8)]
    if len(small.patches) == 3:
        grids = [(3, 4, 5), (4, 5, 3), (5, 6, 4), (6, 4, 7)]
    pairs = [zip(grid, small.patches, strict=True) for grid in grids]
    return [tuple(n * patch for n, patch in pair) for pair in pairs]


def graphs(small: Small, *, windows: bool, how: str) -> int:
    """How many graphs a model has after four resolutions, each with the output of no compiler."""
    torch._dynamo.reset()
    model, count = small.model().float(), Graphs()
    if windows:
        apply(model, window(small))
    given = [in_float32(model, small.inputs(size, padded=True)) for size in resolutions(small)]
    expected = [model(**arguments).sample.detach() for arguments in given]
    compiled = model
    if how == "compile":
        compiled = torch.compile(model, fullgraph=True, backend=count)
    elif how == "method":
        model.compile(backend=count)
    else:
        model.compile_repeated_blocks(fullgraph=True, backend=count)
    for arguments, same in zip(given, expected, strict=True):
        torch.testing.assert_close(compiled(**arguments).sample, same, rtol=1e-4, atol=1e-4)
    return count.count


@pytest.mark.deep
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", ["compile", "method", "blocks"])
def test_no_more_graphs_than_the_model_has_all(name: str, how: str):
    small = MODELS[name]
    if how == "blocks" and not small.model()._repeated_blocks:
        pytest.skip("diffusers names no repeated blocks of it")
    own = graphs(small, windows=False, how=how)
    found = graphs(small, windows=True, how=how)
    assert 0 < found <= own + 2 * (how == "method")  # hooks before and behind the graph


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("is_first", [True, False])
def test_weights_on_demand(name: str, is_first: bool):
    small = MODELS[name]
    given = small.inputs(small.sizes[0], padded=True)
    expected = output(windowed(name), given)
    for offload in (
        lambda model: cpu_offload(model, execution_device=CPU),
        lambda model: model.enable_group_offload(
            onload_device=CPU,
            offload_device=CPU,
            offload_type="block_level",
            num_blocks_per_group=1,
        ),
        lambda model: model.enable_group_offload(
            onload_device=CPU, offload_device=CPU, offload_type="leaf_level"
        ),
    ):
        model = small.model()
        if is_first:
            offload(model)
        apply(model, window(small))
        if not is_first:
            offload(model)
        torch.testing.assert_close(output(model, given), expected, **SAME)


@pytest.mark.parametrize("name", ["flux", "wan", "hunyuan", "cogvideox", "mochi", "qwen"])
def test_a_cache_of_the_first_block(name: str):
    small, model = MODELS[name], windowed(name)
    given = small.inputs(small.sizes[0], padded=True)
    expected = output(model, given)
    model.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    with torch.no_grad(), model.cache_context("cond"):
        torch.testing.assert_close(output(model, given), expected, **SAME)
        output(model, given)  # of the first block alone


@pytest.mark.parametrize("name", MODELS)
def test_blocks_outside_of_a_forward_pass(name: str):
    small, model = MODELS[name], windowed(name)
    first = next(iter(small.layers))
    block = model.get_submodule(first.rpartition(".")[0])
    seen: list[Any] = []
    handle = block.register_forward_pre_hook(
        lambda _, arguments, named: seen.extend((arguments, named)), with_kwargs=True
    )
    output(model, small.inputs(small.sizes[0]))
    handle.remove()
    with pytest.raises(InputError, match=f"{first} runs outside of a call of its model"):
        block(*seen[0], **seen[1])


def test_a_forward_pass_that_fails_leaves_no_grid_behind():
    small, model = MODELS["wan"], windowed("wan")
    with pytest.raises(RuntimeError):
        output(
            model, small.inputs(small.sizes[0]) | {"encoder_hidden_states": torch.zeros(2, 5, 3)}
        )
    assert forwards.RUNNING.forward is None


def test_a_processor_that_was_replaced():
    small, model = MODELS["wan"], windowed("wan")
    own = copy.copy(small.model().blocks[1].attn1.processor)
    model.blocks[1].attn1.set_processor(own)
    with pytest.raises(InputError, match=r"blocks.1.attn1 was replaced after apply\(\)"):
        output(model, small.inputs(small.sizes[0]))
    apply(model, window(small))
    output(model, small.inputs(small.sizes[0]))


def test_a_processor_of_another_model():
    small, model = MODELS["sd3"], windowed("sd3")
    other = apply(small.model(), Mask.neighborhood((1, 1)))
    model.set_attn_processor(dict(other.attn_processors))
    with pytest.raises(InputError, match="has not the windows of that call"):
        output(model, small.inputs(small.sizes[0]))


def test_scores_that_a_hook_skips():
    small, model = MODELS["qwen"], windowed("qwen")
    hook = AttentionProcessorSkipHook(lambda *_: None, skip_attention_scores=True)
    registry = HookRegistry.check_if_exists_or_initialize(model.transformer_blocks[0].attn)
    registry.register_hook(hook, "skip")
    with pytest.raises(InputError, match=r"skips the scores of transformer_blocks.0.attn"):
        output(model, small.inputs(small.sizes[0]))
    registry.remove_hook("skip")
    output(model, small.inputs(small.sizes[0]))


def test_fused_projections_that_are_undone():
    small, model = MODELS["sd3"], MODELS["sd3"].model()
    given = small.inputs(small.sizes[0])
    own = output(model, given)
    apply(model, window(small))
    model.fuse_qkv_projections()
    with pytest.raises(InputError, match="FusedJointAttnProcessor2_0"):
        output(model, given)
    restore(model)
    model.unfuse_qkv_projections()
    assert torch.equal(output(model, given), own)


@pytest.mark.parametrize("wrap", [lambda model: nn.ModuleList([model]), torch.compile])
def test_restore_of_a_model_within_another(wrap: Any):
    small, model = MODELS["wan"], MODELS["wan"].model()
    own = output(model, small.inputs(small.sizes[0]))
    apply(model, window(small))
    restore(wrap(model))
    assert torch.equal(output(model, small.inputs(small.sizes[0])), own)
    assert not model._forward_pre_hooks_with_kwargs


def test_apply_that_fails_changes_nothing():
    small, model = MODELS["wan"], windowed("wan")
    before = output(model, small.inputs(small.sizes[0]))
    model.blocks[1].attn1.processor, processor = object(), model.blocks[1].attn1.processor
    with pytest.raises(InputError, match="has the processor object"):
        apply(model, Mask.neighborhood((1, 1, 1)))
    model.blocks[1].attn1.processor = processor
    assert torch.equal(output(model, small.inputs(small.sizes[0])), before)
