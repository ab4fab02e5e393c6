"""Fixes of plans, of their runs and of backends: names, devices, what a backend refuses,
derivatives.
"""

from __future__ import annotations

from fixes.row import EQUAL, QKV, Row, argument

SHAPE = "shape = (1, 64, 8, 64)"
NO_GPU = "monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)"
LONG = "shape = (1, 8192, 8, 64)"
MINE = (
    "info = dict(name='mine', kind='cpu', flops=(('float32', 1e12),), bandwidth=1e11, "
    "launch=1e-6, source='a guess')"
)
TAKEN = "plan.chosen.backend"


def plan(wrong: str, pasted: str, right: str, means: str = "plan.verify()", given: str = "") -> Row:
    """Arguments of a plan, and those with the fix."""
    setup = "; ".join(filter(None, [SHAPE, given]))
    calls = [f"plan = nbattn.plan(mask, shape, {options})" for options in (wrong, right)]
    return Row(calls[0], pasted, calls[1], means, setup)


def device(field: str, wrong: str, pasted: str, means: str) -> Row:
    """A field of a device of one's own, and the fix."""
    build = "from nbattn.program.device import DeviceInfo; it = DeviceInfo(**info | dict({}))"
    return Row(build.format(f"{field}={wrong}"), pasted, build.format(pasted), means, MINE)


