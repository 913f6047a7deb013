"""Captions reworded: tags kept and dropped, an alias before them, others in their place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisd.train.config import DataConfig
from minisd.train.rows import read_rows
from minisd.train.wording import reworded

TAGS = "1girl, solo, red_dress,  Long Hair , smile"


@pytest.mark.parametrize("options, expected", [
    ({}, TAGS), ({"keep_tags": ("solo", "1girl", "2girls")}, "1girl, solo"),
    ({"drop_tags": ("red dress", "long_hair")}, "1girl, solo, smile"),
    ({"keep_tags": ("SOLO", "smile"), "drop_tags": ("smile",)}, "solo"), ({"alias": "mi_cv"}, f"mi_cv, {TAGS}"),
    ({"alias": "mi_cv", "keep_tags": ("2boys",)}, "mi_cv"), ({"keep_tags": ("2boys",)}, ""),
    ({"captions": ("a photo of sks",), "alias": "x"}, "x, a photo of sks"),
])
def test_a_caption_by_the_recipe(options, expected):
    assert reworded([TAGS], DataConfig(**options)) == (expected,)


def test_captions_that_become_alike_are_one_and_what_is_not_asked_for_is_left_alone():
    assert reworded(["a, b", "a, c", "d"], DataConfig(keep_tags=("a",))) == ("a", "")
    assert reworded(["x", "x"], DataConfig()) == ("x", "x")


@given(st.lists(st.text(), min_size=1), st.lists(st.text()), st.lists(st.text()))
def test_kept_tags_are_the_captions_own_in_their_order(captions, keep, drop):
    given_tags = [tag.strip() for caption in captions for tag in caption.split(",")]
    for caption in reworded(captions, DataConfig(keep_tags=tuple(keep), drop_tags=tuple(drop))):
        if keep or drop:
            assert all(tag in given_tags for tag in caption.split(", ") if caption)


def test_rows_are_read_with_their_new_captions(pictures):
    rows = read_rows(pictures, DataConfig(drop_tags=("square", "disc"), alias="sks"), "train")
    assert rows[0].captions == ("sks, a red square", "sks, red") and rows[0].style == "plain"
