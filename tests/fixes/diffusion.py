"""Fixes of models of diffusers."""

from __future__ import annotations

from fixes.row import Row

_GIVEN = """
import diffusers
from types import SimpleNamespace
from integrations.diffusers.models import MODELS
from nbattn.integrations.diffusers import apply, restore
def small(name):
    return MODELS[name].model(), MODELS[name].call(MODELS[name].sizes[0], False)
model, given = small("flux")
own = model(**given).sample
layers = nbattn.integrations.diffusers.tables.layers_of(
    model, nbattn.integrations.diffusers.FAMILIES["FluxTransformer2DModel"])
mask = nbattn.Mask.neighborhood((3, 3))
latents = torch.zeros(2, 4, 3, 4, 5)
def decoder():
    return diffusers.models.autoencoders.ltx2_diffusion_decoder.LTX2VideoVaeNeighborhoodAttention(
        16, (3, 3, 3), head_dim=8)
"""
_HERE = "nbattn.integrations.diffusers"
_APPLY = f"{_HERE}.apply(model, nbattn.Mask.neighborhood((7, 7)))"
_RESTORED = f"{_HERE}.restore(model)"
_WINDOWED = "hasattr(model.transformer_blocks[0].attn.processor, 'layer')"
_PLAN = "schedule={(0, 700): mask, (700, 1000): None}"


def _row(call: str, pasted: str, fixed: str, means: str = "True", given: str = "") -> Row:
    return Row(call=call, pasted=pasted, fixed=fixed, means=means, given=_GIVEN + given)


def _scheduled(wrong: str, right: str, given: str = "") -> Row:
    fixed = right if right.startswith("schedule=") else f"schedule={{{right}: mask}}"
    return _row(f"apply(model, schedule={wrong})", right, f"apply(model, {fixed})", given=given)


def _restored(call: str, given: str, model: str = "flux") -> Row:
    """A call that the model's own attention can do."""
    made = f'\nmodel, given = small("{model}")\napply(model, nbattn.Mask.full(mask.rank))\n'
    return _row(call, _RESTORED, f"{_RESTORED}\nout = {call}", given=made + given)


