"""Tests of the examples: they run, and their transforms compute what they promise."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch_forks
from own_warnings import script
from torch import Tensor

from nbattn import Axis, InputError, Mask, NeighborhoodAttention
from nbattn.demo.digits import load_digits

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PATHS = sorted(EXAMPLES.glob("*.py"))
SHORTER = Mask(Axis(2, 2, align="bottom-right"), Axis(3, 1, offset=2))


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # compilers look there
    spec.loader.exec_module(module)
    return module


ROTARY, NORM = load("rotary_2d"), load("qk_norm")
STREAM, VIDEO, WEATHER = load("streaming_decode"), load("video_block"), load("weather_block")
STREAM_ROTARY = load("streaming_rotary")
MMDIT, FLUX = load("mmdit_block"), load("diffusion_flux")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


OPTIONAL = (
    *("sklearn", "transformers", "diffusers", "matplotlib", "skimage", "yaml", "omegaconf"),
    "natten",
)
QUICKLY = {
    "diffusion_flux": ("--steps", "2", "--side", "16", "--euler", "1"),
    "distributed_video": ("--steps", "4"),
    "navit_shapes": ("1",),
}
# On four ranks below, and in this process; FlexAttention on a CPU; training as long as a user does.
SLOW = ("distributed_video", "diffusion_flux", "ltx_decoder", "dinat_digits")
PROGRAM = "video_block"  # the one that is a process of its own in every run of the tests
NEEDED = {
    "diffusion_flux": (
        "This needs three packages: pip install 'diffusers>=0.42' scikit-image matplotlib"
    ),
    "dinat_digits": "This needs two packages: pip install scikit-learn 'transformers>=5.24,<6'",
    "ltx_decoder": "This needs a package: pip install 'diffusers>=0.42,<1'",
    "transformers_mistral": "This needs a package: pip install 'transformers>=5.24,<6'",
}
FIRST_WORDS = (
    *("NeighborhoodAttention(", "MistralAttention(", "DinatForImageClassification of"),
    *("FluxTransformer2DModel of", "plan  ", "videos 6 x 13 x 19 on"),
)


def run(
    path: Path, without: tuple[str, ...] = (), options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """An example as a program, where some packages are not installed."""
    absent = f"import sys\nsys.modules |= dict.fromkeys({without!r})\n"
    arguments = [*script(path, absent), *options]
    return torch_forks.run(arguments, {**os.environ, "PYTHONPATH": str(ROOT)})


def take_packages_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optional ones, and those of their modules that other tests have loaded."""
    loaded = [name for name in sys.modules if name.partition(".")[0] in OPTIONAL]
    for name in (*OPTIONAL, *loaded):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    "path", [path for path in PATHS if path.stem not in SLOW], ids=lambda path: path.stem
)
def test_every_example_runs(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, without the packages that it does not declare."""
    if path.stem not in NEEDED:
        take_packages_away(monkeypatch)
    monkeypatch.setattr(sys, "argv", [str(path), *QUICKLY.get(path.stem, ())])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.startswith(FIRST_WORDS)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if path.stem == PROGRAM else pytest.mark.deep) for path in PATHS],
    ids=lambda path: path.stem,
)
def test_every_example_runs_as_a_program(path: Path, tmp_path: Path) -> None:
    """Without the packages that it does not declare."""
    options = QUICKLY.get(path.stem, ())
    options += ("--out", str(tmp_path)) if path.stem == "diffusion_flux" else ()
    found = run(path, () if path.stem in NEEDED else OPTIONAL, options)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(FIRST_WORDS)
    if path.stem == "dinat_digits":  # trains as long as a user does
        (learnt,) = re.findall(r"([\d.]+) % of 450 test digits correct", found.stdout)
        assert float(learnt) > 85


def as_a_program(rank: int, port: int, steps: int) -> str:
    """What the example prints as one of torchrun's four processes."""
    torch.distributed.destroy_process_group()  # it makes its own
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4}
    os.environ |= {name: str(number) for name, number in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # which outlives every rank
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        load("distributed_video").main(steps)
    return shown.getvalue()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_a_video_on_four_ranks_is_learnt_as_in_one_process() -> None:
    """In forks of a process that has loaded torch, which torchrun's are not."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    check_video(ranks.run(as_a_program, 4, store.port, 4)[0])


@pytest.mark.deep
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_torchrun_runs_a_video_on_four_ranks() -> None:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    found = subprocess.run(
        [*run, str(EXAMPLES / "distributed_video.py"), "--steps", "4"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    check_video(found.stdout)


def check_video(shown: str) -> None:
    """What rank 0 prints: the parts, the losses of four steps, and those of one process."""
    assert shown.startswith("videos 6 x 13 x 19 on 1 x 2 x 2 ranks\nrank 0 has")
    losses = re.findall(r"step \d: loss ([\d.]+)(?:, in one process ([\d.]+))?", shown)
    assert [wanted != "" for _, wanted in losses] == [True, True, True, False]
    assert float(losses[3][0]) < float(losses[0][0]) / 2
    (apart,) = re.findall(r"largest difference from one process: (\S+) of", shown)
    assert float(apart) < 1e-5  # of sums in another order


@pytest.mark.parametrize("name", NEEDED)
def test_an_example_without_its_packages_names_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exit with a text is that text on stderr, and status 1."""
    take_packages_away(monkeypatch)
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert stop.value.code == NEEDED[name]


def test_the_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"scikit-learn, which is not installed\.\n.*pip install"):
        load_digits()


