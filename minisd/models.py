"""The networks of one Stable Diffusion together: words and pictures in, pictures out, never what is not finite."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minisd.clip import CLIPText
from minisd.config import ModelConfig
from minisd.drawing.plan import Drawing
from minisd.errors import NUMERICAL, MinisdError
from minisd.fast.eightbit import is_small
from minisd.fast.onednn import dense
from minisd.samplers.denoiser import Conditioning
from minisd.text import tell
from minisd.unet import UNet
from minisd.vae import VAE, Posterior
from minisd.vae_tiling import decode_in_strips

log = logging.getLogger(__name__)

WHOLE = 1 << 20                                   # pixels that the VAE decodes at once; a larger picture is in strips
FEW = 1 << 18                                     # the same beside a UNet in 8 bits: memory is scarce, and time is not
STRIPS = 16                                       # of what else would be decoded at once


@dataclass(frozen=True)
class Models:
    """UNet, VAE and text encoders, of one config."""

    cfg: ModelConfig
    unet: UNet
    vae: VAE
    text: tuple[CLIPText, ...]

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    @property
    def precision(self) -> str:
        """What the UNet's weights are kept in: the name that gives the same model again when it is loaded."""
        return "int8" if is_small(self.unet) else name_of(self.dtype)

    def tell(self, prompts: Sequence[str], steps: int) -> list[Conditioning]:
        """What prompts that are compared with each other say in each step, through every text encoder."""
        return tell(self.text, prompts, steps, self.cfg.pooled_label)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The same for a picture of one step: [b, n, widths]."""
        return self.tell(prompts, 1)[0]

    def latents(self, x: Tensor) -> Posterior:
        """Pictures [b, 3, h, w] in [-1, 1] through the VAE, in float32 and not yet scaled.

        One by one, because kernels round otherwise in a larger batch, and a picture must not depend on its neighbours.
        """
        each = [self._latents(one.to(self.device)) for one in x.split(1)]
        return Posterior(torch.cat([one.mean for one in each]), torch.cat([one.logvar for one in each]))

    def _latents(self, x: Tensor) -> Posterior:
        """[1, 3, h, w]; what half precision makes NaN or infinite is done again in float32."""
        dtype = self.vae.encoder.conv_in.weight.dtype
        found = self.vae.encode(x.to(dtype)).float()
        # The log variance is clamped, so where it was infinite only the bound is left to see.
        if dtype != torch.float32 and not (found.mean.isfinite().all() and (found.logvar < 20).all()):
            log.warning("the VAE overflowed in %s: encoding again in float32", name_of(dtype))
            found = copy.deepcopy(self.vae).float().encode(x)
        return found

    def pictures(self, latents: Tensor, drawings: Sequence[Drawing]) -> Tensor:
        """Latents to pictures; those that half precision makes NaN or infinite are done again in float32."""
        self.must_be_finite(latents, "latents", drawings)
        z, dtype = latents / self.cfg.latent_scale, self.vae.decoder.conv_in.weight.dtype
        at_once = FEW if is_small(self.unet) else WHOLE
        pictures = _decoded(self.vae, z.to(dtype), at_once)
        bad = ~pictures.isfinite().flatten(1).all(dim=1)
        if dtype != torch.float32 and bad.any():
            log.warning("the VAE overflowed in %s: decoding again in float32", name_of(dtype))
            pictures[bad] = _decoded(copy.deepcopy(self.vae).float(), z[bad].float(), at_once)
        self.must_be_finite(pictures, "picture", drawings)
        return pictures

    def must_be_finite(self, x: Tensor, what: str, drawings: Sequence[Drawing]) -> None:
        """Refuses a batch with NaN or infinity in it, and says of which drawing and why."""
        good = x.isfinite().flatten(1).all(dim=1).tolist()
        if all(good):
            return
        one = drawings[good.index(False)]
        weights = _not_finite({"unet": self.unet, "vae": self.vae})
        raise MinisdError(f"the {what} became NaN or infinite", f"prompt {one.prompt[:60]!r}, seed {one.seed}",
                          f"the weights {weights} are not finite themselves" if weights else
                          f"computed in {name_of(self.dtype)} with guidance {one.guidance:g}",
                          "take another copy of the model" if weights else "try --dtype float32 or less guidance",
                          NUMERICAL)


def _decoded(vae: VAE, z: Tensor, at_once: int) -> Tensor:
    """Latents decoded in bounded memory: [b, c, h, w] -> [b, 3, 8h, 8w] in float32."""
    pixels = z.shape[2] * z.shape[3] * vae.cfg.factor ** 2
    if pixels > at_once:
        return decode_in_strips(vae, z, at_once // STRIPS).float()
    return torch.cat([vae.decode(part).float() for part in z.split(at_once // pixels)])


def _not_finite(modules: dict[str, nn.Module]) -> str:
    """The first weights that hold NaN or infinity, by name; empty where there are none."""
    named = ((f"{part}.{name}", weights) for part, module in modules.items()
             for name, weights in module.named_parameters())
    return next((name for name, weights in named if not dense(weights).isfinite().all()), "")


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
