"""A batch of drawings from noise, or from a picture, down to latents: what every way of drawing shares."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minisd.drawing.canvas import LANCZOS, Canvas
from minisd.drawing.conditions import denoiser_of, extra_channels
from minisd.drawing.control import Walk
from minisd.drawing.plan import Drawing
from minisd.errors import USAGE, MinisdError
from minisd.fast.beside import keeping
from minisd.images import to_images, to_tensor
from minisd.models import Models
from minisd.samplers.denoiser import inpainting
from minisd.samplers.loop import Interval, sample
from minisd.samplers.noise import NOISES, ImageNoise

log = logging.getLogger(__name__)

OnStep = Callable[[Tensor, Interval], Tensor]


@dataclass(frozen=True)
class Ground:
    """What a walk begins from and what it keeps; each is about latents, [b, c, h, w]."""

    noise: ImageNoise                             # the solver's, from here on
    start: Tensor                                 # standard normal noise
    known: Tensor | None = None                   # the picture, where the walk begins from it or keeps some of it
    mask: Tensor | None = None                    # boolean [1, 1, h, w]: where it is False, the known is kept
    extra: Tensor | None = None                   # what the UNet reads beside the latents


def draw_latents(models: Models, drawings: Sequence[Drawing], canvas: Canvas | None, on_step: OnStep | None) -> Tensor:
    """All walks of a batch: drawings that agree in all but prompt and seed, on one canvas."""
    first, (begin, *more) = drawings[0], drawings[0].walks()
    check(models, first)
    x = walk(models, drawings, begin, ground_of(models, drawings, canvas), on_step)
    for again in more:
        x = walk(models, drawings, again, enlarged(models, drawings, again, x), on_step)
    return x


def walk(models: Models, drawings: Sequence[Drawing], way: Walk, ground: Ground, on_step: OnStep | None) -> Tensor:
    """One way down."""
    if way.skipped:
        log.warning("%d of %d steps are taken", way.steps - way.skipped, way.steps)
    if ground.known is not None and way.skipped == way.steps:
        return ground.known
    recipe, table = drawings[0].recipe(), models.cfg.noise
    schedule = recipe.schedule(table, way.steps)
    x = schedule[0].scale * ground.start
    if ground.known is not None and way.skipped:
        x = ground.known + schedule[way.skipped].sigma * ground.start
    denoise = denoiser_of(models, drawings, schedule, way.skipped, ground.extra)
    if ground.known is not None and ground.mask is not None:
        denoise = inpainting(denoise, ground.known, ground.mask, ground.start)
    with keeping():
        x = sample(recipe.solver, denoise, x, schedule, table, noise=ground.noise, first=way.skipped, on_step=on_step)
    x = x / schedule[-1].scale                    # where a little noise is left, the VAE is given what DDPM calls x
    return x if ground.known is None or ground.mask is None else torch.where(ground.mask, x, ground.known)


def check(models: Models, drawing: Drawing) -> None:
    """Refuses what this model cannot draw."""
    factor, latent = models.vae.cfg.factor, models.cfg.vae.latent_channels
    for way in drawing.walks():
        if way.width % factor or way.height % factor:
            raise MinisdError(f"a picture of {way.width}x{way.height}", "--size",
                              f"this model's latents are {factor} pixels wide", f"give multiples of {factor}", USAGE)
    extra = extra_channels(models)
    if extra == latent + 1 and drawing.mask is None:
        raise MinisdError("this model draws into masks only", "--model", f"its UNet reads {extra} channels more",
                          "give a picture and a mask; a white mask has all of it drawn", USAGE)
    if (extra == latent) != (drawing.image_guidance is not None):
        raise MinisdError("this model edits pictures as it is told" if extra == latent else
                          "--image-cfg is for models that edit pictures as they are told", "--model",
                          f"its UNet reads {extra} channels beside the latents",
                          "give a picture and --image-cfg" if extra == latent else "leave it out", USAGE)
    if extra not in (0, latent, latent + 1):
        raise MinisdError(f"a UNet of {extra} channels beside the latents", "--model",
                          "neither inpainting nor instruct-pix2pix has so many", "take another model", USAGE)


# ---------------------------------------------------------------- what a walk begins from
def noise_of(models: Models, drawings: Sequence[Drawing], way: Walk) -> ImageNoise:
    """Each drawing's own noise, in the shape of its latents."""
    factor = models.vae.cfg.factor
    shape = (models.vae.cfg.latent_channels, way.height // factor, way.width // factor)
    noise = NOISES[drawings[0].recipe().noise]
    return noise([one.seed for one in drawings], shape, device=models.device)


def ground_of(models: Models, drawings: Sequence[Drawing], canvas: Canvas | None) -> Ground:
    """The noise of the drawings, and what their picture adds; it is drawn in the order of diffusers' pipelines."""
    way = drawings[0].walks()[0]
    noise, known, mask = noise_of(models, drawings, way), None, None
    if canvas is None:
        return Ground(noise, noise.draw())
    if canvas.mask is not None:
        mask = latent_mask(canvas.mask, models.vae.cfg.factor).to(models.device)
    blended = mask is not None and extra_channels(models) == 0
    if way.skipped or blended:
        known = models.latents(to_tensor(canvas.picture)[None]).sample(noise.draw()) * models.cfg.latent_scale
    start = noise.draw()
    return Ground(noise, start, known, mask if blended else None, _extra(models, canvas, mask, noise))


def enlarged(models: Models, drawings: Sequence[Drawing], way: Walk, x: Tensor) -> Ground:
    """What has been drawn, as the beginning of a larger walk; the noise begins anew from the same seeds."""
    noise, hires = noise_of(models, drawings, way), drawings[0].hires
    if hires is not None and hires.upscaler == "lanczos":
        small = to_images(models.pictures(x, drawings))
        large = torch.stack([to_tensor(one.resize((way.width, way.height), LANCZOS)) for one in small])
        known = models.latents(large).sample(noise.draw()) * models.cfg.latent_scale
    else:
        known = F.interpolate(x, noise.shape[1:], mode="bilinear")
    return Ground(noise, noise.draw(), known)


def latent_mask(mask: Image.Image, factor: int) -> Tensor:
    """Where any pixel of a latent is white: -> boolean [1, 1, h / factor, w / factor]."""
    white = torch.from_numpy(np.asarray(mask) > 127)[None, None]
    return F.max_pool2d(white.float(), factor) > 0


def _extra(models: Models, canvas: Canvas, mask: Tensor | None, noise: ImageNoise) -> Tensor | None:
    """The UNet's channels beside the latents, [b, c, h, w]."""
    if extra_channels(models) == 0:
        return None
    picture = to_tensor(canvas.picture)[None]
    if mask is None or canvas.mask is None:       # instruct-pix2pix: the mean, and in the VAE's own scale
        return models.latents(picture).mean
    hidden = picture.where(torch.from_numpy(np.asarray(canvas.mask) <= 127), 0.0)
    kept = models.latents(hidden).sample(noise.draw()) * models.cfg.latent_scale
    return torch.cat([mask.to(kept.dtype).expand(len(kept), -1, -1, -1), kept], dim=1)