NAMES = [
    plan(
        "device='sm_90', backend='flash-attn'",
        'backend="flash"',
        "device='sm_90', backend=\"flash\"",
    ),
    argument("backend='math'", 'backend="reference"'),
    plan("device='cpu', backend='cpp'", 'backend="native"', "device='cpu', backend=\"native\""),
    argument("backend='pytorch'", 'backend="tiled"'),
    plan("backend='magic'", 'backend="auto"', 'backend="auto"'),
    argument("require=('tiles',)", "require=('tile',)"),
    argument("forbid=('sdpa', 'crop')", "forbid=('sdpa',)"),
    plan("dtype='bf16'", 'dtype="bfloat16"', 'dtype="bfloat16"'),
    plan("dtype=torch.int8", 'dtype="bfloat16"', 'dtype="bfloat16"'),
    plan(
        "device='H100'", 'device="sm_90"', 'device="sm_90"', "plan.request.device.name == 'sm_90'"
    ),
    plan("device='gpu'", 'device="sm_90"', 'device="sm_90"', given=NO_GPU),
    plan("device='abacus'", "device=None", "device=None"),
    plan("device='cuda:0'", 'device="sm_90"', 'device="sm_90"', given=NO_GPU),
    Row(
        call="it = named('A100')",
        pasted='device="sm_80"',
        fixed='plan = nbattn.plan(mask, (1, 64, 8, 64), device="sm_80")',
        means="plan.request.device == named('sm_80')",
        given="from nbattn.program.device import named",
    ),
    Row(
        call="replace(request, layout='packd')",
        pasted='layout="packed"',
        fixed='it = replace(request, layout="packed")',
        means="it.layout == 'packed'",
        given="from dataclasses import replace; request = nbattn.plan(mask, q.shape).request",
    ),
]
# A fix keeps the backend where something makes the request run on it.
REFUSED = [
    plan("device='cpu', backend='cuda'", 'device="sm_90"', "backend='cuda', device=\"sm_90\""),
    plan("device='sm_90', backend='native'", 'device="cpu"', "backend='native', device=\"cpu\""),
    plan(
        "device='sm_90', dtype='float32', backend='flash'",
        'dtype="bfloat16"',
        "device='sm_90', backend='flash', dtype=\"bfloat16\"",
        f"{TAKEN} == 'flash:aten'",
    ),
    plan(
        "device='sm_90', backend='flash:fa4'",
        'pip install "flash-attn-4>=4.0.0b36,<4.1"',
        "device='sm_90'",
    ),
    plan(
        "device='sm_90', backend='cuda', forbid=('window',)",
        "forbid=()",
        "device='sm_90', backend='cuda', forbid=()",
        f"{TAKEN} == 'cuda'",
    ),
    plan(
        "device='sm_90', training=True, deterministic=True, dtype='float32', backend='sdpa'",
        "torch.use_deterministic_algorithms(False)",
        "device='sm_90', training=True, dtype='float32', backend='sdpa'); "
        "torch.use_deterministic_algorithms(False",
    ),
    Row(
        call="attention(q, k, v, mask, backend='cuda')",
        pasted='backend="auto"',
        fixed='out = attention(q, k, v, mask, backend="auto")',
        given=NO_GPU,
    ),
    Row(
        call="attention(query, key, value, mask, backend='cuda')",
        pasted="query.cuda(), key.cuda(), value.cuda()",
        fixed="out = attention(query.cuda(), key.cuda(), value.cuda(), mask)",
        given="query, key, value = q, k, v; "  # a tensor stays where it is on this machine
        "monkeypatch.setattr(torch.Tensor, 'cuda', lambda tensor: tensor)",
    ),
    argument(
        "backend='sdpa', softcap=30.0", 'backend="auto"', fixed='backend="auto", softcap=30.0'
    ),
    argument(
        "backend='sdpa', softcap=30.0, require=('mma',)",
        'backend="auto", require=()',
        fixed='softcap=30.0, backend="auto", require=()',
    ),
    argument(
        "forbid=('tile', 'sdpa', 'native')",
        "forbid=('tile', ",  # and "sdpa" without a compiler's "native"
        fixed="forbid=('tile', 'sdpa')",
    ),
    argument("require=('mma',)", "require=()"),
    plan(
        "device='sm_90', backend='natten'",
        'pip install "natten==0.21.7"',
        "device='sm_90'",
        given="mask = Mask.neighborhood(3)",
    ),
]
PLANS = [
    Row(
        call="plan.schedule(backward=True)",
        pasted="training=True",
        fixed="blocks = nbattn.plan(mask, q.shape, training=True).schedule(backward=True)",
        means="[*blocks]",
        given="plan = nbattn.plan(mask, q.shape)",
    ),
    Row(
        call="plan.support()",
        pasted="plan.verify()",
        fixed="proved = plan.verify()",
        means="proved",
        given="plan = nbattn.plan(mask, (1, 1 << 15, 2, 16))",
    ),
    Row(
        call="proof.verify(plan.request, plan.candidates[-1])",
        pasted="plan.chosen",
        fixed="proved = proof.verify(plan.request, plan.chosen)",
        means="proved",
        given="from nbattn.planner import proof; plan = nbattn.plan(mask, q.shape)",
    ),
]
DEVICES = [
    device("name", "3", 'name="mine"', "it.name == 'mine'"),
    device("flops", "{'float32': 2e12}", "flops=(('float32', 2000000000000.0),)", "it.flops"),
    device(
        "flops",
        "(('float32', 2e12), ('float16', -1.0))",
        "flops=(('float32', 2000000000000.0), ('float16', 1000000000000.0))",
        "it.peak('float16') == 1e12",
    ),
    device("bandwidth", "-1.0", "bandwidth=1e11", "it.bandwidth == 1e11"),
    device("launch", "-1.0", "launch=5e-6", "it.launch == 5e-6"),
    device("providers", "['cupy']", "providers=('cupy',)", "it.providers == ('cupy',)"),
    device("multiprocessors", "108", "multiprocessors=108, clock=1.41e9", "it.clock == 1.41e9"),
    device("torch", "'2.12.1'", "torch=(2, 12)", "it.torch == (2, 12)"),
    device("triton", "'3.7.1'", "triton=(3, 7)", "it.triton == (3, 7)"),
    device("cudnn", "'9.20'", "cudnn=92000", "it.cudnn == 92000"),
]
WARMUPS = [
    Row(
        call=f"nbattn.plan(mask, shape, device='{name}', backend='triton').warmup()",
        pasted="nbattn.plan(mask, shape, device=None)",
        fixed="plan = nbattn.plan(mask, shape, device=None); done = plan.warmup()",
        means="done is None and plan.chosen.backend != 'triton'",
        given=f"{SHAPE}; {NO_GPU}\nfrom nbattn.backends.triton import launch\n"
        "def load(*_): raise RuntimeError('0 active drivers')\n"
        "monkeypatch.setattr(launch, 'missing', lambda: None)\n"
        "monkeypatch.setattr(launch.TritonLauncher, 'load', load)",
    )
    for name in ("gfx942", "xe")
]
DERIVATIVES = [
    Row(
        call="g, = torch.autograd.grad(attention(q, k, v, mask).sum(), q, create_graph=True); "
        "g.sum().backward()",
        pasted='backend="reference"',
        fixed='g, = torch.autograd.grad(attention(q, k, v, mask, backend="reference").sum(), q, '
        "create_graph=True); g.sum().backward()",
        means="q.grad is not None",
        given="q.requires_grad_()",
    ),
    Row(
        call="torch.func.jvp(lambda q: attention(q, k, v, mask), (q,), (q,))",
        pasted='backend="reference"',
        fixed="out, tangent = torch.func.jvp(lambda q: attention(q, k, v, mask, "
        'backend="reference"), (q,), (q,))',
        means="tangent.shape == q.shape",
    ),
    Row(
        call="unpack=lambda tensor: tensor.double()\n"
        "with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):\n"
        "    attention(q, k, v, mask).sum().backward()",
        pasted="unpack=lambda tensor: tensor.to('cpu', torch.float32)",
        fixed="unpack=lambda tensor: tensor.to('cpu', torch.float32)\n"
        "with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):\n"
        "    attention(q, k, v, mask).sum().backward()",
        means="q.grad is not None",
        given="q.requires_grad_()",
    ),
]
PLAN = "plan = nbattn.plan(mask, query.shape, dtype=query.dtype, device='cpu')"


