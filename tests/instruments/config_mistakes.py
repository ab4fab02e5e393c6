"""Malformed configurations and the exact error message of each.

Below a title are the kind of file and its text, indented, then the lines of the error without
the file's name.
"""

# ruff: noqa: E501  the texts are as users see them

CASES = """
misspelt key of an axis
    toml
    [masks.video]
    axes = [{ lefft = 8 }]
masks.video.axes[0].lefft: unknown key; legal: left, right, dilation, stride, causal, align, offset, border, prefix. Did you mean left?

misspelt word
    toml
    [masks.video]
    axes = [{ left = 8, border = "wrapp" }]
masks.video.axes[0].border: found "wrapp"; legal: "clip", "shift" or "wrap". Did you mean "wrap"?

word far from every legal one
    toml
    [masks.video]
    axes = [{ align = "centre" }]
masks.video.axes[0].align: found "centre"; legal: "top-left" or "bottom-right" or a whole number.

name that others have for a border
    toml
    [masks.video]
    axes = [{ left = 8, border = "periodic" }]
masks.video.axes[0].border: found "periodic"; legal: "clip", "shift" or "wrap". Did you mean "wrap"?

alignment and offset
    toml
    [masks.video]
    axes = [{ align = 8, offset = 2 }]
masks.video.axes[0]: align=8 and offset=2 both set the position of query 0; fix: align = 10, or align = 8, or align = "top-left", offset = 2.

lengths that differ and no alignment
    toml
    [masks.text]
    sliding_window = { left = 15 }
    [plans.step]
    mask = "text"
    query = [1, 1, 2, 8]
    key = [1, 40, 2, 8]
plans.step: axis 0 (1 query, 40 keys): the lengths differ, and align=None does not align queries with keys; fix: in masks.text: axes = [{ left = 15, right = 0, align = "bottom-right" }] puts the last query on the last key, as Flash and KV caches do (one query against a cache: align = "bottom-right"); or axes = [{ left = 15, right = 0, align = "top-left" }] puts query 0 on key 0, as SDPA's is_causal does.

truth for a number
    toml
    [masks.video]
    axes = [{ left = true }]
masks.video.axes[0].left: found true; legal: a whole number.

text for a number
    toml
    [masks.video]
    axes = [{ left = "3" }]
masks.video.axes[0].left: found "3"; legal: a whole number; fix: left = 3.

fraction for a whole number
    toml
    [masks.video]
    axes = [{ left = 2.5, right = 3.0 }]
masks.video.axes[0].left: found 2.5; legal: a whole number.
masks.video.axes[0].right: found 3.0; legal: a whole number; fix: right = 3.

number for a truth
    toml
    [masks.video]
    axes = [{ causal = 1 }]
masks.video.axes[0].causal: found 1; legal: true or false; fix: causal = true.

negative side
    toml
    [masks.video]
    axes = [{ left = -3 }]
masks.video.axes[0].left: left=-3 is below 0; fix: no left for all, or left = 0.

rule between two fields
    toml
    [masks.video]
    axes = [{ left = 1, right = 2, causal = true }]
masks.video.axes[0]: causal=True allows no keys to the right, but right=2; fix: { left = 1, right = 0, causal = true }, or { left = 1, right = 2 } for 2 keys ahead.

every mistake of a file at once
    toml
    [masks.a]
    axes = [{ left = "1" }, { left = 1, right = 2, causal = true }, 3]
    [masks.b]
    neighborhood = { kernel_size = [7, "x"], dilatin = 2 }
    [plans.c]
    mask = "d"
    query = "all"
masks.a.axes[0].left: found "1"; legal: a whole number; fix: left = 1.
masks.a.axes[1]: causal=True allows no keys to the right, but right=2; fix: { left = 1, right = 0, causal = true }, or { left = 1, right = 2 } for 2 keys ahead.
masks.a.axes[2]: found 3; legal: a table.
masks.b.neighborhood.kernel_size[1]: found "x"; legal: a whole number.
masks.b.neighborhood.dilatin: unknown key; legal: kernel_size, dilation, stride, is_causal, rank. Did you mean dilation?
plans.c.mask: "d" is not known; legal: "a", "b".
plans.c.query: found "all"; legal: a list.

axes that are no list
    toml
    [masks.video]
    axes = { left = 1 }
masks.video.axes: found a table; legal: a list; fix: axes = [{ left = 1 }].

no axis
    toml
    [masks.video]
    axes = []
masks.video: a mask has 1 to 3 axes, not 0; fix: full = { rank = 1 }.

four axes
    toml
    [masks.video]
    axes = [{}, {}, {}, {}]
masks.video: a mask has 1 to 3 axes, not 4; fix: axes = [{}, {}, {}].

mask that defines nothing
    toml
    [masks.video]
masks.video: defines nothing; legal: exactly one of axes, neighborhood, sliding_window, causal, full, from_flash, from_cudnn, from_transformers; fix: neighborhood = { kernel_size = 7 }, or full = {}.

mask said twice
    toml
    [masks.video]
    axes = [{ left = 1 }]
    full = { rank = 2 }
masks.video: defines axes and full; legal: exactly one of axes, neighborhood, sliding_window, causal, full, from_flash, from_cudnn, from_transformers; fix: axes = [{ left = 1 }] alone, or full = { rank = 2 } alone.

every field of an axis by itself
    toml
    [masks.video]
    axes = [{ left = -1, dilation = 0, stride = 0, border = "wrapp" }]
masks.video.axes[0].border: found "wrapp"; legal: "clip", "shift" or "wrap". Did you mean "wrap"?
masks.video.axes[0].left: left=-1 is below 0; fix: no left for all, or left = 0.
masks.video.axes[0].dilation: dilation=0 is below 1; fix: dilation = 1.
masks.video.axes[0].stride: stride=0 is below 1; fix: stride = 1.

every argument of a constructor by itself
    toml
    [masks.video]
    neighborhood = { kernel_size = 0, dilation = 0, stride = 0 }
masks.video.neighborhood.kernel_size: kernel_size=0 is below 1; fix: kernel_size = 1.
masks.video.neighborhood.dilation: dilation=0 is below 1; fix: dilation = 1.
masks.video.neighborhood.stride: stride=0 is below 1; fix: stride = 1.

every field of a layer by itself, on a broken mask too
    toml
    [masks.video]
    axes = []
    [layers.block]
    mask = "video"
    dim = -1
    num_heads = 0
    proj_drop = 3.0
    backend = "tile"
masks.video: a mask has 1 to 3 axes, not 0; fix: full = { rank = 1 }.
layers.block.backend: "tile" is not known; legal: "auto", "reference", "sdpa", "tiled", "flash", "flash-model", "cuda", "triton", "native", "flex", "natten"; "flash" and "flash-model" also with :aten, :fa2, :fa3, :fa4. Did you mean "tiled"?
layers.block.dim: dim=-1 is below 1; fix: dim = 1.
layers.block.num_heads: num_heads=0 is below 1; fix: num_heads = 1.
layers.block.proj_drop: proj_drop=3.0 is not a probability; fix: proj_drop = 0.0.

fields of a layer that do not fit one another
    toml
    [masks.video]
    full = {}
    [layers.block]
    mask = "video"
    dim = 10
    num_heads = 3
layers.block: dim=10 is no multiple of num_heads=3; fix: num_heads = 2, or head_dim = 3.

layer beyond every memory
    toml
    [masks.video]
    full = {}
    [layers.block]
    mask = "video"
    dim = 2147483647
    num_heads = 1
layers.block: its weights are larger than a tensor can be.

every shape and size of a plan by itself
    toml
    [masks.video]
    full = {}
    [plans.train]
    mask = "video"
    query = [1, 8, 2, 99999999999]
    key = []
    value_dim = 0
    extra_keys = -1
plans.train.query: query_shape: 99999999999 is beyond 2147483647; legal: a shape [batch, *space, heads, head_dim].
plans.train.key: key_shape=() has no length; legal: a shape [batch, *space, heads, head_dim].
plans.train.value_dim: value_dim=0 is below 1; fix: value_dim = 1.
plans.train.extra_keys: extra_keys=-1 is below 0; fix: extra_keys = 0.

constructor that does not exist
    toml
    [masks.video]
    neighbourhood = { kernel_size = 7 }
masks.video.neighbourhood: unknown key; legal: axes, neighborhood, sliding_window, causal, full, from_flash, from_cudnn, from_transformers. Did you mean neighborhood?

constructor without what it needs
    toml
    [masks.video]
    neighborhood = { dilation = 2 }
masks.video.neighborhood.kernel_size: is missing; legal: a whole number, or one per axis.

constructor that is no table
    toml
    [masks.video]
    neighborhood = 7
masks.video.neighborhood: found 7; legal: a table; fix: neighborhood = { kernel_size = 7 }.

number or list of numbers
    toml
    [masks.video]
    neighborhood = { kernel_size = "7" }
masks.video.neighborhood.kernel_size: found "7"; legal: a whole number or a list; fix: kernel_size = 7.

lists of different lengths
    toml
    [masks.video]
    neighborhood = { kernel_size = [7, 7], dilation = [1, 2, 4] }
masks.video.neighborhood: per-axis arguments have different lengths: kernel_size 2, dilation 3; fix: dilation = [1, 2].

rule of another library
    toml
    [masks.video]
    neighborhood = { kernel_size = 7, stride = 9 }
masks.video.neighborhood: stride=9 is larger than kernel_size=7; fix: stride = 7, or less.

word or number
    toml
    [masks.text]
    sliding_window = { left = 511, align = "botom-right" }
masks.text.sliding_window.align: found "botom-right"; legal: "top-left" or "bottom-right" or a whole number. Did you mean "bottom-right"?

window that is no pair
    toml
    [masks.text]
    from_flash = { window_size = [512] }
masks.text.from_flash.window_size: window_size=[512] is not a pair; fix: window_size = [512, 512].

name with a space
    toml
    [masks."my mask"]
    axes = [{ left = "1" }]
masks."my mask".axes[0].left: found "1"; legal: a whole number; fix: left = 1.

section that does not exist
    toml
    [mask.video]
    axes = [{ left = 1 }]
mask: unknown key; legal: masks, layers, plans. Did you mean masks?

section that is no table
    toml
    masks = 3
    layers = [1]
masks: found 3; legal: a table.
layers: found a list; legal: a table.

mask that is not defined
    toml
    [masks.encoder]
    full = {}
    [plans.train]
    mask = "encodr"
    query = [1, 8, 2, 8]
plans.train.mask: "encodr" is not known; legal: "encoder". Did you mean "encoder"?

no mask defined at all
    toml
    [plans.train]
    mask = "encoder"
    query = [1, 8, 2, 8]
plans.train.mask: "encoder" is not known; legal: nothing: none is defined.

broken mask is reported once
    toml
    [masks.encoder]
    full = { rank = 9 }
    [plans.train]
    mask = "encoder"
    query = [1, 8, 2, 8]
masks.encoder.full.rank: a mask has 1 to 3 axes, not 9; fix: full = { rank = 3 }.

layer without its sizes
    toml
    [masks.encoder]
    full = {}
    [layers.block]
    mask = "encoder"
    kv_head = 2
layers.block.dim: is missing; legal: the channels, a whole number.
layers.block.num_heads: is missing; legal: a whole number.
layers.block.kv_head: unknown key; legal: mask, dim, num_heads, kv_heads, head_dim, qkv_bias, proj_drop, scale, qk_norm, context_dim, relative_bias, layout, backend, device, dtype. Did you mean kv_heads?

plan without a shape
    toml
    [masks.encoder]
    full = {}
    [plans.train]
    mask = "encoder"
plans.train.query: is missing; legal: a shape [batch, *space, heads, head_dim].

shape of another rank
    toml
    [masks.encoder]
    full = { rank = 2 }
    [plans.train]
    mask = "encoder"
    query = [1, 8, 2, 8]
plans.train: query has 4 dimensions [1, 8, 2, 8]; a mask of 2 axes needs 5, [B, X, Y, H, D]; fix: query = [1, 2, 4, 2, 8], for a grid of 2 x 4 tokens; or query = [1, 8, 2, 1, 8], for one head; or query = [1, 2, 8, 1, 8], for one head of channels first; or in masks.encoder: axes = [{}].

shapes that do not fit one another
    toml
    [masks.encoder]
    full = {}
    [plans.train]
    mask = "encoder"
    query = [1, 8, 5, 8]
    key = [1, 8, 2, 8]
plans.train: 5 query heads are no multiple of 2 key heads; query head h uses key head h // (H // Hk).

shape that the mask refuses
    toml
    [masks.ring]
    axes = [{ left = 1, right = 1, border = "wrap" }]
    [plans.train]
    mask = "ring"
    query = [1, 8, 2, 8]
    key = [1, 9, 2, 8]
plans.train: axis 0 (8 queries, 9 keys): border="wrap" needs as many queries as keys.

negative length
    toml
    [masks.encoder]
    full = {}
    [plans.train]
    mask = "encoder"
    query = [1, -8, 2, 8]
plans.train.query: query_shape=(1, -8, 2, 8): -8 is not a length; fix: query = [1, 0, 2, 8].

unknown names in a plan, all of them
    toml
    [masks.encoder]
    full = {}
    [plans.train]
    mask = "encoder"
    query = [1, 8, 2, 8]
    dtype = "bfloat"
    device = "sm90"
    softcap = -1
plans.train.softcap: softcap=-1.0 is not between 1e-30 and 1e+30, the range for float32; fix: no softcap.
plans.train.device: "sm90" is not known; legal: "cpu", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "rtx_3090", "rtx_4090", "gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201", "xe". Did you mean "sm_90"?
plans.train.dtype: "bfloat" is not known; legal: "float16", "bfloat16", "float32", "float64". Did you mean "bfloat16"?

date
    toml
    [masks.encoder]
    full = { rank = 2026-11-24 }
masks.encoder.full.rank: is a date; legal: tables, lists, text, numbers, true, false.

integer beyond 64 bits
    toml
    [masks.encoder]
    full = { rank = 9223372036854775808 }
masks.encoder.full.rank: an integer beyond 64 bits; legal: up to 9223372036854775807.

number beyond every axis
    toml
    [masks.encoder]
    axes = [{ left = 2147483648 }]
masks.encoder.axes[0].left: left=2147483648 is beyond 2147483647, the largest legal number; fix: left = 2147483647, or no left for all.

key twice in TOML
    toml
    [masks.a]
    full = {}
    [masks.a]
    full = {}
not toml: Cannot declare ('masks', 'a') twice (at line 3, column 9).

key twice in YAML
    yaml
    masks:
      a: {full: {}}
      a: {causal: {}}
not yaml: line 3: key 'a' occurs twice.

key twice in JSON
    json
    {"masks": {"a": {"full": {}}, "a": {"causal": {}}}}
not json: key 'a' occurs twice.

alias
    yaml
    masks:
      a: &a {full: {}}
      b: *a
not yaml: line 3: aliases are not supported; write the value out.

tag that would run code
    yaml
    masks: !!python/object/apply:os.system ["true"]
not yaml: line 1: tags are not supported; write the value without !!python/object/apply:os.system.

norway, octal, sexagesimal and exponent of YAML 1.1
    yaml
    masks:
      a: {axes: [{causal: no}, {left: 012}, {left: 12:30}, {left: 1e3}]}
masks.a.axes[0].causal: found "no"; legal: true or false; fix: causal: false.
masks.a.axes[1].left: found "012"; legal: a whole number.
masks.a.axes[2].left: found "12:30"; legal: a whole number.
masks.a.axes[3].left: found 1000.0; legal: a whole number; fix: left: 1000.

key that is no text
    yaml
    masks:
      1: {full: {}}
masks: key 1 is an int; legal: text keys.

list instead of a table
    yaml
    - masks
is a list; legal: a table.

nothing at all
    yaml
    # only a comment
is a NoneType; legal: a table.

tag with nothing to convert
    yaml
    masks: {m: {full: {rank: !!int ''}}}
not yaml: line 1: tags are not supported; write the value without !!int.

text after the end
    json
    {"masks": {}} {}
not json: Extra data: line 1 column 15 (char 14).
"""
