"""Stable Diffusion whole: from words to a picture, in short methods over `sample`."""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from PIL import Image
from torch import Tensor, nn

from minisd.clip import CLIPText
from minisd.config import ModelConfig
from minisd.drawing import PLAIN, STANDARD, Defaults, Drawing, Guide, in_range
from minisd.errors import NUMERICAL, USAGE, MinisdError
from minisd.images import to_images
from minisd.samplers.denoiser import Conditioning, Denoiser, conditioned, denoiser
from minisd.samplers.guidance import Correction, guided, rescaled, scale_at, thresholded
from minisd.samplers.loop import Interval, sample
from minisd.samplers.noise import ImageNoise
from minisd.samplers.recipes import sampler as recipe_of
from minisd.samplers.schedule import Schedule
from minisd.text import encode_prompts, tokenizer_of
from minisd.unet import UNet
from minisd.vae import VAE
from minisd.vae_tiling import decode_in_strips

log = logging.getLogger(__name__)

WHOLE = 1 << 20                                   # pixels that the VAE decodes at once; a larger picture is in strips
OnStep = Callable[[Tensor, Interval], Tensor]


@dataclass(frozen=True)
class StableDiffusion:
    """The models, and what they were trained for. A picture depends on its Drawing, not on its batch."""

    cfg: ModelConfig
    unet: UNet
    vae: VAE
    text: tuple[CLIPText, ...]
    defaults: Defaults = STANDARD
    name: str = "model"

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    def txt2img(self, prompt: str | Sequence[str], negative: str = "", steps: int | None = None,
                cfg: float | None = None, sampler: str | None = None, seed: int = 0,
                size: tuple[int, int] | None = None, count: int = 1, batch: int = 4,
                on_step: OnStep | None = None, guide: Guide = PLAIN) -> list[Image.Image]:
        """`count` pictures of each prompt, with seeds from `seed` on; `size` is (width, height).

        What is left open is as the model likes it best (`defaults`). `on_step(x, s) -> x` as in `sample`.
        """
        in_range("count", count, 1, 10_000)
        first = replace(self.drawing("", negative, steps, cfg, sampler, seed, size), guide=guide)
        drawings = [replace(first, prompt=words, seed=seed + n)
                    for words in ([prompt] if isinstance(prompt, str) else prompt) for n in range(count)]
        return [image for group in self.batches(drawings, batch) for image in self.draw(group, on_step)]

    def drawing(self, prompt: str, negative: str = "", steps: int | None = None, cfg: float | None = None,
                sampler: str | None = None, seed: int = 0, size: tuple[int, int] | None = None) -> Drawing:
        """A drawing in which what was left open is as the model likes it best."""
        width, height = size or (self.cfg.size, self.cfg.size)
        return Drawing(prompt, negative, self.defaults.steps if steps is None else steps,
                       self.defaults.guidance if cfg is None else cfg, sampler or self.defaults.sampler,
                       seed, width, height)

    def batches(self, drawings: Sequence[Drawing], batch: int) -> Iterator[list[Drawing]]:
        """The drawings in order, in runs of at most `batch` that can be drawn together.

        They must agree in all but prompt and seed, and their prompts must take equally many windows of text.
        """
        in_range("batch", batch, 1, 1024)
        for _, run in groupby(drawings, lambda one: (replace(one, prompt="", seed=0), self._windows(one))):
            together = list(run)
            for start in range(0, len(together), batch):
                yield together[start:start + batch]

    def ready(self) -> "StableDiffusion":
        """The convolutions laid out for speed, once; `draw` sees to it. Until then weights may lie unread in a file."""
        with torch.inference_mode(False):             # they remain weights like any others
            for part in (self.unet, self.vae.decoder):
                part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def draw(self, drawings: Sequence[Drawing], on_step: OnStep | None = None) -> list[Image.Image]:
        """One batch, as `batches` makes them."""
        self.ready()
        with torch.inference_mode():
            return self._draw(drawings, on_step)

    def _draw(self, drawings: Sequence[Drawing], on_step: OnStep | None) -> list[Image.Image]:
        """Noise, the walk down, the picture."""
        first = drawings[0]
        recipe, factor = recipe_of(first.sampler), self.vae.cfg.factor
        if first.width % factor or first.height % factor:
            raise MinisdError(f"a picture of {first.width}x{first.height}", "--size",
                              f"this model's latents are {factor} pixels wide",
                              f"give multiples of {factor}", USAGE)
        schedule = recipe.schedule(self.cfg.noise, first.steps)
        shape = (self.vae.cfg.latent_channels, first.height // factor, first.width // factor)
        noise = ImageNoise([one.seed for one in drawings], shape, device=self.device)
        x = schedule[0].scale * noise.draw()
        x = sample(recipe.solver, self._denoiser(drawings, schedule), x, schedule, self.cfg.noise, noise=noise,
                   on_step=on_step)
        self._must_be_finite(x, "latents", drawings)
        return to_images(self._decode(x / self.cfg.latent_scale, drawings))

    def encode(self, prompts: list[str]) -> Conditioning:
        """Prompts that are compared with each other, through every text encoder: [b, n, widths]."""
        each = [encode_prompts(model, tokenizer_of(model.cfg), prompts, self.cfg.pooled_label)
                for model in self.text]
        return Conditioning(torch.cat([one.context for one in each], dim=-1), each[-1].label)

    def _windows(self, one: Drawing) -> int:
        read = [one.prompt] if one.guidance == 1 else [one.negative, one.prompt]
        return max(len(tokenizer_of(model.cfg).windows(prompt)) for model in self.text for prompt in read)

    def _denoiser(self, drawings: Sequence[Drawing], schedule: Schedule) -> Denoiser:
        """The UNet told of each prompt and, where there is guidance, of each negative prompt."""
        predict, first = denoiser(self.unet, self.cfg.prediction), drawings[0]
        before = [] if first.guidance == 1 else [first.negative]         # read with each prompt, for equal lengths
        read = {prompt: self.encode([*before, prompt]) for prompt in dict.fromkeys(one.prompt for one in drawings)}
        each = [read[one.prompt] for one in drawings]
        if first.guidance == 1:
            return conditioned(predict, _stack(each, 0))
        scale = scale_at(first.guidance, schedule, first.guide.ramp, first.guide.interval)
        return guided(predict, _stack(each, 1), _stack(each, 0), scale, self._corrections(first.guide))

    def _corrections(self, guide: Guide) -> list[Correction]:
        """What the guided x0 passes through, in the order in which the papers' pipelines have it."""
        found = [rescaled(guide.rescale, self.cfg.prediction)] if guide.rescale else []
        return found if guide.threshold is None else [*found, thresholded(guide.threshold)]

    def _decode(self, z: Tensor, drawings: Sequence[Drawing]) -> Tensor:
        """Latents to pictures; those that half precision makes NaN or infinite are done again in float32."""
        dtype = self.vae.decoder.conv_in.weight.dtype
        pictures = _pictures(self.vae, z.to(dtype))
        bad = ~pictures.isfinite().flatten(1).all(dim=1)
        if dtype != torch.float32 and bad.any():
            log.warning("the VAE overflowed in %s: decoding again in float32", _name(dtype))
            pictures[bad] = _pictures(copy.deepcopy(self.vae).float(), z[bad].float())
        self._must_be_finite(pictures, "picture", drawings)
        return pictures

    def _must_be_finite(self, x: Tensor, what: str, drawings: Sequence[Drawing]) -> None:
        good = x.isfinite().flatten(1).all(dim=1).tolist()
        if all(good):
            return
        one = drawings[good.index(False)]
        weights = _not_finite({"unet": self.unet, "vae": self.vae})
        raise MinisdError(f"the {what} became NaN or infinite", f"prompt {one.prompt[:60]!r}, seed {one.seed}",
                          f"the weights {weights} are not finite themselves" if weights else
                          f"computed in {_name(self.dtype)} with guidance {one.guidance:g}",
                          "take another copy of the model" if weights else "try --dtype float32 or less guidance",
                          NUMERICAL)


def _pictures(vae: VAE, z: Tensor) -> Tensor:
    """Latents decoded in bounded memory: [b, c, h, w] -> [b, 3, 8h, 8w] in float32."""
    pixels = z.shape[2] * z.shape[3] * vae.cfg.factor ** 2
    if pixels > WHOLE:
        return decode_in_strips(vae, z).float()
    return torch.cat([vae.decode(part).float() for part in z.split(WHOLE // pixels)])


def _stack(each: Sequence[Conditioning], row: int) -> Conditioning:
    """One row of each condition, as a batch."""
    labels = [one.label[row:row + 1] for one in each if one.label is not None]
    return Conditioning(torch.cat([one.context[row:row + 1] for one in each]), torch.cat(labels) if labels else None)


def _not_finite(modules: dict[str, nn.Module]) -> str:
    """The first weights that hold NaN or infinity, by name; empty where there are none."""
    named = ((f"{part}.{name}", weights) for part, module in modules.items()
             for name, weights in module.named_parameters())
    return next((name for name, weights in named if not weights.isfinite().all()), "")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
