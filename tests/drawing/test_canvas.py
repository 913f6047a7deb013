"""What is drawn on: the right part, in the right size, and back again with every known byte in its place."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from minisd import images
from minisd.drawing.canvas import canvas_of, drawable, feathered, region
from minisd.drawing.control import Mask, Start
from minisd.drawing.plan import Drawing
from minisd.errors import USAGE, MinisdError

RNG = np.random.default_rng(0)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8))


def mask_of(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size)
    for left, top, right, bottom in boxes:
        ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return mask


def canvas(picture: Image.Image, mask: Image.Image | None, size: tuple[int, int], feather: int = 0,
           padding: int | None = None):
    masked = None if mask is None else Mask(images.fingerprint(mask), feather, padding)
    drawing = Drawing("", "", 20, 7.5, "euler", 0, *size, start=Start(images.fingerprint(picture), 0.5), mask=masked)
    return canvas_of(drawing, images.album(*filter(None, (picture, mask))))


def changed(a: Image.Image, b: Image.Image) -> np.ndarray:
    return (np.asarray(a) != np.asarray(b)).any(axis=2)


def test_without_a_picture_there_is_no_canvas() -> None:
    assert canvas_of(Drawing("", "", 20, 7.5, "euler", 0, 64, 64), {}) is None


def test_a_picture_of_the_drawn_size_is_taken_as_it_is_and_another_is_cropped_and_resized() -> None:
    picture = noise(96, 64)
    same = canvas(picture, None, (96, 64))
    assert same.picture is picture and same.put_back(picture) is picture
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (90, 0, 210, 100))
    assert canvas(wide, None, (64, 64)).picture.getcolors() == [(64 * 64, (0, 0, 255))]


@pytest.mark.parametrize("feather", [0, 1, 5])
@pytest.mark.parametrize("padding", [None, 0, 7, 100])
def test_outside_the_mask_and_its_feather_not_a_byte_changes(feather: int, padding: int | None) -> None:
    picture, mask = noise(96, 72), mask_of((96, 72), (30, 20, 51, 29), (60, 60, 62, 62))
    whole = canvas(picture, mask, (96, 72) if padding is None else (64, 128), feather, padding)
    result = whole.put_back(Image.eval(whole.picture, lambda v: 255 - v))
    away = np.ones((72, 96), bool)
    away[20 - feather:29 + feather, 30 - feather:51 + feather] = False
    away[60 - feather:62 + feather, 60 - feather:62 + feather] = False
    assert result.size == picture.size and not (changed(result, picture) & away).any()
    assert changed(result, picture)[np.asarray(mask) > 0].mean() > 0.95
    if padding is None:                           # nothing was resized, so inside it is the new picture to the byte
        inverse = Image.eval(picture, lambda v: 255 - v)
        assert not changed(result, inverse)[np.asarray(mask) > 0].any()


def test_a_feather_falls_evenly() -> None:
    grown, share = feathered(mask_of((20, 9), (8, 3, 12, 6)), 3)
    assert share[4, :, 0].tolist() == [0] * 5 + [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25] + [0] * 5
    assert (np.asarray(grown) > 0).tolist() == (share[..., 0] > 0).tolist()
    same, hard = feathered(mask_of((20, 9), (8, 3, 12, 6)), 0)
    assert set(np.unique(hard)) == {0, 1} and np.array_equal(np.asarray(same) / 255, hard[..., 0])


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (64, 200)])
@pytest.mark.parametrize("padding", [0, 10, 500])
def test_the_region_holds_the_masked_in_the_right_shape(size: tuple[int, int], padding: int) -> None:
    for masked in ((100, 80, 103, 82), (0, 0, 30, 5), (290, 190, 300, 200), (5, 0, 295, 10)):
        left, top, right, bottom = region(masked, padding, size, (300, 200))
        assert 0 <= left <= masked[0] and masked[2] <= right <= 300 and 0 <= top <= masked[1] <= masked[3] <= bottom
        assert bottom <= 200
        free = right - left < 300 and bottom - top < 200
        assert not free or abs((right - left) * size[1] - (bottom - top) * size[0]) < max(size)
        if free and padding == 0:                 # one side is no longer than it must be
            assert right - left == masked[2] - masked[0] or bottom - top == masked[3] - masked[1]


def test_context_is_on_both_sides_unless_the_picture_ends() -> None:
    assert region((100, 100, 110, 110), 20, (64, 64), (300, 300)) == (80, 80, 130, 130)
    assert region((0, 295, 10, 300), 20, (64, 64), (300, 300)) == (0, 250, 50, 300)


def test_a_thin_line_is_not_lost_when_the_part_is_made_smaller() -> None:
    picture, mask = noise(640, 640), mask_of((640, 640), (0, 300, 640, 301))
    assert canvas(picture, mask, (64, 64), padding=0).mask.getbbox() is not None


def test_a_feather_is_within_the_part_that_is_drawn() -> None:
    picture, mask = noise(200, 200), mask_of((200, 200), (50, 60, 58, 70))
    joint = canvas(picture, mask, (64, 64), feather=4, padding=0).joint
    _, whole = feathered(mask, 4)
    left, top, right, bottom = joint.box
    assert np.array_equal(joint.share, whole[top:bottom, left:right])
    assert whole.sum() == pytest.approx(joint.share.sum())           # none of it lies outside


def test_only_the_masked_part_is_drawn_larger() -> None:
    picture = noise(333, 201)                     # of no drawable size
    part = canvas(picture, mask_of(picture.size, (100, 100, 116, 116)), (64, 64), padding=8)
    assert part.picture.size == part.mask.size == (64, 64) and part.joint.box == (92, 92, 124, 124)
    assert part.put_back(part.picture).size == (333, 201)
    assert np.asarray(part.mask)[20:44, 20:44].all() and not np.asarray(part.mask)[:14].any()


@pytest.mark.parametrize(("mask", "size", "told"), [
    ((96, 72), (96, 64), "a picture's size|the picture 96x64"), ((96, 64), (64, 64), "must stay as it is")])
def test_sizes_that_disagree_are_refused(mask: tuple[int, int], size: tuple[int, int], told: str) -> None:
    with pytest.raises(MinisdError, match=told) as fault:
        canvas(noise(96, 64), mask_of(mask, (0, 0, 9, 9)), size)
    assert fault.value.code == USAGE


@pytest.mark.parametrize("size", [(65, 64), (64, 1000001), (56, 64), (2056, 64)])
def test_a_picture_that_cannot_be_drawn_in_its_own_size(size: tuple[int, int]) -> None:
    with pytest.raises(MinisdError, match="--size"):
        drawable(size)
    assert drawable((72, 2048)) == (72, 2048)


def test_another_picture_than_the_first_time_is_refused() -> None:
    picture, other = noise(64, 64), noise(64, 64)
    drawing = Drawing("", "", 20, 7.5, "euler", 0, 64, 64, start=Start(images.fingerprint(picture)))
    with pytest.raises(MinisdError, match="not given: the --image"):
        canvas_of(drawing, images.album(other))
