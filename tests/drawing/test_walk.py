"""Pictures from pictures: where a walk begins, what it keeps, and that a picture depends on its drawing alone."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest
import tiny_model
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from minisd import images, schema, store
from minisd.drawing import metadata
from minisd.drawing.control import Fresh, Guide, Hires, Mask, Start
from minisd.drawing.walk import latent_mask
from minisd.errors import USAGE, MinisdError
from minisd.pipeline import StableDiffusion
from minisd.samplers.loop import Interval

SAMPLERS = ["dpm++2m karras", "euler a", "pndm", "ddim", "dpm++2m sde", "dpm++3m"]
PICTURE = Image.effect_mandelbrot((72, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")
MASK = Image.new("L", PICTURE.size)
ImageDraw.Draw(MASK).ellipse((20, 17, 50, 40), fill=255)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., StableDiffusion]:
    """The tiny model with this many input channels."""
    def build(channels: int = 4, dtype: str = "float32") -> StableDiffusion:
        cfg = replace(tiny_model.MODEL, unet=replace(tiny_model.MODEL.unet, in_channels=channels))
        return store.load(tiny_model.folder(tmp_path_factory.mktemp("walk"), cfg), "cpu", dtype)
    return build


@pytest.fixture(scope="module")
def sd(make: Callable[..., StableDiffusion]) -> StableDiffusion:
    return make()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(pixels(a) - pixels(b)).max())


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# ---------------------------------------------------------------- where it begins
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_1_is_a_fresh_start_to_the_bit(sd: StableDiffusion, sampler: str) -> None:
    fresh = sd.txt2img("a red apple", steps=3, sampler=sampler, size=PICTURE.size, count=2)
    begun = sd.img2img("a red apple", PICTURE, 1.0, steps=3, sampler=sampler, count=2)
    assert [difference(*pair) for pair in zip(fresh, begun, strict=True)] == [0, 0]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_0_only_goes_through_the_vae(sd: StableDiffusion, sampler: str) -> None:
    (picture,) = sd.img2img("a red apple", PICTURE, 0.0, steps=3, sampler=sampler, seed=5)
    with torch.inference_mode():
        posterior = sd.vae.encode(images.to_tensor(PICTURE)[None])
        z = posterior.sample(torch.randn(1, 4, 8, 9, generator=generators(5)[0]))
        (expected,) = images.to_images(sd.vae.decode(z))
    assert difference(picture, expected) <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.0, 0.34, 0.999])
def test_as_many_steps_are_taken_as_are_said(sd: StableDiffusion, sampler: str, strength: float,
                                             caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []

    def look(x: Tensor, s: Interval) -> Tensor:
        seen.append(s.index)
        return x

    drawing = replace(sd.drawing("a", steps=6, sampler=sampler, size=PICTURE.size),
                      start=Start(images.fingerprint(PICTURE), strength))
    with caplog.at_level(logging.WARNING):
        sd.draw([drawing], look, images.album(PICTURE))
    taken = int(6 * strength)
    assert seen == list(range(6 - taken, 6)) and drawing.walked == taken
    assert caplog.messages == ([f"{taken} of 6 steps are taken"] if taken < 6 else [])


def test_the_less_strength_the_nearer(sd: StableDiffusion) -> None:
    through, *others = (sd.img2img("a", PICTURE, strength, steps=10)[0] for strength in (0.0, 0.1, 0.4, 0.9))
    apart = [np.abs(pixels(other) - pixels(through)).mean() for other in others]
    assert 0 < apart[0] < apart[1] < apart[2]


def test_another_size_crops_and_resizes(sd: StableDiffusion) -> None:
    wide = Image.new("RGB", (333, 100), "navy")
    assert sd.img2img("a", wide, 0.5, steps=2, size=(64, 80))[0].size == (64, 80)
    with pytest.raises(MinisdError, match="333x100"):
        sd.img2img("a", wide, 0.5, steps=2)


def test_an_open_picture_of_any_kind_will_do(sd: StableDiffusion) -> None:
    seen_through = PICTURE.convert("RGBA")
    deep = Image.fromarray(np.asarray(PICTURE.convert("L")).astype(np.uint16) * 257)
    assert difference(sd.img2img("a", seen_through, 0.5, steps=2)[0], sd.img2img("a", PICTURE, 0.5, steps=2)[0]) == 0
    assert difference(sd.img2img("a", deep, 0.5, steps=2)[0],
                      sd.img2img("a", PICTURE.convert("L"), 0.5, steps=2)[0]) == 0


# ---------------------------------------------------------------- masks
@pytest.mark.parametrize(("sampler", "options"), [*((sampler, {}) for sampler in SAMPLERS), *(
    ("euler a", more) for more in ({"strength": 0.5}, {"feather": 3}, {"padding": 6, "size": (64, 64)}))])
def test_outside_the_mask_not_a_byte_changes(sd: StableDiffusion, sampler: str, options: dict[str, object]) -> None:
    (result,) = sd.inpaint("a blue car", PICTURE, MASK, steps=4, sampler=sampler, **options)
    moved = np.abs(pixels(result) - pixels(PICTURE)).max(axis=2)
    grown = MASK if "feather" not in options else images.as_mask(Image.fromarray(
        F.max_pool2d(torch.from_numpy(np.array(MASK)).float()[None], 7, 1, 3)[0].numpy().astype(np.uint8)))
    assert moved[np.asarray(grown) == 0].max() == 0
    assert moved[np.asarray(MASK) == 255].mean() > 10


def test_the_known_area_speaks_to_the_rest(sd: StableDiffusion) -> None:
    """What is masked is drawn to fit what is not."""
    other = PICTURE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    one, two = (sd.inpaint("a", picture, MASK, steps=3)[0] for picture in (PICTURE, other))
    assert np.abs(pixels(one) - pixels(two))[np.asarray(MASK) == 255].mean() > 1


def test_what_is_masked_does_not(sd: StableDiffusion) -> None:
    """From a fresh start on, the picture under the mask plays no part but through the VAE's wide view."""
    blurred = Image.composite(Image.new("RGB", PICTURE.size, "red"), PICTURE, MASK)
    seen: list[Tensor] = []
    sd.inpaint("a", PICTURE, MASK, steps=1, on_step=lambda x, s: seen.append(x) or x)
    sd.inpaint("a", blurred, MASK, steps=1, on_step=lambda x, s: seen.append(x) or x)
    inside = latent_mask(MASK, 8).expand(1, 4, -1, -1)
    assert (seen[0] - seen[1])[inside].abs().max() < (seen[0] - seen[1])[~inside].abs().max()


