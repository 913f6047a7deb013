"""Weights in 8 bits: how near they are, what they weigh, and the way back."""

import copy
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch
from comparison import difference, random_model
from tiny import TINY_UNETS
from torch import Tensor, nn

from minisd import attach, models, store
from minisd.fast.eightbit import Conv2d8, Linear8, eight_bit, is_small
from minisd.fast.passes import plain, quicken
from minisd.unet import UNet
from minisd.vae import VAE
from minisd.vae_tiling import decode_in_strips


def told(dtype: torch.dtype = torch.float32) -> tuple[UNet, tuple[Tensor, ...]]:
    unet = random_model(UNet, TINY_UNETS["sd15"], 0).to(dtype).requires_grad_(False)
    x, context = torch.randn(2, unet.cfg.in_channels, 16, 16), torch.randn(2, 13, unet.cfg.context_dim)
    return unet, (x.to(dtype), torch.tensor([3.0, 700.0]), context.to(dtype))


def size(model: nn.Module) -> int:
    """Bytes."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("kind", [nn.Linear(48, 40), nn.Conv2d(48, 40, 3, padding=1), nn.Conv2d(48, 40, 1)], ids=str)
def test_weights_are_rounded_to_the_nearest_multiple(kind: nn.Module) -> None:
    model = nn.Sequential(copy.deepcopy(kind))
    model[0].weight.data[3] = 0                   # a channel of zeros has no scale
    weight = model[0].weight.detach().clone()
    eight_bit(model, torch.float32)
    layer = model[0]
    assert layer.small.dtype == torch.int8 and "weight" not in dict(layer.named_parameters())
    step = weight.abs().flatten(1).amax(dim=1) / 127
    error = (layer.weight - weight).abs().flatten(1).amax(dim=1)
    assert (error <= 0.5001 * step + 1e-12).all() and not layer.weight[3].any()
    x = torch.randn(2, 48) if isinstance(kind, nn.Linear) else torch.randn(2, 48, 6, 5)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), plain(copy.deepcopy(model))(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_unet_in_a_fraction_of_its_memory(dtype: torch.dtype) -> None:
    unet, inputs = told(dtype)
    with torch.inference_mode():
        before, weighed = unet(*inputs), size(unet)
        eight_bit(unet, dtype)
        assert is_small(unet) and size(unet) < 0.62 * weighed
        assert unet.conv_in.weight.dtype == dtype and type(unet.conv_out) is nn.Conv2d
        after = unet(*inputs)
        assert difference(after, before).relative < 0.06
        assert difference(quicken(unet)(*inputs), after).relative < (0.06 if dtype == torch.bfloat16 else 2e-5)


def test_the_way_back_keeps_what_was_rounded() -> None:
    unet, inputs = told()
    kinds, names = [type(module) for module in unet.modules()], unet.state_dict().keys()
    eight_bit(unet, torch.float32)
    assert {Linear8, Conv2d8} <= {type(module) for module in unet.modules()}
    rounded = unet.state_dict()
    assert rounded.keys() == names
    with torch.inference_mode():
        small = unet(*inputs)
        plain(unet)
        torch.testing.assert_close(unet(*inputs), small)
    assert not is_small(unet) and [type(module) for module in unet.modules()] == kinds
    assert all(torch.equal(tensor, rounded[name]) for name, tensor in unet.state_dict().items())


def test_an_adapter_finds_layers_of_full_size() -> None:
    unet, inputs = told()
    eight_bit(unet, torch.float32)
    with torch.inference_mode():
        before = unet(*inputs)
    attach.attach(unet, attach.LoRASpec("a", targets=("mid.*",)), torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(unet(*inputs), before)         # as yet it adds nothing
    for side in attach.parameters(unet, "a"):
        side.data.fill_(0.1)
    with torch.inference_mode():
        assert difference(unet(*inputs), before).relative > 1e-3


def test_a_model_is_loaded_in_8_bits(tmp_path: Path) -> None:
    folder = tiny_model.folder(tmp_path)
    sd, full = store.load(folder, "cpu", "int8"), store.load(folder, "cpu", "float32")
    assert sd.precision == "int8" and full.precision == "float32"
    assert is_small(sd.unet) and is_small(sd.text[0]) and not is_small(sd.vae)
    eight_bit(full.unet, sd.dtype)
    assert all(torch.equal(a, b) for a, b in zip(sd.unet.state_dict().values(), full.unet.state_dict().values(),
                                                 strict=True))
    image, = sd.txt2img("a red apple", steps=2)
    assert image.size == (64, 64)


def test_beside_a_unet_in_8_bits_a_picture_is_decoded_in_less_memory(tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spied(vae: VAE, z: Tensor, pixels: int) -> Tensor:
        seen.append(pixels)
        return decode_in_strips(vae, z, pixels)

    folder = tiny_model.folder(tmp_path)
    monkeypatch.setattr(models, "decode_in_strips", spied)
    small, full = store.load(folder, "cpu", "int8"), store.load(folder, "cpu", "float32")
    assert 512 * 512 <= models.FEW < models.WHOLE
    whole, _ = small.txt2img("a red apple", steps=2), full.txt2img("a red apple", steps=2)
    assert not seen
    monkeypatch.setattr(models, "FEW", 64 * 64 - 1)               # strips of three rows
    strips, _ = small.txt2img("a red apple", steps=2), full.txt2img("a red apple", steps=2)
    assert seen == [255]
    near = np.abs(np.asarray(strips[0]).astype(int) - np.asarray(whole[0]).astype(int))
    assert near.mean() < 2 and near.max() < 32       # auto may compute in bfloat16
