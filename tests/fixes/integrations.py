"""Fixes of the drop-in for NATTEN, of Swin's windows, and of models of transformers."""

from fixes.row import Row

_NATTEN = """
from nbattn.integrations import natten as drop
from nbattn.integrations.natten import modules, unfused, legacy, fused, flops, checks
from nbattn.integrations.natten.modules import OlderNeighborhoodAttention2D as Older2D
from nbattn.integrations.natten.modules import NeighborhoodAttention2D as Current2D
import nbattn.integrations.natten
import warnings
warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
query = key = value = image
first = image.movedim(-2, 1)
natten = drop.install(replace=True)
import natten.flops, natten.context
drop.uninstall()
"""


def _row(call: str, pasted: str, fixed: str, means: str = "True", given: str = "") -> Row:
    return Row(call=call, pasted=pasted, fixed=fixed, means=means, given=_NATTEN + given)


_SPLIT = (
    "torch.cat([natten.functional.attention(q, k, v) for q, k, v in "
    "zip(query.split(seqlens_Q.tolist(), 1), key.split(seqlens_KV.tolist(), 1), "
    "value.split(seqlens_KV.tolist(), 1))], 1)"
)
_NESTED = (
    "[natten.functional.na2d(q[None], k[None], v[None], kernel_size=3)[0] for q, k, v in "
    "zip(query.unbind(), key.unbind(), value.unbind())]"
)
_BIASED = "natten.functional.na2d(image, image, image, 3, 1, False, torch.zeros(4, 5, 5))"
_ALIGNED = (
    "nbattn.Mask(nbattn.Axis(1, 1, align='top-left', border='shift'), "
    "nbattn.Axis(1, 0, dilation=2, align='top-left', border='shift'))"
)
_OLDER = 'nbattn.integrations.natten.install(generation="0.17")'
_LARGE = "nbattn.Mask.neighborhood((7, 7), is_causal=True)"
NATTEN_ROWS = [
    _row(
        _BIASED,
        _OLDER,
        f"{_OLDER}\nimport natten.functional\nout = {_BIASED}\ndrop.uninstall()",
        "out.shape == image.shape",
    ),
    _row(
        "natten.NeighborhoodAttention2D(dim=64, num_heads=2, kernel_size=3)",
        _OLDER,
        f"{_OLDER}\nimport natten\n"
        "layer = natten.NeighborhoodAttention2D(dim=64, num_heads=2, kernel_size=3)\n"
        "drop.uninstall()",
        "layer(x).shape == x.shape",
    ),
    _row(
        "natten.NeighborhoodAttention2D(64, 2, 3, 1, False)",
        _OLDER,
        f"{_OLDER}\nimport natten\nlayer = natten.NeighborhoodAttention2D(64, 2, 3, 1, False)\n"
        "drop.uninstall()",
        "layer.dilation == (1, 1)",
    ),
    _row(
        "drop.na2d(query, key, value, 3)",
        _NESTED,
        f"out = {_NESTED}",
        "[o.shape for o in out] == [(6, 8, 4, 16), (5, 5, 4, 16)]",
        "query = key = value = torch.nested.as_nested_tensor("
        "[torch.randn(6, 8, 4, 16), torch.randn(5, 5, 4, 16)])",
    ),
    _row(
        "natten.context.use_fused_na(force_flex_attention=True)",
        "natten.use_fused_na()",
        "natten.use_fused_na()",
    ),
    _row(
        "natten.set_memory_usage_preference('greedy')",
        'natten.set_memory_usage_preference("default")',
        'natten.set_memory_usage_preference("default")',
        "natten.is_memory_usage_default()",
    ),
    _row(
        "natten.use_deterministic_algorithms()",
        "torch.use_deterministic_algorithms(True)",
        "torch.use_deterministic_algorithms(True)\n"
        "seen = natten.are_deterministic_algorithms_enabled()\n"
        "torch.use_deterministic_algorithms(False)",
        "seen",
    ),
    _row(
        "drop.na2d(image, image[:, :4], image[:, :4], (3, 2), dilation=(1, 2))",
        _ALIGNED,
        f"out = nbattn.attention(image, image[:, :4], image[:, :4], {_ALIGNED})",
        "torch.allclose(out[:, 1:3], drop.na2d(image[:, :4], image[:, :4], image[:, :4], (3, 2), "
        "dilation=(1, 2))[:, 1:3], atol=1e-5)",
    ),
    _row(
        "drop.attention(query, key, value, seqlens_Q=seqlens_Q, seqlens_KV=seqlens_KV)",
        _SPLIT,
        f"out = {_SPLIT}",
        "out.shape == query.shape",
        "query = key = value = line[:1]\n"
        "seqlens_Q = seqlens_KV = torch.tensor([5, 7], dtype=torch.int32)",
    ),
    _row(
        "fused.older_na2d(image, image, image, 3, xformers_kwargs={'p': 0.1})",
        "xformers_kwargs=None",
        "out = fused.older_na2d(image, image, image, 3, xformers_kwargs=None)",
    ),
    _row(
        "drop.install(generation='0.16')",
        "install(generation='0.17')",
        "top = drop.install(generation='0.17', replace=True)\ndrop.uninstall()\n"
        "# install(generation='0.17')",
        "top.__version__.startswith('0.17')",
    ),
    _row(
        "drop.install()",
        "install(replace=True, generation='0.21')",
        "top = drop.install(replace=True, generation='0.21')\ndrop.uninstall()",
        "top.__nbattn__",
        "import importlib.util\n"
        "monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())",
    ),
    _row(
        "import natten.natten2d",
        _OLDER,
        f"drop.uninstall()\n{_OLDER}\nimport natten.natten2d",
        "natten.natten2d.NeighborhoodAttention2D is Older2D",
        "drop.install(replace=True)",
    ),
    _row(
        "from natten.backends.reference import reference_fna_generic",
        "backend=None",
        "from natten.functional import neighborhood_attention_generic\n"
        "out = neighborhood_attention_generic(image, image, image, 3, backend=None)",
        "out.shape == image.shape",
        "drop.install(replace=True)",
    ),
    _row(
        "from natten.functional import FusedNeighborhoodAttention2D",
        "natten.functional.__all__",
        "import natten.functional\nlegal = natten.functional.__all__",
        "{'na2d', 'attention'} <= {*legal}",
        "drop.install(replace=True)",
    ),
    _row(
        "legacy.natten2dqk(first, first, 3)",
        "kernel_size=3, dilation=1",
        "out = legacy.natten2dqk(first, first, kernel_size=3, dilation=1)",
        "out.shape == (2, 4, 6, 8, 9)",
    ),
    _row(
        "legacy.na2d_qk(query, torch.nested.as_nested_tensor([first]), 3)",
        "torch.nested.as_nested_tensor(list(query.unbind())[:1])",
        "query = torch.nested.as_nested_tensor(list(query.unbind())[:1])\n"
        "out = legacy.na2d_qk(query, torch.nested.as_nested_tensor([first]), 3)",
        "out.unbind()[0].shape == (2, 4, 6, 8, 9)",
        "query = torch.nested.as_nested_tensor([first, first])",
    ),
    _row("Current2D(64, 5, 3)", "num_heads=4", "layer = Current2D(64, num_heads=4, kernel_size=3)"),
    _row(
        "Current2D(64, 4, 3)(x.movedim(-1, 1))",
        "layer(x.movedim(1, -1)).movedim(-1, 1)",
        "layer, x = Current2D(64, 4, 3), x.movedim(-1, 1)\n"
        "out = layer(x.movedim(1, -1)).movedim(-1, 1)",
        "out.shape == x.shape",
    ),
    _row(
        "drop.na2d(image, image, image, 1)",
        "kernel_size=2",
        "drop.na2d(*[image] * 3, kernel_size=2)",
    ),
    _row(
        "drop.na2d(image, image, image, 3, dilation=3)",
        "dilation=2",
        "drop.na2d(image, image, image, 3, dilation=2)",
    ),
    _row(
        "drop.na2d(image, image, image, 7, is_causal=True)",
        f"nbattn.attention(query, key, value, {_LARGE})",
        f"out = nbattn.attention(query, key, value, {_LARGE})",
        "torch.allclose(out, attention(*[image] * 3, Mask(Axis(6, 0), Axis(6, 0))), atol=1e-5)",
    ),
    _row(
        "drop.na2d(image, image, image, 7)",
        "kernel_size=6",
        "drop.na2d(image, image, image, kernel_size=6)",
    ),
    _row(
        "drop.na2d(image, image, image, (3, 3, 5))",
        "kernel_size=(3, 3)",
        "drop.na2d(image, image, image, kernel_size=(3, 3))",
    ),
    _row(
        "drop.na3d(line, line, line, 3)",
        "natten.functional.na1d",
        "natten.functional.na1d(line, line, line, 3)",
    ),
    _row(
        "drop.na2d(query, query, query, 3)",
        "query[None]",
        "out = drop.na2d(query[None], query[None], query[None], 3)",
        "out.shape == (1, 6, 8, 4, 16)",
        "query = image[0]",
    ),
    _row(
        "drop.na1d(line, line.tolist(), line, 3)",
        "key=torch.as_tensor(key)",
        "key = line.tolist()\nkey=torch.as_tensor(key)\ndrop.na1d(line, key, line, 3)",
    ),
    _row(
        "drop.na1d(line, line, line, 3, additional_keys=line)",
        "additional_keys=None",
        "drop.na1d(line, line, line, 3, additional_keys=None)",
    ),
    _row(
        "drop.na2d_qk(first, key, 3)",
        "key.float()",
        "drop.na2d_qk(first, key.float(), 3)",
        given="key = first.long()",
    ),
    _row(
        "drop.na2d_qk(first, key, 3)",
        "key.to(torch.float32)",
        "drop.na2d_qk(first, key.to(torch.float32), 3)",
        given="key = first.double()",
    ),
    _row(
        "drop.na2d_qk(first, first.to('meta'), 3)",
        "key.to('cpu')",
        "key = first\ndrop.na2d_qk(first, key.to('cpu'), 3)",
    ),
    _row(
        "legacy.natten2dav(torch.rand(2, 4, 6, 8, 10), first, 1)",
        "kernel_size=3, dilation=1",
        "legacy.natten2dav(torch.rand(2, 4, 6, 8, 9), first, kernel_size=3, dilation=1)",
    ),
    _row(
        "drop.na2d(image, image, image, 3, backend='cutlass-fna')",
        "backend=None",
        "drop.na2d(image, image, image, 3, backend=None)",
    ),
    _row(
        "drop.na2d(image, image, image, 3, attention_kwargs={'scale': 2.0})",
        "attention_kwargs=None",
        "drop.na2d(image, image, image, 3, attention_kwargs=None)",
    ),
    _row(
        "checks.get_num_na_weights(7)",
        "kernel_size=(7, 7)",
        "found = checks.get_num_na_weights(kernel_size=(7, 7))",
        "found == 49",
    ),
    _row(
        "unfused.scores(first, key, 3)",
        "key.expand(2, 4, 6, 8, 16)",
        "unfused.scores(first, key.expand(2, 4, 6, 8, 16), 3)",
        given="key = first[:1]",
    ),
    _row(
        "unfused.weighted(attn, first, 3)",
        "attn[..., :9]",
        "unfused.weighted(attn[..., :9], first, 3)",
        given="attn = torch.rand(2, 4, 6, 8, 12)",
    ),
    _row(
        "unfused.scores(query, query, 3)",
        "query[None]",
        "unfused.scores(query[None], query[None], 3)",
        given="query = first[0, :, 0]",
    ),
    _row(
        "unfused.scores(first, first, 3, additional_keys=additional_keys)",
        "additional_keys.expand(2, 4, -1, 16)",
        "additional_keys = additional_keys.expand(2, 4, -1, 16)\n"
        "unfused.scores(first, first, 3, additional_keys=additional_keys)",
        given="additional_keys = torch.randn(1, 4, 5, 16)",
    ),
    _row(
        "unfused.scores(first, first, 3, rpb=torch.zeros(4, 3, 3))",
        "rpb = torch.zeros(4, 5, 5)",
        "rpb = torch.zeros(4, 5, 5)\nunfused.scores(first, first, 3, rpb=rpb)",
    ),
]

