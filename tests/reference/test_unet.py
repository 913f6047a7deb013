"""The UNet beside diffusers', layer by layer: equal bits on the CPU, for every family."""

import re
from functools import cache

import pytest
import torch
from comparison import norms, random_model, with_eps
from conftest import TOLERANCE
from tiny import TINY_UNETS
from torch import Tensor, nn

from minisd.config import UNetConfig
from minisd.sites import unet_sites
from minisd.unet import UNet

pytestmark = pytest.mark.parity
pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")
from reference.peers import unet_like  # noqa: E402
from reference.side_by_side import SMALL, compare_unets, normal, unet_inputs  # noqa: E402

SIZES = [(16, 8), (7, 9), (5, 5)]  # of the latents; the odd ones are rounded up on the way down


@cache
def pair(cfg: UNetConfig, gain: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    ours = random_model(UNet, cfg, gain=gain).to(dtype)
    return ours, unet_like(ours)


@pytest.fixture
def compare(measured):
    suffix = {torch.float32: "", torch.bfloat16: ", bfloat16"}

    def note(ours, theirs, given, dtype=torch.float32) -> None:
        difference = compare_unets(ours, theirs, given, TOLERANCE[dtype])
        measured(f"UNet beside diffusers{suffix[dtype]}", difference)
    return note


@pytest.mark.parametrize("gain", [1.0, SMALL], ids=["ordinary", "small activations"])
@pytest.mark.parametrize("preset", TINY_UNETS)
def test_every_layer(preset, gain, compare):
    ours, theirs = pair(TINY_UNETS[preset], gain)
    compare(ours, theirs, unet_inputs(ours.cfg, gain=gain))


@pytest.mark.parametrize("preset", ["sd15", "sd21", "bk-small"])
def test_every_layer_in_bfloat16(preset, compare):
    ours, theirs = pair(TINY_UNETS[preset], dtype=torch.bfloat16)
    compare(ours, theirs, unet_inputs(ours.cfg).to(torch.bfloat16), torch.bfloat16)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("preset", ["sd15", "sdxl", "bk-tiny"])
def test_every_size_of_latents(preset, size, compare):
    ours, theirs = pair(TINY_UNETS[preset])
    compare(ours, theirs, unet_inputs(ours.cfg, *size))


@pytest.mark.parametrize("preset", ["sd15", "sdxl", "sd15-midless", "bk-base"])
def test_what_a_controlnet_adds(preset, compare):
    ours, theirs = pair(TINY_UNETS[preset])
    given = unet_inputs(ours.cfg, 7, 9)
    skips = [site for site in unet_sites(ours.cfg, 7, 9) if site.startswith("skip.")]
    given.add = residuals(ours.cfg, 7, 9, ["mid", *skips])
    given.theirs |= {"down_block_additional_residuals": tuple(given.add[skip] for skip in skips),
                     "mid_block_additional_residual": given.add["mid"]}
    compare(ours, theirs, given)


@pytest.mark.parametrize(("preset", "sites"), [
    ("sd15", ["down.0", "down.1", "down.2", "down.3"]),
    ("sdxl", ["down.0.downsample", "down.1", "down.2"]),  # diffusers adds after the resize of a stage without attention
])
def test_what_a_t2i_adapter_adds(preset, sites, compare):
    ours, theirs = pair(TINY_UNETS[preset])
    given = unet_inputs(ours.cfg)
    given.add = residuals(ours.cfg, 8, 8, sites)
    given.theirs["down_intrablock_additional_residuals"] = list(given.add.values())
    compare(ours, theirs, given)


def residuals(cfg: UNetConfig, height: int, width: int, sites: list[str]) -> dict[str, Tensor]:
    shapes = unet_sites(cfg, height, width)
    return {site: normal(2, *shapes[site], seed=n) for n, site in enumerate(sites)}


@pytest.mark.parametrize("norm", [
    "down.0.res.0.norm1", "down.1.res.1.norm2", "down.0.attn.0.norm", "down.0.attn.0.layers.0.norm1", "mid.attn.0.norm",
    "mid.attn.0.layers.0.norm2", "up.3.attn.2.norm", "up.3.attn.2.layers.0.norm3", "norm_out",
])
def test_a_wrong_eps_shows_and_is_named(norm):
    ours, theirs = pair(TINY_UNETS["sd15"], SMALL)
    wrong = 1e-6 if norms(ours)[norm] == 1e-5 else 1e-5
    with pytest.raises(AssertionError, match=rf"^{re.escape(norm)}: largest difference .* at \[.*ours .*, reference "):
        compare_unets(with_eps(ours, norm, wrong), theirs, unet_inputs(ours.cfg, gain=SMALL), tolerance=1e-2)
