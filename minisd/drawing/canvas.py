"""The picture that is drawn on: cut and resized to what is drawn, and the drawn part joined to the rest again."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from minisd.drawing.plan import Drawing
from minisd.drawing.ranges import SIDES
from minisd.errors import USAGE, MinisdError

LANCZOS, BOX = Image.Resampling.LANCZOS, Image.Resampling.BOX
Box = tuple[int, int, int, int]                   # left, top, right, bottom, as in Pillow


@dataclass(frozen=True)
class Joint:
    """Where a drawn part goes, and how."""

    whole: Image.Image
    box: Box                                      # of the part in the whole
    share: NDArray[np.float32]                    # of the drawn in each pixel of the box, [height, width, 1]


@dataclass(frozen=True)
class Canvas:
    """What a walk begins from; with a mask, also the way back into the whole picture."""

    picture: Image.Image                          # RGB, of the size that is drawn
    mask: Image.Image | None = None               # of the same size: white is drawn anew, the feather included
    joint: Joint | None = None

    def put_back(self, drawn: Image.Image) -> Image.Image:
        """The whole picture with what was drawn in it; where its share is 0, byte for byte as it was."""
        if self.joint is None:
            return drawn
        whole, box = self.joint.whole.copy(), self.joint.box
        old = np.asarray(whole.crop(box)).astype(np.float32)
        new = np.asarray(drawn.resize((box[2] - box[0], box[3] - box[1]), LANCZOS)).astype(np.float32)
        mixed = old + (new - old) * self.joint.share
        whole.paste(Image.fromarray(mixed.round().astype(np.uint8)), box[:2])
        return whole


def canvas_of(drawing: Drawing, pictures: Mapping[str, Image.Image]) -> Canvas | None:
    """The canvas of a drawing that begins from one of these pictures; they are named by their fingerprints."""
    drawing.check_pictures(pictures)
    if drawing.start is None:
        return None
    picture, size = pictures[drawing.start.sha256], (drawing.width, drawing.height)
    if drawing.mask is None:
        return Canvas(ImageOps.fit(picture, size, LANCZOS) if picture.size != size else picture)
    mask = pictures[drawing.mask.sha256]
    if mask.size != picture.size:
        raise MinisdError(f"the mask has {_shown(mask.size)} pixels, the picture {_shown(picture.size)}", "--mask",
                          remedy="give a mask of the picture's size", code=USAGE)
    padding, feather = drawing.mask.padding, drawing.mask.feather
    if padding is None and picture.size != size:
        raise MinisdError(f"{_shown(size)} to be drawn, but the picture has {_shown(picture.size)} pixels", "--size",
                          "what is not masked must stay as it is",
                          "leave the size to the picture, or draw the masked area alone by --only-masked", USAGE)
    box = (0, 0, *size) if padding is None else region(_spread(mask, feather), padding, size, picture.size)
    grown, share = feathered(mask.crop(box), feather)
    # Any white at all makes a pixel of the smaller mask white: a thin line must not be lost.
    cut = grown.resize(size, BOX).point([0] + [255] * 255)
    return Canvas(picture.crop(box).resize(size, LANCZOS), cut, Joint(picture, box, share))


def drawable(size: tuple[int, int]) -> tuple[int, int]:
    """A picture's own size, if it can be drawn in it; else an error that says what else to do."""
    if any(side % 8 or not SIDES[0] <= side <= SIDES[1] for side in size):
        raise MinisdError(f"a picture of {_shown(size)} pixels cannot be drawn in its own size", "--image",
                          f"sides are multiples of 8 from {SIDES[0]} to {SIDES[1]}",
                          "give a --size, to which it is cropped and resized; with a mask, --only-masked", USAGE)
    return size


def _spread(mask: Image.Image, feather: int) -> Box:
    """The smallest box that holds all of the mask and its feather."""
    left, top, right, bottom = mask.getbbox() or (0, 0, 1, 1)
    return (max(left - feather, 0), max(top - feather, 0),
            min(right + feather, mask.width), min(bottom + feather, mask.height))


def feathered(mask: Image.Image, feather: int) -> tuple[Image.Image, NDArray[np.float32]]:
    """The mask grown by the feather, and every pixel's share, [height, width, 1].

    The share is 1 on the mask and falls evenly with the distance from it, to 0 at feather + 1 pixels; distance is
    counted in steps to any of a pixel's eight neighbours.
    """
    total = np.asarray(mask, np.float32)
    for _ in range(feather):
        mask = mask.filter(ImageFilter.MaxFilter(3))
        total = total + np.asarray(mask, np.float32)
    return mask, (total / np.float32(255 * (feather + 1)))[..., None]


def region(masked: Box, padding: int, size: tuple[int, int], whole: tuple[int, int]) -> Box:
    """The part to draw: what is masked with context around it, in the shape of `size` as far as the whole has room."""
    sides = [masked[2] - masked[0] + 2 * padding, masked[3] - masked[1] + 2 * padding]
    if sides[0] * size[1] < sides[1] * size[0]:
        sides[0] = -(-sides[1] * size[0] // size[1])
    else:
        sides[1] = -(-sides[0] * size[1] // size[0])
    spans = []
    for low, high, side, end in zip(masked[:2], masked[2:], sides, whole, strict=True):
        side = min(side, end)
        start = min(max((low + high - side) // 2, 0), end - side)
        spans.append((start, start + side))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