def test_every_latent_with_a_masked_pixel_is_drawn() -> None:
    mask = Image.new("L", (24, 16))
    for place in ((8, 8), (23, 0)):
        mask.putpixel(place, 255)
    assert latent_mask(mask, 8)[0, 0].tolist() == [[False, False, True], [False, True, False]]


# ---------------------------------------------------------------- models that read more
def test_models_are_used_for_what_they_read(make: Callable[..., StableDiffusion]) -> None:
    inpainter, editor, plain, strange = make(9), make(8), make(4), make(6)
    for wrong in (lambda: inpainter.txt2img("a", steps=1), lambda: inpainter.img2img("a", PICTURE, steps=4),
                  lambda: editor.txt2img("a", steps=1), lambda: editor.inpaint("a", PICTURE, MASK, steps=1),
                  lambda: plain.edit("a", PICTURE, steps=1), lambda: strange.txt2img("a", steps=1)):
        with pytest.raises(MinisdError) as fault:
            wrong()
        assert fault.value.code == USAGE and len(str(fault.value).splitlines()) <= 6


def test_an_inpainting_model_sees_the_mask_and_what_is_around(make: Callable[..., StableDiffusion]) -> None:
    inpainter, seen = make(9), []
    inpainter.unet.conv_in.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    (result,) = inpainter.inpaint("a", PICTURE, MASK, steps=1, cfg=3.0)
    hidden = images.to_tensor(PICTURE)[None] * torch.from_numpy(np.asarray(MASK) == 0)
    with torch.inference_mode():
        stream = generators(0)[0]
        torch.randn(4, 8, 9, generator=stream)                       # the start
        posterior = inpainter.vae.encode(hidden)
        kept = posterior.sample(torch.randn(4, 8, 9, generator=stream)[None]) * inpainter.cfg.latent_scale
    assert seen[0].shape == (2, 9, 8, 9)
    assert torch.equal(seen[0][:, 4:5], latent_mask(MASK, 8).float().expand(2, -1, -1, -1))
    torch.testing.assert_close(seen[0][:, 5:], kept.expand(2, -1, -1, -1), rtol=1e-4, atol=1e-4)
    assert np.array_equal(pixels(result)[np.asarray(MASK) == 0], pixels(PICTURE)[np.asarray(MASK) == 0])


