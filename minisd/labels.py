"""Pictures in rows and columns with words beside them, in Pillow's own font, which comes in every size."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

BLACK, GREY, WHITE = (0, 0, 0), (224, 224, 224), (255, 255, 255)
GAP = 4                                           # pixels between pictures
LETTERS = (11, 36)                                # pixels of the smallest and the largest letters
LINES = 8                                         # of one label; what is longer ends with an ellipsis

Font = ImageFont.FreeTypeFont


class Block(NamedTuple):
    """A label broken into lines, and its size in pixels."""

    lines: Sequence[str]
    width: int
    height: int


def table(rows: Sequence[Sequence[Image.Image | None]], above: Sequence[str], beside: Sequence[str],
          title: str = "") -> Image.Image:
    """Rows of pictures on white with a label above each column, one beside each row, and a title over all.

    Cells are as large as the largest picture; None is a grey cell. Labels may be empty.
    """
    cells = [cell for row in rows for cell in row if cell is not None]
    width, height = max(cell.width for cell in cells), max(cell.height for cell in cells)
    font = scaled(width)
    sides = [block(text, font, width) for text in beside]
    heads = [block(text, font, width) for text in above]
    left, count = max(side.width for side in sides) + GAP, max(map(len, rows))
    whole = left + count * (width + GAP) - GAP
    over = block(title, font, whole)
    top = over.height + max(head.height for head in heads) + GAP
    sheet = Image.new("RGB", (whole, top + len(rows) * (height + GAP) - GAP), WHITE)
    write(sheet, font, over, (0, 0), whole)
    for n, head in enumerate(heads):
        write(sheet, font, head, (left + n * (width + GAP), top - GAP - head.height), width)
    for m, (row, side) in enumerate(zip(rows, sides, strict=True)):
        y = top + m * (height + GAP)
        write(sheet, font, side, (0, y + (height - side.height) // 2), left - GAP)
        for n, cell in enumerate(row):
            picture = Image.new("RGB", (width, height), GREY) if cell is None else cell
            sheet.paste(picture, (left + n * (width + GAP), y))
    return sheet


def scaled(width: int) -> Font:
    """Letters in proportion to the pictures: ten or so fit side by side over each."""
    font = ImageFont.load_default(min(max(width // 10, LETTERS[0]), LETTERS[1]))
    assert isinstance(font, Font)                 # with a size given, it is never the bitmap font
    return font


def block(text: str, font: Font, width: int) -> Block:
    """A text in lines of at most this width, which is never exceeded: a word that is too long is broken."""
    lines = list(wrapped(text, font, width))
    if len(lines) > LINES:
        last = lines[LINES - 1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        lines = [*lines[:LINES - 1], last + "…"]
    widest = max((font.getlength(line) for line in lines), default=0)
    return Block(lines, int(widest + 0.999), len(lines) * line_height(font))


def wrapped(text: str, font: Font, width: int) -> Iterator[str]:
    """Lines, broken between words where that is possible."""
    line = ""
    for word in text.split():
        joined = f"{line} {word}".strip()
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            yield line
        *full, line = pieces(word, font, width)
        yield from full
    if line:
        yield line


def pieces(word: str, font: Font, width: int) -> Iterator[str]:
    """A word in parts that fit, of a letter at least."""
    part = ""
    for letter in word:
        if part and font.getlength(part + letter) > width:
            yield part
            part = ""
        part += letter
    yield part


def line_height(font: Font) -> int:
    above, below = font.getmetrics()
    return above + below + 1


def write(sheet: Image.Image, font: Font, label: Block, corner: tuple[int, int], width: int) -> None:
    """The lines below each other, each in the middle of this width."""
    draw = ImageDraw.Draw(sheet)
    for n, line in enumerate(label.lines):
        left = corner[0] + (width - font.getlength(line)) / 2
        draw.text((left, corner[1] + n * line_height(font)), line, fill=BLACK, font=font)