def turned_by_hand(tokens: Tensor, first: tuple[int, int], base: float) -> Tensor:
    """Channels as complex numbers, times e^(i angle), place by place."""
    out = tokens.clone()
    count = tokens.shape[-1] // 4
    for y in range(tokens.shape[1]):
        for x in range(tokens.shape[2]):
            for start, place in ((0, y + first[0]), (2 * count, x + first[1])):
                a, b = slice(start, start + count), slice(start + count, start + 2 * count)
                speed = torch.tensor([base ** -(n / count) for n in range(count)]).double()
                spin = torch.polar(torch.ones(count).double(), place * speed)
                number = torch.complex(tokens[:, y, x, :, a], tokens[:, y, x, :, b]) * spin
                out[:, y, x, :, a], out[:, y, x, :, b] = number.real, number.imag
    return out


def test_rotary_turns_a_query_by_its_position_among_the_keys() -> None:
    query, key = random(2, 3, 4, 4, 12), random(2, 5, 6, 2, 12, seed=1)
    found = ROTARY.Rotary2d(SHORTER, base=50.0)(query, key)
    wanted = turned_by_hand(query, (5 - 3, 2), 50.0), turned_by_hand(key, (0, 0), 50.0)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_rotary_scores_depend_on_distances_alone() -> None:
    """A mask may cut rows from the query grid: the outputs of the others stay."""
    torch.manual_seed(0)
    whole = Mask(Axis(2, 2, align="bottom-right"), Axis(3, 1))
    layer = NeighborhoodAttention(16, 2, whole, qk_transform=ROTARY.Rotary2d(whole)).double()
    x, registers = random(1, 7, 6, 16), random(1, 2, 16, seed=1)
    every = layer(x, extra_tokens=registers)
    last = layer(x[:, 4:], x, extra_tokens=registers)
    torch.testing.assert_close(last, every[:, 4:])
    assert ROTARY.main() < 1e-6


def test_rotary_leaves_extra_keys_alone() -> None:
    key = random(2, 3, 2, 12)
    assert ROTARY.Rotary2d(SHORTER).extra_key(key) is key


def test_rotary_has_nothing_that_a_cast_or_an_empty_start_could_spoil() -> None:
    with torch.device("meta"):
        rotary = ROTARY.Rotary2d(SHORTER)
    assert not rotary.state_dict()
    query = random(1, 2, 300, 1, 8).bfloat16()
    found, _ = rotary.bfloat16().to_empty(device="cpu")(query, query)
    wanted, _ = ROTARY.Rotary2d(SHORTER)(query.double(), query.double())
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-3)  # float32 angles


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (Mask(Axis(1)), "Rotary2d is for masks of 2 axes, not 1: Mask(Axis(1, None))"),
        (
            Mask(Axis(1, 1), Axis(1, 1, border="wrap")),
            "Rotary2d does not support border='wrap': Mask(Axis(1, 1), Axis(1, 1, border='wrap'))",
        ),
    ],
)
def test_rotary_refuses_unsupported_masks(mask: Mask, text: str) -> None:
    with pytest.raises(ValueError, match="Rotary2d") as error:
        ROTARY.Rotary2d(mask)
    assert str(error.value) == text


