"""The UNet beside diffusers', layer by layer: equal bits on the CPU in float32, for every family."""

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from comparison import assert_close, assert_same_layers, norms, paired, random_model, recorded, with_eps
from conftest import TOLERANCE
from tiny import TINY_UNETS
from torch import Tensor, nn

from minisd.config import UNetConfig
from minisd.layers import timestep_features
from minisd.sites import Sites, unet_sites
from minisd.unet import UNet
from weights_convert.tables import HF, unet

pytestmark = pytest.mark.parity
pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")
peers = pytest.importorskip("reference.peers")

TOL = TOLERANCE[torch.float32]["unet"]
SIZES = [(16, 8), (7, 9), (5, 5)]  # of the latents; the odd ones are rounded up on the way down
SMALL = 1e-3


@dataclass
class Inputs:
    """Random inputs of a UNet, for both libraries."""

    x: Tensor
    t: Tensor
    context: Tensor
    label: Tensor | None = None
    add: dict[str, Tensor] = field(default_factory=dict)
    theirs: dict[str, Any] = field(default_factory=dict)


def inputs(cfg: UNetConfig, height: int = 8, width: int = 8, seed: int = 1, gain: float = 1.0) -> Inputs:
    noise = torch.Generator().manual_seed(seed)
    made = Inputs(torch.randn(2, cfg.in_channels, height, width, generator=noise) * gain, torch.tensor([999, 17]),
                  torch.randn(2, 7, cfg.context_dim, generator=noise) * gain)
    if cfg.label_dim is not None:
        features = peers.label_features(cfg)
        pooled = torch.randn(2, cfg.label_dim - 6 * features, generator=noise) * gain
        sizes = torch.tensor([[512.0, 512, 0, 0, 512, 512], [300, 400, 8, 16, 512, 256]])
        of_sizes = timestep_features(sizes.flatten(), features).unflatten(0, (2, 6)).flatten(1)
        made.label = torch.cat([pooled, of_sizes], dim=1)
        made.theirs = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    return made


@cache
def pair(cfg: UNetConfig, gain: float = 1.0) -> tuple[nn.Module, nn.Module]:
    ours = random_model(UNet, cfg, gain=gain)
    return ours, peers.unet_like(ours)


def skip_inputs(model: nn.Module, kept: list[Tensor]) -> list[Any]:
    """Hooks that keep the skips as diffusers' up blocks receive them."""
    def hook(_module, args, kwargs) -> None:
        skips = kwargs.get("res_hidden_states_tuple", args[1] if len(args) > 1 else ())
        kept.extend(reversed(skips))
    return [block.register_forward_pre_hook(hook, with_kwargs=True) for block in model.up_blocks]


def sites_of(cfg: UNetConfig) -> dict[str, str]:
    """diffusers' module whose output is at each of our sites; the skips are inputs, see `skip_inputs`."""
    named = {"conv_in": "conv_in"}
    last = len(cfg.widths) - 1
    for i, depth in enumerate(cfg.depths):
        named[f"down.{i}"] = f"down_blocks.{i}.{'attentions' if depth else 'resnets'}.{cfg.layers - 1}"
        if i < last:
            named[f"down.{i}.downsample"] = f"down_blocks.{i}.downsamplers.0"
        named[f"up.{i}"] = f"up_blocks.{i}"
    return named | ({} if cfg.mid_depth is None else {"mid": "mid_block"})


