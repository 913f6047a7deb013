"""Previews: the map is the best linear one, shows what the VAE would, and looking changes no picture."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny_model
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from minisd import store
from minisd.config import VAEConfig
from minisd.drawing.preview import SD1, factors_of, fitted, preview, previews
from minisd.images import to_tensor
from minisd.pipeline import StableDiffusion
from minisd.samplers.loop import Interval
from minisd.vae import VAE, Posterior


class Mixer(VAE):
    """A VAE whose latents are a known mixture of the mean colours of its patches."""

    def __init__(self, mixture: Tensor):
        super().__init__(VAEConfig(widths=(8, 8, 8), layers=1, groups=4, latent_channels=5))
        self.mixture = mixture

    def encode(self, x: Tensor) -> Posterior:
        mean = F.conv2d(F.avg_pool2d(x, self.cfg.factor), self.mixture[:, :, None, None]) + 0.25
        return Posterior(mean, torch.zeros_like(mean))


def test_a_linear_vae_is_inverted_exactly() -> None:
    g = torch.Generator().manual_seed(1)
    vae, colours = Mixer(torch.randn(5, 3, generator=g)), torch.rand(2, 3, 6, 9, generator=g) * 2 - 1
    latents = vae.encode(F.interpolate(colours, scale_factor=4)).mean * 0.7
    for shown, meant in zip(preview(latents, fitted(vae, 0.7)), colours, strict=True):
        assert shown.size == (9, 6) and (to_tensor(shown) - meant).abs().max() < 2 / 255


def test_the_map_is_the_same_each_time() -> None:
    vae = Mixer(torch.eye(5, 3))
    torch.testing.assert_close(factors_of(vae, 0.7), factors_of(vae, 0.7), rtol=0, atol=1e-6)
    assert factors_of(vae, 0.7).shape == (6, 3)


def test_sd1_has_known_factors_and_others_have_not() -> None:
    with torch.device("meta"):
        vae = VAE(VAEConfig())
    assert torch.equal(factors_of(vae, 0.18215), torch.tensor(SD1))
    grey, white = torch.zeros(1, 4, 1, 2), torch.tensor([1.0, 1.0, 0.0, -1.0]).view(1, 4, 1, 1)
    assert preview(grey, torch.tensor(SD1))[0].getpixel((0, 0)) == (128, 128, 128)
    shown = preview(white, torch.tensor(SD1))[0].getpixel((0, 0))
    assert shown == tuple(round((sum(column) + 1) * 127.5) for column in ((0.298, 0.187, 0.184), (0.207, 0.286, 0.271),
                                                                          (0.208, 0.173, 0.473)))


@pytest.fixture(scope="module")
def embedded() -> tuple[VAE, float]:
    cfg, modules = store.load_modules(store.embedded("emoji"), ["vae"])
    return modules["vae"], cfg.latent_scale


def scene() -> Image.Image:
    """Shapes on white, which the fitted picture, of blocks, is not."""
    image = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 30, 90, 100), "crimson")
    draw.polygon([(70, 10), (120, 60), (90, 80)], "forestgreen")
    draw.rectangle((60, 80, 110, 115), "navy")
    draw.ellipse((85, 15, 125, 40), "gold")
    return image


@pytest.mark.parametrize("turned", [Image.Transpose.ROTATE_90, Image.Transpose.FLIP_LEFT_RIGHT])
def test_a_preview_is_like_the_decoded_picture(embedded: tuple[VAE, float], turned: Image.Transpose) -> None:
    vae, scale = embedded
    with torch.inference_mode():
        latents = vae.encode(to_tensor(scene().transpose(turned))[None]).mean
        decoded = F.avg_pool2d(vae.decode(latents), vae.cfg.factor).clamp(-1, 1)
    shown = to_tensor(preview(latents * scale, factors_of(vae, scale))[0])
    for channel in range(3):
        assert np.corrcoef(shown[channel].flatten(), decoded[0, channel].flatten())[0, 1] > 0.85


def test_a_fresh_vae_in_half_precision_has_a_map_too() -> None:
    vae = tiny_model.modules()["vae"].to(torch.bfloat16)
    assert fitted(vae, 0.5).isfinite().all() and fitted(vae, 0.5).dtype == torch.float32


def test_what_is_not_finite_is_black() -> None:
    latents = torch.zeros(1, 4, 1, 2)
    latents[..., 1] = float("nan")
    shown = preview(latents, torch.tensor(SD1))[0]
    assert [shown.getpixel((n, 0)) for n in range(2)] == [(128, 128, 128), (0, 0, 0)]


# ---------------------------------------------------------------- on the way
@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    return store.load(tiny_model.folder(tmp_path_factory.mktemp("preview")), "cpu", "float32")


@pytest.mark.parametrize("sampler", ["euler a", "dpm++2m karras", "pndm"])
def test_looking_changes_no_picture(sd: StableDiffusion, sampler: str) -> None:
    seen: list[tuple[int, list[Image.Image]]] = []
    look = previews(2, factors_of(sd.vae, sd.cfg.latent_scale), lambda pictures, s: seen.append((s.index, pictures)))
    options = {"steps": 5, "sampler": sampler, "count": 2, "seed": 3}
    unseen, drawn = sd.txt2img("apple", **options), sd.txt2img("apple", on_step=look, **options)
    assert [one.tobytes() for one in unseen] == [one.tobytes() for one in drawn]
    assert [index for index, _ in seen] == [1, 3]
    assert all(picture.size == (8, 8) for _, pictures in seen for picture in pictures) and len(seen[0][1]) == 2


def test_the_last_preview_is_of_the_clean_picture(sd: StableDiffusion) -> None:
    """Euler's last step goes to the x0 that it is shown."""
    factors, seen, last = factors_of(sd.vae, sd.cfg.latent_scale), [], []

    def both(x: Tensor, s: Interval) -> Tensor:
        last[:] = [x]
        return previews(1, factors, lambda pictures, s: seen.append(pictures))(x, s)

    sd.txt2img("apple", steps=4, sampler="euler", on_step=both)
    assert len(seen) == 4
    assert seen[-1][0].tobytes() == preview(last[0], factors)[0].tobytes() != seen[0][0].tobytes()


def test_steps_are_counted_from_where_the_walk_begins() -> None:
    seen: list[int] = []
    look = previews(2, torch.zeros(5, 3), lambda pictures, s: seen.append(s.index))
    for index in range(3, 8):
        look(torch.zeros(1), SimpleNamespace(index=index, first=3, past=[SimpleNamespace(x0=torch.zeros(1, 4, 1, 1))]))
    assert seen == [4, 6]
