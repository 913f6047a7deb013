"""Labels stand where they belong, in lines that fit."""

import numpy as np
import pytest
from PIL import Image

from minisd.labels import BLACK, GAP, GREY, LINES, WHITE, block, line_height, scaled, table

RED, BLUE = (255, 0, 0), (0, 0, 255)


def tile(colour: tuple[int, int, int], size: tuple[int, int] = (60, 50)) -> Image.Image:
    return Image.new("RGB", size, colour)


def ink(image: Image.Image) -> np.ndarray:
    """Where there are letters: pixels that are neither white nor a picture's."""
    pixels = np.asarray(image).astype(int)
    return (pixels.max(axis=2) - pixels.min(axis=2) < 8) & (pixels.max(axis=2) < 200)


def test_pictures_stand_in_rows_and_columns_under_their_labels() -> None:
    sheet = table([[tile(RED), tile(BLUE)], [tile(BLUE), None]], ["one", "two"], ["first row", ""], "all of them")
    font = scaled(60)
    left = block("first row", font, 60).width + GAP
    top = 2 * line_height(font) + GAP
    assert sheet.size == (left + 2 * 60 + GAP, top + 2 * 50 + GAP)
    corners = [(left, top), (left + 60 + GAP, top), (left, top + 50 + GAP), (left + 60 + GAP, top + 50 + GAP)]
    for (x, y), colour in zip(corners, (RED, BLUE, BLUE, GREY), strict=True):
        assert sheet.getpixel((x, y)) == sheet.getpixel((x + 59, y + 49)) == colour
        assert WHITE in (sheet.getpixel((x - 1, y + 25)), sheet.getpixel((max(x - GAP, 0), y + 25)))
    marks = ink(sheet)
    assert marks[:top // 2].any() and marks[top // 2:top, left:left + 60].any()
    assert marks[top // 2:top, left + 60 + GAP:].any() and marks[top:top + 50, :left].any()
    assert not marks[top + 50:, :left].any()


def test_pictures_of_several_sizes_share_the_largest_cell() -> None:
    sheet = table([[tile(RED, (30, 80)), tile(BLUE, (60, 20))]], ["", ""], [""])
    assert sheet.size == (GAP + 2 * 60 + GAP, 80 + GAP)
    assert sheet.getpixel((GAP + 29, GAP + 79)) == RED and sheet.getpixel((GAP + 30, GAP + 79)) == WHITE


@pytest.mark.parametrize("width", [40, 128, 512])
@pytest.mark.parametrize("text", ["", "a", "steps 20", "a photograph of " * 40, "unbreakable" * 20, "  a \n b\t",
                                  "猫 🍎 café ß", "W" * 500])
def test_no_line_is_wider_than_its_room(text: str, width: int) -> None:
    font = scaled(width)
    label = block(text, font, width)
    assert all(font.getlength(line) <= width for line in label.lines) and label.width <= width
    assert len(label.lines) <= LINES and label.height == len(label.lines) * line_height(font)
    whole = "".join(label.lines).replace(" ", "")
    wanted = "".join(text.split())
    assert whole == wanted or (whole.endswith("…") and wanted.startswith(whole[:-1]) and len(label.lines) == LINES)


def test_words_are_kept_whole_where_they_fit() -> None:
    assert block("dpm++2m karras", scaled(128), 60).lines == ["dpm++2m", "karras"]


def test_letters_grow_with_the_pictures() -> None:
    assert [line_height(scaled(width)) for width in (8, 64, 512, 4000)] == sorted(
        line_height(scaled(width)) for width in (8, 64, 512, 4000))
    assert line_height(scaled(512)) > 2 * line_height(scaled(64))
    assert BLACK != WHITE
