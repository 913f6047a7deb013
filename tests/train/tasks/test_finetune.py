"""The denoising task: its error in closed form, empty captions, offset noise, and the sheet of sample pictures."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageChops

from minisd.errors import USAGE, MinisdError
from minisd.pipeline import StableDiffusion
from minisd.train.config import DataConfig, FinetuneTask, Preview
from minisd.train.data import Pictures
from minisd.train.draws import Draws
from minisd.train.encoded import Encoded
from minisd.train.tasks import finetune as module
from minisd.train.tasks import model
from minisd.train.tasks.finetune import Finetune

NUMBERS = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory):
    """A model folder with random parts."""
    path = tmp_path_factory.mktemp("parts") / "model"
    model.put(path, recipe.model, {name: model.new(recipe.model, name, 0) for name in ("vae", "text", "unet")})
    with torch.no_grad():
        unet = model.take(path, "unet")
        for p in unet.parameters():                # a new one would say nothing
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    model.put(path, recipe.model, {"unet": unet})
    return path


@pytest.fixture
def task(recipe, pictures, folder, tmp_path):
    def make(shown=recipe.preview, cfg=recipe.model, **options):
        options = FinetuneTask(**options)
        text = None if options.train_text else model.take_text(folder)
        data, held_out = (Encoded(Pictures(pictures, DataConfig(size=64), 3, split), model.take_vae(folder), text,
                                  tmp_path / "cache") for split in ("train", "holdout"))
        return Finetune(cfg, options, folder, data, held_out, shown, 3)
    return make


def loss(task, step=0):
    return task.loss(task.data.batch(NUMBERS), Draws(3, NUMBERS), step)["denoise"]


def test_the_loss_is_the_mean_squared_error_of_v(task, recipe):
    """Noise and timesteps from the draws in their order, written out once more."""
    made = task(empty_captions=0.0)
    batch, draws, cfg = made.data.batch(NUMBERS), Draws(3, NUMBERS), recipe.model
    x0 = cfg.latent_scale * (batch.latents.mean + (batch.latents.logvar / 2).exp() * draws.normal(4, 8, 8))
    noise, t = draws.normal(4, 8, 8), (1000 * draws.uniform()).long()
    alpha_bar = torch.tensor(cfg.noise.alphas_cumprod)[t][:, None, None, None]
    x, v = (alpha_bar.sqrt() * a + s * (1 - alpha_bar).sqrt() * b for a, b, s in ((x0, noise, 1), (noise, x0, -1)))
    out = made.unet(x.float(), t, batch.states.hidden, batch.states.pooled)
    assert loss(made).item() == pytest.approx(((out - v) ** 2).mean().item(), rel=1e-4)


def test_words_from_the_cache_and_words_that_are_trained_give_the_same_loss(task):
    assert loss(task()).item() == pytest.approx(loss(task(train_text=True)).item(), rel=1e-5)


def test_empty_captions_have_their_probability_and_their_states(task):
    made = task(empty_captions=1.0)
    batch, empty = made.data.batch(NUMBERS), made.denoising.empty
    all_dropped = made.denoising.states(batch, torch.tensor([True] * 4))
    assert all(torch.equal(hidden, empty.hidden) for hidden in all_dropped.hidden)
    mixed = made.denoising.states(batch, torch.tensor([True, False, True, False]))
    assert torch.equal(mixed.pooled[1], batch.states.pooled[1]) and torch.equal(mixed.pooled[2], empty.pooled)
    trained = task(train_text=True).denoising.states(batch, torch.tensor([True, False, True, False]))
    torch.testing.assert_close(trained.hidden, mixed.hidden, rtol=0, atol=1e-5)
    assert loss(task(empty_captions=0.0)) != loss(task(empty_captions=1.0))


def test_offset_noise_moves_whole_channels(task, monkeypatch):
    asked = []

    def question(self, x0, noise, t, inner=module.Objective.question):
        asked.append(noise)
        return inner(self, x0, noise, t)

    monkeypatch.setattr(module.Objective, "question", question)
    loss(task())
    loss(task(offset_noise=0.5))
    offset = asked[1] - asked[0]
    torch.testing.assert_close(offset, offset.mean(dim=(2, 3), keepdim=True).expand_as(offset), rtol=0, atol=1e-6)
    draws = Draws(3, NUMBERS)
    for _ in range(2):
        draws.normal(4, 8, 8)
    draws.uniform(), draws.uniform()
    torch.testing.assert_close(offset[:, :, :1, :1], 0.5 * draws.normal(4, 1, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("train_text", [False, True])
def test_only_what_is_trained_has_gradients(task, train_text):
    made = task(train_text=train_text)
    loss(made).backward()
    assert all(p.grad is not None for p in made.unet.parameters())
    assert any(p.grad is not None for p in made.text.parameters()) == train_text
    assert not any(p.requires_grad for p in made.data.vae.parameters())


def test_a_random_start_is_silent_and_another_is_the_models(task):
    made = task(start="random")
    assert (made.unet.conv_out.weight == 0).all() and (task().unet.conv_out.weight != 0).any()
    assert made.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_sheet_shows_the_recipes_prompts_as_the_pipeline_draws_them(task, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "pick_dtype", lambda name, device: torch.float32)
    made, shown = task(), recipe.preview
    measures = made.preview(tmp_path / "samples", 12)
    sheet = Image.open(tmp_path / "samples" / "0000012.png")
    pipe = StableDiffusion(recipe.model, made.unet, made.data.vae, (made.text,))
    for n, prompt in enumerate(shown.prompts):
        alone = pipe.txt2img(prompt, steps=shown.steps, cfg=shown.guidance, sampler=shown.sampler, seed=shown.seed)[0]
        part = sheet.crop((n * 68, 0, n * 68 + 64, 64))
        assert ImageChops.difference(alone, part).getextrema() <= ((0, 1),) * 3    # other batches round otherwise
    assert measures == {"held_out": made.measure()}


def test_the_sheet_in_bfloat16(task, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "pick_dtype", lambda name, device: torch.bfloat16)
    made = task()
    made.preview(tmp_path, 1)
    assert (tmp_path / "0000001.png").is_file()
    loss(made).backward()                          # what was drawn has left no inference tensors behind


def test_no_prompts_no_sheet(task, tmp_path):
    assert task(Preview()).preview(tmp_path / "samples", 1).keys() == {"held_out"}
    assert not (tmp_path / "samples").exists()


def test_several_text_encoders_are_refused(task, recipe):
    with pytest.raises(MinisdError, match="2 text encoders") as error:
        task(cfg=replace(recipe.model, text=recipe.model.text * 2))
    assert error.value.code == USAGE


def test_the_model_draws_as_the_previews_do_when_nobody_says(task, recipe, tmp_path):
    made = task(shown=replace(recipe.preview, steps=7, guidance=2.5, sampler="euler a"))
    made.export(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())["defaults"]
    assert told == {"steps": 7, "guidance": 2.5, "sampler": "euler a"}