_SWIN = """
from nbattn.integrations import swin
def attend(**named):
    q, k, v = x.unflatten(-1, (4, 16)).expand(3, -1, -1, -1, -1, -1)
    return swin.window_attention(q, k, v, **named)
"""
SWIN_ROWS = [
    Row(
        call="swin.relative_bias_from(torch.zeros(169, 3), 8)",
        pasted="window=7",
        fixed="out = swin.relative_bias_from(torch.zeros(169, 3), window=7)",
        means="out.shape == (3, 13, 13)",
        given=_SWIN,
    ),
    Row(
        call="attend(window=4)",
        pasted="x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 2))",
        fixed="x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 2))\nout = attend(window=4)",
        means="out.shape == (2, 8, 8, 4, 16)",
        given=_SWIN,
    ),
    Row(
        call="attend(window=2, shift=2)",
        pasted="shift=(0, 0)",
        fixed="out = attend(window=2, shift=(0, 0))",
        means="torch.equal(out, attend(window=2))",
        given=_SWIN,
    ),
    Row(
        call="attend(window=2.0)",
        pasted="window=2",
        fixed="out = attend(window=2)",
        means="torch.equal(out, attend(window=(2, 2)))",
        given=_SWIN,
    ),
    Row(
        call="attend(window=(2,))",
        pasted="window=(2, 2), shift=(0, 0)",
        fixed="out = attend(window=(2, 2), shift=(0, 0))",
        means="torch.equal(out, attend(window=2))",
        given=_SWIN,
    ),
]

