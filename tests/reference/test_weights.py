"""A real SD1.5 checkpoint: its three parts beside the references', every layer, with its own weights."""

import os
from functools import cache
from pathlib import Path

import pytest
import torch
from comparison import on_meta
from conftest import TOLERANCE
from torch import Tensor, nn

from minisd.clip import CLIPText
from minisd.config import CLIP_L, SD15, VAEConfig
from minisd.unet import UNet
from minisd.vae import VAE
from weights_convert.tables import clip, unet, vae
from weights_convert.translate import to_ours

PATH = Path(os.environ.get("MINISD_SD15", ""))
HOW = ("set MINISD_SD15 to v1-5-pruned-emaonly.safetensors (4.3 GB), which the Hugging Face Hub has under "
       "stable-diffusion-v1-5/stable-diffusion-v1-5")
pytestmark = [pytest.mark.weights, pytest.mark.parity, pytest.mark.skipif(not PATH.is_file(), reason=HOW)]
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
from safetensors import safe_open  # noqa: E402

TOL = TOLERANCE[torch.float32]
PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text": "cond_stage_model.transformer."}


def tensors(part: str) -> dict[str, Tensor]:
    """One part's tensors, in float32."""
    prefix = PREFIXES[part]
    with safe_open(PATH, "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name).float() for name in names}


def loaded(model, cfg, weights: dict[str, Tensor]) -> nn.Module:
    made = on_meta(model, cfg)
    made.load_state_dict(weights, assign=True)
    return made.requires_grad_(False).eval()


@cache
def autoencoder() -> nn.Module:
    return loaded(VAE, VAEConfig(), to_ours(tensors("vae"), vae.rows(VAEConfig(), "ldm")))


def test_unet(measured):
    ours = loaded(UNet, SD15, to_ours(tensors("unet"), unet.rows(SD15, "ldm")))
    measured("real UNet", compare_unets(ours, unet_like(ours), unet_inputs(SD15, 32, 32, batch=1), TOL))


def test_vae_encoder(measured):
    ours = autoencoder()
    measured("real VAE encoder", compare_encoders(ours, vae_like(ours), normal(1, 3, 256, 256).tanh(), TOL))


def test_vae_decoder(measured):
    ours = autoencoder()
    measured("real VAE decoder", compare_decoders(ours, vae_like(ours), normal(1, 4, 32, 32), TOL))


def test_text(measured):
    ours = loaded(CLIPText, CLIP_L, to_ours(tensors("text"), clip.text_rows(CLIP_L, "hf")))
    measured("real CLIP text", compare_texts(ours, text_like(ours), words(CLIP_L), TOL))