@pytest.mark.parametrize(("cfg", "image_cfg", "batch"), [(5.0, 1.5, 3), (5.0, 1.0, 2), (1.0, 1.0, 1), (1.0, 1.5, 3)])
def test_an_editing_model_sees_the_picture_where_it_should(make: Callable[..., StableDiffusion], cfg: float,
                                                           image_cfg: float, batch: int) -> None:
    editor, seen = make(8), []
    editor.unet.conv_in.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    (result,) = editor.edit("make it blue", PICTURE, image_cfg, steps=1, cfg=cfg)
    assert result.size == PICTURE.size and seen[0].shape[:2] == (batch, 8)
    shown = seen[0][:, 4:].abs().amax((1, 2, 3)) > 0
    assert shown.tolist() == [False, True, True][-batch:]


# ---------------------------------------------------------------- hires
@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_a_second_walk_makes_it_larger(sd: StableDiffusion, upscaler: str) -> None:
    sizes: list[tuple[int, ...]] = []

    def look(x: Tensor, s: Interval) -> Tensor:
        sizes.append(tuple(x.shape[2:]))
        return x

    hires = Hires(1.5, 0.5, 4, upscaler)
    (picture,) = sd.txt2img("a", steps=3, size=(80, 64), hires=hires, on_step=look)
    assert picture.size == (120, 96) and sizes == [(8, 10)] * 3 + [(12, 15)] * 2
    assert difference(picture, sd.txt2img("a", steps=3, size=(80, 64), hires=replace(hires, strength=0.75))[0]) > 0


def test_a_second_walk_of_no_steps_only_enlarges(sd: StableDiffusion) -> None:
    last: list[Tensor] = []
    (picture,) = sd.txt2img("a", steps=2, hires=Hires(2, 0), on_step=lambda x, s: last.append(x) or x)
    with torch.inference_mode():
        large = F.interpolate(last[-1], scale_factor=2.0, mode="bilinear")
        (expected,) = images.to_images(sd.vae.decode(large / sd.cfg.latent_scale))
    assert difference(picture, expected) <= 1