_MODELS = """
import transformers
from small_models import make, tokens
from transformers import masking_utils
from nbattn.integrations import transformers as integration, mask_functions, chunks
from nbattn.integrations.transformers import register, unregister
register()
ids = tokens(2, 9)
model = make("mistral", torch.float32)
model.set_attn_implementation("nbattn")
rule = masking_utils.causal_mask_function
def mask_of(function, **named):
    return integration.layer_mask(2, 9, 9, 0, 0, function, **named)
def layer(mask, **named):
    query = torch.zeros(2, 4, 9, 8)
    return integration.attend(torch.nn.Identity(), query, query, query, mask, **named)
"""
_BLOOM = """
def bloom():
    return transformers.BloomForCausalLM(transformers.BloomConfig(
        hidden_size=32, n_layer=1, n_head=2, vocab_size=97, attention_dropout=0.1))
"""
_RESTORED = "nbattn.integrations.transformers.restore(model)"
_LOADED = (
    "nbattn.integrations.transformers.apply("
    'transformers.AutoModelForCausalLM.from_pretrained("bigscience/bloom-560m"))'
)
_INTERFACE = 'nbattn.integrations.transformers.register(); model.set_attn_implementation("nbattn")'
_EAGER = 'model.set_attn_implementation("eager")'
_SDPA = 'model.set_attn_implementation("sdpa")'


