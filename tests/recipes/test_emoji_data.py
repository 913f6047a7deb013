"""The pure parts of the emoji data: captions, the split, the pictures. Nothing here is downloaded."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minisd.errors import MinisdError
from minisd.recipes import emoji_captions, emoji_data, emoji_pictures
from minisd.recipes import emoji_words as words
from minisd.recipes.emoji_captions import Emoji

APPLE = Emoji("red apple", "1f34e", "food-drink", "food-fruit", ("apple", "fruit", "red", "rare"))
COMMON = Counter(fruit=20, apple=9, red=12, rare=1)


def test_captions_say_the_plain_things_first() -> None:
    said = emoji_captions.captions(APPLE, "3d", COMMON)
    assert said[:2] == ["red apple, 3d", "a red apple, 3d"]
    assert {"a 3d emoji of a red apple", "a red apple", "red apple, fruit, 3d"} <= set(said)
    assert not any("rare" in caption for caption in said), "a rare tag is no category"
    assert 4 <= len(said) <= 8 and len(set(said)) == len(said)


def test_style_is_said_in_the_words_of_a_user() -> None:
    assert emoji_captions.captions(APPLE, "noto", COMMON)[0] == "red apple, cartoon"
    assert emoji_captions.captions(APPLE, "modern", COMMON)[0] == "red apple, gradient"


def test_captions_know_the_everyday_word_and_the_skin() -> None:
    car = Emoji("automobile", "1f697", "travel-places", "transport-ground")
    hand = Emoji("raised hand", "270b-1f3fd", "people-body", "hand-fingers-open", tone="medium")
    assert emoji_captions.captions(car, "flat", COMMON)[2] == "a car, flat"
    assert emoji_captions.captions(hand, "flat", COMMON)[1] == "a raised hand with medium skin, flat"


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("red apple", "a red apple"),
        ("orange circle", "an orange circle"),
        ("grinning face", "a grinning face"),
        ("face with medical mask", "a face with medical mask"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("hourglass done", "an hourglass done"),
        ("ewe", "a ewe"),
        ("grapes", "grapes"),
        ("glasses", "glasses"),
        ("octopus", "an octopus"),
        ("dress", "a dress"),
        ("bus", "a bus"),
        ("broccoli", "broccoli"),
        ("rhinoceros", "a rhinoceros"),
    ],
)
def test_articles(label: str, said: str) -> None:
    assert emoji_captions.with_article(label, label) == said


def test_people_are_spoken_of_as_people() -> None:
    assert emoji_captions.spoken("man: red hair") == "man with red hair"
    assert emoji_captions.spoken("woman: bald") == "bald woman"
    assert emoji_captions.spoken("man’s shoe") == "man's shoe"


def test_no_concept_is_held_out_in_two_styles() -> None:
    concepts = [f"thing {i}" for i in range(5000)] + [concept for concept, _ in words.HOLDOUT]
    held = [sum(emoji_captions.held_out(concept, style) for style in words.STYLE_WORDS) for concept in concepts]
    assert max(held) == 1
    assert 0.05 < sum(held) / (4 * len(concepts)) < 0.07


def test_forced_combinations_are_held_out_and_only_in_that_style() -> None:
    for concept, style in words.HOLDOUT:
        assert [s for s in words.STYLE_WORDS if emoji_captions.held_out(concept, s)] == [style]


def test_a_twin_style_does_not_give_the_held_out_picture_away() -> None:
    assert emoji_captions.split("rocket", "3d") == "holdout"
    assert emoji_captions.split("rocket", "modern") == "twin"
    assert emoji_captions.split("rocket", "flat") == emoji_captions.split("rocket", "noto") == "train"
    assert emoji_captions.split("red apple", "3d") == "train", "flat is no twin of it"


def test_the_digest_is_the_same_every_time() -> None:
    assert emoji_captions.digest("red apple", "3d") == pytest.approx(0.003564722568905593, abs=1e-12)
    assert emoji_captions.digest("red apple", "3d") != emoji_captions.digest("red apple", "flat")


def test_selection_keeps_things_and_leaves_signs() -> None:
    def kept(label: str, group: str = "objects", subgroup: str = "tool") -> bool:
        return emoji_data.wanted(Emoji(label, "0", group, subgroup))

    assert kept("hammer") and kept("three o’clock") and kept("red circle", "symbols", "geometric")
    assert kept("cook", "people-body", "person-role") and not kept("man cook", "people-body", "person-role")
    assert kept("person running", "people-body") and not kept("woman running", "people-body")
    assert not kept("nine o’clock") and not kept("ten-thirty") and not kept("no entry", "symbols", "warning")
    assert not kept("flag: France", "flags", "country-flag")


def test_skin_tones_come_only_when_everything_is_asked_for() -> None:
    entry = {
        "label": "raised hand",
        "hexcode": "270B-FE0F",
        "group": 1,
        "subgroup": 16,
        "skins": [{"hexcode": "270B-1F3FD", "tone": 3}, {"hexcode": "270B-1F3FD-1F3FF", "tone": [3, 5]}],
    }
    names = {"groups": {"1": "people-body"}, "subgroups": {"16": "hand-fingers-open"}}
    assert [e.codepoints for e in emoji_data.expand(entry, names, everything=False)] == ["270b"]
    everything = list(emoji_data.expand(entry, names, everything=True))
    assert [(e.codepoints, e.tone) for e in everything] == [("270b", None), ("270b-1f3fd", "medium")]
    assert [emoji_data.describe(e, "3d", COMMON)["weight"] for e in everything] == [1.0, 0.1]


def test_squared_centres_what_is_drawn_and_leaves_the_margin() -> None:
    picture = Image.new("RGBA", (256, 256))
    picture.paste((255, 0, 0, 255), (10, 40, 60, 140))  # 50 wide, 100 high, off the centre
    ink = np.asarray(emoji_pictures.squared(picture)).min(axis=2) < 128
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    assert ink.shape == (128, 128)
    assert abs(rows[0] - 6.4) <= 1 and abs(rows[-1] - 121.6) <= 1.5, "5 % of 128 is free above and below"
    assert abs((columns[0] + columns[-1]) / 2 - 63.5) <= 0.5
    assert abs(len(columns) - len(rows) / 2) <= 1, "the shape is not stretched"


def test_squared_has_no_dark_fringe() -> None:
    """Half-clear red over white stays between red and white, although the clear pixels beside it are black."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((200, 200, 4), np.uint8)
    pixels[50:150, 50:150] = (255, 0, 0, 255)
    pixels[50:150, 50:150, 3] = rng.integers(9, 256, (100, 100))
    out = np.asarray(emoji_pictures.squared(Image.fromarray(pixels)))
    assert out[..., 0].min() >= 253, "red over white has full red everywhere"
    assert np.abs(out[..., 1].astype(int) - out[..., 2]).max() <= 1


def test_an_empty_picture_is_refused() -> None:
    with pytest.raises(MinisdError, match="nothing in it"):
        emoji_pictures.squared(Image.new("RGBA", (8, 8)))


def test_a_missing_program_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(MinisdError) as caught:
        emoji_data.run(["surely-not-a-program"], tmp_path, "install it")
    assert caught.value.remedy == "install it" and caught.value.code == 4


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("jack-o-lantern", "jack-o-lantern"),
        ("woman’s boot", "womans-boot"),
        ("piñata", "pinata"),
        ("Mrs. Claus", "mrs-claus"),
    ],
)
def test_slug_is_the_file_name_of_fluent(label: str, name: str) -> None:
    assert emoji_pictures.slug(label) == name
