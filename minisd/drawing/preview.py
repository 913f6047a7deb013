"""What a picture is becoming, while it is drawn: latents to small pictures by a linear map, a pixel for each latent."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minisd.config import VAEConfig
from minisd.drawing.walk import OnStep
from minisd.images import to_images
from minisd.samplers.loop import Interval
from minisd.vae import VAE

# Red, green and blue of each latent of SD1.x, by "keturn" in "Decoding latents to RGB without upscaling" (forum of
# Hugging Face, November 2022), which is also A1111's "Approx cheap". A grey latent of 0 is the constant.
SD1 = ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473), (0.0, 0.0, 0.0))
KNOWN = {(VAEConfig(), 0.18215): SD1}
SIDE, BLOCK = 32, 4                               # latents of the picture that is fitted, and of its blocks of colour
RIDGE = 1e-6                                      # of the variance of a latent, which is about 1

Show = Callable[[list[Image.Image], Interval], None]


def factors_of(vae: VAE, latent_scale: float) -> Tensor:
    """The map of this model, [latent channels + 1, 3]: the last row is the constant, the scale is as in [-1, 1]."""
    known = KNOWN.get((vae.cfg, latent_scale))
    return fitted(vae, latent_scale) if known is None else torch.tensor(known)


def fitted(vae: VAE, latent_scale: float) -> Tensor:
    """The map that best gives back a picture of random colours from its latents, by least squares."""
    colours = 2 * torch.rand(1, vae.cfg.channels, *[SIDE // BLOCK] * 2, generator=torch.Generator().manual_seed(0)) - 1
    small = F.interpolate(colours, scale_factor=BLOCK)
    weights = vae.encoder.conv_in.weight
    with torch.no_grad():
        picture = F.interpolate(small, scale_factor=vae.cfg.factor).to(weights)
        latents = vae.encode(picture).mean.float().cpu() * latent_scale
    a, b = _with_constant(latents).double(), _pixels(small).double()
    ridge = RIDGE * len(a) * torch.eye(a.shape[1], dtype=a.dtype)       # for latents that depend on each other
    return torch.linalg.solve(a.T @ a + ridge, a.T @ b).float()


def preview(latents: Tensor, factors: Tensor) -> list[Image.Image]:
    """Latents [b, c, h, w], scaled as the UNet has them, to pictures of w x h pixels; what is not finite is black."""
    rgb = _with_constant(latents.float().cpu()) @ factors
    b, _, h, w = latents.shape
    return to_images(rgb.nan_to_num(-1).view(b, h, w, 3).permute(0, 3, 1, 2))


def previews(every: int, factors: Tensor, show: Show) -> OnStep:
    """An `on_step` that shows what is left when all noise is taken away, after every so many steps. It changes nothing.

    The clean picture that the network saw last is shown, not x itself, which is mostly noise until late.
    """
    def look(x: Tensor, s: Interval) -> Tensor:
        if (s.index - s.first + 1) % every == 0:
            show(preview(s.past[-1].x0, factors), s)
        return x

    return look


def _pixels(x: Tensor) -> Tensor:
    """[b, c, h, w] -> [b * h * w, c]"""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _with_constant(latents: Tensor) -> Tensor:
    """[b, c, h, w] -> [b * h * w, c + 1], the last of ones."""
    return F.pad(_pixels(latents), (0, 1), value=1.0)