def _model(call: str, pasted: str, fixed: str, means: str = "True", given: str = "") -> Row:
    fixed = f"{fixed}\nunregister()"
    return Row(call=call, pasted=pasted, fixed=fixed, means=means, given=_MODELS + given)


def _instead(call: str, pasted: str, run: str = "out = model(ids)", given: str = "") -> Row:
    """A model that runs with another implementation."""
    return _model(call, pasted, f"{pasted}\n{run}", given=given)


MODEL_ROWS = [
    _instead("mask_of(lambda *_: True)", _SDPA),
    _instead(
        "mask_of(masking_utils.or_masks(masking_utils.sliding_window_causal_mask_function(3), "
        "masking_utils.sliding_window_bidirectional_mask_function(1)))",
        _SDPA,
    ),
    _instead(
        "mask_of(masking_utils.and_masks(masking_utils.sliding_window_causal_mask_function(3), "
        "masking_utils.chunked_causal_mask_function(4, torch.zeros(2).long())))",
        _SDPA,
    ),
    _instead("mask_of(masking_utils.blockwise_overlay(torch.zeros(2, 9).long()))", _SDPA),
    _instead(
        "model(ids, position_ids=positions, use_cache=False)",
        _SDPA,
        "out = model(ids, position_ids=positions, use_cache=False)",
        "positions = torch.tensor([[*range(4), *range(5)]] * 2)",
    ),
    _instead("mask_of(masking_utils.chunked_causal_mask_function(4, torch.tensor([0, 3])))", _SDPA),
    _instead("mask_of(rule) + torch.zeros(1)", _EAGER),
    _instead("torch.export.export(model, (ids,))", _EAGER),
    _instead(
        "model(ids, output_attentions=True)", _EAGER, "out = model(ids, output_attentions=True)"
    ),
    _instead("layer(None)", _EAGER),
    _instead("layer(integration.layer_mask(2, 9, 5, 0, 0, rule))", _EAGER),
    _instead(
        "model(ids, attention_mask=holes)",
        _SDPA,
        "out = model(ids, attention_mask=holes)",
        "holes = torch.ones(2, 9).long()\nholes[0, 4] = 0",
    ),
    _model(
        "model(ids, attention_mask=torch.ones(1, 9))",
        "attention_mask=torch.ones(2, 9)",
        "out = model(ids, attention_mask=torch.ones(2, 9))",
    ),
    _model(
        "model(ids, attention_mask=torch.ones(2, 1, 9, 9).bool())",
        "attention_mask=torch.ones(2, 9)",
        "out = model(ids, attention_mask=torch.ones(2, 9))",
    ),
    _model(
        "model.config.attention_dropout = 0.1\nmodel = make('mistral', attention_dropout=0.1)\n"
        "model.set_attn_implementation('nbattn')\nmodel.train()(ids)",
        "model.eval()",
        "out = model.eval()(ids)",
    ),
    _model(
        "layer(mask_of(rule), is_causal=False)",
        "model.config.is_causal = False",
        "model.config.is_causal = False\nout = model(ids)",
    ),
    _model("register('my/name')", 'register("nbattn")', 'register("nbattn")'),
    _model("register('sdpa')", 'register("nbattn")', 'register("nbattn")'),
    _model(
        "transformers.FalconModel(small(attn_implementation='nbattn'))",
        'attn_implementation="sdpa"',
        'found = transformers.FalconModel(small(attn_implementation="sdpa"))',
        given="def small(**named):\n"
        "    return transformers.FalconConfig(hidden_size=32, num_hidden_layers=1, vocab_size=50,\n"
        "        num_attention_heads=4, bos_token_id=1, eos_token_id=1, **named)\n",
    ),
    _model(
        "integration.apply(model)",
        _INTERFACE,
        f"{_INTERFACE}\nout = model(ids)",
        "model.config._attn_implementation == 'nbattn'",
    ),
    _model(
        'integration.apply("bigscience/bloom-560m")',
        _LOADED,
        f"model = {_LOADED}",
        "model.config._attn_implementation == 'nbattn'",
        f"{_BLOOM}monkeypatch.setattr(transformers.AutoModelForCausalLM, 'from_pretrained', "
        "lambda name: bloom())\n",
    ),
    *(
        _instead(call, _RESTORED, "out = model(ids)", f"{_BLOOM}model = integration.apply(bloom())")
        for call in ("model(ids, output_attentions=True)", "model.train()(ids)")
    ),
    _instead(
        "model(ids, attention_mask=holes)",
        "restore(model)",
        "out = model(ids, attention_mask=holes)",
        f"{_BLOOM}from nbattn.integrations.transformers import restore\n"
        "model = integration.apply(bloom()).eval()\n"
        "holes = torch.ones(2, 9).long()\nholes[0, 4] = 0",
    ),
    Row(
        call="mask_of(rule, strides=2)",
        pasted='pip install "transformers>=5.24,<6"',
        given=_MODELS,
    ),
    Row(
        call="mask_functions.check()",
        pasted='pip install "transformers>=5.24,<6"',
        given=f"{_MODELS}monkeypatch.delattr(masking_utils, 'blockwise_overlay')\n"
        "mask_functions._readers.cache_clear()",
    ),
]
ROWS = [*NATTEN_ROWS, *SWIN_ROWS, *MODEL_ROWS]
