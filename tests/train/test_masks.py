"""Masks: beside a picture or in its alpha, in the picture's crop and mirror, and what they do to the loss."""

import pytest
import torch
from PIL import Image, ImageDraw

from minisd.errors import MinisdError
from minisd.train.config import DataConfig
from minisd.train.data import Pictures, square
from minisd.train.encoded import Encoded
from minisd.train.masks import mask_of
from minisd.train.objective import error
from minisd.train.rows import Row, read_rows
from minisd.train.tasks import model


def painted(path, box, mode="L", size=(96, 64)):
    image = Image.new(mode, size, 0 if mode == "L" else (255, 0, 0, 0))
    ImageDraw.Draw(image).rectangle(box, fill=255 if mode == "L" else (255, 0, 0, 255))
    image.save(path)


def fit(picture):
    return square(picture, 64)


@pytest.fixture
def folder(tmp_path):
    """A picture with a mask beside it, one with alpha, one with neither; the left half of the square counts."""
    left = (0, 0, 47, 63)
    Image.new("RGB", (96, 64), "red").save(tmp_path / "a.png")
    painted(tmp_path / "a.mask.png", left)
    painted(tmp_path / "b.png", left, "RGBA")
    Image.new("RGB", (96, 64), "red").save(tmp_path / "c.png")
    return tmp_path


def test_masks_are_no_pictures_of_their_own(folder):
    assert [row.path.name for row in read_rows(folder, DataConfig(), "train")] == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("name, expected", [("a", [1, 1, 1, 1, 0, 0, 0, 0]), ("b", [1, 1, 1, 1, 0, 0, 0, 0]),
                                            ("c", [1] * 8)])
def test_a_mask_has_the_pictures_crop_in_latents(folder, name, expected):
    found = mask_of(Row(folder / f"{name}.png", ("",)), fit, 8)
    assert found.shape == (1, 8, 8)
    torch.testing.assert_close(found[0], torch.tensor([expected] * 8, dtype=torch.float32), rtol=0, atol=0.07)


def test_a_black_mask_is_an_error(folder):
    painted(folder / "c.mask.png", (0, 0, 0, 0))
    with pytest.raises(MinisdError, match="black all over"):
        mask_of(Row(folder / "c.png", ("",)), fit, 8)


def test_only_what_counts_counts_and_the_masks_scale_does_not():
    generator = torch.Generator().manual_seed(0)
    out, target = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, :, :4] = 1
    weight = torch.tensor([1.0, 0.5])
    expected = error(out[..., :4], target[..., :4], weight)
    for scale in (1, 0.25):
        torch.testing.assert_close(error(out, target, weight, scale * mask), expected)
    torch.testing.assert_close(error(out, target, weight, torch.ones(2, 1, 8, 8)), error(out, target, weight))


@pytest.mark.parametrize("flip", [False, True])
def test_samples_bring_their_masks_mirrored_as_they_are(recipe, folder, tmp_path, flip):
    painted(folder / "c.mask.png", (0, 0, 0, 0))   # as good as broken: another takes its place
    vae = model.new(recipe.model, "vae", 0)
    source = Encoded(Pictures(folder, DataConfig(size=64, masks=True, flip=flip), 1), vae, None, tmp_path / "cache")
    batch = source.batch(list(range(12)))
    assert batch.mask.shape == (12, 1, 8, 8) and batch.latents.mean.shape == (12, 4, 8, 8)
    assert {row.path.name for row in batch.rows} == {"a.png", "b.png"}
    sides = {("left", "right")[int(one[0, :, :4].mean() < 0.5)] for one in batch.mask}
    assert sides == ({"left", "right"} if flip else {"left"})
    plain = Encoded(Pictures(folder, DataConfig(size=64, flip=flip), 1), vae, None, tmp_path / "cache").batch([0])
    assert plain.mask is None and plain.latents.mean.shape == (1, 4, 8, 8)
