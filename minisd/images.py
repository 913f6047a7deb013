"""Pictures: opened safely whatever their kind, made tensors in [-1, 1] and back, laid in grids, written."""

import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from minisd.errors import RESOURCE, MinisdError
from minisd.png import png

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")   # other decoders are never tried
MAX_PIXELS = 64 * 1024 * 1024
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
Colour = tuple[int, int, int]
GAP = 4                                           # pixels between the pictures of a grid
NUMBERED = re.compile(r"(\d{5,9})-")


def open_picture(source: str | Path | BinaryIO, background: Colour = WHITE) -> Image.Image:
    """A picture as upright 8-bit RGB: the first frame, alpha laid over the background, 16 bits scaled to 8.

    Float pictures are taken to run from 0 to 1; colour profiles are ignored. A file that is damaged, of
    another kind or above 64 megapixels is a MinisdError, whatever its decoder raises.
    """
    return _opened(source, lambda image, where: as_picture(image, background, where))


def open_mask(source: str | Path | BinaryIO) -> Image.Image:
    """A mask as upright black and white, mode L: white from half the brightness on, transparent is black."""
    return _opened(source, as_mask)


def _opened(source: str | Path | BinaryIO, convert: Callable[[Image.Image, str], Image.Image]) -> Image.Image:
    where = str(source) if isinstance(source, (str, Path)) else "picture"
    try:
        with Image.open(source, formats=FORMATS) as image:
            return convert(image, where)
    except MinisdError:
        raise
    except Exception as error:                    # a decoder that is fed damaged bytes may raise anything
        raise _unreadable(where, error) from error


def as_picture(image: Image.Image, background: Colour = WHITE, where: str = "picture") -> Image.Image:
    """What `open_picture` makes of a file, of an image that is open already."""
    width, height = image.size
    if width * height > MAX_PIXELS:               # known from the header, before anything is decoded
        raise MinisdError(f"the picture has {width}x{height} pixels", where,
                          f"at most {MAX_PIXELS:,} are read", "make it smaller")
    try:
        image.load()                              # turns a TIFF upright, and forgets its orientation
        return _flat(ImageOps.exif_transpose(image), background)
    except Exception as error:
        raise _unreadable(where, error) from error


def as_mask(image: Image.Image, where: str = "mask") -> Image.Image:
    """What `open_mask` makes of a file; a mask without any white is refused."""
    mask = as_picture(image, BLACK, where).convert("L").point([0] * 128 + [255] * 128)
    if mask.getbbox() is None:
        raise MinisdError("the mask is black all over", where, "white is what is drawn anew",
                          "paint something white; a transparent mask counts as black")
    return mask


def _unreadable(where: str, error: Exception) -> MinisdError:
    return MinisdError("the picture cannot be read", where, f"{type(error).__name__}: {error}"[:200],
                       f"give a whole file: {', '.join(FORMATS)}")


def fingerprint(image: Image.Image) -> str:
    """sha256 of a picture's pixels, mode and size, whatever kind of file they came from: 64 hexadecimal digits."""
    head = f"{image.mode} {image.width}x{image.height}\n".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


def album(*images: Image.Image) -> dict[str, Image.Image]:
    """Pictures by their fingerprints, as a Drawing names them."""
    return {fingerprint(image): image for image in images}


def _flat(image: Image.Image, background: Colour) -> Image.Image:
    if image.mode.startswith("I"):                # 16-bit greys, which Pillow may hand out as 32-bit ones
        greys = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(greys.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        greys = np.nan_to_num(np.asarray(image), nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255
        return Image.fromarray(greys.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture -> [3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1  # [h, w, 3] -> [3, h, w]


def to_images(x: Tensor) -> list[Image.Image]:
    """[b, 3, h, w] in [-1, 1] -> pictures, rounded to the nearest of 256 levels and clipped."""
    pixels = ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(one) for one in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Pictures side by side on white, row by row, in about a square unless the columns are given."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = max(image.width for image in images) + GAP, max(image.height for image in images) + GAP
    sheet = Image.new("RGB", (columns * width - GAP, math.ceil(len(images) / columns) * height - GAP), WHITE)
    for n, image in enumerate(images):
        sheet.paste(image, (n % columns * width, n // columns * height))
    return sheet


def write_png(image: Image.Image, folder: Path, label: str, text: Mapping[str, str],
              number: int | None = None) -> Path:
    """Write `NNNNN-label.png` under the folder's next number, with text chunks, and return its path.

    Where a number is given, it is that one, or the first one after it whose name is free.

    It appears whole or not at all, and nothing is ever overwritten, even if others write there as well.
    """
    try:
        return _place(png(image, text), folder, label, number)
    except OSError as error:
        raise MinisdError("the picture cannot be written", str(folder), error.strerror or str(error),
                          "free some space, or give another folder by --out", RESOURCE) from error


def _place(data: bytes, folder: Path, label: str, number: int | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    hidden = folder / f".tmp-{os.getpid()}-{label}.png"
    try:
        with hidden.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        number = _next_number(folder) if number is None else number
        while not _take(hidden, folder / f"{number:05d}-{label}.png"):
            number += 1
        return folder / f"{number:05d}-{label}.png"
    finally:
        hidden.unlink(missing_ok=True)


def _take(hidden: Path, target: Path) -> bool:
    """Give the file its name, unless the name is taken; a rename would overwrite, so this is a hard link."""
    try:
        os.link(hidden, target)
    except FileExistsError:
        return False
    except OSError:                               # a file system without hard links
        return _take_by_rename(hidden, target)
    return True


def _take_by_rename(hidden: Path, target: Path) -> bool:
    """The name is reserved by an empty file, which the rename replaces."""
    try:
        target.open("xb").close()
    except FileExistsError:
        return False
    hidden.replace(target)
    return True


def _next_number(folder: Path) -> int:
    """One above the highest number in the folder, whatever it belongs to."""
    found = (NUMBERED.match(name) for name in os.listdir(folder))
    return max((int(match[1]) for match in found if match), default=0) + 1
