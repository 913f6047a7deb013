"""Buckets: which sizes there are, which a picture gets, and what is left of it."""

import pytest
import torch
from PIL import Image

from minisd.train.buckets import Bucket, assigned, fitted, kept_share, sizes

SIZES = sizes(512, 64, 2.0)


@pytest.mark.parametrize("side, multiple, ratio", [(512, 64, 1.0), (512, 64, 2.0), (768, 64, 3.0), (128, 8, 2.0)])
def test_sizes_fill_the_area_and_come_in_pairs(side, multiple, ratio):
    found = sizes(side, multiple, ratio)
    assert Bucket(side, side) in found and len({one.width for one in found}) == len(found)
    for width, height in found:
        assert width % multiple == height % multiple == 0
        assert max(width, height) / min(width, height) <= ratio
        assert side * side - multiple * max(width, height) < width * height <= side * side
        assert (height, width) in found


def test_the_sizes_of_512():
    assert sizes(512, 64, 1.0) == [(512, 512)]
    assert SIZES == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]


@pytest.mark.parametrize("size, bucket", [
    ((1000, 1000), (512, 512)), ((1600, 900), (640, 384)), ((900, 1600), (384, 640)), ((3000, 10), (640, 384)),
    ((1300, 1000), (576, 448)), ((5, 6), (448, 576))])
def test_each_picture_gets_the_nearest_shape(size, bucket):
    assert assigned(size, SIZES) == bucket


def test_the_share_that_is_kept():
    assert kept_share((200, 100), Bucket(512, 512)) == 0.5 == kept_share((100, 200), Bucket(64, 64))
    assert kept_share((1280, 768), Bucket(640, 384)) == 1


def test_the_centre_is_kept_in_the_buckets_shape():
    """A red field with blue margins that a 2:1 crop takes away."""
    picture = Image.new("RGB", (80, 80), "blue")
    picture.paste("red", (0, 20, 80, 60))
    x = fitted(picture, Bucket(64, 32))
    assert x.shape == (3, 32, 64) and x.dtype == torch.uint8
    assert (x[0, 2:-2] == 255).all() and (x[2, 2:-2] == 0).all()
    turned = fitted(picture.transpose(Image.Transpose.ROTATE_90), Bucket(32, 64))
    assert torch.equal(turned, x.rot90(1, (1, 2)))
