"""Sites: what is added and kept where, and the shape of every site, known from the config alone."""

import pytest
import torch
from comparison import on_meta, random_model
from tiny import TINY_UNETS

from minisd.config import PRESETS, TINY
from minisd.sites import NO_SITES, Sites, unet_sites
from minisd.unet import UNet


def run_on_meta(cfg, height: int, width: int) -> dict[str, tuple[int, ...]]:
    sites = Sites(keep=tuple(unet_sites(cfg, height, width)))
    label = torch.empty(1, cfg.label_dim, device="meta") if cfg.label_dim else None
    y = on_meta(UNet, cfg)(torch.empty(1, cfg.in_channels, height, width, device="meta"), torch.empty(1, device="meta"),
                           torch.empty(1, 77, cfg.context_dim, device="meta"), label, sites)
    assert y.shape == (1, cfg.out_channels, height, width)
    return {name: tuple(tensor.shape[1:]) for name, tensor in sites.kept.items()}


@pytest.mark.parametrize("preset", PRESETS)
def test_shapes_at_every_site_of_the_full_size_models(preset):
    cfg = PRESETS[preset]
    assert run_on_meta(cfg, 64, 64) == unet_sites(cfg, 64, 64)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (64, 9), (63, 65)], ids=str)
@pytest.mark.parametrize("preset", ["sd15", "sdxl", "bk-tiny"])
def test_shapes_at_every_site_for_odd_sizes(preset, size):
    cfg = TINY_UNETS[preset]
    assert run_on_meta(cfg, *size) == unet_sites(cfg, *size)


def test_the_shapes_of_sd15_by_heart():
    shapes = unet_sites(PRESETS["sd15"], 64, 64)
    assert shapes["mid"] == (1280, 8, 8) and shapes["up.3"] == (320, 64, 64) and shapes["up.0"] == (1280, 16, 16)
    assert [shapes[f"skip.{n}"] for n in (0, 3, 6, 9, 11)] == [
        (320, 64, 64), (320, 32, 32), (640, 16, 16), (1280, 8, 8), (1280, 8, 8)]
    assert "skip.12" not in shapes


def test_sites_are_made_in_the_order_of_the_forward_pass():
    sites = Sites(keep=tuple(unet_sites(TINY, 8, 8)))
    inputs = torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1, 3, 32)
    random_model(UNet, TINY)(*inputs, sites=sites)
    order = list(sites.kept)
    assert order[:2] == ["conv_in", "down.0"] and order[-1] == "up.3"
    assert order.index("mid") < order.index("skip.11") < order.index("skip.0")


def test_keeping_changes_nothing_and_adding_is_kept():
    x, more = torch.ones(2), torch.tensor([1.0, 2.0])
    sites = Sites(add={"a": more}, keep=("a", "b"))
    assert torch.equal(sites("a", x), torch.tensor([2.0, 3.0]))
    assert sites("b", x) is x and sites("c", x) is x
    assert sites.kept.keys() == {"a", "b"} and torch.equal(sites.kept["a"], torch.tensor([2.0, 3.0]))
    assert torch.equal(x, torch.ones(2)), "added in place"


def test_no_sites_is_an_empty_constant():
    x = torch.ones(2)
    assert NO_SITES("mid", x) is x and NO_SITES.kept == {} and NO_SITES.keep == ()
    with pytest.raises(TypeError):
        NO_SITES.add["mid"] = x
