"""Buckets in training: batches of one size, every picture in its turn, and a sample number is all that decides."""

from collections import Counter

import pytest
import torch
from PIL import Image

from minisd.errors import MinisdError
from minisd.train.buckets import shown_size
from minisd.train.config import DataConfig, FinetuneTask, Stage, VAETask
from minisd.train.data import Pictures, unseen
from minisd.train.encoded import Encoded
from minisd.train.plan import Plan
from minisd.train.tasks import model

CFG = DataConfig(size=128, buckets=4.0)
PLAN = Plan(3, ((0, 1, 2, 3, 4), (5, 6), (7, 8, 9, 10)), together=2)


def test_an_epoch_has_every_picture_and_runs_of_one_bucket():
    assert PLAN.samples == 12                      # 3, 1 and 2 runs of two
    for epoch in range(5):
        places = [PLAN.order(12 * epoch + n) for n in range(12)]
        counts = Counter(places)
        assert set(counts) == set(range(11)) and max(counts.values()) == 2 and len(places) == 12
        assert all(PLAN.group_of[a] == PLAN.group_of[b] for a, b in zip(places[::2], places[1::2], strict=True))


def test_the_order_is_the_seeds_alone():
    again = Plan(3, PLAN.groups, 2)
    assert [again.order(n) for n in range(40, 60)] == [PLAN.order(n) for n in range(40, 60)]
    orders = [[plan.order(n) for n in range(12)] for plan in (PLAN, Plan(4, PLAN.groups, 2))]
    assert orders[0] != orders[1] and [PLAN.order(n + 12) for n in range(12)] != orders[0]


def test_a_bucket_of_fewer_than_a_run_is_repeated():
    plan = Plan(1, ((4, 9),), together=5)
    assert set(plan.epoch(0).tolist()) == {4, 9} and plan.samples == 5


def test_neighbours_go_round_within_the_bucket():
    assert list(PLAN.neighbours(8)) == [8, 9, 10, 7] and list(PLAN.neighbours(5)) == [5, 6]


@pytest.fixture
def shapes(tmp_path):
    """Three wide pictures, three tall ones and three squares, each of a colour that tells its shape."""
    for n, (size, colour) in enumerate([((300, 100), "red"), ((100, 300), "lime"), ((200, 200), "blue")] * 3):
        Image.new("RGB", size, colour).save(tmp_path / f"{n}.png")
        (tmp_path / f"{n}.txt").write_text(colour)
    return tmp_path


def test_batches_have_one_size_and_it_is_their_pictures(shapes):
    source, seen = Pictures(shapes, CFG, 1, together=3), Counter()
    for start in range(0, 18, 3):
        batch = source.batch([start, start + 1, start + 2])
        assert len(set(batch.captions)) == 1
        width = {"red": 256, "lime": 64, "blue": 128}[batch.captions[0]]
        assert batch.pixels.shape == (3, 3, 128 * 128 // width, width)
        seen.update(row.path.name for row in batch.rows)
    assert set(seen.values()) == {2} and len(seen) == 9


def test_latents_are_cached_by_bucket_and_held_out_ones_are_square(shapes, recipe, tmp_path):
    vae = model.new(recipe.model, "vae", 0)
    encoded = Encoded(Pictures(shapes, CFG, 1, together=3), vae, None, tmp_path / "cache")
    batch = encoded.batch([0, 1, 2])
    row = batch.rows[0]
    with torch.no_grad():
        expected = vae.encode(encoded.pictures.opened(row)[None].float() / 127.5 - 1)
    assert torch.equal(batch.latents.mean[0], expected.mean[0])
    assert {tuple(batch.latents.mean.shape[2:])} <= {(8, 32), (32, 8), (16, 16)}
    assert unseen(shapes, CFG, 1).batch([0, 1]).pixels.shape == (2, 3, 128, 128)


def test_a_broken_picture_is_replaced_by_one_of_its_size(shapes):
    data = (shapes / "3.png").read_bytes()
    (shapes / "3.png").write_bytes(data[:-30])     # its header is whole: the plan has it
    (shapes / "4.png").write_bytes(b"")            # not even that
    source = Pictures(shapes, CFG, 1, together=3)
    assert [path.name for path in source.broken] == ["4.png"]
    for start in range(0, source.plan.samples, 3):
        assert len(set(source.batch([start, start + 1, start + 2]).captions)) == 1
    assert {path.name for path in source.broken} == {"3.png", "4.png"}


def test_none_is_whole(tmp_path):
    (tmp_path / "0.png").write_bytes(b"x")
    with pytest.raises(MinisdError, match="every picture is broken"):
        Pictures(tmp_path, CFG, 1)


def test_sizes_are_those_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert shown_size(tmp_path / "turned.jpg") == (20, 30)


def test_what_cannot_have_buckets():
    for wrong in ({"size": 100}, {"crop": 64}, {"buckets": 9.0}):
        with pytest.raises(ValueError, match="buckets"):
            DataConfig(**{"size": 128, "buckets": 2.0} | wrong)
    with pytest.raises(ValueError, match="leave buckets out"):
        Stage("x", data=CFG, vae=VAETask())
    assert Stage("x", data=CFG, finetune=FinetuneTask()).data.buckets == 4
