"""Passes over whole models: the same results, nothing lost, and the way back."""

import copy

import pytest
import torch
from comparison import difference, random_model
from tiny import TINY_UNETS
from torch import Tensor, nn

from minisd import attach
from minisd.clip import CLIPText
from minisd.config import TINY_MODEL, TINY_TEXT
from minisd.fast import attention
from minisd.fast.onednn import OneDNNLinear, OneDNNPoint, PackedConv2d, PackedLinear, serves
from minisd.fast.passes import plain, quicken
from minisd.unet import UNet
from minisd.vae import VAE

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.06}      # relative to the largest value, through a whole network
needs_onednn = pytest.mark.skipif(not serves(torch.zeros(1)), reason="PyTorch was built without oneDNN")


@pytest.fixture(autouse=True)
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in chunks, as elsewhere over large pictures alone."""
    monkeypatch.setattr(attention, "LARGE", 64)
    monkeypatch.setattr("minisd.fast.passes.worthwhile", lambda: True)


def told(cfg: str, dtype: torch.dtype) -> tuple[UNet, tuple[Tensor, ...]]:
    """A small UNet and what it is told."""
    unet = random_model(UNet, TINY_UNETS[cfg], 0).to(dtype).requires_grad_(False)
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, context = torch.randn(2, unet.cfg.in_channels, 24, 16), torch.randn(2, 13, unet.cfg.context_dim)
    label = (torch.randn(2, unet.cfg.label_dim).to(dtype),) if unet.cfg.label_dim else ()
    return unet, (x.to(dtype), torch.tensor([3.0, 700.0]), context.to(dtype), *label)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("cfg", ["sd15", "sdxl", "sd15-midless"])
def test_a_unet_draws_the_same_and_can_be_had_back(cfg: str, dtype: torch.dtype) -> None:
    if not serves(torch.zeros(1, dtype=dtype)):
        pytest.skip(f"oneDNN does not compute in {dtype} here")
    unet, inputs = told(cfg, dtype)
    weights = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    with torch.inference_mode():
        before = unet(*inputs)
        assert quicken(unet) is unet and quicken(unet) is unet
        assert difference(unet(*inputs), before).relative < TOLERANCE[dtype]
        assert all(torch.equal(tensor, weights[name]) for name, tensor in unet.state_dict().items())
        assert plain(unet) is unet
        assert torch.equal(unet(*inputs), before)
    assert {type(module) for module in unet.modules()} == {type(module) for module in told(cfg, dtype)[0].modules()}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in unet.named_parameters())
    assert not any(tensor.is_inference() for tensor in unet.parameters())
    copy.deepcopy(unet)


@needs_onednn
def test_a_decoder_and_a_text_model() -> None:
    vae = random_model(VAE, TINY_MODEL.vae, 0).requires_grad_(False)
    text = random_model(CLIPText, TINY_TEXT, 1).requires_grad_(False)
    z, ids = torch.randn(1, vae.cfg.latent_channels, 16, 24), torch.arange(8)[None]
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        picture, states = vae.decode(z), text(ids)
        quicken(vae.decoder, packed=False)
        quicken(text)
        assert difference(vae.decode(z), picture).relative < TOLERANCE[torch.float32]
        assert difference(text(ids).hidden, states.hidden).relative < TOLERANCE[torch.float32]
    kinds = {type(module) for module in vae.decoder.modules()}
    assert {OneDNNLinear, OneDNNPoint} < kinds and not {PackedConv2d, PackedLinear} & kinds
    assert PackedLinear in {type(module) for module in text.modules()}
    copy.deepcopy(vae)


@needs_onednn
def test_a_weight_in_memory_of_others_stays_there() -> None:
    layers = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).requires_grad_(False)
    memory = bytearray(16 * 16 * 4)                   # as of a file that is mapped
    layers[0].weight = nn.Parameter(torch.frombuffer(memory, dtype=torch.float32).view(16, 16), requires_grad=False)
    place = layers[0].weight.data_ptr()
    quicken(layers)
    assert [type(layer) for layer in layers] == [OneDNNLinear, PackedLinear]
    assert layers[0].weight.data_ptr() == place


def test_what_is_trained_is_only_laid_out() -> None:
    unet = random_model(UNet, TINY_UNETS["sd15"], 0)
    kinds, parameters = [type(module) for module in unet.modules()], list(unet.parameters())
    quicken(unet.requires_grad_(True))
    assert [type(module) for module in unet.modules()] == kinds
    assert all(a is b for a, b in zip(unet.parameters(), parameters, strict=True))
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_modules_of_others_stay() -> None:
    class Other(nn.Linear):
        """What somebody has attached."""

    unet, inputs = told("sd15", torch.float32)
    ff = unet.mid.attn[0].layers[0].ff
    ff.in_proj.__class__ = Other
    quicken(unet)
    assert type(ff.in_proj) is Other
    with torch.inference_mode():
        unet(*inputs)
    assert type(plain(unet).mid.attn[0].layers[0].ff.in_proj) is Other


def test_an_adapter_finds_its_modules_after_a_drawing() -> None:
    unet, inputs = told("sd15", torch.float32)
    with torch.inference_mode():
        before = quicken(unet)(*inputs)
    attach.attach(unet, attach.LoRASpec("a", targets=("mid.*",)), torch.Generator().manual_seed(0))
    for side in attach.parameters(unet, "a"):
        side.data.fill_(0.1)
    with torch.inference_mode():
        changed = quicken(unet)(*inputs)
        assert difference(changed, before).relative > 1e-3
        attach.detach(unet, "a")
        assert difference(quicken(unet)(*inputs), before).relative < TOLERANCE[torch.float32]