def test_rotary_refuses_an_odd_head_dim() -> None:
    with pytest.raises(ValueError, match="needs a head_dim that 4 divides, not 6"):
        ROTARY.Rotary2d(SHORTER)(random(1, 2, 2, 1, 6), random(1, 2, 2, 1, 6))


def test_normalised_scores_do_not_grow_with_the_input() -> None:
    found = NORM.main()
    assert [round(plain / found[1.0][0]) for plain, _ in found.values()] == [1, 100, 1000000]
    for _, score in found.values():
        assert score == pytest.approx(found[1.0][1], rel=1e-3)
        assert score <= 32**0.5


def test_norm_also_meets_the_keys_of_extra_tokens() -> None:
    norm = NORM.QKNorm(8).double()
    norm.query.weight.data, norm.key.weight.data = random(8), random(8, seed=1)
    query, key = random(2, 5, 4, 8, seed=2), random(2, 5, 2, 8, seed=3)

    def by_hand(tokens: Tensor, gain: Tensor) -> Tensor:
        eps = torch.finfo(torch.float64).eps
        return tokens / ((tokens**2).sum(-1, keepdim=True) / 8 + eps) ** 0.5 * gain

    torch.testing.assert_close(norm(query, key)[0], by_hand(query, norm.query.weight))
    torch.testing.assert_close(norm(query, key)[1], by_hand(key, norm.key.weight))
    torch.testing.assert_close(norm.extra_key(key), by_hand(key, norm.key.weight))


