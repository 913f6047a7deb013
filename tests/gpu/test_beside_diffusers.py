"""The networks beside diffusers' and transformers' on the same device in the same precision, layer by layer.

On the processor both run the same kernels on the same layouts, and so to the same bits; the libraries of a GPU choose
theirs by more than that.
"""

from dataclasses import replace

import pytest
import torch
from comparison import random_model
from precision import DTYPES, TOLERANCE
from tiny import TINY_UNETS

from minisd.clip import CLIPText
from minisd.config import TINY_TEXT, TINY_VAE
from minisd.unet import UNet
from minisd.vae import VAE

pytestmark = pytest.mark.parity
pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")
from reference.peers import text_like, unet_like, vae_like  # noqa: E402
from reference.side_by_side import (  # noqa: E402
    compare_decoders,
    compare_encoders,
    compare_texts,
    compare_unets,
    normal,
    unet_inputs,
    words,
)


def allowed(device: torch.device, dtype: str) -> float:
    return TOLERANCE[dtype] if device.type == "cuda" else 0.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preset", ["sd15", "sd21", "bk-small"])
def test_unet(preset: str, dtype: str, device: torch.device) -> None:
    kind = getattr(torch, dtype)
    ours = random_model(UNet, TINY_UNETS[preset]).to(device, kind)
    given = unet_inputs(ours.cfg)
    there = replace(given, x=given.x.to(device, kind), t=given.t.to(device), context=given.context.to(device, kind))
    with torch.inference_mode():
        compare_unets(ours, unet_like(ours), there, allowed(device, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_vae(dtype: str, device: torch.device) -> None:
    kind = getattr(torch, dtype)
    ours = random_model(VAE, TINY_VAE).to(device, kind)
    theirs, limit = vae_like(ours), allowed(device, dtype)
    with torch.inference_mode():
        compare_encoders(ours, theirs, normal(2, 3, 32, 32).to(device, kind), limit)
        compare_decoders(ours, theirs, normal(2, 4, 4, 4).to(device, kind), limit)


@pytest.mark.parametrize("dtype", DTYPES)
def test_text(dtype: str, device: torch.device) -> None:
    ours = random_model(CLIPText, TINY_TEXT).to(device, getattr(torch, dtype))
    with torch.inference_mode():
        compare_texts(ours, text_like(ours), words(TINY_TEXT, TINY_TEXT.window).to(device), allowed(device, dtype))
