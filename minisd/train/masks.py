"""Which part of a picture counts: a mask beside it, `x.mask.png` for `x.png`, or its own alpha; else all of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minisd.errors import MinisdError
from minisd.images import BLACK, open_picture
from minisd.train.rows import MASK, Row

LEAST = 1 / 256                                   # of the whole area: a mask with less white is a mistake
Fit = Callable[[Image.Image], Tensor]             # RGB picture -> uint8 [3, h, w], as the picture itself is fitted


def mask_path(path: Path) -> Path:
    """Where the mask of a picture would lie."""
    return path.with_name(path.stem + MASK)


def mask_of(row: Row, fit: Fit, factor: int) -> Tensor:
    """How much each latent counts, 0 to 1: [1, h, w]; pixels are averaged over the `factor` of a latent."""
    beside = mask_path(row.path)
    if row.member is None and beside.is_file():
        mask = open_picture(beside, background=BLACK).convert("L")
    else:
        mask = opaque(row)
    pixels = fit(mask.convert("RGB"))[:1].float() / 255
    if pixels.mean() < LEAST:
        raise MinisdError("the mask is black all over", str(row.path), "white is what counts", "paint something white")
    return F.avg_pool2d(pixels, factor)


def opaque(row: Row) -> Image.Image:
    """A picture's alpha, laid out as the picture is: white where it is opaque, and everywhere where it has none."""
    white, black = (np.asarray(open_picture(row.source(), background=colour), dtype=np.int16)
                    for colour in ((255, 255, 255), BLACK))
    return Image.fromarray((255 - (white - black).max(axis=2)).astype(np.uint8))
