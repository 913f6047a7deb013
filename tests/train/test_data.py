"""Pictures and captions: an order that depends on the number alone, and what is wrong is said, never fatal."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image

from minisd.errors import BAD_FILE, MinisdError
from minisd.train.config import DataConfig
from minisd.train.data import Pictures, Row, as_row, read_rows, square

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
    parts = [data.crop(picture, data.sample(n, data.picture).draws) for n in range(40)]
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


# --- folders ---


def test_rows_are_chosen_by_split_style_and_core(pictures):
    def concepts(split="train", **options):
        return [(row.concept, row.style) for row in read_rows(pictures, DataConfig(**options), split)]

    assert len(concepts()) == 6 and len(concepts("holdout")) == 2 and concepts("twin") == []
    assert {style for _, style in concepts(styles=("round",))} == {"round"}
    assert "black" not in {concept for concept, _ in concepts(core_only=True)}


def test_an_index_in_the_words_of_hugging_face(tmp_path):
    folder = write(tmp_path / "x", [{"file_name": "a.png", "text": "an a"}])
    assert read_rows(folder, CFG, "train") == [Row(folder / "a.png", ("an a",))]


def test_an_index_with_a_mark_blank_lines_and_line_separators(tmp_path):
    folder = write(tmp_path / "x", [{"file": "a.png", "text": "one\u2028two\x85three"}], ensure_ascii=False)
    index = folder / "metadata.jsonl"
    index.write_text("\ufeff" + index.read_text("utf-8").replace("\n", "\r\n\r\n"), "utf-8")
    assert read_rows(folder, CFG, "train")[0].captions == ("one\u2028two\x85three",)


@pytest.mark.parametrize("line, words", [
    ("{", "Expecting"), ("[]", "list"), ('{"text": "x"}', "no entry 'file'"), ('{"file": "a.png"}', "no entry 'text'"),
    ('{"file": "a.png", "captions": []}', "at least one string"), ('{"file": "a.png", "captions": "x"}', "list"),
    ('{"file": "a.png", "captions": ["x", 3]}', "string"), ('{"file": 3, "text": "x"}', "int"), ("null", "None"),
])
def test_a_broken_row_is_named_by_file_and_line(tmp_path, line, words):
    folder = write(tmp_path / "x", [{"file": "a.png", "text": "a"}] * 2)
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(MinisdError) as error:
        read_rows(folder, CFG, "train")
    assert error.value.where.endswith("metadata.jsonl:3") and error.value.code == BAD_FILE
    assert words in error.value.why


def test_an_index_that_is_not_utf8(tmp_path):
    folder = write(tmp_path / "x", [])
    (folder / "metadata.jsonl").write_bytes(b'{"file": "\xff"}')
    with pytest.raises(MinisdError, match="cannot be read"):
        read_rows(folder, CFG, "train")


def test_a_folder_without_an_index(tmp_path):
    for name in ("b.png", "a.JPG", "c.webp"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "b.txt").write_text("  a b\n")
    (tmp_path / "c.txt").write_bytes(b"\xff caf\xc3\xa9")
    (tmp_path / "notes.md").write_text("x")
    rows = read_rows(tmp_path, CFG, "train")
    assert [(row.path.name, row.captions) for row in rows] == [("a.JPG", ("",)), ("b.png", ("a b",)),
                                                               ("c.webp", ("\ufffd café",))]
    assert read_rows(tmp_path, CFG, "holdout") == []


def test_folders_with_nothing_to_read(tmp_path, pictures):
    with pytest.raises(MinisdError, match="no picture-caption folder") as error:
        read_rows(tmp_path, CFG, "train")
    assert error.value.code == BAD_FILE
    with pytest.raises(MinisdError, match="no train pictures"):
        Pictures(pictures, replace(CFG, styles=("clay",)), 0)


def test_a_digest_follows_the_bytes_and_says_what_is_missing(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    first = Row(path, ("",)).digest
    path.write_bytes(b"2")
    assert Row(path, ("",)).digest != first
    os.unlink(path)
    with pytest.raises(MinisdError, match="cannot be read"):
        _ = Row(path, ("",)).digest


def test_as_row_keeps_what_is_optional(tmp_path):
    row = as_row({"file": "x/a.png", "captions": ["a", "b"], "style": "s", "concept": "c", "split": "holdout",
                  "core": False, "more": 1}, tmp_path)
    assert row == Row(tmp_path / "x/a.png", ("a", "b"), "s", "c", "holdout", False)
