"""The pictures that drawings begin from, and masks: each file is opened once, whoever asks for it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL.Image import Image

from minisd import images
from minisd.drawing.canvas import canvas_of
from minisd.drawing.plan import Drawing
from minisd.generate.drawings import Shot
from minisd.generate.options import Options


class Album:
    """Pictures by fingerprint, as drawings name them; it fills as files are looked at."""

    def __init__(self) -> None:
        self.pictures: dict[str, Image] = {}
        self.shots: dict[tuple[Path, str], Shot] = {}

    def look(self, path: Path, kind: str) -> Shot:
        """At a file, which is an "image" or a "mask"."""
        if (path, kind) not in self.shots:
            image = images.open_mask(path) if kind == "mask" else images.open_picture(path)
            shot = Shot(images.fingerprint(image), image.size)
            self.pictures[shot.sha256], self.shots[path, kind] = image, shot
        return self.shots[path, kind]

    def open(self, options: Options) -> None:
        """What the options name; a file that cannot be read is told before a model is loaded."""
        for path, kind in ((options.start.image, "image"), (options.start.mask, "mask")):
            if path is not None:
                self.look(path, kind)

    def check(self, drawings: Sequence[Drawing]) -> None:
        """A picture and a mask that do not go together are told before a model is loaded, too."""
        for one in dict.fromkeys(replace(drawing, prompt="", seed=0) for drawing in drawings):
            canvas_of(one, self.pictures)
