"""Stable Diffusion whole: from words, or words and a picture, to pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from PIL import Image

from minisd.drawing.canvas import canvas_of, drawable
from minisd.drawing.control import EXACT, PLAIN, Guide, Hires, Mask, Shortcuts, Start
from minisd.drawing.plan import STANDARD, Defaults, Drawing
from minisd.drawing.ranges import in_range
from minisd.drawing.walk import OnStep, draw_latents
from minisd.fast.passes import quicken
from minisd.images import album, as_mask, as_picture, fingerprint, to_images
from minisd.models import Models
from minisd.text import tokenizer_of, window_count

NOTHING: Mapping[str, Image.Image] = {}


@dataclass(frozen=True)
class StableDiffusion(Models):
    """The models, and what they were trained for. A picture depends on its Drawing, not on its batch."""

    defaults: Defaults = STANDARD
    name: str = "model"

    def txt2img(self, prompt: str | Sequence[str], negative: str = "", steps: int | None = None,
                cfg: float | None = None, sampler: str | None = None, seed: int = 0,
                size: tuple[int, int] | None = None, count: int = 1, batch: int = 4,
                on_step: OnStep | None = None, guide: Guide = PLAIN,
                hires: Hires | None = None, shortcuts: Shortcuts = EXACT) -> list[Image.Image]:
        """`count` pictures of each prompt, with seeds from `seed` on; `size` is (width, height).

        What is left open is as the model likes it best (`defaults`). `on_step(x, s) -> x` as in `sample`.
        """
        first = replace(self.drawing("", negative, steps, cfg, sampler, seed, size), guide=guide, hires=hires,
                        shortcuts=shortcuts)
        return self._several(first, prompt, count, batch, on_step)

    def img2img(self, prompt: str | Sequence[str], image: Image.Image, strength: float = 0.75, negative: str = "",
                steps: int | None = None, cfg: float | None = None, sampler: str | None = None, seed: int = 0,
                size: tuple[int, int] | None = None, count: int = 1, batch: int = 4,
                on_step: OnStep | None = None, guide: Guide = PLAIN,
                shortcuts: Shortcuts = EXACT) -> list[Image.Image]:
        """Pictures that begin from one. `strength` is the share of the steps that are taken, rounded down.

        1 draws afresh, as if there were no picture; 0 only takes it through the VAE. To another size than its own the
        picture is cropped in the middle and resized.
        """
        picture = as_picture(image)
        first = replace(self.drawing("", negative, steps, cfg, sampler, seed, size or drawable(picture.size)),
                        guide=guide, start=Start(fingerprint(picture), strength), shortcuts=shortcuts)
        return self._several(first, prompt, count, batch, on_step, picture)

    def inpaint(self, prompt: str | Sequence[str], image: Image.Image, mask: Image.Image, strength: float = 1.0,
                negative: str = "", steps: int | None = None, cfg: float | None = None, sampler: str | None = None,
                seed: int = 0, size: tuple[int, int] | None = None, count: int = 1, batch: int = 4,
                on_step: OnStep | None = None, guide: Guide = PLAIN, feather: int = 0,
                padding: int | None = None, shortcuts: Shortcuts = EXACT) -> list[Image.Image]:
        """The picture with what is white in the mask drawn anew; the rest comes back byte for byte.

        `feather` pixels around the mask fade from the new to the old. With `padding` the masked area alone is drawn,
        in the model's own size or in `size`, with as many pixels of context; the picture may then have any size.
        """
        picture, white = as_picture(image), as_mask(mask)
        if size is None and padding is None:
            size = drawable(picture.size)
        first = replace(self.drawing("", negative, steps, cfg, sampler, seed, size), guide=guide,
                        start=Start(fingerprint(picture), strength), mask=Mask(fingerprint(white), feather, padding),
                        shortcuts=shortcuts)
        return self._several(first, prompt, count, batch, on_step, picture, white)

    def edit(self, prompt: str | Sequence[str], image: Image.Image, image_cfg: float = 1.5, negative: str = "",
             steps: int | None = None, cfg: float | None = None, sampler: str | None = None, seed: int = 0,
             size: tuple[int, int] | None = None, count: int = 1, batch: int = 4,
             on_step: OnStep | None = None, guide: Guide = PLAIN,
             shortcuts: Shortcuts = EXACT) -> list[Image.Image]:
        """The picture changed as the prompt tells, by an instruct-pix2pix model; `image_cfg` keeps it alike."""
        picture = as_picture(image)
        first = replace(self.drawing("", negative, steps, cfg, sampler, seed, size or drawable(picture.size)),
                        guide=guide, start=Start(fingerprint(picture), 1.0), image_guidance=image_cfg,
                        shortcuts=shortcuts)
        return self._several(first, prompt, count, batch, on_step, picture)

    def _several(self, first: Drawing, prompt: str | Sequence[str], count: int, batch: int, on_step: OnStep | None,
                 *pictures: Image.Image) -> list[Image.Image]:
        """`count` drawings of each prompt like the first, drawn."""
        in_range("count", count, 1, 10_000)
        drawings = [replace(first, prompt=words, seed=first.seed + n)
                    for words in ([prompt] if isinstance(prompt, str) else prompt) for n in range(count)]
        known = album(*pictures)
        return [image for group in self.batches(drawings, batch) for image in self.draw(group, on_step, known)]

    def drawing(self, prompt: str, negative: str = "", steps: int | None = None, cfg: float | None = None,
                sampler: str | None = None, seed: int = 0, size: tuple[int, int] | None = None) -> Drawing:
        """A drawing in which what was left open is as the model likes it best."""
        width, height = size or (self.cfg.size, self.cfg.size)
        return Drawing(prompt, negative, self.defaults.steps if steps is None else steps,
                       self.defaults.guidance if cfg is None else cfg, sampler or self.defaults.sampler,
                       seed, width, height)

    def batches(self, drawings: Sequence[Drawing], batch: int) -> Iterator[list[Drawing]]:
        """The drawings in order, in runs of at most `batch` that can be drawn together.

        They must agree in all but prompt and seed, and their prompts must take equally many windows of text. Where a
        sampler chooses its steps by what it sees, each is drawn alone.
        """
        in_range("batch", batch, 1, 1024)
        for (like, _), run in groupby(drawings, lambda one: (replace(one, prompt="", seed=0), self._windows(one))):
            together, most = list(run), 1 if like.recipe().adaptive else batch
            for start in range(0, len(together), most):
                yield together[start:start + most]

    def ready(self) -> "StableDiffusion":
        """The networks as they draw fastest, once; `draw` sees to it. Until then weights may lie unread in a file.

        `minisd.fast.passes.plain` gives them back as they were.
        """
        quicken(self.unet)
        quicken(self.vae.decoder, packed=False)   # whose weights are read where a picture is decoded in strips
        for text in self.text:
            quicken(text)
        return self

    def draw(self, drawings: Sequence[Drawing], on_step: OnStep | None = None,
             pictures: Mapping[str, Image.Image] = NOTHING) -> list[Image.Image]:
        """One batch, as `batches` makes them; `pictures` holds what they begin from, as `images.album` does."""
        canvas = canvas_of(drawings[0], pictures)
        self.ready()
        with torch.inference_mode():
            drawn = to_images(self.pictures(draw_latents(self, drawings, canvas, on_step), drawings))
        return drawn if canvas is None else [canvas.put_back(one) for one in drawn]

    def _windows(self, one: Drawing) -> list[int]:
        """Of text, on each walk."""
        read = [one.negative, one.prompt] if one.negative_counts else [one.prompt]
        tokenizers = [tokenizer_of(model.cfg) for model in self.text]
        return [window_count(tokenizers, read, walk.steps - walk.skipped) for walk in one.walks()]