# ---------------------------------------------------------------- a picture and its batch
WAYS = {
    "img2img": (4, lambda sd, **more: sd.img2img("a", PICTURE, 0.6, **more)),
    "inpaint": (4, lambda sd, **more: sd.inpaint("a", PICTURE, MASK, **more)),
    "inpaint, 9 channels": (9, lambda sd, **more: sd.inpaint("a", PICTURE, MASK, 0.8, **more)),
    "edit": (8, lambda sd, **more: sd.edit("a", PICTURE, **more)),
    "hires": (4, lambda sd, **more: sd.txt2img("a", hires=Hires(1.5, 0.7), **more)),
    "hires in pixels": (4, lambda sd, **more: sd.txt2img("a", hires=Hires(1.5, 0.7, None, "lanczos"), **more)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_picture_does_not_depend_on_its_batch(make: Callable[..., StableDiffusion], way: str) -> None:
    channels, draw = WAYS[way]
    sd = make(channels)

    def drawn(batch: int, seed: int = 7) -> list[Image.Image]:
        return draw(sd, steps=3, sampler="euler a", seed=seed, count=3, batch=batch)

    together = drawn(3)
    assert len({images.fingerprint(image) for image in together}) == 3
    for batch in (1, 2):
        assert max(map(difference, together, drawn(batch))) <= 1
    shifted = drawn(3, seed=8)                    # the same pictures one place further to the front
    assert max(map(difference, together[1:], shifted)) == 0


def test_what_a_picture_says_draws_it_again(sd: StableDiffusion) -> None:
    album = images.album(PICTURE, MASK)
    drawing = replace(sd.drawing("a", steps=4, size=(64, 72), seed=9), guide=Guide((1, 0.5), (0.1, 90.0), 0.3, 0.99),
                      start=Start(images.fingerprint(PICTURE), 0.75), mask=Mask(images.fingerprint(MASK), 2, 10))
    (first,) = sd.draw([drawing], pictures=album)
    drawn = metadata.Drawn(drawing, "tiny", "0" * 64, "cpu", "float32", 1, "0.1.0")
    read = schema.read(metadata.Drawn, json.loads(json.dumps(asdict(drawn))), "here").drawing
    assert read == drawing and difference(sd.draw([read], pictures=album)[0], first) == 0
    for left in (images.album(PICTURE), images.album(MASK), {}):
        with pytest.raises(MinisdError, match="not given"):
            sd.draw([read], pictures=left)


def test_drawings_of_other_pictures_are_not_drawn_together(sd: StableDiffusion) -> None:
    one = replace(sd.drawing("a", size=PICTURE.size), start=Start("0" * 64, 0.5))
    others = [replace(one, start=Start("1" * 64, 0.5)), replace(one, start=Start("0" * 64, 0.6)),
              replace(one, hires=Hires(), start=None), replace(one, guide=Guide(rescale=0.5))]
    assert [len(group) for group in sd.batches([one, replace(one, seed=1), *others], 8)] == [2, 1, 1, 1, 1]


def test_a_sampler_that_chooses_its_steps_draws_each_picture_alone(sd: StableDiffusion) -> None:
    drawings = [sd.drawing("a", sampler="dpm adaptive", seed=seed) for seed in range(3)]
    assert [len(group) for group in sd.batches(drawings, 4)] == [1, 1, 1]


@pytest.mark.parametrize(("sampler", "fresh"), [("ddim", Fresh(0.8)), ("heun", Fresh(churn=3.0))])
def test_fresh_noise_counts_and_belongs_to_the_picture(sd: StableDiffusion, sampler: str, fresh: Fresh) -> None:
    plain = [sd.drawing("a", steps=4, sampler=sampler, seed=seed) for seed in (1, 2)]
    noisy = [replace(one, fresh=fresh) for one in plain]
    both = sd.draw(noisy)
    assert difference(both[0], sd.draw(plain)[0]) > 0
    assert difference(both[1], sd.draw(noisy[1:])[0]) <= 1


def test_brownian_steps_walk_down_one_path(sd: StableDiffusion) -> None:
    """Few steps of an SDE sampler come nearer to many of the same seed than to many of another."""
    few, many, other = (sd.txt2img("a", steps=steps, sampler="dpm++2m sde karras", cfg=1, seed=seed)[0]
                        for steps, seed in ((12, 1), (24, 1), (24, 2)))
    apart = [np.abs(pixels(few) - pixels(one)).mean() for one in (many, other)]
    assert apart[0] < apart[1] / 2


def test_an_encoder_that_overflows_is_done_again_in_float32(make: Callable[..., StableDiffusion],
                                                            caplog: pytest.LogCaptureFixture) -> None:
    full, half = make(4), make(4, "float16")
    for sd in (full, half):                       # the next layer is a GroupNorm, which takes the factor out again
        sd.vae.encoder.mid.res[0].conv1.weight.data *= 300_000
    with caplog.at_level(logging.WARNING):
        (saved,) = half.img2img("a", PICTURE, 0.0, steps=1)
    assert "the VAE overflowed in float16: encoding again in float32" in caplog.messages
    (expected,) = full.img2img("a", PICTURE, 0.0, steps=1)
    assert np.abs(pixels(saved) - pixels(expected)).mean() < 2
