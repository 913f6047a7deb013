"""Where pictures are drawn, batch after batch, and each is written as soon as it is there."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from minisd import __version__, images
from minisd.drawing import metadata
from minisd.drawing.plan import Drawing
from minisd.drawing.preview import factors_of, previews
from minisd.drawing.walk import OnStep
from minisd.drawing.wardrobe import Wardrobe
from minisd.errors import RESOURCE, MinisdError
from minisd.generate.gallery import Place, preview_name, rewrite
from minisd.pipeline import StableDiffusion
from minisd.samplers.loop import Interval
from minisd.shares import Share


@dataclass(frozen=True)
class Order:
    """A picture to be drawn. Some are drawn only to stand among as many as the first time, and are not written."""

    drawing: Drawing
    written: bool = True
    number: int | None = None                     # of its file; None is the folder's next


@dataclass(frozen=True)
class Easel:
    """A model, and the folder for its pictures."""

    sd: StableDiffusion
    sha256: str                                   # of the model's weights
    out: Path
    share: Share
    pictures: Mapping[str, Image.Image]           # that drawings begin from, by fingerprint
    wardrobe: Wardrobe                            # of the drawings' LoRAs and words
    every: int | None = None                      # steps between previews

    def batches(self, drawings: Sequence[Drawing], batch: int) -> Iterator[list[Drawing]]:
        """The drawings in order, in runs that can be drawn together."""
        return self.wardrobe.batches(self.sd, drawings, batch)

    def missing(self, drawings: Sequence[Drawing], places: Sequence[Place], batch: int) -> list[list[Order]]:
        """This process's batches of what is not there.

        The whole list is cut into batches before any is dealt out or left out: so every picture stands among the same
        others, whoever draws it and when, and every kernel rounds in the same way.
        """
        rest = iter(places)
        batches = [[Order(one, place.path is None, place.number) for one, place in zip(group, rest, strict=False)]
                   for group in self.batches(drawings, batch)]
        return [group for group in self.share.of(batches) if any(order.written for order in group)]

    def draw(self, batches: Sequence[Sequence[Order]]) -> Iterator[tuple[Path, Image.Image]]:
        """Each picture that is written, and its file."""
        look = self._look()

        def step(x: Tensor, s: Interval) -> Tensor:
            bar.update()
            return look(x, s)

        steps = sum(group[0].drawing.walked for group in batches)
        with tqdm(total=steps, unit="step", disable=None, desc=self.share.name.strip(": ") or None) as bar:
            for group in batches:
                with enough_memory():
                    self.wardrobe.wear(self.sd, group[0].drawing)
                    pictures = self.sd.draw([order.drawing for order in group], step, self.pictures)
                yield from self._write(pictures, group)

    def _look(self) -> OnStep:
        """What is done after each step: nothing, or a preview."""
        if self.every is None:
            return lambda x, s: x
        path, factor = self.out / preview_name(self.share), self.sd.vae.cfg.factor

        def show(small: list[Image.Image], s: Interval) -> None:
            large = [one.resize((one.width * factor, one.height * factor), Image.Resampling.BICUBIC) for one in small]
            rewrite(images.grid(large), path)

        return previews(self.every, factors_of(self.sd.vae, self.sd.cfg.latent_scale), show)

    def _write(self, pictures: Iterable[Image.Image], group: Sequence[Order]) -> Iterator[tuple[Path, Image.Image]]:
        for picture, order in zip(pictures, group, strict=True):
            if not order.written:
                continue
            drawn = metadata.Drawn(order.drawing, self.sd.name, self.sha256, self.sd.device.type, self.sd.precision,
                                   len(group), __version__)
            label = str(order.drawing.seed)
            path = images.write_png(picture, self.out, label, metadata.chunks(drawn), order.number)
            tqdm.write(str(path), file=sys.stdout)
            sys.stdout.flush()
            yield path, picture


@contextmanager
def enough_memory() -> Iterator[None]:
    """Memory that runs out is told as such; the pictures written before are whole."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise MinisdError("not enough memory", why=str(error).splitlines()[0][:200],
                          remedy="try --batch 1, a smaller --size or --dtype bfloat16", code=RESOURCE) from error
