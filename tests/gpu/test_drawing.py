"""Whole pictures on a device: as the processor draws them, alone or in a batch, from pictures, with LoRA, in 8 bits."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch
from comparison import assert_close
from PIL import Image, ImageDraw
from precision import DTYPES

from minisd import attach, store
from minisd.drawing.control import Hires
from minisd.evaluate.similarity import ssim
from minisd.images import to_tensor
from minisd.pipeline import StableDiffusion
from minisd.vae_tiling import decode_in_strips

# Levels of 255 by which a picture may differ, from sums in another order; through a network with much guidance they
# grow a hundredfold. Half precision is held against the likeness of pictures instead: rounding draws other details.
LEVELS, LIKE = 2, {"float16": 0.97, "bfloat16": 0.80}
PICTURE = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")
MASK = Image.new("L", PICTURE.size)
ImageDraw.Draw(MASK).rectangle((16, 16, 40, 40), fill=255)
ASKED = {"steps": 3, "cfg": 3.0, "sampler": "dpm++2m sde"}


@cache
def emoji(device: str, dtype: str) -> StableDiffusion:
    return store.load("emoji", device, dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny(folder: Path, device: torch.device) -> Callable[..., StableDiffusion]:
    """The tiny model on the device."""
    return lambda dtype="float32": store.load(folder, str(device), dtype)


def levels(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_picture_of_the_embedded_model(dtype: str, device: torch.device) -> None:
    expected, = emoji("cpu", "float32").txt2img("a red apple, flat", seed=3, **ASKED)
    found, = emoji(str(device), dtype).txt2img("a red apple, flat", seed=3, **ASKED)
    if dtype == "float32":
        assert levels(found, expected) <= LEVELS
    else:
        assert ssim(to_tensor(found)[None], to_tensor(expected)[None]).item() > LIKE[dtype]


def test_a_picture_does_not_depend_on_its_batch(tiny: Callable[..., StableDiffusion]) -> None:
    sd = tiny()
    together = sd.txt2img(["a red apple", "a blue disc"], seed=5, count=2, **ASKED)
    alone = [sd.txt2img(words, seed=seed, **ASKED)[0] for words in ("a red apple", "a blue disc") for seed in (5, 6)]
    assert max(levels(*pair) for pair in zip(together, alone, strict=True)) <= LEVELS
    assert min(levels(alone[0], one) for one in alone[1:]) > 10
    assert levels(alone[0], sd.txt2img("a red apple", seed=5, **ASKED)[0]) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_pictures_from_pictures(dtype: str, tiny: Callable[..., StableDiffusion]) -> None:
    sd, plain = tiny(dtype), tiny()
    begun, = sd.img2img("a red apple", PICTURE, 0.7, **ASKED)
    painted, = sd.inpaint("a red apple", PICTURE, MASK, **ASKED)
    large, = sd.txt2img("a red apple", size=(64, 64), hires=Hires(1.5, 0.7, 2, "lanczos"), **ASKED)
    assert begun.size == (64, 64) and large.size == (96, 96)
    kept = np.asarray(MASK) == 0
    assert (np.asarray(painted)[kept] == np.asarray(PICTURE)[kept]).all() and levels(painted, PICTURE) > 10
    if dtype != "float32":
        again, = plain.img2img("a red apple", PICTURE, 0.7, **ASKED)
        assert ssim(to_tensor(begun)[None], to_tensor(again)[None]).item() > LIKE[dtype]


def test_adapters_come_and_go(tiny: Callable[..., StableDiffusion]) -> None:
    sd = tiny()
    before, = sd.txt2img("a red apple", **ASKED)
    sides = attach.attach(sd.unet, attach.LoRASpec("a", 2, targets=("*_attn.*", "*.conv1")), torch.Generator())
    for side in sides:
        side.data.copy_(0.3 * torch.randn(side.shape, generator=torch.Generator().manual_seed(side.numel())))
        assert side.device == sd.device
    assert all(one.strength.device == sd.device for one in attach.sides(sd.unet, "a").values())
    worn, = sd.txt2img("a red apple", **ASKED)
    attach.reweigh(sd.unet, "a", 0.0)
    off, = sd.txt2img("a red apple", **ASKED)
    merged = attach.merge(sd.unet)
    merged.undo()
    attach.detach(sd.unet, "a")
    after, = sd.txt2img("a red apple", **ASKED)
    assert levels(worn, before) > 5 and levels(off, before) <= LEVELS and levels(after, before) == 0


def test_the_vae_is_asked_again_in_float32(tiny: Callable[..., StableDiffusion],
                                           caplog: pytest.LogCaptureFixture) -> None:
    sd = tiny("float16")
    with torch.no_grad():
        sd.vae.decoder.conv_in.weight.mul_(3e4)
        sd.vae.encoder.conv_in.weight.mul_(6e4)
    drawn, = sd.img2img("a red apple", PICTURE, 0.7, **ASKED)
    assert drawn.size == PICTURE.size and levels(drawn, PICTURE) > 0
    assert "decoding again in float32" in caplog.text


def test_a_compiled_unet_draws_the_same(tiny: Callable[..., StableDiffusion], device: torch.device) -> None:
    """As a user compiles any module; on a GPU its kernels are one CUDA graph, here the graph is traced."""
    sd, gpu = tiny(), device.type == "cuda"
    expected = [sd.txt2img("a red apple", sampler=name, steps=3, cfg=3.0)[0] for name in ("dpm++3m", "heun")]
    sd.unet.compile(fullgraph=True, **({"mode": "reduce-overhead"} if gpu else {"backend": "eager"}))
    found = [sd.txt2img("a red apple", sampler=name, steps=3, cfg=3.0)[0] for name in ("dpm++3m", "heun")]
    assert max(levels(*pair) for pair in zip(found, expected, strict=True)) <= LEVELS


def test_a_large_picture_in_strips(tiny: Callable[..., StableDiffusion]) -> None:
    sd = tiny()
    z = torch.randn(2, 4, 12, 8, generator=torch.Generator().manual_seed(0)).to(sd.device)
    with torch.inference_mode():
        found, expected = decode_in_strips(sd.vae, z, 512), sd.vae.decode(z)
    assert found.device.type == sd.device.type
    assert_close("strips", found.cpu(), expected.cpu(), 5e-5)


def test_weights_in_8_bits(tiny: Callable[..., StableDiffusion]) -> None:
    small, full = tiny("int8"), tiny("float32")
    a, = small.txt2img("a red apple", **ASKED)
    b, = full.txt2img("a red apple", **ASKED)
    assert small.precision == "int8" and levels(a, b) > 0
    assert ssim(to_tensor(a)[None], to_tensor(b)[None]).item() > LIKE["bfloat16"]
