"""Training the autoencoder as latent diffusion's was (Rombach et al. 2022, section 3.1 and appendix G):
reconstruction and KL, and a patch discriminator that is fed once the reconstructions are decent."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from minisd.config import ModelConfig
from minisd.devices import CPU
from minisd.images import grid, to_images
from minisd.train.config import VAETask
from minisd.train.data import Batch, Pictures
from minisd.train.draws import Draws
from minisd.train.perceptual import LPIPS, load_lpips
from minisd.train.tasks import model
from minisd.vae import VAE

MEASURED, SHOWN = 128, 24                         # held-out pictures that are measured, and drawn
SPREAD = 1024                                     # held-out pictures whose latents give the scale
TOGETHER = 16                                     # pictures encoded at a time outside of training


class PatchCritic(nn.Module):
    """PatchGAN (Isola et al. 2017): one verdict per patch of 34 pixels: [b, 3, h, w] -> [b, 1, h/4 - 2, w/4 - 2]."""

    def __init__(self, width: int = 48):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for c_in, c_out, stride in ((width, 2 * width, 2), (2 * width, 4 * width, 1)):
            layers += [nn.Conv2d(c_in, c_out, 4, stride=stride, padding=1, bias=False), nn.GroupNorm(8, c_out),
                       nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@dataclass
class TrainVAE:
    """Picture -> latents -> picture."""

    cfg: ModelConfig
    options: VAETask
    model: Path
    held_out: Pictures
    seed: int
    device: torch.device = CPU
    modules: nn.ModuleDict = field(init=False)
    perceptual: LPIPS | None = field(init=False)

    def __post_init__(self) -> None:
        vae = model.take_or_new(self.model, self.cfg, "vae", self.seed)
        self.modules = nn.ModuleDict({"vae": vae.to(memory_format=torch.channels_last)})  # type: ignore[call-overload]
        if self.options.decoder_only:
            self.vae.encoder.requires_grad_(False)
        if self.options.adversary:
            self.modules["critic"] = model.seeded(self.seed, PatchCritic)
        self.modules.to(self.device)
        perceptual = self.options.perceptual
        self.perceptual = load_lpips(Path(perceptual)).to(self.device) if perceptual else None

    @property
    def vae(self) -> VAE:
        return cast(VAE, self.modules["vae"])

    def trained(self) -> nn.Module:
        return self.modules

    def loss(self, batch: Batch, draws: Draws, step: int) -> dict[str, Tensor]:
        assert batch.pixels is not None
        options = self.options
        x = batch.pixels.to(draws.device).contiguous(memory_format=torch.channels_last)
        side = x.shape[-1] // self.cfg.vae.factor
        out, posterior = self.vae(x, draws.normal(self.cfg.vae.latent_channels, side, side))
        out = out.float()
        terms = {"l1": (out - x).abs().mean(), "l2": options.l2 * F.mse_loss(out, x)}
        if not options.decoder_only:
            terms["kl"] = options.kl * posterior.float().kl()
        if self.perceptual is not None:
            terms["perceptual"] = options.perceptual_weight * self.perceptual(out, x).mean()
        if options.adversary and step >= options.adversary_from:
            terms |= self.adversary(x, out)
        return terms

    def adversary(self, x: Tensor, out: Tensor) -> dict[str, Tensor]:
        """Hinge losses of both sides in one backward pass: each side sees the other's weights or pictures detached."""
        critic = self.modules["critic"]
        frozen = {name: p.detach() for name, p in critic.named_parameters()}
        real, fake = critic(x).float(), critic(out.detach()).float()
        fooled = functional_call(critic, frozen, (out,)).float()
        return {"critic": (F.relu(1 - real) + F.relu(1 + fake)).mean() / 2,
                "fool": -self.options.adversary * fooled.mean()}

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """PSNR on held-out pictures through the mean of their latents, and a sheet: picture above reconstruction."""
        pixels = self.pixels(MEASURED)
        outs = torch.cat([self.vae.decode(self.vae.encode(x).mean) for x in pixels.split(TOGETHER)]).clamp(-1, 1)
        pairs = torch.stack([pixels[:SHOWN], outs[:SHOWN]], dim=1).flatten(0, 1)
        folder.mkdir(parents=True, exist_ok=True)
        grid(to_images(pairs), columns=12).save(folder / f"{step:07d}.png")
        return {"psnr": psnr(outs, pixels)}

    def export(self, folder: Path) -> None:
        """The VAE, and in the config the scale that brings its latents to a standard deviation of one."""
        scale = self.cfg.latent_scale if self.options.decoder_only else 1 / self.spread()
        model.put(folder, replace(self.cfg, latent_scale=scale), {"vae": self.vae})

    @torch.no_grad()
    def spread(self) -> float:
        """Standard deviation of the latents of held-out pictures."""
        return torch.cat([self.vae.encode(x).mean for x in self.pixels(SPREAD).split(TOGETHER)]).std().item()

    def pixels(self, most: int) -> Tensor:
        """Some held-out pictures, the same every time: [n, 3, size, size]."""
        pixels = self.held_out.batch(list(range(min(most, len(self.held_out.rows))))).pixels
        assert pixels is not None
        return pixels.to(self.device)


def psnr(outs: Tensor, pixels: Tensor) -> float:
    """Peak signal to noise in dB, the mean over pictures; both [b, 3, h, w] in [-1, 1]."""
    mse = ((outs - pixels) / 2).square().mean(dim=(1, 2, 3))
    return (-10 * mse.log10()).mean().item()
