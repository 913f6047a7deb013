"""Sizes of about equal area for pictures of different shapes, so that less of each is cropped away."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from minisd.errors import MinisdError
from minisd.images import FORMATS, to_tensor

ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)      # EXIF's tag, and its values that swap width and height


class Bucket(NamedTuple):
    """A size that pictures are trained on, in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def sizes(side: int, multiple: int, ratio: float) -> list[Bucket]:
    """All sizes in multiples whose area is at most side^2, as large as that allows, up to this ratio of their sides.

    The side must itself be a multiple.
    """
    shortest = math.ceil(side / math.sqrt(ratio) / multiple) * multiple
    found = set()
    for width in range(shortest, side * side // shortest + 1, multiple):
        height = side * side // width // multiple * multiple
        if height and max(width / height, height / width) <= ratio:
            found |= {Bucket(width, height), Bucket(height, width)}
    return sorted(one for one in found if not any(
        one != other and one.width <= other.width and one.height <= other.height for other in found))


def assigned(size: tuple[int, int], buckets: Sequence[Bucket]) -> Bucket:
    """The bucket that keeps most of a picture of this width and height; of equals the first."""
    return max(buckets, key=lambda bucket: round(kept_share(size, bucket), 9))


def kept_share(size: tuple[int, int], bucket: Bucket) -> float:
    """The share of a picture's pixels that is left when it is cropped to a bucket's shape."""
    picture, wanted = size[0] / size[1], bucket.width / bucket.height
    return min(picture / wanted, wanted / picture)


def fitted(picture: Image.Image, bucket: Bucket) -> Tensor:
    """The centre of a picture that has the bucket's shape, resized by Lanczos: uint8 [3, height, width]."""
    scale = min(picture.width / bucket.width, picture.height / bucket.height)
    width, height = bucket.width * scale, bucket.height * scale
    left, top = (picture.width - width) / 2, (picture.height - height) / 2
    resized = picture.resize(bucket, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
    return ((to_tensor(resized) + 1) * 127.5).round().to(torch.uint8)


def shown_size(source: Path | BinaryIO) -> tuple[int, int]:
    """Width and height of a picture as it is shown, from its header."""
    try:
        with Image.open(source, formats=FORMATS) as image:
            early = image.format != "PNG" or "exif" in image.info  # Pillow reads a whole PNG in search of it
            turned = early and image.getexif().get(ORIENTATION, 1) in SIDEWAYS
            return (image.height, image.width) if turned else image.size
    except Exception as fault:                    # a decoder that is fed damaged bytes may raise anything
        why = f"{type(fault).__name__}: {fault}"[:200]
        raise MinisdError("the picture cannot be read", str(source), why, "give a whole file") from fault
