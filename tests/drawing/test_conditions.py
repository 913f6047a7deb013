"""What the UNet is told in each step of a walk: prompts that change on the way, beside others, with each solver."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import tiny_model
import torch
from PIL import Image
from torch import Tensor

from minisd import store
from minisd.drawing.control import Hires
from minisd.pipeline import StableDiffusion

LONG = " ".join(["apple pear plum"] * 10)         # more than one window of this model
PICTURE = Image.effect_mandelbrot((64, 64), (-2.5, -1.5, 1.5, 1.5), 90).convert("RGB")


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    return store.load(tiny_model.folder(tmp_path_factory.mktemp("conditions")), "cpu", "float32")


@contextmanager
def listening(sd: StableDiffusion) -> Iterator[list[Tensor]]:
    """The context of each call of the UNet."""
    heard: list[Tensor] = []
    handle = sd.unet.register_forward_pre_hook(lambda unet, args: heard.append(args[2].clone()))
    try:
        yield heard
    finally:
        handle.remove()


def words(sd: StableDiffusion, heard: list[Tensor], known: list[str]) -> list[list[str]]:
    """Which of the known prompts each call was told, a row for each picture."""
    contexts = {word: sd.encode([word]).context[0] for word in known}
    return [[word for row in call for word, context in contexts.items() if torch.equal(row, context)] for call in heard]


def difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


def test_each_step_hears_what_the_prompts_say_then(sd: StableDiffusion) -> None:
    with listening(sd) as heard:
        sd.txt2img(["[apple:car:2]", "a [cat|dog]"], "[dull:dark:0.25]", steps=4, sampler="euler", cfg=3)
    assert words(sd, heard, ["apple", "car", "a cat", "a dog", "dull", "dark"]) == [
        ["dull", "dull", "apple", "a cat"], ["dark", "dark", "apple", "a dog"],
        ["dark", "dark", "car", "a cat"], ["dark", "dark", "car", "a dog"]]


def test_without_guidance_the_negative_prompt_is_not_heard(sd: StableDiffusion) -> None:
    with listening(sd) as heard:
        sd.txt2img("[apple:car:1]", LONG, steps=2, sampler="euler", cfg=1)
    assert words(sd, heard, ["apple", "car"]) == [["apple"], ["car"]]


def test_a_look_ahead_hears_what_is_said_there(sd: StableDiffusion) -> None:
    """PNDM's first step asks at its end too; the second begins there."""
    with listening(sd) as heard:
        sd.txt2img("[apple:car:1]", steps=3, sampler="pndm", cfg=1)
    assert words(sd, heard, ["apple", "car"]) == [["apple"], ["car"], ["car"], ["car"]]


def test_img2img_counts_the_steps_that_are_taken(sd: StableDiffusion) -> None:
    with listening(sd) as heard:
        sd.img2img("[apple:car:0.5] [cat::1]", PICTURE, 0.5, steps=8, sampler="euler", cfg=1)
    assert words(sd, heard, ["apple cat", "apple ", "car "]) == [["apple cat"], ["apple "], ["car "], ["car "]]


def test_each_walk_of_hires_counts_its_own_steps(sd: StableDiffusion) -> None:
    with listening(sd) as heard:
        sd.txt2img("[apple:car:0.5]", steps=2, sampler="euler", cfg=1, hires=Hires(1.5, 0.5, 8))
    assert words(sd, heard, ["apple", "car"]) == [["apple"], ["car"], ["apple"], ["apple"], ["car"], ["car"]]


@pytest.mark.parametrize(("changing", "plain"), [
    ("[apple:car:0]", "car"), ("[apple:car:9]", "apple"), ("[apple|apple]", "apple"), ("(apple:1)", "apple"),
    (r"an \(apple", "an (apple"), ("[apple:car:0.5]", None), ("(apple:1.5)", None),
    ("[apple|car]", None), ("apple BREAK car", None)])
def test_a_prompt_that_says_the_same_draws_the_same(sd: StableDiffusion, changing: str, plain: str | None) -> None:
    drawn = sd.txt2img(changing, steps=2, cfg=4)[0]
    assert (difference(drawn, sd.txt2img(plain or "apple", steps=2, cfg=4)[0]) == 0) == (plain is not None)


@pytest.mark.parametrize("sampler", ["euler a", "dpm++2m karras"])
def test_a_changing_prompt_does_not_depend_on_its_neighbours(sd: StableDiffusion, sampler: str) -> None:
    """Equal bits in a batch as large, wherever it stands in it and whatever else changes there."""
    first, *rest = prompts = ["[apple:car:0.5]", "a (red:1.5) [cat|dog|cow]", "plain", "[one:two:3]"]

    def draw(prompt: str | list[str], seed: int) -> list[Image.Image]:
        return sd.txt2img(prompt, "[dull|dark]", steps=4, sampler=sampler, seed=seed, cfg=4)

    together = draw(prompts, 5)
    assert difference(together[0], draw([*rest, first], 5)[3]) == 0
    assert difference(together[0], draw(first, 5)[0]) <= 1


def test_batches_split_where_any_walk_takes_other_windows(sd: StableDiffusion) -> None:
    hires = Hires(1.5, 0.5, 8)
    prompts = ["apple", f"[apple:{LONG}:2]", f"[apple:{LONG}:99]", f"[apple:{LONG}:3]", "car BREAK cat"]
    drawings = [sd.drawing(prompt, steps=3) for prompt in prompts]
    assert [len(group) for group in sd.batches(drawings, 8)] == [1, 1, 2, 1]
    again = [replace(one, hires=hires) for one in drawings]
    assert [len(group) for group in sd.batches(again, 8)] == [1, 1, 1, 1, 1], "of four steps the last is the long one"


def test_all_that_a_prompt_says_is_equally_long(sd: StableDiffusion) -> None:
    with listening(sd) as heard:
        sd.txt2img(f"[apple:{LONG}:1]", steps=2, sampler="euler", cfg=3)
    assert {call.shape for call in heard} == {(2, 5 * tiny_model.WINDOW, 32)}