ROWS = [
    _row("apply(model)", _APPLY, f"model = {_APPLY}", _WINDOWED),
    _row("apply(model, mask, schedule={(0, 1): mask})", _APPLY, f"model = {_APPLY}", _WINDOWED),
    _row("apply(model, (7, 7))", _APPLY, f"model = {_APPLY}", _WINDOWED),
    _row("apply(model, nbattn.Mask.causal())", _APPLY, f"model = {_APPLY}", _WINDOWED),
    _row("apply(model, mask, text='all')", 'text="joint"', 'apply(model, mask, text="joint")'),
    _row(
        "apply(model, nbattn.Mask.full(3), text='keys')",
        'text="joint"',
        'apply(model, nbattn.Mask.full(3), text="joint")',
        given='model, given = small("wan")',
    ),
    _row(
        "apply(model, mask)",
        f"{_HERE}.apply(model)",
        f"{_HERE}.apply(model)",
        "type(model.processor).__name__ == 'NeighborhoodProcessor'",
        "model = decoder()",
    ),
    _row(
        "apply(model, mask)",
        f"{_HERE}.apply(model.transformer, mask)",
        f"{_HERE}.apply(model.transformer, mask)",
        given="model = SimpleNamespace(transformer=model)",
    ),
    _row(
        "apply(torch.compile(model), mask)",
        f'{_HERE}.apply(model.get_submodule("_orig_mod"), mask)',
        f'model = torch.compile(model)\n{_HERE}.apply(model.get_submodule("_orig_mod"), mask)',
        _WINDOWED,
    ),
    _row(
        "apply(model)",
        f"{_HERE}.apply(model.diffusion_decoder)",
        f"{_HERE}.apply(model.diffusion_decoder)",
        given="model = SimpleNamespace(diffusion_decoder=decoder())",
    ),
    _row(
        "apply(model, mask)",
        "nbattn.Mask(nbattn.Axis(), *mask.axes)",
        "mask = nbattn.Mask(nbattn.Axis(), *mask.axes)\napply(model, mask)",
        "mask.rank == 3",
        'model, given = small("wan")',
    ),
    _row("apply(model, {})", '{"*": mask}', 'apply(model, {"*": mask})', _WINDOWED),
    _row(
        "apply(model, config)",
        f'{_HERE}.apply(model, config.masks["exact"])',
        f'{_HERE}.apply(model, config.masks["exact"])',
        _WINDOWED,
        "config = nbattn.load('flux_4k')",
    ),
    _row('apply(model, {"double": 7})', _APPLY, f"model = {_APPLY}", _WINDOWED),
    _row('apply(model, {"dobule": mask})', "'double'", "apply(model, {'double': mask})", _WINDOWED),
    _row("apply(model, mask, layers=99)", "'double'", "apply(model, mask, layers='double')"),
    _scheduled("[mask]", _PLAN),
    _scheduled("{700: mask}", _PLAN),
    _scheduled("{(5, 5): mask}", _PLAN),
    _scheduled("{(700, 0): mask}", "(0, 700)"),
    _row(
        "apply(model, schedule={(0, 700): mask, (500, 1000): None})",
        "(0, 500) and (500, 1000)",
        "# (0, 500) and (500, 1000)\napply(model, schedule={(0, 500): mask, (500, 1000): None})",
    ),
    _row(
        "apply(model, schedule=schedule); model(**given)",
        "schedule={**schedule, (0.2, 0.5): None}",
        "apply(model, schedule={**schedule, (0.2, 0.5): None})\nout = model(**given).sample",
        "torch.equal(out, own)",
        "schedule = {(0, 0.2): mask}\ngiven['timestep'] = torch.full((2,), 0.5)\n"
        "own = model(**given).sample",
    ),
    _row(
        "model(**given)",
        f"{_HERE}.apply(model, mask)",
        f"{_HERE}.apply(model, mask)\nout = model(**given).sample",
        "not torch.equal(out, own)",
        "apply(model, mask); attn = model.transformer_blocks[0].attn\n"
        "attn.set_processor(attn._default_processor_cls())",
    ),
    _row(
        'model.set_attention_backend("native")',
        f'{_RESTORED}; model.set_attention_backend("native"); {_HERE}.apply(model, mask)',
        f'{_RESTORED}; model.set_attention_backend("native"); {_HERE}.apply(model, mask)',
        _WINDOWED,
        "apply(model, mask)",
    ),
    _row(
        'model.processor._attention_backend = "native"',
        _RESTORED,
        _RESTORED,
        "type(model.processor).__name__ == 'LTX2VideoVaeNeighborhoodAttnProcessor'",
        "model = apply(decoder())",
    ),
    _row(
        "apply(model, mask); model(**given)",
        "img_ids = torch.cartesian_prod(torch.tensor([0]), torch.arange(height), "
        "torch.arange(width))",
        "img_ids = torch.cartesian_prod(torch.tensor([0]), torch.arange(height), "
        "torch.arange(width))\napply(model, mask)\nout = model(**{**given, 'img_ids': img_ids})",
        "torch.equal(img_ids, right)",
        "right = given['img_ids']; height, width = (right[-1, 1:] + 1).int().tolist()\n"
        "given['img_ids'] = right.flip(0)",
    ),
    _row(
        "model(**given)",
        "num_frames=latents.shape[2], height=latents.shape[3], width=latents.shape[4]",
        "out = model(**given, num_frames=latents.shape[2], height=latents.shape[3], "
        "width=latents.shape[4])",
        given='model, given = small("ltx")\napply(model, nbattn.Mask.full(3))\n'
        "latents = torch.zeros(1, 4, *(given.pop(n) for n in ('num_frames', 'height', 'width')))",
    ),
    _restored("model(**given, kv_cache_mode='extract')", "", "flux2"),
    _restored(
        "model(**given)",
        "layer = model.transformer_blocks[0].attn\n"
        "hook = diffusers.hooks.layer_skip.AttentionProcessorSkipHook(None, True)\n"
        "diffusers.hooks.HookRegistry.check_if_exists_or_initialize(layer)"
        ".register_hook(hook, 'skip')",
        "qwen",
    ),
    _restored(
        "model(**given, joint_attention_kwargs={'attention_mask': allowed})",
        "allowed = torch.zeros(1, 1, 1, 1, dtype=torch.float64)",
    ),
    _restored(
        "model(**{**given, 'txt_ids': torch.zeros(given['txt_ids'].shape[0] + 2, 3)})",
        "model.context_embedder.register_forward_hook("
        "lambda _, given, out: torch.cat([out, out[:, :2]], 1))",
    ),
]