def run(wrong: str, right: str, given: str = "") -> Row:
    """A row for a plan that is for other tensors."""
    fixed = f"plan = {right}\nout = plan.run(query, key, value{', ' * bool(wrong)}{wrong})"
    return Row(
        f"plan.run(query, key, value{', ' * bool(wrong)}{wrong})",
        right,
        fixed,
        given=f"{QKV}\n{PLAN}\n{given}",
    )


NEW = "nbattn.plan(mask, [2, 12, 4, 16], [2, 12, 4, 16], {}dtype='float32', device='cpu')"
RUNS = [
    Row(
        "nbattn.plan(mask, query)",
        "query_shape=query.shape",
        "plan = nbattn.plan(mask, query_shape=query.shape)",
        given=QKV,
    ),
    *[
        Row(
            f"nbattn.plan({mask}, {wrong})",
            right,
            f"plan = nbattn.plan({mask}, {fixed or right})",
            f"plan.request.query_space == {space}",
        )
        for mask, wrong, right, fixed, space in (
            (
                "Mask.neighborhood((3, 3))",
                "(1, 56, 3, 8)",
                "query_shape=(1, 7, 8, 3, 8)",
                "",
                "(7, 8)",
            ),
            (
                "Mask.neighborhood((3, 3))",
                "(1, 56, 8)",
                "query_shape=(1, 7, 8, 1, 8)",
                "",
                "(7, 8)",
            ),
            ("mask", "(1, 12, 8)", "query_shape=(1, 12, 1, 8)", "", "(12,)"),
            ("mask", "(2, 3, 4, 5, 12, 4, 16)", "query_shape=(120, 12, 4, 16)", "", "(12,)"),
            (
                "mask",
                "(1, 12, 4, 16), (2, 12, 4, 16)",
                "query_shape=(2, 12, 4, 16)",
                "query_shape=(2, 12, 4, 16), key_shape=(2, 12, 4, 16)",
                "(12,)",
            ),
            (
                "mask",
                "(1, 12, 4, 16), (1, 12, 4, 8)",
                "key_shape=(1, 12, 4, 16)",
                "(1, 12, 4, 16), key_shape=(1, 12, 4, 16)",
                "(12,)",
            ),
            (
                "mask",
                "(1, 12, 2, 16), (1, 12, 4, 16)",
                "query_shape=(1, 12, 4, 16)",
                "query_shape=(1, 12, 4, 16), key_shape=(1, 12, 4, 16)",
                "(12,)",
            ),
        )
    ],
    Row(
        "nbattn.plan(mask, ())",
        "query_shape=query.shape",
        "plan = nbattn.plan(mask, query_shape=query.shape)",
        given=QKV,
    ),
    Row(
        "nbattn.plan(mask, (1, 64.0, 2, 16))",
        "query_shape=(1, 64, 2, 16)",
        "nbattn.plan(mask, query_shape=(1, 64, 2, 16))",
    ),
    Row(
        "nbattn.plan(mask, q.shape, value_dim='16')",
        "value_dim=16",
        "nbattn.plan(mask, q.shape, value_dim=16)",
    ),
    Row(
        "nbattn.plan(mask, q.shape, extra_keys=-1)",
        "extra_keys=0",
        "nbattn.plan(mask, q.shape, extra_keys=0)",
    ),
    Row(
        "nbattn.plan(mask, q.shape, dtype=float)",
        "dtype=torch.float32",
        "nbattn.plan(mask, q.shape, dtype=torch.float32)",
    ),
    Row(
        "nbattn.plan(mask, q.shape, backend=None)",
        'backend="auto"',
        'nbattn.plan(mask, q.shape, backend="auto")',
    ),
    Row(
        "nbattn.plan(mask, q.shape, device=3)",
        'device="cuda:3"',
        'nbattn.plan(mask, q.shape, device="cuda:3")',
        given="hopper = nbattn.plan(mask, q.shape, device='sm_90').request.device\n"
        "monkeypatch.setattr('nbattn.planner.devices.device_info', lambda device: hopper)",
    ),
    Row(
        "plan.run(query, key, value, mask=mask)",
        "plan.run(query, key, value)",
        "out = plan.run(query, key, value)",
        given=f"{QKV}\n{PLAN}",
    ),
    Row(
        "torch.func.vmap(plan.run, (None, 0, 0))(query, k[None], v[None])",
        "nbattn.attention(query, key, value, mask)",
        "torch.func.vmap(lambda key, value: nbattn.attention(query, key, value, mask))"
        "(k[None], v[None])",
        given=f"{QKV}\n{PLAN}",
    ),
    Row(
        "plan.run(query, query, query)",
        "nbattn.plan(mask, [2, 12, 4, 16], [2, 12, 4, 16], dtype='float32', device='meta')",
        "nbattn.plan(mask, [2, 12, 4, 16], [2, 12, 4, 16], dtype='float32', device='meta')",
        given=f"{QKV}\n{PLAN}\nquery = query.to('meta')",
    ),
    *[
        Row(
            f"plan.run({wrong})",
            pasted,
            f"out = {pasted}",
            EQUAL.format("attention(q, k, v, mask)"),
            f"{QKV}\n{PLAN}\n{given}",
        )
        for wrong, pasted, given in (
            ("q, k", "plan.run(query, key, value)", ""),
            ("q, k, v, mask", "plan.run(query, key, value)", ""),
            ("q=q, k=k, v=v", "plan.run(query=q, key=k, value=v)", ""),
            ("query", "plan.run(*query)", "query = q, k, v"),
        )
    ],
    run("sink=torch.zeros(4)", NEW.format("sink=True, ")),
    run("softcap=30.0", NEW.format("softcap=30.0, ")),
    run("", NEW.format("training=True, "), "query.requires_grad_()"),
]

