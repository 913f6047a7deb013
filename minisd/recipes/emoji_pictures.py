"""Drawing an emoji from each of the sources, and laying it on a white square of one size."""

import io
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from minisd.errors import RESOURCE, MinisdError
from minisd.recipes.emoji_captions import Emoji, bare

SIZE, MARGIN = 128, 0.05  # side of a picture in pixels; white left free on each side
INSTALL = "pip install 'minisd[data]'"
Draw = Callable[[Emoji], Image.Image | None]

# Where Fluent's file is not called like emojibase's label.
RENAMED = {
    "enraged face": "pouting-face",
    "face with crossed-out eyes": "knocked-out-face",
    "smiling face with open hands": "hugging-face",
    "black bird": "blackbird",
    "phoenix": "phoenix-bird",
    "stuffed flatbread": "stuffedbread-flat",
    "merperson": "person-merpeople",
    "merman": "man-merpeople",
    "mermaid": "woman-merpeople",
    "woman: blond hair": "woman-blonde-hair",
    "man: blond hair": "man-blonde-hair",
    "people with bunny ears": "person-with-bunny-ears",
    "people wrestling": "person-wrestling",
}


def fluent_3d(files: dict[str, bytes]) -> Draw:
    """Fluent's 3D pictures, found by code points."""
    by_codepoints = {bare(name): data for name, data in files.items()}

    def draw(e: Emoji) -> Image.Image | None:
        data = by_codepoints.get(e.codepoints)
        return Image.open(io.BytesIO(data)) if data else None

    return draw


def fluent_svg(files: dict[str, bytes]) -> Draw:
    """Fluent's SVG, found by label, drawn at twice the size."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise MinisdError("resvg-py is not installed", "drawing SVG", str(error), INSTALL, RESOURCE) from error

    def draw(e: Emoji) -> Image.Image | None:
        ending = f"-{e.tone}" if e.tone else "-default"
        name = slug(e.concept)
        stems = [RENAMED.get(e.concept, name), f"person-{name}", re.sub(r"^deaf-(\w+)$", r"\1-deaf", name)]
        names = [stem + ending for stem in stems] + ([] if e.tone else stems)
        data = next((files[name] for name in names if name in files), None)
        if data is None:
            return None
        png = svg_to_bytes(svg_string=data.decode(), width=2 * SIZE, height=2 * SIZE, skip_system_fonts=True)
        return Image.open(io.BytesIO(png))

    return draw


def slug(label: str) -> str:
    """A label as Fluent's files are called: "jack-o-lantern", "womans-boot", "pinata"."""
    letters = unicodedata.normalize("NFKD", label.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", letters.replace("'", "")).strip("-")


def noto(font: Path) -> Draw:
    """Noto's bitmaps: a glyph by its code point, or by the ligature that joins several."""
    try:
        from fontTools.ttLib import TTFont
    except ImportError as error:
        raise MinisdError("fonttools is not installed", "reading the font", str(error), INSTALL, RESOURCE) from error
    opened = TTFont(font)
    bitmaps, glyphs = opened["CBDT"].strikeData[0], opened.getBestCmap()
    lookups = opened["GSUB"].table.LookupList.Lookup
    tables = (table for lookup in lookups if lookup.LookupType == 4 for table in lookup.SubTable)  # 4: ligatures
    starts = (start for table in tables for start in table.ligatures.items())
    joined = {(first, *rest.Component): rest.LigGlyph for first, ligatures in starts for rest in ligatures}

    def draw(e: Emoji) -> Image.Image | None:
        names = tuple(glyphs.get(int(c, 16), "") for c in e.codepoints.split("-"))
        name = names[0] if len(names) == 1 else joined.get(names, "")
        return Image.open(io.BytesIO(bitmaps[name].imageData)) if name in bitmaps else None

    return draw


def squared(picture: Image.Image, size: int = SIZE, margin: float = MARGIN) -> Image.Image:
    """Cut to what is drawn, centre it in a square with a margin, resample, lay on white: RGB.

    Resampling and laying work on premultiplied colour ("RGBa"); otherwise the colour of clear pixels would
    seep in as a dark fringe.
    """
    rgba = picture.convert("RGBA")
    box = rgba.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    if box is None:
        remedy = "remove the folder of packages and download them again"
        raise MinisdError("a picture with nothing in it", f"size {rgba.size}", "every pixel is clear", remedy)
    width, height = box[2] - box[0], box[3] - box[1]
    side = max(width, height) / (1 - 2 * margin)
    left, top = (box[0] + box[2] - side) / 2, (box[1] + box[3] - side) / 2
    pad = int(np.ceil(side))  # so that the square lies inside the canvas, wherever the drawing is
    canvas = Image.new("RGBa", (rgba.width + 2 * pad, rgba.height + 2 * pad))
    canvas.paste(rgba.convert("RGBa"), (pad, pad))
    square = (left + pad, top + pad, left + pad + side, top + pad + side)
    small = np.asarray(canvas.resize((size, size), Image.Resampling.LANCZOS, box=square), dtype=np.int16)
    return Image.fromarray(np.clip(small[..., :3] + 255 - small[..., 3:], 0, 255).astype(np.uint8))
