"""The sheet: every picture in its place, a label under each."""

import numpy as np
from PIL import Image

from minisd.evaluate.sheet import labelled, sheet


def test_a_label_stands_under_its_picture_and_leaves_it_alone():
    picture = Image.new("RGB", (96, 96), "red")
    tile = np.asarray(labelled(picture, "a red apple"))
    assert (tile[:96] == np.asarray(picture)).all()
    assert tile.shape[1] == 96 and tile.shape[0] > 110
    assert (tile[96:] < 128).any()
    assert (np.asarray(labelled(picture, ""))[96:] == 255).all()


def test_long_and_foreign_labels_fit():
    picture = Image.new("RGB", (64, 64), "red")
    size = labelled(picture, "x").size
    for label in ("a very long prompt indeed " * 20, "x" * 300, "りんご 🍎", "line\nbreak\0"):
        assert labelled(picture, label).size == size


def test_pictures_are_laid_row_by_row():
    colours = [(10 * n, 0, 0) for n in range(5)]
    whole = sheet([Image.new("RGB", (64, 64), colour) for colour in colours], list("abcde"), columns=3)
    tile = labelled(Image.new("RGB", (64, 64)), "a").size
    places = [(n % 3 * (tile[0] + 4), n // 3 * (tile[1] + 4)) for n in range(5)]
    assert [whole.getpixel(place) for place in places] == colours
    assert sheet([Image.new("RGB", (64, 64))], ["a"], columns=8).size == tile
