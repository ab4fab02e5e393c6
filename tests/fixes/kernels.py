"""Fixes of what kernels need: compilers, CUDA's packages, folders, peers, matplotlib."""

from __future__ import annotations

from fixes.row import EQUAL, Row

ZIG = 'pip install "ziglang>=0.13"'
CUDA_13 = (
    'pip install "cupy-cuda13x>=14.2,<15" "nvidia-cuda-nvrtc>=13.0,<14" '
    '"nvidia-cuda-runtime>=13.0,<14"'
)
CUDA_12 = (
    'pip install "cupy-cuda12x>=14.2,<15" "nvidia-cuda-nvrtc-cu12>=12.6,<13" '
    '"nvidia-cuda-runtime-cu12>=12.6,<13"'
)
# What is known of this machine's compilers is known before they disappear.
HOST = (
    "attention(q, k, v, mask, backend='tiled'); from nbattn.kernels import compilers, "
    "host, sources; "
)
# Without a compiler: none in $PATH, and no ziglang.
BARE = HOST + (
    "monkeypatch.setenv('PATH', '/nowhere'); monkeypatch.delenv('CXX', raising=False); "
    "import sys; monkeypatch.setitem(sys.modules, 'ziglang', None); "
    "monkeypatch.setenv('NBATTN_CACHE', 'off'); "
    "monkeypatch.setattr(host, '_library', None); monkeypatch.setattr(host, '_failure', None)"
)
BROKEN = HOST + (
    "broken = compilers.Compiler('g++ 12.2', ('false',), (), 'none'); "
    "monkeypatch.setattr(compilers, 'find', lambda: broken)"
)
NO_CUDA = (
    "from nbattn.kernels import toolkit; monkeypatch.setattr(toolkit, '_pathfinder', "
    "lambda *_: None); "
    "monkeypatch.setattr(toolkit, '_wheels', lambda below: []); "
    "monkeypatch.setattr(toolkit, '_toolkits', lambda below: []); "
    "monkeypatch.setattr(toolkit.ctypes.util, 'find_library', lambda name: None)"
)
COMPILERS = [
    Row("compilers.find()", ZIG, given=BARE),
    Row("for _ in range(2):\n    try: host.library()\n    except Exception: pass", ZIG, given=BARE),
    Row(
        call="compilers.find()",
        pasted='backend="tiled"',
        fixed='out = attention(q, k, v, mask, backend="tiled")',
        means="out.shape == q.shape",
        given=f"{HOST}monkeypatch.setattr(compilers.sys, 'platform', 'win32')",
    ),
    Row(
        call="compilers.find()",
        pasted="unset CXX",
        fixed="monkeypatch.delenv('CXX')  # unset CXX\nfound = compilers.is_named()",
        means="not found",
        given=f"{HOST}monkeypatch.setenv('CXX', '/nowhere/g++')",
    ),
    Row("host.build(broken, '')", ZIG, given=BROKEN),
    Row(
        call="host.build(broken, '')",
        pasted='backend="tiled"',
        fixed='out = attention(q, k, v, mask, backend="tiled")',
        means="out.shape == q.shape",
        given=BROKEN,
    ),
]
LIBRARIES = [
    Row(
        call="host._loaded('key', Entry({}, b'no library'))",
        pasted='backend="tiled"',
        fixed='out = attention(q, k, v, mask, backend="tiled")',
        means="out.shape == q.shape",
        given=f"{HOST}from nbattn.kernels.store import Entry",
    ),
    Row(
        call="host._loaded('key', Entry({}, b''))",
        pasted="restore cpu cuda",
        fixed="line = sources.again()  # git restore cpu cuda",
        means="line.endswith('restore cpu cuda')",
        given=f"{HOST}from nbattn.kernels.store import Entry; from unittest.mock import MagicMock; "
        "monkeypatch.setattr(host, '_opened', lambda code: MagicMock()); "
        "monkeypatch.setattr(sources.metadata, 'distribution', lambda name: NoDirectUrl); "
        "import types; NoDirectUrl = types.SimpleNamespace(read_text=lambda name: "
        '\'{"url": "file:///here", "dir_info": {"editable": true}}\')',
    ),
    *(
        Row(
            call=call,
            pasted="--force-reinstall --no-deps",
            fixed="options = '--force-reinstall --no-deps'; folder = there()",
            means="folder.is_dir()",
            given=f"{HOST}from pathlib import Path; there = sources.host_directory; "
            "import types; sources.host_directory(); wheel = types.SimpleNamespace(read_text="
            'lambda name: \'{"url": "file:///nbattn.whl", "archive_info": {}}\'); '
            "monkeypatch.setattr(sources.metadata, 'distribution', lambda name: wheel)",
        )
        for call in (
            "sources._MARKS['cpu'] = 'gone'\ntry: sources.host_directory()\n"
            "finally: sources._MARKS['cpu'] = sources.HOST",
            "sources.amalgamate('gone.cu', Path('/nowhere'))",
        )
    ),
]
CUDA = [
    Row("toolkit.library.__wrapped__()", CUDA_13, given=NO_CUDA),
    Row(
        "toolkit.headers.__wrapped__()",
        CUDA_13,
        given=f"{NO_CUDA}; monkeypatch.setattr(toolkit, 'library', "
        f"lambda: '/nowhere/libnvrtc.so.13')",
    ),
    Row(
        "launch.CuPyLauncher()",
        CUDA_13,
        given="from nbattn.kernels import launch; import sys; "
        "monkeypatch.setitem(sys.modules, 'cupy.cuda.function', None)",
    ),
    Row(
        "launch.TritonLauncher()",
        'pip install "triton>=3.6"',
        given="from nbattn.backends.triton import launch; "
        "monkeypatch.setattr(launch, 'missing', lambda: f'Triton is too old: {launch.fix()}')",
    ),
    Row(
        "nvrtc._check_target('30')",
        CUDA_13,
        given="from nbattn.kernels import nvrtc, toolkit; "
        "monkeypatch.setattr(nvrtc, '_targets', lambda: (80, 90)); "
        "monkeypatch.setattr(nvrtc, 'version', lambda: (13, 0)); "
        "monkeypatch.setattr(toolkit, 'library', lambda: 'libnvrtc.so')",
    ),
    Row(
        call="launcher._load(0, variant)",
        pasted="plan.warmup() before the capture",
        fixed="plan = nbattn.plan(mask, q.shape, device='cpu', backend='tiled'); "
        "done = plan.warmup()  # plan.warmup() before the capture",
        given="from nbattn.kernels import launch; from unittest.mock import MagicMock; "
        "launcher = object.__new__(launch.CuPyLauncher); variant = MagicMock(); "
        "launcher._torch = MagicMock()",
    ),
    Row(
        call="run._maps_of('fwd', tiles, window, {'query': odd})",
        pasted="query.contiguous()",
        fixed="out = attention(query.contiguous(), k, v, mask)",
        means=EQUAL.format("attention(q, k, v, mask)"),
        given="from types import SimpleNamespace; from nbattn.backends.cuda import run; "
        "from nbattn.backends.cuda.tiles import Tiles; query = q; "
        "from nbattn.kernels.tensor_maps import View; window = SimpleNamespace(axes=()); "
        "odd = View((1, 9, 2, 64), (1161, 129, 64, 1)); "
        "tiles = Tiles((1, 1, 128), (1, 1, 64), 12, 1, 2, 2)",
    ),
    *(
        Row(
            call=call,
            pasted='forbid=("wgmma",)',
            fixed='out = attention(q, k, v, mask, forbid=("wgmma",))',
            given="from nbattn.kernels import tensor_maps\n"
            "def gone(name): raise OSError(name)\n" + given,
        )
        for call, given in (
            (
                "tensor_maps._encoder.__wrapped__()",
                "monkeypatch.setattr(tensor_maps.ctypes, 'PyDLL', gone)",
            ),
            (
                "tensor_maps.encode(one, 16, 'float16')",
                "monkeypatch.setattr(tensor_maps, '_encoder', lambda: lambda *_: 1); "
                "one = tensor_maps.boxes_of('query', "
                "tensor_maps.View.contiguous((1, 9, 2, 64))).maps[0]",
            ),
        )
    ),
    *(
        Row(
            call="launcher._load(0, variant)",
            pasted=pasted,
            fixed=fixed,
            given="from nbattn.kernels import launch; from unittest.mock import MagicMock; "
            "launcher = object.__new__(launch.CuPyLauncher); variant = MagicMock(); "
            "launcher._torch = MagicMock(); launcher._cupy = MagicMock(); "
            "launcher._torch.cuda.is_current_stream_capturing = lambda: False; "
            "launcher._torch.cuda.get_device_capability = lambda device: (9, 0); "
            "launcher._driver = MagicMock(CUDADriverError=OSError); "
            "launcher._cupy.Module().load.side_effect = OSError('no image'); "
            "monkeypatch.setattr(launch.cubins, 'get', MagicMock()); "
            f"monkeypatch.setattr(launch.nvrtc, 'version', lambda: {version})",
        )
        for version, pasted, fixed in (
            ((13, 0), CUDA_12, ""),
            ((12, 9), 'backend="tiled"', 'out = attention(q, k, v, mask, backend="tiled")'),
        )
    ),
]
PEERS = [
    Row(
        call="adapters._check_built_in()",
        pasted="torch.nn.attention.restore_flash_attention_impl()",
        fixed="import torch.nn.attention\ntorch.nn.attention.restore_flash_attention_impl()\n"
        "done = adapters._check_built_in()",
        given="import torch.nn.attention as a; from nbattn.backends.flash import adapters; "
        "now = ['FA4']; monkeypatch.setattr(a, 'current_flash_attention_impl', lambda: now[-1], "
        "raising=False); monkeypatch.setattr(a, 'restore_flash_attention_impl', lambda: "
        "now.append(None), raising=False)",
    ),
    Row(
        call="natten.run._attend(program, None)",
        pasted="nbattn.integrations.natten.uninstall()",
        fixed="import nbattn.integrations.natten\nnbattn.integrations.natten.uninstall()",
        means="'natten' not in sys.modules",
        given="import sys; from unittest.mock import MagicMock; "
        "from nbattn.backends import natten; "
        "from nbattn.backends.natten import run; "
        "from nbattn.integrations import natten as drop_in; "
        "drop_in.install(replace=True); call = MagicMock(arguments=object.__new__("
        "run.NattenArguments)); program = MagicMock(calls=(call,))",
    ),
    Row(
        call="Mask.full().to_flex(4, 0)",
        pasted="nbattn.attention(query, key, value, mask)",
        fixed="mask = Mask.full(); out = nbattn.attention(query, key, value, mask)",
        means="not out.any()",
        given="query, key, value = q, k[:, :0], v[:, :0]",
    ),
]


