"""LoRAs in prompts and options: every way of writing, what is refused, and that nothing takes long."""

import contextlib
import time

import pytest

from minisd.drawing.plan import Drawing
from minisd.drawing.tags import Ask, Lora, Strength, read_ask, taken_out
from minisd.errors import MinisdError

ASKS = {
    "style": Strength(),
    "style:0.8": Strength(0.8, 0.8),
    "style:-1": Strength(-1, -1),
    "style:0.5:0.8": Strength(0.5, 0.8),
    "style:0.8:te=0.5": Strength(0.5, 0.8),
    "style:0.5:unet=0.8": Strength(0.5, 0.8),
    "style:te=0": Strength(0, 1),
    "style:0.8:in=1:mid=0:out=0.5": Strength(0.8, 0.8, (1,), 0, (0.5,)),
    "style:1:in=0,0,1,1:out=.5,.25": Strength(1, 1, (0, 0, 1, 1), None, (0.5, 0.25)),
}


@pytest.mark.parametrize("text", ASKS)
def test_every_way_of_writing(text: str) -> None:
    assert read_ask(text) == Ask("style", ASKS[text])
    assert read_ask(f"style:{ASKS[text]}") == Ask("style", ASKS[text])        # as it is recorded
    assert taken_out(f"a <lora:{text}> cat") == ("a  cat", [Ask("style", ASKS[text])])


def test_names_may_have_colons_and_points() -> None:
    assert read_ask(r"C:\loras\style.v2.safetensors:0.8") == Ask(r"C:\loras\style.v2.safetensors", Strength(0.8, 0.8))


def test_the_text_without_its_tags() -> None:
    assert taken_out("<lora:a:1><lyco:b:0.5> a cat, <b>bold</b> <lora: x>") == (
        "a cat, <b>bold</b>", [Ask("a", Strength()), Ask("b", Strength(0.5, 0.5)), Ask("x", Strength())])
    assert taken_out(" untouched <lora ") == (" untouched <lora ", [])
    assert taken_out("<lora:a:1>") == ("", [Ask("a", Strength())])


@pytest.mark.parametrize("text", [
    "", ":0.8", "style:0.8:foo", "style:1:1:1", "style:0.8:dyn=4", "style:te=x", "style:te=1:te=2", "style:te=1,2",
    "style:te=1:0.8", "style:1:mid=", "style:nan", "style:inf", "style:101", "style:1:in=0,200"])
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(MinisdError):
        read_ask(text)


def test_strengths_by_patterns_of_paths() -> None:
    assert read_ask("a:0.8").strength.patterns() == {"*": 0.8}
    assert read_ask("a:0.8:in=1:mid=0").strength.patterns() == {"*": 0.8, "down.*": 1, "mid.*": 0}
    staged = read_ask("a:1:in=0,1:out=1,0").strength
    assert staged.patterns() == {"*": 1, "down.0.*": 0, "down.1.*": 1, "up.0.*": 1, "up.1.*": 0}
    staged.check_stages(2)
    with pytest.raises(MinisdError, match="2 numbers for in="):
        staged.check_stages(4)


SHA, HASH = "89abcdef01234567" * 4, "0123456789ab"


@pytest.mark.parametrize("name", ["", "../a", "/a", "a/../b", "a\\b", "a>b", "a:b", "a\nb", "a" * 201])
def test_names_that_lead_elsewhere(name: str) -> None:
    with pytest.raises(MinisdError, match="cannot be the name"):
        Lora(name, SHA, HASH)


@pytest.mark.parametrize(("sha", "short"), [("x", HASH), (SHA, "X" * 12), (SHA, "01234")])
def test_hashes_that_are_none(sha: str, short: str) -> None:
    with pytest.raises(MinisdError):
        Lora("a", sha, short)


def test_a_file_is_given_once() -> None:
    with pytest.raises(MinisdError, match="given twice"):
        Drawing("", "", 1, 1.0, "ddim", 0, 64, 64, loras=(Lora("a", SHA, HASH), Lora("b", SHA, HASH)))


def test_absurd_prompts_are_read_in_linear_time() -> None:
    start = time.perf_counter()
    for text in ("<lora:" * 200_000, "<lora:a" * 200_000 + ">", "<lora:" + "a:" * 200_000 + ">"):
        with contextlib.suppress(MinisdError):
            taken_out(text)
    assert time.perf_counter() - start < 5
