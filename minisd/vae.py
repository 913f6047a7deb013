"""The autoencoder between pictures and latents (Rombach et al. 2022, arXiv 2112.10752): in SD1.5, 8 x 8 pixels each."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from minisd.config import VAEConfig
from minisd.layers import Attention, ResBlock, to_image, to_tokens

EPS = 1e-6  # of every GroupNorm of the autoencoder; the UNet's residual blocks have 1e-5


class Posterior(NamedTuple):
    """A diagonal Gaussian over latents, each [b, latent_channels, h/8, w/8]."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """One draw, from standard normal noise of the same shape."""
        return self.mean + (0.5 * self.logvar).exp() * noise

    def float(self) -> "Posterior":
        """In float32, where exp and the divergence are computed safely."""
        return Posterior(self.mean.float(), self.logvar.float())

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence to the standard normal, in nats per latent: a scalar."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).mean()


class PictureAttention(nn.Module):
    """Self-attention with one head over all pixels, added to the picture."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=EPS)
        self.attn = Attention(width, width, heads=1, bias=True)

    def forward(self, x: Tensor) -> Tensor:  # [b, c, h, w] -> [b, c, h, w]
        tokens = to_tokens(self.norm(x))
        return to_image(self.attn(tokens, tokens), x) + x  # in this order the layout, and so every bit, is diffusers'


class Mid(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.res = nn.ModuleList(ResBlock(width, width, groups, EPS) for _ in range(2))
        self.attn = PictureAttention(width, groups)

    def forward(self, x: Tensor) -> Tensor:  # [b, width, h, w] -> the same
        return self.res[1](self.attn(self.res[0](x)))


class Stage(nn.Module):
    """Residual blocks and at most one resize."""

    def __init__(self, c_in: int, width: int, layers: int, groups: int, resize: str | None = None):
        super().__init__()
        self.res = nn.ModuleList(ResBlock(c_in if j == 0 else width, width, groups, EPS) for j in range(layers))
        self.downsample = nn.Conv2d(width, width, 3, stride=2) if resize == "down" else None
        self.upsample = nn.Conv2d(width, width, 3, padding=1) if resize == "up" else None

    def forward(self, x: Tensor) -> Tensor:  # [b, c_in, h, w] -> [b, width, h/2 or h or 2h, ...]
        for block in self.res:
            x = block(x)
        return self.resized(x)

    def resized(self, x: Tensor) -> Tensor:  # [b, c, h, w] -> [b, c, h/2 or h or 2h, ...]
        if self.downsample is not None:  # SD1 pads right and bottom by one, not all around
            x = self.downsample(F.pad(x, (0, 1, 0, 1)))
        if self.upsample is not None:
            x = self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class Encoder(nn.Module):
    """Picture to the mean and log variance of its latents."""

    def __init__(self, cfg: VAEConfig):
        super().__init__()
        widths, last = cfg.widths, len(cfg.widths) - 1
        self.conv_in = nn.Conv2d(cfg.channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            Stage(widths[max(i - 1, 0)], width, cfg.layers, cfg.groups, resize="down" if i < last else None)
            for i, width in enumerate(widths))
        self.mid = Mid(widths[-1], cfg.groups)
        self.norm_out = nn.GroupNorm(cfg.groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * cfg.latent_channels, 3, padding=1)
        self.moments = nn.Conv2d(2 * cfg.latent_channels, 2 * cfg.latent_channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # [b, 3, h, w] -> [b, 2 * latent_channels, h/8, w/8]
        x = self.conv_in(x)
        for stage in self.down:
            x = stage(x)
        x = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return self.moments(x)


class Decoder(nn.Module):
    """Latents to a picture."""

    def __init__(self, cfg: VAEConfig):
        super().__init__()
        widths, last = tuple(reversed(cfg.widths)), len(cfg.widths) - 1
        self.latents = nn.Conv2d(cfg.latent_channels, cfg.latent_channels, 1)
        self.conv_in = nn.Conv2d(cfg.latent_channels, widths[0], 3, padding=1)
        self.mid = Mid(widths[0], cfg.groups)
        self.up = nn.ModuleList(
            Stage(widths[max(i - 1, 0)], width, cfg.layers + 1, cfg.groups, resize="up" if i < last else None)
            for i, width in enumerate(widths))
        self.norm_out = nn.GroupNorm(cfg.groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], cfg.channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:  # [b, latent_channels, h/8, w/8] -> [b, 3, h, w]
        x = self.mid(self.conv_in(self.latents(z)))
        for stage in self.up:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VAE(nn.Module):
    """Pictures in [-1, 1] to latents and back. `latent_scale` of ModelConfig is applied by the callers, not here."""

    def __init__(self, cfg: VAEConfig):
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)

    def encode(self, x: Tensor) -> Posterior:
        """[b, 3, h, w] -> Posterior of [b, latent_channels, h/8, w/8]; h and w must be multiples of the factor."""
        factor = self.cfg.factor
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(f"picture of {x.shape[3]}x{x.shape[2]}: both sides must be multiples of {factor}")
        mean, logvar = self.encoder(x).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, z: Tensor) -> Tensor:
        """[b, latent_channels, h, w] -> [b, 3, 8h, 8w], about in [-1, 1]."""
        return self.decoder(z)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Posterior]:
        """A picture through a sample of its latents and back, as in training."""
        posterior = self.encode(x)
        return self.decode(posterior.sample(noise)), posterior
