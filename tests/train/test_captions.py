"""Captions without pictures: of a folder's splits, or of a text file."""

import pytest

from minisd.errors import USAGE, MinisdError
from minisd.train.captions import beside, captions_of
from minisd.train.config import DataConfig


def test_a_folders_plain_captions_by_split(pictures):
    train, held_out = captions_of(pictures, DataConfig())
    assert len(train) == 6 and "a red square" in train and held_out == ["a blue square", "a green disc"]
    assert captions_of(pictures, DataConfig(styles=("round",)))[0][0] == "a red disc"


def test_a_files_lines_each_once(tmp_path):
    (tmp_path / "x.txt").write_text("\ufeffa cat\n\n  a dog \na cat\nword\u2028word\n", encoding="utf-8")
    train, held_out = captions_of(tmp_path / "x.txt", DataConfig())
    assert train == held_out == ["a cat", "a dog", "word\u2028word"]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\xfd"])
def test_files_without_captions(tmp_path, content):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(MinisdError, match="captions"):
        captions_of(tmp_path / "x.txt", DataConfig())


def test_a_folder_none_of_which_fits(pictures):
    with pytest.raises(MinisdError, match="no captions"):
        captions_of(pictures, DataConfig(styles=("none",)))


def test_the_embedded_model_brings_what_it_was_trained_on():
    train, _ = captions_of(beside("emoji"), DataConfig())
    assert len(train) == 865 and {"pizza, 3d", "cactus, flat"} <= set(train)


def test_another_model_brings_none(tmp_path):
    with pytest.raises(MinisdError, match="there is no data") as caught:
        beside(str(tmp_path))
    assert caught.value.code == USAGE and "--data" in caught.value.remedy
