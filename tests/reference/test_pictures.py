"""Pictures from pictures, masks and edits beside diffusers' pipelines: the same seeds, the same latents in the end."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from comparison import assert_close, random_model
from PIL import Image, ImageDraw

from minisd import images
from minisd.clip import CLIPText
from minisd.config import TINY_MODEL
from minisd.drawing.canvas import canvas_of
from minisd.drawing.control import Guide, Mask, Start
from minisd.drawing.plan import Drawing
from minisd.drawing.walk import draw_latents
from minisd.pipeline import StableDiffusion
from minisd.samplers.guidance import thresholded
from minisd.samplers.schedule import Level
from minisd.unet import UNet
from minisd.vae import VAE

pytestmark = pytest.mark.parity
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")
from reference.peers import unet_like, vae_like  # noqa: E402
from reference.schedulers import DDIM, DPM, EULER, LEADING, NO_CLIP, SD15, scheduler_of  # noqa: E402

TOLERANCE = 1e-5
SIZE = (72, 64)
SCHEDULERS = {                                    # our sampler, and theirs with what it needs to be the same
    "ddim": (DDIM, {**SD15, **NO_CLIP}), "euler leading": (EULER, LEADING), "dpm++2m rounded": (DPM, {}),
}
PICTURE = Image.effect_mandelbrot(SIZE, (-2, -1.5, 1, 1.5), 50).convert("RGB")
TENSOR = images.to_tensor(PICTURE)[None]          # they would round otherwise on the way to [-1, 1]


def mask() -> Image.Image:
    """A mask on the grid of the latents: elsewhere theirs looks at the corner of each, ours at all its pixels."""
    made = Image.new("L", SIZE)
    ImageDraw.Draw(made).rectangle((16, 24, 47, 55), fill=255)
    return made


@cache
def model(channels: int = 4, prediction: str = "epsilon") -> StableDiffusion:
    cfg = replace(TINY_MODEL, unet=replace(TINY_MODEL.unet, in_channels=channels), prediction=prediction)
    vae = random_model(VAE, cfg.vae, seed=1)
    vae.encoder.moments.bias[cfg.vae.latent_channels:] -= 4          # deviations that do not drown the picture
    return StableDiffusion(cfg, random_model(UNet, cfg.unet), vae, (random_model(CLIPText, cfg.text[0], seed=2),))


def theirs(kind: str, sd: StableDiffusion, sampler: str):
    reference, config = SCHEDULERS[sampler]
    vae, unet = vae_like(sd.vae), unet_like(sd.unet)
    vae.register_to_config(scaling_factor=sd.cfg.latent_scale)
    unet.register_to_config(sample_size=SIZE[1] // sd.vae.cfg.factor)
    pipe = getattr(diffusers, f"StableDiffusion{kind}Pipeline")(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet,
        scheduler=scheduler_of(reference, sd.cfg.prediction, **config), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.inference_mode()
def compare(kind: str, sd: StableDiffusion, drawing: Drawing, *pictures: Image.Image, **options) -> float:
    """Two seeds drawn together by us, and each alone by diffusers."""
    drawings = [replace(drawing, seed=drawing.seed + n) for n in range(2)]
    album = images.album(*pictures)
    ours = draw_latents(sd, drawings, canvas_of(drawing, album), None)
    words = sd.encode([drawing.negative, drawing.prompt]).context
    pipe, worst = theirs(kind, sd, drawing.sampler), 0.0
    for one, latents in zip(drawings, ours, strict=True):
        found = pipe(prompt_embeds=words[1:], negative_prompt_embeds=words[:1], num_inference_steps=one.steps,
                     guidance_scale=one.guidance, generator=torch.Generator().manual_seed(one.seed),
                     output_type="latent", **options).images
        worst = max(worst, assert_close(f"latents, seed {one.seed}", latents[None], found, TOLERANCE))
    return worst


def drawing(sampler: str, **more) -> Drawing:
    return Drawing("a red apple", "blue", 6, 5.0, sampler, 11, *SIZE, **more)


def start(strength: float) -> Start:
    return Start(images.fingerprint(PICTURE), strength)


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.2, 0.5, 0.9])
def test_img2img(sampler: str, strength: float, measured) -> None:
    measured("img2img", compare("Img2Img", model(), drawing(sampler, start=start(strength)), PICTURE,
                                image=TENSOR, strength=strength))


def masked(strength: float, sampler: str) -> Drawing:
    return drawing(sampler, start=start(strength), mask=Mask(images.fingerprint(mask())))


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.5, 0.9])
def test_inpainting_with_any_model(sampler: str, strength: float, measured) -> None:
    measured("inpainting, 4 channels", compare(
        "Inpaint", model(), masked(strength, sampler), PICTURE, mask(), image=TENSOR, mask_image=mask(),
        strength=strength, width=SIZE[0], height=SIZE[1]))


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_with_a_model_for_it(sampler: str, strength: float, measured) -> None:
    measured("inpainting, 9 channels", compare(
        "Inpaint", model(9), masked(strength, sampler), PICTURE, mask(), image=TENSOR, mask_image=mask(),
        strength=strength, width=SIZE[0], height=SIZE[1]))


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("image_guidance", [1.0, 1.5])
def test_instruct_pix2pix(sampler: str, image_guidance: float, measured) -> None:
    measured("instruct-pix2pix", compare(
        "InstructPix2Pix", model(8), drawing(sampler, start=start(1.0), image_guidance=image_guidance), PICTURE,
        image=TENSOR, image_guidance_scale=image_guidance))


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_rescaled_guidance(sampler: str, prediction: str, measured) -> None:
    measured("guidance rescale", compare("", model(4, prediction), drawing(sampler, guide=Guide(rescale=0.7)),
                                         guidance_rescale=0.7, width=SIZE[0], height=SIZE[1]))


def test_thresholding_where_the_bound_is_1(measured) -> None:
    """diffusers has Imagen's, for pixels; ours is that where x0 without guidance reaches just 1."""
    x0 = 3 * torch.randn(4, 4, 8, 9, generator=torch.Generator().manual_seed(5))
    reference = scheduler_of(DDIM, thresholding=True, dynamic_thresholding_ratio=0.97, sample_max_value=1e9)
    ours = thresholded(0.97)(x0, torch.ones_like(x0), x0, Level(1.0, 0.0))
    measured("dynamic thresholding", assert_close("x0", ours, reference._threshold_sample(x0), TOLERANCE))
