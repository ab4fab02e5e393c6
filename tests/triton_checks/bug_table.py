"""The bugs to put into the Triton kernels and into what launches them: one text becomes another."""

from __future__ import annotations

from dataclasses import dataclass

RUN = "run"  # the module that launches the kernels


@dataclass(frozen=True)
class Bug:
    """Replaces one text in one module; `catch` is what must report it on a case.

    Args:
        module: of `kernels/`, or `RUN`.
        case: of `triton_problems.CASES`, or of `packed_cases.CASES` after "grids:".
        catch: V values by the ratio rule, A an access outside of tensors or a second store, O an
            integer beyond its type.
    """

    name: str
    module: str
    old: str
    new: str
    case: str
    catch: str = "V"


# fmt: off
WINDOWS = [
    Bug("a window ends one key early", "window", "hi = leader + axis.right + 1",
        "hi = leader + axis.right", "plain"),
    Bug("the last group's leader is beyond the keys", "window",
        "leader = tl.where(group < keys, tl.minimum(leader, keys - 1), leader)\n", "leader += 0\n",
        "blocks"),
    Bug("groups have the leader of causal axes", "window",
        "tl.where(axis.causal != 0, axis.stride - 1, axis.stride // 2)", "axis.stride - 1",
        "strided"),
    Bug("a window is not shifted at the end", "window",
        "lo = clamp(lo, 0, tl.maximum(0, keys - size))", "lo = tl.maximum(lo, 0)", "shift"),
    Bug("a window larger than its circle has two laps", "window",
        "lo = tl.where(size > keys, 0, lo)\n        hi = lo + tl.minimum(keys, size)",
        "hi = lo + size", "laps"),
    Bug("no window is cut at its query", "window", "hi = tl.minimum(hi, u + 1)", "hi += 0",
        "extras"),
    Bug("a causal prefix is not cut at its query", "window", "prefix = clamp(u + 1, 0, prefix)",
        "prefix += 0", "causal"),
    Bug("quotients are rounded to 0", "window", "a // b - tl.where(a % b < 0, 1, 0)", "a // b",
        "plane"),
    Bug("quotients rounded up are rounded to 0", "window", "a // b + tl.where(a % b > 0, 1, 0)",
        "a // b", "strided"),
    Bug("inverse windows begin one query late", "window",
        "ceil_div(t - axis.right - step, axis.stride)",
        "ceil_div(t - axis.right - step + 1, axis.stride)", "plain"),
    Bug("inverse windows end a group early", "window",
        "axis.stride) * axis.stride + axis.stride\n    if axis.border == WRAP:",
        "axis.stride) * axis.stride\n    if axis.border == WRAP:", "strided"),
    Bug("no late readers of the last keys", "window",
        "hi = tl.where(t + axis.left >= keys - 1, tl.maximum(hi, late), hi)", "late += 0",
        "blocks"),
    Bug("shifted windows have no more readers", "window",
        "hi = tl.where(t >= keys - size, FAR, hi)", "hi += 0", "shift"),
    Bug("queries before a key read it", "window", "lo = tl.maximum(lo, t)", "lo += 0", "extras"),
    Bug("keys of a prefix have the readers of others", "window",
        "hi = tl.where(t < axis.prefix, FAR, hi)", "hi += 0", "full-prefix"),
    Bug("a class begins one position early", "window", "ceil_div(first - residue, dilation), ",
        "floor_div(first - residue, dilation), ", "few", "A"),
]
TILES = [
    Bug("no rows end inside a tile", "tile", "rows = clamp(row_hi - first, 0, ROWS)\n"
        "    lo, full_hi, full_head", "rows = ROWS\n    lo, full_hi, full_head", "plain", "A"),
    Bug("unmasked visits one column too far", "tile",
        "full = (start >= part.full_lo) & (start + EXTENT <= part.full_hi)",
        "full = (start >= part.full_lo) & (start + EXTENT <= part.full_hi + EXTENT)", "full"),
    Bug("visits past the hull's end are not masked", "tile",
        "    full = full & (start + EXTENT <= stop)\n", "", "full-range"),
    Bug("a prefix has no run of its own", "tile",
        "lo = tl.maximum(tl.maximum(lo, head), key_lo)", "lo = tl.maximum(lo, key_lo)",
        "full-prefix"),
    Bug("a prefix is not visited", "tile",
        "start = tl.where(in_head, part.head_lo + number * EXTENT, start - heads * EXTENT)",
        "start -= heads * EXTENT", "causal", "A"),
    Bug("a lap is not taken off past a seam", "tile",
        "place += tl.where(at < 0, part.lap, 0) - tl.where(at >= part.keys, part.lap, 0)",
        "place += tl.where(at < 0, part.lap, 0)", "circle"),
    Bug("key_range is not for columns of circles", "tile",
        "inside = inside & (place >= part.column_lo) & (place < part.column_hi)",
        "inside = inside & (place >= 0)", "circle"),
    Bug("keys outside of key_range have readers", "tile",
        "valid = (at >= part.valid_lo) & (at < part.valid_hi)", "valid = at >= part.first",
        "padded"),
    Bug("key_range is that of the first sample", "tile",
        "sample.to(tl.int64) * RANK + NUMBER", "sample.to(tl.int64) * 0 + NUMBER", "padded"),
    Bug("key_range of the wrong axis", "tile", "+ NUMBER - (3 - RANK)) * 2",
        "+ 2 - NUMBER) * 2", "circle"),
    Bug("tiles of a class are counted by all rows", "tile",
        "return tl.minimum(dilation, length) * tl.cdiv(tl.cdiv(length, dilation), EXTENT)",
        "return tl.cdiv(length, EXTENT)", "strided", "A"),
    Bug("rows of an axis in the order of another", "tile",
        "rows1 = rows_on(parts[1], axes[1], row // R2 % R1, KEYS)",
        "rows1 = rows_on(parts[1], axes[1], row % R1, KEYS)", "plane", "A"),
]
PLACES = [
    Bug("32 bits for a head's start", "place",
        "at += place.sample.to(tl.int64) * strides.batch\n    return at * V.step",
        "at = (head * strides.head + place.sample * strides.batch)\n    return at * V.step",
        "far", "O"),
    Bug("channels beside a head are read", "place",
        "    if DIM != SIZE:\n        mask = mask & (channel < DIM)[None, :]\n"
        "    if not NEIGHBOURS",
        "    if not NEIGHBOURS", "ragged", "A"),
    Bug("channels beside a head are written", "place",
        "    if DIM != SIZE:\n        mask = mask & (channel < DIM)[None, :]\n    tl.store",
        "    tl.store", "ragged", "A"),
    Bug("all channels are neighbours", "place", "if not NEIGHBOURS:", "if False:", "ragged", "A"),
    Bug("extra_range is that of the first sample", "place",
        "at = extra_range + sample.to(tl.int64) * 2", "at = extra_range + sample * 0", "text"),
    Bug("extra_range is not cut at the keys", "place", "hi = clamp(tl.load(at + 1), 0, count)",
        "hi = tl.load(at + 1)", "text", "A"),
    Bug("extra keys of the next head", "place",
        "return (place.sample.to(tl.int64) * count + at) * heads + head",
        "return (place.sample.to(tl.int64) * count + at) * heads + (head + 1) % heads", "text"),
    Bug("packed grids have the first one's tiles", "place",
        "tile -= tl.load(grids + sample * GRID + FIRST_TILE + KERNEL).to(tl.int32)", "tile += 0",
        "grids:small cube"),
    Bug("a grid's strides are those of its columns", "place",
        "axis1 = strides.axis2 * length2\n", "axis1 = strides.axis2\n", "grids:small plane"),
]
SCORES = [
    Bug("the cap has no derivative", "scores", "1 - bent * bent", "1 + 0 * bent", "extras"),
    Bug("the cap is before the scale", "scores", "tanh(products * (factor / cap), SUM)",
        "tanh(products / cap, SUM)", "extras"),
    Bug("earlier sums do not shrink", "scores", "shrink = tl.exp2(top - base)",
        "shrink = tl.exp2(top - top)", "plain"),
    Bug("rows without keys are NaN", "scores",
        "base = tl.where(largest == -float(\"inf\"), 0.0, largest)", "base = largest", "outside"),
    Bug("a table's steps are those of another axis", "scores", "step1 = size2", "step1 = size1",
        "table-plane"),
    Bug("a table is read backwards by keys", "scores",
        "return (first + row)[:, None] - column[None, :]",
        "return (first - row)[:, None] + column[None, :]", "table"),
    Bug("distances in steps of the dilation", "scores",
        "distance = tl.abs(rows[2].at[:, None] - columns[2].at[None, :]) * axes[2].dilation",
        "distance = tl.abs(rows[2].at[:, None] - columns[2].at[None, :])", "slopes"),
    Bug("slopes of the first sample", "scores",
        "alibi_slopes + place.sample.to(tl.int64) * counts.slope_step + head",
        "alibi_slopes + head", "slopes"),
]
KERNELS = [
    Bug("a head reads the next key head", "forward", "key_head = place.head // counts.group",
        "key_head = place.head % (counts.heads // counts.group)", "groups"),
    Bug("a sink is counted twice", "forward",
        "total += tl.where(logit == -float(\"inf\"), 0.0, 1.0)",
        "total += tl.where(logit == -float(\"inf\"), 0.0, 2.0)", "groups"),
    Bug("no visit is masked", "forward",
        "        if not is_full(columns):\n            scores = tl.where",
        "        if False:\n            scores = tl.where", "plain"),
    Bug("the logsumexp is in units of log 2", "forward", "(top + tl.log2(total)) * LN2",
        "(top + tl.log2(total))", "plain"),
    Bug("delta without the logsumexp's gradient", "delta", "if grad_lse is not None:", "if False:",
        "plain"),
    Bug("delta counts rows without heads", "delta",
        "space[0] * space[1] * space[2] * counts.heads", "space[0] * space[1] * space[2]", "plain"),
    Bug("gradients of queries without delta", "grad_query",
        "        grads = grad_scores(weights, dot(do, tl.trans(v), V) - delta[:, None], bend, V)\n"
        "        if not",
        "        grads = grad_scores(weights, dot(do, tl.trans(v), V), bend, V)\n        if not",
        "plain"),
    Bug("the queries' gradients have no scale", "grad_query",
        "sums * tl.full([], scale, SUM)", "sums", "plain"),
    Bug("the keys' gradients have no scale", "grad_key",
        "key_sums * tl.full([], scale, SUM)", "key_sums", "plain"),
    Bug("only one query head of a group", "grad_key", "for visit in range(own * counts.group):",
        "for visit in range(own):", "groups"),
    Bug("pairs that are not read have weights", "grad_key",
        "            weights = tl.where(read, weights, 0.0)\n", "", "plain"),
    Bug("shares of the queries are dropped", "grad_extra",
        "own = tl.cdiv(tl.cdiv(queries, COLUMNS), shares)",
        "own = tl.cdiv(queries, COLUMNS) // shares", "extras"),
    Bug("extra keys out of range have gradients", "grad_extra",
        "read = there[None, :] & valid[:, None]", "read = there[None, :] & inside[:, None]",
        "text"),
    Bug("extra keys of one share", "grad_extra",
        "token += share.to(tl.int64) * samples * counts.extra * heads", "token += 0", "extras",
        "A"),
    Bug("sums by steps are one step late", "grad_table", "c2 = step % S2 - (R2 - 1) + row % R2",
        "c2 = step % S2 - R2 + row % R2", "table"),
    Bug("entries begin at the first query", "grad_table", " - (V.rows[NUMBER] - 1)\n    reach",
        "\n    reach", "table"),
    Bug("a table's gradient of every second tile", "grad_table",
        "for number in range(share, counts.tiles * samples, shares):",
        "for number in range(share, counts.tiles * samples, 2 * shares):", "table-plane"),
    Bug("a table's gradient without slopes", "grad_table",
        "            relative_bias,\n            alibi_slopes,\n            place,",
        "            relative_bias,\n            None,\n            place,", "table-packed"),
]
LAUNCHES = [
    Bug("strides in elements", RUN, "(*(place // step for place in places), channel)",
        "(*places, channel)", "plain", "A"),
    Bug("strides of any multiple", RUN, "divisor = math.gcd(divisor, stride) if length > 1",
        "divisor = divisor if length > 1", "odd"),
    Bug("channels are always neighbours", RUN, "if steps[-1] != 1 and shape[-1] > 1:", "if False:",
        "ragged", "A"),
    Bug("tiles of keys are those of queries", RUN, 'inverse = kernel in ("dkdv", EXTRA)',
        'inverse = kernel in (EXTRA,)', "groups", "A"),
    Bug("slopes of one sample for all", RUN, "slopes is not None and slopes.dim() == 2",
        "slopes is None", "slopes"),
    Bug("one share of the extra keys' gradients", RUN,
        "part.sum(0).to(query.dtype) for part in parts",
        "part[0].to(query.dtype) for part in parts", "text"),
    Bug("a table's gradients are not zero first", RUN,
        'grads = _parts(step, tensors["relative_bias"], lse).zero_()',
        'grads = _parts(step, tensors["relative_bias"], lse).fill_(math.nan)', "table"),
    Bug("grids begin one grid late", RUN, "rows[1:, at] = np.cumsum(counts)[:-1]",
        "rows[:, at] = np.cumsum(counts)", "grids:prefix", "A"),
    Bug("grids have no first tokens", RUN,
        "rows[:, end], rows[:, end + 1] = grids.query.starts[:-1], grids.key.starts[:-1]",
        "rows[:, end] = 0", "grids:prefix", "A"),
    Bug("the cap is lost", RUN, "inputs.softcap or 0.0", "1.0 * bool(inputs.softcap)", "extras"),
]
# fmt: on
BUGS = [*WINDOWS, *TILES, *PLACES, *SCORES, *KERNELS, *LAUNCHES]