def drawn(wrong: str, right: str, given: str = "", fixed: str = "") -> Row:
    """A row for an argument of `Mask.plot`; with the fix they can be more than it."""
    start = "mask = Mask.neighborhood((3, 3)); weights = torch.zeros(6, 8); weights[2, 3] = 1\n"
    return Row(
        f"mask.plot((6, 8), {wrong})",
        right,
        f"{given}\nax = mask.plot((6, 8), {', '.join(filter(None, [right, fixed]))})\n"
        "import matplotlib.pyplot; matplotlib.pyplot.close('all')",
        "len(ax.patches) > 1",
        start,
    )


PICTURES = [
    Row(
        call="files.save(figure, '/tmp/nbattn-none/of/a.png')",
        pasted="mkdir -p /tmp/nbattn-none/of",
        fixed="import os; os.system('mkdir -p /tmp/nbattn-none/of')\n"
        "files.save(figure, '/tmp/nbattn-none/of/a.png')\n"
        "import shutil; size = os.path.getsize('/tmp/nbattn-none/of/a.png')\n"
        "shutil.rmtree('/tmp/nbattn-none')",
        means="size > 100",
        given="from nbattn.pictures import files, style; figure = style.plain_figure(144, 144)",
    ),
    Row(
        call="Mask.causal().plot(9)",
        pasted="pip install matplotlib",
        given="import sys; monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)",
    ),
    drawn("kind='grid'", "kind='matrix'"),
    drawn("query=9", "query=(3, 4)"),
    drawn("query=(1, 'x')", "query=(3, 4)"),
    drawn("query=(1, 8)", "query=(1, 7)"),
    Row(
        call="made.to_html(path=None)",
        pasted="path='plan.html'",
        fixed="made.to_html(path='plan.html'); size = len(pathlib.Path('plan.html').read_bytes())",
        means="size > 1000",
        given="import pathlib, tempfile; monkeypatch.chdir(tempfile.mkdtemp())\n"
        "made = plan(Mask.causal(), (1, 8, 2, 8), dtype='float32', device='cpu')",
    ),
    drawn("ax=3", "ax=matplotlib.pyplot.figure().subplots()", "import matplotlib.pyplot"),
    drawn(
        "weights=weights, kind='axes'", 'kind="neighborhood"', fixed="weights=weights, query=(2, 2)"
    ),
    drawn(
        "weights=weights, kind='neighborhood'",
        "query=(3, 4)",
        fixed="weights=weights, kind='neighborhood'",
    ),
    drawn(
        "weights=-weights, query=(2, 2), kind='neighborhood'",
        "weights=numpy.nan_to_num(weights).clip(0)",
        "import numpy",
        "query=(2, 2), kind='neighborhood'",
    ),
    drawn(
        "weights=weights + 1, query=(2, 2), kind='neighborhood'",
        "weights=nbattn.attention_weights(query, key, mask, at=[(2, 2)])[0, 0, 0]",
        "query, key = torch.randn(2, 1, 6, 8, 4, 16)",
        "query=(2, 2), kind='neighborhood'",
    ),
    drawn(
        "weights=torch.ones(6, 8, 6, 8), kind='matrix'",
        "weights=numpy.where(mask.dense((6, 8), (6, 8)), weights.reshape((48, 48)), 0)",
        "import numpy; weights = torch.ones(6, 8, 6, 8)",
    ),
    drawn(
        "weights='all', query=(2, 2), kind='neighborhood'",
        "weights=None",
        fixed="query=(2, 2), kind='neighborhood'",
    ),
    drawn(
        "weights=weights[None, None], query=(2, 2), kind='neighborhood'",
        "weights=weights[0, 0]",
        "weights = weights[None, None]",
        "query=(2, 2), kind='neighborhood'",
    ),
    Row(
        call="digits.load_digits()",
        pasted="pip install scikit-learn",
        given="from nbattn.demo import digits; import sys; "
        "monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)",
    ),
]
ROWS = [*COMPILERS, *LIBRARIES, *CUDA, *PEERS, *PICTURES]
