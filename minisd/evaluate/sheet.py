"""A sheet of pictures with the words they were drawn from underneath."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from minisd.images import GAP, WHITE, grid

BLACK = (0, 0, 0)
LINES, LINE = 2, 12                               # of a label, and the pixels of one
LETTER = 5.5                                      # pixels of a letter of Pillow's own font, on average


def labelled(image: Image.Image, label: str) -> Image.Image:
    """The picture above its label, which is broken into at most two lines and cut where they are full."""
    tile = Image.new("RGB", (image.width, image.height + LINES * LINE + GAP), WHITE)
    tile.paste(image)
    # Pillow without FreeType has a bitmap font, which fails on what latin-1 cannot say.
    words = label.encode("latin-1", "replace").decode("latin-1")
    lines = textwrap.wrap(words, max(8, int(image.width / LETTER)), max_lines=LINES, placeholder="...")
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default()
    for n, line in enumerate(lines):
        left = max(0, (image.width - int(draw.textlength(line, font=font))) // 2)
        draw.text((left, image.height + 1 + n * LINE), line, fill=BLACK, font=font)
    return tile


def sheet(images: Sequence[Image.Image], labels: Sequence[str], columns: int) -> Image.Image:
    """Labelled pictures, row by row."""
    tiles = [labelled(image, label) for image, label in zip(images, labels, strict=True)]
    return grid(tiles, columns=min(columns, len(tiles)))
