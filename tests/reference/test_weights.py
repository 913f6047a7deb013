"""A real SD1.5 checkpoint: its three parts beside the references', every layer; both ways; and a picture."""

import os
from functools import cache
from pathlib import Path

import pytest
import torch
from comparison import assert_close
from conftest import TOLERANCE
from families import same
from torch import nn

import minisd
from minisd.config import CLIP_L, SD15
from minisd.store import drawable
from weights_convert.sources import open_model
from weights_convert.write import write

PATH = Path(os.environ.get("MINISD_SD15", ""))
HOW = ("set MINISD_SD15 to v1-5-pruned-emaonly.safetensors or .ckpt (4.3 GB), which the Hugging Face Hub has under "
       "stable-diffusion-v1-5/stable-diffusion-v1-5")
pytestmark = [pytest.mark.weights, pytest.mark.parity, pytest.mark.timeout(1800),
              pytest.mark.skipif(not PATH.is_file(), reason=HOW)]
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")
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

TOL = TOLERANCE[torch.float32]
PROMPT = "a photograph of an astronaut riding a horse"


@cache
def part(name: str) -> nn.Module:
    return drawable(open_model(PATH).parts[name])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The checkpoint as diffusers' folder."""
    path = tmp_path_factory.mktemp("diffusers") / "folder"
    write(open_model(PATH), path, "diffusers")
    return path


def test_unet(measured):
    ours = part("unet")
    measured("real UNet", compare_unets(ours, unet_like(ours), unet_inputs(SD15, 32, 32, batch=1), TOL))


def test_vae_encoder(measured):
    ours = part("vae")
    measured("real VAE encoder", compare_encoders(ours, vae_like(ours), normal(1, 3, 256, 256).tanh(), TOL))


def test_vae_decoder(measured):
    ours = part("vae")
    measured("real VAE decoder", compare_decoders(ours, vae_like(ours), normal(1, 4, 32, 32), TOL))


def test_text(measured):
    ours = part("text")
    measured("real CLIP text", compare_texts(ours, text_like(ours), words(CLIP_L), TOL))


def test_both_ways(folder, tmp_path):
    for name in ("one", "two"):
        write(open_model(PATH if name == "one" else folder), tmp_path / f"{name}.safetensors", "ldm")
    assert same(tmp_path / "one.safetensors", tmp_path / "two.safetensors")


def test_a_picture(folder, measured):
    """Of 256 x 256 in four steps, as our file and as diffusers' folder draw it; compared as latents."""
    sd, last = minisd.load(PATH, "cpu", "float32"), []
    drawing = sd.drawing(PROMPT, "blurry", steps=4, cfg=7.5, sampler="ddim", seed=3, size=(256, 256))
    sd.draw([drawing], lambda x, s: last.append(x / s.next.scale) or x)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    expected = pipe(PROMPT, negative_prompt="blurry", num_inference_steps=4, guidance_scale=7.5, height=256, width=256,
                    generator=torch.Generator().manual_seed(3), output_type="latent").images
    measured("real picture", assert_close("latents", last[-1], expected, 1e-4))
