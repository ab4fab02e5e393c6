"""Fixes of joint attention: the function, its plans, and the layer that updates extra tokens."""

from fixes.row import Row

_CALL = "nbattn.joint_attention(query, key, value, mask, extra_query, extra_key, extra_value)"
_GIVEN = (
    "query = key = value = image\nmask = Mask.neighborhood((3, 3))\n"
    "extra_query, extra_key, extra_value = torch.randn(3, 2, 5, 4, 16)\n"
)
_PLANNED = (
    "plan = nbattn.plan(mask, image.shape, extra_keys=5, extra_queries=True, dtype='float32', "
    "device='cpu')\n"
)
_EXTRAS = "extra_query=extra_query, extra_key=extra_key, extra_value=extra_value"
_KEYS = "extra_key=extra_key, extra_value=extra_value"
_SAME = f"all(torch.allclose(a, b, atol=1e-5) for a, b in zip(out, {_CALL}))"
_TWO = (
    f"nbattn.attention(query, key, value, mask, {_KEYS}), nbattn.attention(extra_query[:, :, None],"
    f" key, value, nbattn.Mask.full(2), {_KEYS})"
)


def joint(wrong: str, pasted: str, means: str = "len(out) == 2", given: str = "") -> Row:
    """A call of the function, and the call in its place."""
    return Row(wrong, pasted, f"out = {pasted}", means, _GIVEN + given)


FUNCTION = [
    joint(
        "joint_attention(query, key, value, extra_query, extra_key, extra_value, mask)",
        _CALL,
        _SAME,
    ),
    joint("joint_attention(query, key, value, mask)", _CALL, _SAME),
    joint(f"{_CALL[:-1]}, 0.1)", _CALL, _SAME),
    joint(
        "joint_attention(query, key, value, mask, None, extra_key, extra_value)",
        f"nbattn.attention(query, key, value, mask, {_KEYS})",
        f"torch.allclose(out, {_CALL}[0], atol=1e-5)",
    ),
    joint(
        "joint_attention(query, key, value, mask, None, None, None)",
        "nbattn.attention(query, key, value, mask)",
        "torch.equal(out, attention(query, key, value, mask))",
    ),
    joint(
        "joint_attention(query, key, value, mask, extra_query, extra_key, extra_value)",
        _TWO,
        "[*map(len, out)] == [2, 2] and out[1].shape[1] == 3",
        "extra_query = extra_query[:, :3]",
    ),
    Row(
        f"{_CALL[:-1]}, qk_scale=0.5)",
        "scale=0.5",
        f"out = {_CALL[:-1]}, scale=0.5)",
        "len(out) == 2",
        _GIVEN,
    ),
    Row(
        _CALL,
        "extra_query=torch.as_tensor(extra_query)",
        "out = nbattn.joint_attention(query, key, value, mask, "
        "extra_query=torch.as_tensor(extra_query), extra_key=extra_key, extra_value=extra_value)",
        "out[1].shape == (2, 5, 4, 16)",
        f"{_GIVEN}extra_query = extra_query.numpy()",
    ),
    Row(
        _CALL,
        "extra_query=extra_query.to(query.dtype)",
        "out = nbattn.joint_attention(query, key, value, mask, "
        "extra_query=extra_query.to(query.dtype), extra_key=extra_key, extra_value=extra_value)",
        "out[1].dtype == query.dtype",
        f"{_GIVEN}extra_query = extra_query.double()",
    ),
]
PLANS = [
    Row(
        f"plan.run(query, key, value, {_KEYS})",
        f"plan.run(query, key, value, {_EXTRAS})",
        f"out = plan.run(query, key, value, {_EXTRAS})",
        _SAME,
        _GIVEN + _PLANNED,
    ),
    Row(
        f"plan.run(query, key, value, {_EXTRAS})",
        "nbattn.plan(mask, [2, 6, 8, 4, 16], [2, 6, 8, 4, 16], extra_keys=4, extra_queries=True, "
        "dtype='float32', device='cpu')",
        "plan = nbattn.plan(mask, [2, 6, 8, 4, 16], [2, 6, 8, 4, 16], extra_keys=4, "
        "extra_queries=True, dtype='float32', device='cpu')\n"
        f"out = plan.run(query, key, value, {_EXTRAS})",
        _SAME,
        f"{_GIVEN}{_PLANNED}extra_query, extra_key, extra_value = torch.randn(3, 2, 4, 4, 16)",
    ),
    Row(
        f"plan.run(query, key, value, {_EXTRAS}, scale=0.5)",
        f"{_CALL[:-1]}, scale=0.5)",
        f"out = {_CALL[:-1]}, scale=0.5)",
        "out[0].requires_grad and out[1].requires_grad",
        f"{_GIVEN}{_PLANNED}extra_query.requires_grad_()\nquery = query.requires_grad_()",
    ),
    Row(
        "nbattn.plan(mask, q.shape, extra_keys=2, extra_queries=1)",
        "extra_queries=True",
        "out = nbattn.plan(mask, q.shape, extra_keys=2, extra_queries=True)",
        "out.extras.request.query_space == (2,)",
    ),
]
LAYERS = [
    Row("layer(x, update_extra=True)", "update_extra=False", "y = layer(x, update_extra=False)"),
    Row(
        "layer(x, extra_tokens=x[:, 0], update_extra=1)",
        "update_extra=True",
        "y, extra = layer(x, extra_tokens=x[:, 0], update_extra=True)",
        "extra.shape == x[:, 0].shape",
    ),
    Row(
        "layer(x, extra_tokens=x[:, 0], update_extra=True)",
        "type(layer.qk_transform).extra_query = lambda self, query: query",
        "type(layer.qk_transform).extra_query = lambda self, query: query\n"
        "y, extra = layer(x, extra_tokens=x[:, 0], update_extra=True)",
        "extra.shape == x[:, 0].shape",
        "class Turn(torch.nn.Module):\n"
        "    def forward(self, query, key): return -query, key\n"
        "    def extra_key(self, key): return key\n"
        "layer.qk_transform = Turn()",
    ),
    Row(
        "layer(x, x[..., :9], extra_tokens=torch.randn(2, 5, 9), update_extra=True)",
        _CALL.replace("mask", "layer.mask"),
        f"out = {_CALL.replace('mask', 'layer.mask')}",
        "out[1].shape == extra_query.shape",
        "layer = NeighborhoodAttention(64, 4, layer.mask, context_dim=9)\n"
        "query = layer.q(x).unflatten(-1, (4, 16))\n"
        "key, value = layer.kv(x[..., :9]).unflatten(-1, (2, 4, 16)).unbind(-3)\n"
        "text = torch.nn.Linear(9, 192)(torch.randn(2, 5, 9))\n"
        "extra_query, extra_key, extra_value = text.unflatten(-1, (3, 4, 16)).unbind(-3)",
    ),
]
ROWS = [*FUNCTION, *PLANS, *LAYERS]
