"""The UNet: its exact sizes, and what a forward pass may and may not depend on."""

from dataclasses import replace

import pytest
import torch
from comparison import assert_close, on_meta, random_model
from tiny import TINY_UNETS
from torch import Tensor

from minisd.config import PRESETS, SDXL, TINY
from minisd.sites import Sites, unet_sites
from minisd.unet import UNet

PARAMETERS = {
    "sd15": 859_520_964, "sd15-midless": 762_482_884, "sd15-inpaint": 859_535_364, "sd15-pix2pix": 859_532_484,
    "sd21": 865_910_724, "sdxl": 2_567_463_684, "bk-base": 579_384_964, "bk-small": 482_346_884, "bk-tiny": 323_384_964,
}


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(cfg=TINY, batch: int = 2, height: int = 8, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    x, context = normal(batch, cfg.in_channels, height, width), normal(batch, 7, cfg.context_dim, seed=2)
    return x, torch.tensor([999, 17])[:batch], context


@pytest.mark.parametrize("preset", PARAMETERS)
def test_parameters(preset):
    assert sum(p.numel() for p in on_meta(UNet, PRESETS[preset]).parameters()) == PARAMETERS[preset]


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (5, 9)], ids=str)
@pytest.mark.parametrize("preset", TINY_UNETS)
def test_output_has_the_shape_of_the_latents(preset, size):
    cfg = TINY_UNETS[preset]
    label = normal(2, cfg.label_dim) if cfg.label_dim else None
    y = random_model(UNet, cfg)(*inputs(cfg, 2, *size), label)
    assert y.shape == (2, 4, *size) and y.isfinite().all()


def test_a_picture_does_not_depend_on_its_batch():
    unet = random_model(UNet, TINY)
    x, t, context = inputs()
    together = unet(x, t, context)
    for n in range(2):
        alone = unet(x[n:n + 1], t[n:n + 1], context[n:n + 1])
        assert_close(f"picture {n}", together[n:n + 1], alone, 2e-6)


def test_time_and_words_matter():
    unet = random_model(UNet, TINY)
    x, t, context = inputs()
    y = unet(x, t, context)
    assert not torch.equal(y, unet(x, t + 1, context))
    assert not torch.equal(y, unet(x, t, context.flip(0)))


def test_label():
    cfg = TINY_UNETS["sdxl"]
    unet = random_model(UNet, cfg)
    label = normal(2, cfg.label_dim)
    assert not torch.equal(unet(*inputs(cfg), label), unet(*inputs(cfg), label + 1))
    with pytest.raises(ValueError, match="label missing but label_dim=64"):
        unet(*inputs(cfg))
    with pytest.raises(ValueError, match="label given but label_dim=None"):
        random_model(UNet, TINY)(*inputs(), normal(2, 64))


def test_adding_nothing_is_the_identity_and_adding_something_is_not():
    unet = random_model(UNet, TINY)
    shapes = unet_sites(TINY, 8, 8)
    nothing = {name: torch.zeros(2, *shape) for name, shape in shapes.items()}
    y = unet(*inputs())
    assert torch.equal(unet(*inputs(), sites=Sites(nothing)), y)
    for name, shape in shapes.items():
        assert not torch.equal(unet(*inputs(), sites=Sites({name: torch.ones(2, *shape)})), y), name


def test_what_is_added_to_a_skip_is_not_added_on_the_way_down():
    unet = random_model(UNet, TINY)
    shapes = unet_sites(TINY, 8, 8)
    plain, added = Sites(keep=("mid", "skip.0")), Sites({"skip.0": torch.ones(2, *shapes["skip.0"])}, ("mid", "skip.0"))
    unet(*inputs(), sites=plain)
    unet(*inputs(), sites=added)
    assert torch.equal(plain.kept["mid"], added.kept["mid"])
    assert torch.equal(plain.kept["skip.0"] + 1, added.kept["skip.0"])


def test_without_a_mid_block_the_site_is_still_there():
    unet = random_model(UNet, TINY_UNETS["sd15-midless"])
    sites = Sites(keep=("down.3", "mid"))
    unet(*inputs(unet.cfg), sites=sites)
    assert unet.mid is None and torch.equal(sites.kept["mid"], sites.kept["down.3"])


def test_gradients_reach_every_parameter():
    unet = random_model(UNet, TINY_UNETS["sdxl"]).requires_grad_(True)
    unet(*inputs(unet.cfg), normal(2, 64)).square().mean().backward()
    assert [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_config_is_kept_and_nothing_is_copied_from_it():
    unet = on_meta(UNet, replace(SDXL, in_channels=9))
    assert unet.cfg == replace(SDXL, in_channels=9)
    assert unet.conv_in.in_channels == 9