def compare(ours: nn.Module, theirs: nn.Module, given: Inputs, tolerance: float = TOL) -> float:
    """Every module with a weight, every block, every site, and the output; returns the largest difference."""
    cfg = ours.cfg
    pairs = paired(unet.rows(cfg, "diffusers"), unet.blocks(cfg), HF)
    named = sites_of(cfg)
    sites = Sites(given.add, keep=tuple(unet_sites(cfg, 8, 8)))
    skips: list[Tensor] = []
    handles = skip_inputs(theirs, skips)
    with recorded(ours, pairs) as ran, recorded(theirs, {*pairs.values(), *named.values()}) as reference:
        y = ours(given.x, given.t, given.context, given.label, sites)
        expected = theirs(given.x, given.t, given.context, **given.theirs).sample
    for handle in handles:
        handle.remove()
    assert ran.keys() == pairs.keys(), f"never run: {pairs.keys() - ran.keys()}"
    worst = [assert_same_layers(ran, reference, pairs, tolerance)]
    at_sites = {site: reference[name] + given.add.get(site, 0) for site, name in named.items()}
    at_sites |= {f"skip.{n}": skip for n, skip in enumerate(reversed(skips))}
    worst += [assert_close(f"site {site}", sites.kept[site], tensor, tolerance) for site, tensor in at_sites.items()]
    return max(*worst, assert_close("output", y, expected, tolerance))


@pytest.mark.parametrize("gain", [1.0, SMALL], ids=["ordinary", "small activations"])
@pytest.mark.parametrize("preset", TINY_UNETS)
def test_every_layer(preset, gain):
    ours, theirs = pair(TINY_UNETS[preset], gain)
    compare(ours, theirs, inputs(ours.cfg, gain=gain))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("preset", ["sd15", "sdxl", "bk-tiny"])
def test_every_size_of_latents(preset, size):
    ours, theirs = pair(TINY_UNETS[preset])
    compare(ours, theirs, inputs(ours.cfg, *size))


@pytest.mark.parametrize("preset", ["sd15", "sdxl", "sd15-midless", "bk-base"])
def test_what_a_controlnet_adds(preset):
    ours, theirs = pair(TINY_UNETS[preset])
    given = inputs(ours.cfg, 7, 9)
    skips = [site for site in unet_sites(ours.cfg, 7, 9) if site.startswith("skip.")]
    given.add = residuals(ours.cfg, 7, 9, ["mid", *skips])
    given.theirs |= {"down_block_additional_residuals": tuple(given.add[skip] for skip in skips),
                     "mid_block_additional_residual": given.add["mid"]}
    compare(ours, theirs, given)


@pytest.mark.parametrize(("preset", "sites"), [
    ("sd15", ["down.0", "down.1", "down.2", "down.3"]),
    ("sdxl", ["down.0.downsample", "down.1", "down.2"]),  # diffusers adds after the resize of a stage without attention
])
def test_what_a_t2i_adapter_adds(preset, sites):
    ours, theirs = pair(TINY_UNETS[preset])
    given = inputs(ours.cfg)
    given.add = residuals(ours.cfg, 8, 8, sites)
    given.theirs["down_intrablock_additional_residuals"] = list(given.add.values())
    compare(ours, theirs, given)


def residuals(cfg: UNetConfig, height: int, width: int, sites: list[str]) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(2)
    shapes = unet_sites(cfg, height, width)
    return {site: torch.randn(2, *shapes[site], generator=noise) for site in sites}


@pytest.mark.parametrize("norm", [
    "down.0.res.0.norm1", "down.1.res.1.norm2", "down.0.attn.0.norm", "down.0.attn.0.layers.0.norm1", "mid.attn.0.norm",
    "mid.attn.0.layers.0.norm2", "up.3.attn.2.norm", "up.3.attn.2.layers.0.norm3", "norm_out",
])
def test_a_wrong_eps_shows_and_is_named(norm):
    ours, theirs = pair(TINY_UNETS["sd15"], SMALL)
    wrong = 1e-6 if norms(ours)[norm] == 1e-5 else 1e-5
    with pytest.raises(AssertionError, match=rf"^{re.escape(norm)}: largest difference .* at \[.*ours .*, reference "):
        compare(with_eps(ours, norm, wrong), theirs, inputs(ours.cfg, gain=SMALL), tolerance=1e-2)
