"""The texts of the JSON schema: what editors show for every key of a configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

Schema = dict[str, Any]


class Text(NamedTuple):
    """What the schema says about one key.

    Args:
        description: one or two sentences.
        examples: legal values; none where the type or the default says it all.
        low: the least legal number, if the key is a number.
    """

    description: str
    examples: tuple[Any, ...] = ()
    low: int | None = None


TABLES = {
    "": "A configuration of nbattn: masks, layers and plan requests, by name.",
    "Axis": "One axis of a mask: the neighbours of a query's own position that it attends to.",
    "LayerConfig": "A layer: the arguments of `nbattn.NeighborhoodAttention`.",
    "PlanConfig": "A plan request: the arguments of `nbattn.plan`.",
    "MaskTable": "A mask: exactly one entry, `axes` or a constructor.",
    "neighborhood": "NATTEN's windows: kernel_size keys, moved inward at the borders.",
    "sliding_window": "A window on every axis, cut at its ends.",
    "causal": "All keys up to the query's own position, on every axis.",
    "full": "All keys of every axis.",
    "from_flash": "One axis, as flash-attn counts: a window of left + right + 1 keys.",
    "from_cudnn": "One axis, as cuDNN counts: left_bound includes the query's own position.",
    "from_transformers": "One axis, as transformers counts: sliding_window keys, if causal.",
}
_ALIGN = (
    'Needed where lengths differ: "top-left" puts query 0 on key 0, "bottom-right" the last query '
    "on the last key, a number query 0 on that key."
)
_RANK = "The number of axes"
_DILATION = "Distance between neighbouring keys"
_CAUSAL = "Whether a query attends to no key after its own position"
KEYS = {
    ("", "masks"): Text(
        "Masks by name.", ({"encoder": {"neighborhood": {"kernel_size": [7, 7]}}},)
    ),
    ("", "layers"): Text(
        "Layers by name.", ({"block": {"mask": "encoder", "dim": 512, "num_heads": 8}},)
    ),
    ("", "plans"): Text(
        "Plan requests by name.", ({"train": {"mask": "encoder", "query": [2, 32, 32, 8, 64]}},)
    ),
    ("MaskTable", "axes"): Text("One table per axis.", ([{"left": 8, "causal": True}],)),
    ("MaskTable", "neighborhood"): Text(TABLES["neighborhood"], ({"kernel_size": [7, 7]},)),
    ("MaskTable", "sliding_window"): Text(TABLES["sliding_window"], ({"left": 511},)),
    ("MaskTable", "causal"): Text(TABLES["causal"], ({"align": "bottom-right"},)),
    ("MaskTable", "full"): Text(TABLES["full"], ({"rank": 2},)),
    ("MaskTable", "from_flash"): Text(TABLES["from_flash"], ({"window_size": [512, 0]},)),
    ("MaskTable", "from_cudnn"): Text(TABLES["from_cudnn"], ({"left_bound": 512},)),
    ("MaskTable", "from_transformers"): Text(
        TABLES["from_transformers"], ({"sliding_window": 4096},)
    ),
    ("Axis", "left"): Text(
        "Neighbours before the query's own position, in steps of the dilation; none: unlimited.",
        (8,),
        0,
    ),
    ("Axis", "right"): Text("Neighbours after it; none: unlimited.", (8,), 0),
    ("Axis", "dilation"): Text(f"{_DILATION}.", (2,), 1),
    ("Axis", "stride"): Text(
        "So many neighbouring queries share one window; the size of the window is Swin's window "
        "attention where it divides the axis.",
        (4,),
        1,
    ),
    ("Axis", "causal"): Text(f"{_CAUSAL}; right is then 0."),
    ("Axis", "align"): Text(_ALIGN, ("bottom-right", 100)),
    ("Axis", "offset"): Text("Moves the queries so many keys to the right.", (16,)),
    ("Axis", "border"): Text(
        'Where a window leaves the axis: "clip" cuts it, "shift" moves it inward, "wrap" continues '
        "at the other end.",
        ("shift",),
    ),
    ("Axis", "prefix"): Text("So many first keys are attended to by every query.", (4,), 0),
    ("neighborhood", "kernel_size"): Text("Keys per axis.", (7, [7, 7])),
    ("neighborhood", "dilation"): Text(f"{_DILATION}, per axis.", (2, [1, 2])),
    ("neighborhood", "stride"): Text("Queries that share one window, per axis.", (4, [1, 4])),
    ("neighborhood", "is_causal"): Text(f"{_CAUSAL}, per axis.", (True, [True, False])),
    ("neighborhood", "rank"): Text(
        f"{_RANK}; default: as many as a key has values, else one.", (2,), 1
    ),
    ("sliding_window", "left"): Text("Keys before the query's own position.", (511,), 0),
    ("sliding_window", "right"): Text("Keys after it.", (0,), 0),
    ("sliding_window", "align"): Text(_ALIGN, ("bottom-right", 100)),
    ("sliding_window", "dilation"): Text(f"{_DILATION}.", (2,), 1),
    ("sliding_window", "rank"): Text(f"{_RANK}, all alike.", (2,), 1),
    ("causal", "align"): Text(_ALIGN, ("bottom-right", 100)),
    ("causal", "rank"): Text(f"{_RANK}, each causal by itself: not raster order.", (2,), 1),
    ("full", "rank"): Text(f"{_RANK}.", (2,), 1),
    ("from_flash", "window_size"): Text(
        "Keys before and after the query's own position; -1: unlimited.", ([512, 0],)
    ),
    ("from_flash", "causal"): Text(f"{_CAUSAL}."),
    ("from_flash", "align"): Text(_ALIGN, ("top-left",)),
    ("from_cudnn", "left_bound"): Text("Keys up to the query's own position, and itself.", (512,)),
    ("from_cudnn", "right_bound"): Text("Keys after it; none: unlimited.", (0,)),
    ("from_cudnn", "align"): Text(_ALIGN, ("top-left",)),
    ("from_transformers", "sliding_window"): Text("Keys of a window; none: unlimited.", (4096,)),
    ("from_transformers", "causal"): Text(f"{_CAUSAL}."),
    ("from_transformers", "offset"): Text(
        "Position of query 0; default: the last query is at the last key.", (0,)
    ),
    ("LayerConfig", "mask"): Text("The name of a mask in this file.", ("encoder",)),
    ("LayerConfig", "dim"): Text("Channels of the input and the output.", (512,), 1),
    ("LayerConfig", "num_heads"): Text("Heads of the queries.", (8,), 1),
    ("LayerConfig", "kv_heads"): Text(
        "Heads of keys and values, a divisor of num_heads; default: num_heads.", (2,)
    ),
    ("LayerConfig", "head_dim"): Text("Channels of a head; default: dim / num_heads.", (64,)),
    ("LayerConfig", "qkv_bias"): Text("Whether the projections to q, k and v have a bias."),
    ("LayerConfig", "proj_drop"): Text("Dropout after the output projection.", (0.1,)),
    ("LayerConfig", "scale"): Text("Factor of the scores; default: head_dim ** -0.5.", (0.125,)),
    ("LayerConfig", "qk_norm"): Text("Whether queries and keys are normalised, with gains."),
    ("LayerConfig", "context_dim"): Text(
        "Channels of the context, if it has its own; default: one matrix for q, k and v.", (768,)
    ),
    ("LayerConfig", "relative_bias"): Text("Whether scores have a table of relative positions."),
    ("LayerConfig", "layout"): Text("Where the channels are.", ("channels_first",)),
    ("LayerConfig", "device"): Text("Device of the weights; default: torch's.", ("cuda",)),
    ("LayerConfig", "dtype"): Text("Type of the weights; default: torch's.", ("bfloat16",)),
    ("LayerConfig", "backend"): Text(
        'Who computes the attention; "auto": the cheapest.', ("auto",)
    ),
    ("PlanConfig", "mask"): Text("The name of a mask in this file.", ("encoder",)),
    ("PlanConfig", "query"): Text(
        "Shape of the queries: batch, one length per axis, heads, head size.", ([2, 32, 32, 8, 64],)
    ),
    ("PlanConfig", "key"): Text(
        "Shape of the keys; default: that of the queries.", ([2, 32, 32, 2, 64],)
    ),
    ("PlanConfig", "value_dim"): Text("Head size of the values; default: of the keys.", (64,)),
    ("PlanConfig", "dtype"): Text("Type of queries, keys and values.", ("bfloat16",)),
    ("PlanConfig", "device"): Text("Device; default: this machine's.", ("cpu", "sm_90")),
    ("PlanConfig", "training"): Text("Whether a backward pass follows."),
    ("PlanConfig", "backend"): Text('Who computes the attention; "auto": the cheapest.', ("auto",)),
    ("PlanConfig", "require"): Text("Strategies that the candidate must have.", (["tile"],)),
    ("PlanConfig", "forbid"): Text("Strategies and backends to leave out.", (["split"],)),
    ("PlanConfig", "return_lse"): Text("Whether the logsumexp is returned, too."),
    ("PlanConfig", "extra_keys"): Text("Extra keys that every query attends to.", (4,), 0),
    ("PlanConfig", "extra_queries"): Text("Whether the extra tokens are queries, too."),
    ("PlanConfig", "softcap"): Text("Soft cap of the scores: c * tanh(score / c).", (30.0,)),
    ("PlanConfig", "sink"): Text("Whether the softmax has a sink."),
    ("PlanConfig", "key_range"): Text("Whether keys have valid ranges (padding)."),
    ("PlanConfig", "extra_range"): Text("Whether extra keys have valid ranges (padding)."),
    ("PlanConfig", "relative_bias"): Text("Whether scores have a table of relative positions."),
    ("PlanConfig", "alibi_slopes"): Text("Whether scores have slopes by distance (ALiBi)."),
    ("PlanConfig", "grids"): Text(
        "Sizes of grids that are packed one after another; the query then has the shape of all "
        "tokens, heads, head size.",
        ([[14, 14], [20, 33]],),
    ),
    ("PlanConfig", "key_grids"): Text(
        "Sizes of the grids of the keys, if they are others.", ([[7, 7], [10, 16]],)
    ),
    ("PlanConfig", "deterministic"): Text(
        "Whether every run must give the same bits; default: torch's switch."
    ),
    ("PlanConfig", "packed"): Text("Whether q, k and v are views of one tensor."),
}


def described(schema: Schema) -> Schema:
    """Adds descriptions, examples and least numbers to a schema of pydantic, in place.

    Titles are left out: they repeat the keys.
    """
    for name, table in tables(schema):
        table.pop("title", None)
        table["description"] = TABLES[name]
        for key, entry in table.get("properties", {}).items():
            entry.pop("title", None)
            text = KEYS.get((name, key))
            if text is not None:
                _describe(entry, text)
    return schema


def tables(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Yields the tables of the grammar by name; the whole file has the name ""."""
    yield "", schema
    yield from schema.get("$defs", {}).items()


def _describe(entry: Schema, text: Text) -> None:
    entry["description"] = text.description
    if text.examples:
        entry["examples"] = list(text.examples)
    if text.low is not None:
        for kind in (entry, *entry.get("anyOf", ())):
            if kind.get("type") == "integer":
                kind["minimum"] = text.low