@pytest.mark.parametrize("which", ["rotary", "norm"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_transforms_compile_and_train_under_autocast(which: str) -> None:
    torch.manual_seed(0)
    mask = Mask(Axis(1, 1), Axis(2, 2))
    transform = ROTARY.Rotary2d(mask) if which == "rotary" else NORM.QKNorm(8)
    layer = NeighborhoodAttention(16, 2, mask, qk_transform=transform)
    x, extra = random(2, 4, 5, 16).float(), random(2, 1, 16).float()
    want = layer(x, extra_tokens=extra)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, extra_tokens=extra), want)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, extra_tokens=extra)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), want, rtol=0.1, atol=0.02)
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "mask",
    [pytest.param(Mask.full(rank=2), marks=pytest.mark.deep), Mask.neighborhood((9, 9))],
)
def test_flux_differs_only_by_its_windows(
    mask: Mask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both models have the same start, crops and noise."""
    monkeypatch.setattr(FLUX, "MASK", mask)
    monkeypatch.setattr(FLUX, "PHOTOGRAPHS", FLUX.PHOTOGRAPHS[:2])
    found = FLUX.main(steps=2, side=16, euler=1, seed=1, out=tmp_path)
    full, windows = found[FLUX.FULL], found[FLUX.WINDOWS]
    assert (abs(windows / full - 1) < 1e-5) == (mask == Mask.full(rank=2))
    assert {path.name for path in tmp_path.iterdir()} == {"denoised.png", "loss.png"}


def test_mistral_writes_what_eager_writes() -> None:
    assert load("transformers_mistral").main()


@pytest.mark.parametrize(
    "sizes",
    [
        (50, 7, 3),  # sinks, then a full ring, long before the end
        (20, 9, 1, 12, 3),
        (12, 5, 6),  # the prompt does not even fill the sinks
        (9, 30, 2),  # a window that is never full
    ],
)
def test_a_stream_with_sinks_is_one_pass_over_the_text(sizes: tuple[int, ...]) -> None:
    found = STREAM.main(*sizes)
    assert found["stream"] < 1e-6
    assert (found["without sinks"] > 1e-3) == (sizes[1] < sizes[0])


def test_a_stream_holds_no_more_than_its_cache() -> None:
    mask = Mask(Axis(4, causal=True, prefix=2, align="bottom-right"))
    layer = NeighborhoodAttention(8, 2, mask).double()
    stream = STREAM.Stream(layer, batch=1)
    text = random(1, 40, 8)
    with torch.no_grad():
        stream.start(text[:, :11])
        for n in range(11, 40):
            stream.step(text[:, n : n + 1])
        key = layer.qkv(text)[..., 8:16].unflatten(-1, (2, 4))
    sinks, window = stream.parts
    assert (sinks.key.shape[1], window.key.shape[1]) == (2, 5)
    torch.testing.assert_close(sinks.key, key[:, :2])
    newest = [35 + (slot - 33) % 5 for slot in range(5)]  # slot of key n: (n - 2) mod 5
    torch.testing.assert_close(window.key, key[:, newest])


@pytest.mark.parametrize(
    "axis", [Axis(4, 4), Axis(4, causal=True), Axis(causal=True, align="bottom-right")]
)
def test_a_stream_refuses_masks_that_it_cannot_decode(axis: Axis) -> None:
    with pytest.raises(ValueError, match="Stream needs a causal window, bottom-right"):
        STREAM.Stream(NeighborhoodAttention(8, 2, Mask(axis)), batch=1)


def by_the_cache(model: Any, text: Tensor, row: int) -> Tensor:
    """The output of one token, from a list of what a cache then holds, each turned by its place."""
    heads, dim = model.layer.num_heads, model.layer.head_dim
    query, key, value = (
        (text @ weight.T + bias).unflatten(-1, (heads, dim)).double()
        for weight, bias in zip(
            model.layer.qkv.weight.chunk(3), model.layer.qkv.bias.chunk(3), strict=True
        )
    )
    sinks, window = model.sinks, model.window
    held = [n for n in range(row + 1) if n < sinks or n > row - window]
    places = held if model.places == "in the text" else list(range(len(held)))
    count = dim // 2
    speed = torch.tensor([10_000.0 ** -(n / count) for n in range(count)], dtype=torch.float64)

    def spun(token: Tensor, place: int) -> Tensor:
        number = torch.complex(token[..., :count], token[..., count:])
        return number * torch.polar(torch.ones(count).double(), place * speed)

    asks = spun(query[:, row], places[-1])
    scores = [
        (asks * spun(key[:, n], at).conj()).real.sum(-1) for n, at in zip(held, places, strict=True)
    ]
    weights = (torch.stack(scores, -1) * dim**-0.5).softmax(-1)
    found = torch.einsum("bhn,bnhd->bhd", weights, value[:, held])
    return model.layer.proj(found.flatten(-2))


@pytest.mark.parametrize("places", ["in the text", "in the cache"])
@pytest.mark.parametrize("sizes", [(31, 5, 3), (12, 4, 0), (9, 30, 2), (10, 3, 20)])
def test_turned_streams_are_what_a_cache_holds(places: str, sizes: tuple[int, ...]) -> None:
    length, window, sinks = sizes
    torch.manual_seed(0)
    model = STREAM_ROTARY.Streaming(12, 2, window, sinks, places).double()
    torch.nn.init.normal_(model.layer.qkv.weight)
    text = random(2, length, 12)
    cache = STREAM_ROTARY.Cache(model, batch=2)
    whole = model(text)
    with torch.no_grad():
        stream = torch.cat([cache.step(token) for token in text.split(1, dim=1)], dim=1)
    assert cache.key.shape[1] == sinks + window
    torch.testing.assert_close(stream, whole, rtol=1e-9, atol=1e-9)
    for row in range(length):
        torch.testing.assert_close(whole[:, row], by_the_cache(model, text, row))
    whole.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_two_ways_to_count_differ_once_the_cache_is_full() -> None:
    found = STREAM_ROTARY.main(60, 8, 3, 32, 2)
    assert found["in the text"] < 1e-6
    assert found["in the cache"] < 1e-6
    assert found["apart"] > 1e-3
    assert STREAM_ROTARY.main(11, 8, 3, 32, 2)["apart"] == 0


def test_rotary_of_far_positions_depends_on_their_distance() -> None:
    query, key = random(1, 1, 1, 64).float(), random(1, 1, 1, 64, seed=1).float()
    near, far = (
        (STREAM_ROTARY.turn(query, at + 3) * STREAM_ROTARY.turn(key, at)).sum()
        for at in (torch.tensor([0]), torch.tensor([10**6]))
    )
    torch.testing.assert_close(near, far, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(), (9, 6, 5, 24, 2)])
def test_a_video_is_read_backwards_and_frame_by_frame(sizes: tuple[int, ...]) -> None:
    found = VIDEO.main(*sizes)
    assert found["before"] < 1e-6
    assert found["after"] > 1e-2
    assert found["out of reach"] < 1e-6
    assert found["one by one"] < 2e-6


def test_rotary_of_three_axes_turns_each_third_by_its_position() -> None:
    """A third at a time: the two others are at position 0 of their axes."""
    mask = Mask(Axis(2, causal=True, align="bottom-right"), Axis(1, 1, offset=2), Axis(1, 1))
    query, key = random(1, 2, 3, 4, 2, 12), random(1, 5, 3, 4, 1, 12, seed=1)
    found = VIDEO.Rotary3d(mask, base=50.0)(query, key)
    speed = torch.tensor([1.0, 50.0**-0.5]).double()
    for tokens, turned, first in ((query, found[0], (3, 2, 0)), (key, found[1], (0, 0, 0))):
        for place in [(0, 0, 0), (1, 2, 3), (1, 0, 2)]:
            for axis, (at, start) in enumerate(zip(place, first, strict=True)):
                third = (
                    (..., slice(4 * axis, 4 * axis + 2)),
                    (..., slice(4 * axis + 2, 4 * axis + 4)),
                )
                number = torch.complex(*(tokens[0][place][part] for part in third))
                wanted = number * torch.polar(torch.ones(2).double(), (at + start) * speed)
                one = torch.complex(*(turned[0][place][part] for part in third))
                torch.testing.assert_close(one, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mask", [Mask(Axis(1)), Mask(Axis(), Axis(), Axis(1, 1, border="wrap"))])
def test_rotary_of_three_axes_refuses_unsupported_masks(mask: Mask) -> None:
    with pytest.raises(ValueError, match="for 3 axes that do not wrap"):
        VIDEO.Rotary3d(mask)
    with pytest.raises(ValueError, match="needs a head_dim that 6 divides, not 8"):
        VIDEO.Rotary3d(VIDEO.MASK)(random(1, 2, 2, 2, 1, 8), random(1, 2, 2, 2, 1, 8))


def test_padded_text_of_mmdit_changes_nothing_for_the_image() -> None:
    assert MMDIT.main() < 1e-5


def test_mmdit_with_a_window_of_the_whole_image_is_one_sequence() -> None:
    torch.manual_seed(0)
    block = MMDIT.MMDiTBlock(24, 3, Mask.neighborhood((4, 5))).double()
    image, text = random(2, 4, 5, 24), random(2, 6, 24, seed=1)
    streams = block.image, block.text
    given = [s.projected(t) for s, t in zip(streams, (image, text), strict=True)]
    joined = [
        torch.cat([one.flatten(1, 2), other], 1).transpose(1, 2)
        for one, other in zip(*given, strict=True)
    ]
    out = torch.nn.functional.scaled_dot_product_attention(*joined).transpose(1, 2)
    of_image, of_text = out.split([20, 6], dim=1)
    wanted = (
        block.image.updated(image, of_image.unflatten(1, (4, 5))),
        block.text.updated(text, of_text),
    )
    for found, other in zip(block(image, text), wanted, strict=True):
        torch.testing.assert_close(found, other)


@pytest.mark.parametrize("sizes", [(), (8, 13), (7, 7)])
def test_turning_the_globe_turns_the_weather(sizes: tuple[int, ...]) -> None:
    found = WEATHER.main(*sizes)
    assert found["globe"] < 2e-6
    assert (found["map"] > 1e-2) == (sizes != (7, 7))  # where every place reads every longitude


def test_blocks_of_examples_train() -> None:
    torch.manual_seed(0)
    for block, shape in (
        (VIDEO.Block(24, 2), (2, 4, 5, 6, 24)),
        (WEATHER.WeatherBlock(7, 16, 2), (2, 7, 9, 16)),
    ):
        block(random(*shape).float()).square().mean().backward()
        for name, parameter in block.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