LSES = "outputs, lses = [q, q], [q[..., 0], q[..., 0]]"
ROWS = [*NAMES, *REFUSED, *PLANS, *RUNS, *DEVICES, *WARMUPS, *DERIVATIVES]
GIVEN = [
    Row(
        "plan(mask, q.shape, sink=torch.zeros(4))",
        "sink=True",
        "out = plan(mask, q.shape, sink=True)",
    ),
    Row(
        "plan(mask, q.shape, extra_keys=extra_key)",
        "extra_keys=extra_key.shape[1]",
        "out = plan(mask, q.shape, extra_keys=extra_key.shape[1])",
        "out.request.extra_keys == 2",
        "extra_key = k[:, :2]",
    ),
    Row(
        "plan(mask, q.shape, dtype='float32', device='cpu').run(q, k, v, return_lse=True)",
        "return_lse=True",
        "out = plan(mask, q.shape, dtype='float32', device='cpu', return_lse=True).run(q, k, v)",
        "len(out) == 2",
    ),
    Row(
        "plan(mask, q.shape, dtype='float32', device='cpu').run(q, k, v, softcap=3.0, sink=sink)",
        "nbattn.attention(query, key, value, mask, sink=sink, softcap=3.0)",
        "out = nbattn.attention(query, key, value, mask, sink=sink, softcap=3.0)",
        "torch.allclose(out, attention(q, k, v, mask, sink=sink, softcap=3.0), atol=1e-5)",
        "query, key, value, sink = q, k, v, torch.ones(4)",
    ),
]
ROWS += GIVEN
