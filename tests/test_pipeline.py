"""From words to pictures: a picture depends on its drawing alone, and one that is not finite never gets out."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch
from PIL import Image
from torch import Tensor

from minisd import images, models, store
from minisd.drawing.plan import Guide
from minisd.errors import NUMERICAL, USAGE, MinisdError
from minisd.pipeline import StableDiffusion
from minisd.samplers.loop import Interval

LONG = " ".join(["apple pear plum"] * 10)         # more than one window of this model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.folder(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def sd(folder: Path) -> StableDiffusion:
    return store.load(folder, "cpu", "float32")


def difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


def mean_difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).mean())


def test_a_picture_varies_and_has_the_models_size(sd: StableDiffusion) -> None:
    (picture,) = sd.txt2img("a red apple", steps=2)
    assert picture.size == (64, 64) and picture.mode == "RGB"
    assert np.asarray(picture).std() > 10


def test_a_model_may_be_loaded_in_inference_mode(folder: Path, sd: StableDiffusion) -> None:
    with torch.inference_mode():
        loaded = store.load(folder, "cpu", "float32")
        inside = loaded.txt2img("a", steps=1)[0]
    assert difference(inside, sd.txt2img("a", steps=1)[0]) == difference(inside, loaded.txt2img("a", steps=1)[0]) == 0


@pytest.mark.parametrize("change", [
    {"prompt": "a blue car"}, {"negative": "blurry"}, {"seed": 1}, {"steps": 3}, {"cfg": 3.0}, {"cfg": 1.0},
    {"sampler": "euler a"}, {"sampler": "euler"}, {"guide": Guide(ramp=(1, 0))}, {"guide": Guide(interval=(0, 5))},
    {"guide": Guide(rescale=0.7)}, {"guide": Guide(threshold=0.9)}])
def test_every_option_counts(sd: StableDiffusion, change: dict[str, object]) -> None:
    options = {"prompt": "a red apple", "steps": 2}
    (one,), (other,) = sd.txt2img(**options), sd.txt2img(**(options | change))
    assert difference(one, other) > 0


def test_the_negative_prompt_goes_unread_without_guidance(sd: StableDiffusion) -> None:
    (one,), (other,) = (sd.txt2img("a red apple", words, steps=2, cfg=1) for words in ("", "blurry"))
    assert difference(one, other) == 0


def test_an_interval_that_is_never_reached_is_no_guidance(sd: StableDiffusion) -> None:
    guide = Guide(interval=(1e4, 1e5), rescale=0.5, threshold=0.9)
    (one,), (other,) = sd.txt2img("a", steps=2, cfg=5, guide=guide), sd.txt2img("a", steps=2, cfg=1)
    assert difference(one, other) == 0


@pytest.mark.parametrize("sampler", ["dpm++2m karras", "euler a", "pndm", "dpm++2m sde"])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_a_picture_does_not_depend_on_its_batch(sd: StableDiffusion, sampler: str, cfg: float) -> None:
    """At most 1/255, and where the batch is as large, equal bits: kernels round otherwise for other sizes."""
    def draw(batch: int) -> list[Image.Image]:
        return sd.txt2img("a red apple", steps=3, sampler=sampler, cfg=cfg, seed=7, count=4, batch=batch)

    together = draw(4)
    for batch in (1, 2, 3):
        assert max(map(difference, together, draw(batch))) <= 1
    for place, picture in enumerate(together):
        again = sd.drawing("a red apple", steps=3, sampler=sampler, cfg=cfg, seed=7 + place)
        assert difference(sd.draw([again] * 4)[0], picture) == 0


def test_a_picture_does_not_depend_on_its_neighbours(sd: StableDiffusion) -> None:
    (alone,) = sd.txt2img("a red apple", steps=2, seed=5)
    beside = sd.txt2img(["a blue car", LONG, "a red apple"], steps=2, seed=5)
    assert difference(alone, beside[2]) <= 1


def test_batches_keep_the_order_and_split_where_prompts_differ_in_length(sd: StableDiffusion) -> None:
    drawings = [sd.drawing(prompt, seed=n) for prompt in ("a", "b", LONG, "c") for n in range(2)]
    groups = list(sd.batches(drawings, 3))
    assert [len(group) for group in groups] == [3, 1, 2, 2]
    assert [one for group in groups for one in group] == drawings
    other = [sd.drawing("a", steps=3), sd.drawing("a", steps=4)]
    assert [len(group) for group in sd.batches(other, 8)] == [1, 1]


def test_seeds_count_up_and_end_at_the_largest(sd: StableDiffusion) -> None:
    two = sd.txt2img("a", steps=1, seed=2 ** 64 - 2, count=2)
    assert difference(two[1], sd.txt2img("a", steps=1, seed=2 ** 64 - 1)[0]) <= 1
    with pytest.raises(MinisdError, match="seed"):
        sd.txt2img("a", steps=1, seed=2 ** 64 - 1, count=2)


@pytest.mark.parametrize("size", [(64, 72), (104, 64), (88, 120)])
def test_any_multiple_of_eight(sd: StableDiffusion, size: tuple[int, int]) -> None:
    assert sd.txt2img("a", steps=1, size=size)[0].size == size


def test_a_size_that_the_latents_cannot_have_is_refused(tmp_path: Path) -> None:
    vae = replace(tiny_model.MODEL.vae, widths=(8, 8, 8, 8, 8))
    sd = store.load(tiny_model.folder(tmp_path, replace(tiny_model.MODEL, vae=vae)), "cpu")
    with pytest.raises(MinisdError, match="multiples of 16") as fault:
        sd.txt2img("a", steps=1, size=(72, 64))
    assert fault.value.code == USAGE


@pytest.mark.parametrize("options", [{"count": 0}, {"batch": 0}, {"steps": 0}, {"cfg": float("nan")},
                                     {"size": (65, 64)}, {"sampler": "x"}, {"seed": -1}])
def test_options_out_of_range_are_refused(sd: StableDiffusion, options: dict[str, object]) -> None:
    with pytest.raises(MinisdError) as fault:
        sd.txt2img("a", **options)
    assert fault.value.code == USAGE


@pytest.mark.parametrize("whole", [64 * 64 - 1, 64 * 64, 2 * 64 * 64])
def test_the_vae_in_strips_or_parts_makes_the_same_picture(sd: StableDiffusion, whole: int,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sd.txt2img("a", steps=1, count=3)
    monkeypatch.setattr(models, "WHOLE", whole)
    assert max(map(difference, sd.txt2img("a", steps=1, count=3), expected)) <= 1


def test_steps_are_shown_as_they_go(sd: StableDiffusion) -> None:
    seen: list[int] = []

    def look(x: Tensor, s: Interval) -> Tensor:
        assert x.shape == (2, 4, 8, 8) and x.dtype == torch.float32
        seen.append(s.index)
        return x

    sd.txt2img("a", steps=3, count=2, on_step=look)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(("dtype", "levels"), [("bfloat16", 8), ("float16", 2)])
def test_half_precision_draws_about_the_same(folder: Path, sd: StableDiffusion, dtype: str, levels: float) -> None:
    (half,), (full,) = store.load(folder, "cpu", dtype).txt2img("a", steps=3), sd.txt2img("a", steps=3)
    assert mean_difference(half, full) < levels


# ---------------------------------------------------------------- NaN and infinity
def test_a_vae_that_overflows_is_done_again_in_float32(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    full, half = store.load(folder, "cpu", "float32"), store.load(folder, "cpu", "float16")
    drawings = [half.drawing("a", steps=2, seed=n) for n in range(2)]
    calm = full.draw(drawings)
    for sd in (full, half):                       # the next layer is a GroupNorm, which takes the factor out again
        sd.vae.decoder.mid.res[0].conv1.weight.data *= 300_000
    with caplog.at_level(logging.WARNING):
        saved = half.draw(drawings)
    assert caplog.messages == ["the VAE overflowed in float16: decoding again in float32"]
    assert half.vae.decoder.conv_in.weight.dtype == torch.float16
    for one, expected, before in zip(saved, full.draw(drawings), calm, strict=True):
        assert mean_difference(one, expected) < 2
        assert np.asarray(before).std() > 10


@pytest.mark.parametrize(("part", "told"), [
    ("vae", r"picture became NaN or infinite.*vae\.decoder\.conv_out\.bias"),
    ("unet", r"latents became NaN or infinite.*unet\.conv_out\.bias")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_that_stays_is_an_error(folder: Path, part: str, told: str, value: float) -> None:
    sd = store.load(folder, "cpu", "bfloat16")
    (sd.unet.conv_out if part == "unet" else sd.vae.decoder.conv_out).bias.data[0] = value
    with pytest.raises(MinisdError, match=f"(?s){told}") as fault:
        sd.txt2img("a", steps=1, seed=3)
    assert fault.value.code == NUMERICAL and "seed 3" in str(fault.value)


def test_nan_without_a_broken_weight_says_what_to_try(sd: StableDiffusion) -> None:
    def spoil(x: Tensor, s: Interval) -> Tensor:
        return x * float("nan")

    with pytest.raises(MinisdError, match="less guidance"):
        sd.txt2img("a", steps=1, on_step=spoil)


def test_pictures_are_made_by_to_images_alone(sd: StableDiffusion) -> None:
    """The decoder's output in [-1, 1] is the picture: no safety margin, no stretching."""
    assert images.to_images(torch.ones(1, 3, 2, 2))[0].getpixel((0, 0)) == (255, 255, 255)
