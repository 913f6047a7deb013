"""Values out of range are refused, with the option and what it allows."""

import math
from dataclasses import replace

import pytest

from minisd.drawing.control import Fresh, Hires, Mask, Start
from minisd.drawing.plan import Drawing
from minisd.drawing.ranges import SEEDS
from minisd.errors import USAGE, MinisdError

GOOD = Drawing("a red apple", "", 20, 7.5, "dpm++2m karras", 0, 512, 512)
REFUSED = [
    ("steps", 0, "1 to 1000"), ("steps", -1, "1 to 1000"), ("steps", 1001, "1 to 1000"), ("steps", 10**9, "1 to 1000"),
    ("guidance", float("nan"), "--cfg nan"), ("guidance", float("inf"), "0 to 100"), ("guidance", -0.1, "0 to 100"),
    ("guidance", 100.5, "0 to 100"), ("seed", -1, r"0 to 2\^64 - 1"), ("seed", SEEDS, r"0 to 2\^64 - 1"),
    ("width", 0, "64 to 2048"), ("width", -8, "64 to 2048"), ("width", 1, "64 to 2048"), ("width", 500, "496 or 504"),
    ("height", 513, "512 or 520"), ("height", 10**6, "64 to 2048"), ("sampler", "eular", "nearest: euler"),
    ("sampler", "", "no sampler")]


@pytest.mark.parametrize(("option", "value", "told"), REFUSED)
def test_refused(option: str, value: object, told: str) -> None:
    with pytest.raises(MinisdError, match=told) as fault:
        replace(GOOD, **{option: value})
    assert fault.value.code == USAGE and len(str(fault.value).splitlines()) <= 6


@pytest.mark.parametrize(("option", "value"), [
    ("steps", 1), ("steps", 1000), ("guidance", 0.0), ("guidance", 1), ("guidance", 100), ("seed", SEEDS - 1),
    ("width", 64), ("height", 2048), ("width", 72), ("sampler", "DPM++ 2M Karras"), ("prompt", "")])
def test_allowed(option: str, value: object) -> None:
    replace(GOOD, **{option: value})


SHA, OTHER = "0" * 64, "f" * 64
IMG2IMG = replace(GOOD, start=Start(SHA, 0.5))


@pytest.mark.parametrize(("change", "told"), [
    ({"mask": Mask(SHA)}, "give one by --image"), ({"image_guidance": 1.5}, "give one by --image"),
    ({"start": Start(SHA), "mask": Mask(SHA), "image_guidance": 1.5}, "one or the other"),
    ({"start": Start(SHA), "hires": Hires()}, "second walk"),
    ({"start": Start(SHA), "image_guidance": float("nan")}, "--image-cfg"),
    ({"start": Start(SHA, 0.04)}, "give at least 25 steps, or 0.05"),
    ({"hires": Hires(strength=0.1, steps=3)}, "--hires-strength 0.1 of 3 steps.*at least 10 steps, or 0.334"),
    ({"sampler": "lms", "fresh": Fresh(0.5)}, "lms has no eta"), ({"fresh": Fresh(churn=5)}, "has no churn"),
    ({"hires": Hires(1.3)}, "665.6 pixels"), ({"hires": Hires(8)}, "up to 2048")])
def test_contradictions_are_refused(change: dict[str, object], told: str) -> None:
    with pytest.raises(MinisdError, match=f"(?s){told}") as fault:
        replace(GOOD, **change)
    assert fault.value.code == USAGE and len(str(fault.value).splitlines()) <= 6


@pytest.mark.parametrize(("drawing", "walked"), [
    (GOOD, 20), (IMG2IMG, 10), (replace(GOOD, start=Start(SHA, 0.0)), 0), (replace(GOOD, start=Start(SHA, 1.0)), 20),
    (replace(GOOD, steps=50, start=Start(SHA, 0.58)), 29),            # 50 * 0.58 is 28.999999999999996
    (replace(GOOD, hires=Hires(strength=0.7)), 20 + 14), (replace(GOOD, hires=Hires(strength=0.5, steps=8)), 20 + 4)])
def test_the_steps_that_are_really_taken(drawing: Drawing, walked: int) -> None:
    assert drawing.walked == walked


def test_every_share_of_every_number_of_steps_is_what_it_says() -> None:
    for steps in range(1, 1001):
        for taken in {1, steps // 3 or 1, steps}:
            assert replace(GOOD, steps=steps, start=Start(SHA, taken / steps)).walked == taken


def test_walks_with_hires() -> None:
    first, second = replace(GOOD, width=96, height=64, hires=Hires(1.5, 0.25, 12)).walks()
    assert first == (96, 64, 20, 0) and second == (144, 96, 12, 9)


def test_the_negative_prompt_counts_with_either_guidance() -> None:
    assert GOOD.negative_counts and not replace(GOOD, guidance=1).negative_counts
    assert replace(IMG2IMG, guidance=1, image_guidance=1.5).negative_counts
    assert not replace(IMG2IMG, guidance=1, image_guidance=1).negative_counts


def test_pictures_that_are_needed_must_be_given() -> None:
    drawing = replace(IMG2IMG, mask=Mask(OTHER))
    GOOD.check_pictures(())
    drawing.check_pictures((SHA, OTHER))
    for given, option in (((SHA,), "--mask"), ((OTHER,), "--image"), ((), "--image")):
        with pytest.raises(MinisdError, match=f"the {option}") as fault:
            drawing.check_pictures(given)
        assert fault.value.code == USAGE and len(str(fault.value).splitlines()) <= 6


def test_fresh_noise_goes_to_the_solver() -> None:
    assert replace(GOOD, sampler="ddim", fresh=Fresh(0.3)).recipe().solver.eta == 0.3
    churn = replace(GOOD, sampler="heun", fresh=Fresh(churn=5, low=0.1)).recipe().solver.churn
    assert (churn.amount, churn.low, churn.high, churn.noise) == (5, 0.1, math.inf, 1)
    assert replace(GOOD, sampler="euler a").recipe().solver.eta == 1
