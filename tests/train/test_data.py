"""Pictures and captions: an order that depends on the number alone, and what is wrong is said, never fatal."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image

from minisd.errors import MinisdError
from minisd.train.config import DataConfig
from minisd.train.data import Pictures, square

CFG = DataConfig(size=32)


def write(folder, entries, **options):
    folder.mkdir(exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(entry, **options) + "\n" for entry in entries), "utf-8")
    return folder


def plain(folder, count):
    """A folder of pictures that are told apart by their grey."""
    folder.mkdir()
    for n in range(count):
        Image.new("RGB", (40, 32), (10 * n,) * 3).save(folder / f"{n}.png")
    return write(folder, [{"file": f"{n}.png", "text": f"grey {n}"} for n in range(count)])


def greys(batch):
    return [round((one.mean().item() + 1) * 127.5 / 10) for one in batch.pixels]


# --- order ---


def test_every_epoch_is_a_permutation(tmp_path):
    data = Pictures(plain(tmp_path / "x", 7), CFG, seed=0)
    epochs = [[data.order(7 * epoch + k) for k in range(7)] for epoch in range(20)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 15
    assert data.batch(list(range(21))).rows == [data.rows[k] for epoch in epochs[:3] for k in epoch]


def test_a_sample_is_the_same_whoever_asks_and_whenever(pictures):
    cfg = DataConfig(size=32, crop=16)
    whole = Pictures(pictures, cfg, seed=5).batch(list(range(12)))
    with ThreadPoolExecutor(4) as pool:
        apart = list(pool.map(lambda n: Pictures(pictures, cfg, seed=5).batch([n]), reversed(range(12))))[::-1]
    assert torch.equal(torch.cat([one.pixels for one in apart]), whole.pixels)
    assert [one.captions[0] for one in apart] == whole.captions
    assert Pictures(pictures, cfg, seed=6).batch(list(range(12))).captions != whole.captions


def test_pictures_beyond_the_memory_are_read_again(pictures, monkeypatch):
    expected = Pictures(pictures, CFG, seed=0).batch(list(range(6)))
    monkeypatch.setattr("minisd.train.data.MEMORY", 2 * 3 * 32 * 32)
    data = Pictures(pictures, CFG, seed=0)
    for _ in range(2):
        assert torch.equal(data.batch(list(range(6))).pixels, expected.pixels)
    assert len(data.decoded) < 6


# --- what is broken ---


@pytest.fixture
def damaged(tmp_path):
    """Ten pictures of which three are broken, each in its way."""
    folder = plain(tmp_path / "damaged", 10)
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    (folder / "3.png").write_text("not a picture")
    (folder / "8.png").unlink()
    return folder


def test_broken_pictures_are_replaced_counted_and_told_once(tmp_path, damaged, caplog):
    sound, holed = Pictures(plain(tmp_path / "sound", 10), CFG, 0), Pictures(damaged, CFG, 0)
    numbers = list(range(30))
    before, after = sound.batch(numbers), holed.batch(numbers)
    for was, now, caption in zip(greys(before), greys(after), after.captions, strict=True):
        assert now == {2: 4, 3: 4, 8: 9}.get(was, was)          # the next whole one; the others keep their place
        assert caption == f"grey {now}"
    assert sorted(path.name for path in holed.broken) == ["2.png", "3.png", "8.png"]
    assert len(caplog.records) == 3 and "3 broken so far" in caplog.text


def test_what_replaces_a_picture_does_not_depend_on_what_was_read_before(damaged):
    whole = Pictures(damaged, CFG, 0).batch(list(range(30)))
    for numbers in (list(range(15, 30)), [29, 3, 17]):
        found = Pictures(damaged, CFG, 0).batch(numbers)
        assert torch.equal(found.pixels, whole.pixels[numbers])
        assert found.captions == [whole.captions[n] for n in numbers]


def test_nothing_but_broken_pictures_is_an_error(tmp_path):
    folder = plain(tmp_path / "x", 2)
    for path in folder.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(MinisdError, match="every picture is broken"):
        Pictures(folder, CFG, 0).batch([0])


# --- captions and crops ---


def test_the_plain_caption_has_its_probability_and_the_others_share_the_rest(pictures):
    data = Pictures(pictures, DataConfig(size=8, plain_captions=0.6), 0)
    batch = data.batch(list(range(1200)))
    counts = [0, 0, 0]
    for row, caption in zip(batch.rows, batch.captions, strict=True):
        counts[row.captions.index(caption)] += 1
    assert [count / 1200 for count in counts] == pytest.approx([0.6, 0.2, 0.2], abs=0.04)
    always = Pictures(pictures, DataConfig(size=8, plain_captions=1.0), 0).batch(list(range(50)))
    assert always.captions == [row.captions[0] for row in always.rows]


def test_crops_are_parts_of_the_picture_at_many_places(pictures):
    data = Pictures(pictures, DataConfig(size=32, crop=24), 0)
    row = data.rows[0]
    picture = data.picture(row)
    parts = [data.crop(picture, data.sample(n, data.decode).draws) for n in range(40)]
    windows = picture.unfold(1, 24, 1).unfold(2, 24, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)   # [81, 3, 24, 24]
    found = {int((windows == part).all(dim=(1, 2, 3)).nonzero()[0]) for part in parts
             if (windows == part).all(dim=(1, 2, 3)).any()}
    assert len(found) > 10
    assert data.batch([0, 1]).pixels.shape == (2, 3, 24, 24)


def test_a_picture_is_its_centre_square_from_minus_one_to_one():
    wide = Image.new("RGB", (12, 4), "black")
    wide.paste((255, 255, 255), (4, 0, 8, 4))
    assert (square(wide, 4) == 255).all()
    assert square(wide.rotate(90, expand=True), 8).shape == (3, 8, 8)


def test_pixels_span_the_range(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    Image.new("RGB", (8, 8), (0, 255, 51)).save(folder / "a.png")
    pixels = Pictures(write(folder, [{"file": "a.png", "text": ""}]), DataConfig(size=8), 0).batch([0]).pixels
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([-1, 1, -0.6])


def test_no_row_that_fits_is_an_error(pictures):
    with pytest.raises(MinisdError, match="no train pictures"):
        Pictures(pictures, replace(CFG, styles=("clay",)), 0)
