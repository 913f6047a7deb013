"""Rows of a folder, with an index or without; what is wrong is named by file and line."""

import json
import os

import pytest
from PIL import Image

from minisd.errors import BAD_FILE, MinisdError
from minisd.train.config import DataConfig
from minisd.train.rows import Row, as_row, read_rows

CFG = DataConfig(size=32)


def write(folder, entries, **options):
    folder.mkdir(exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(entry, **options) + "\n" for entry in entries), "utf-8")
    return folder


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


def test_a_folder_with_nothing_to_read(tmp_path):
    with pytest.raises(MinisdError, match="no picture-caption folder") as error:
        read_rows(tmp_path, CFG, "train")
    assert error.value.code == BAD_FILE


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
