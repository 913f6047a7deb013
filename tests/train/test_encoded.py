"""Latents and text states from the cache are those of direct encoding, whoever asks first and in whatever order."""

import pytest
import torch
from PIL import Image

from minisd.fast import passes
from minisd.text import tokenizer_of
from minisd.train.config import DataConfig
from minisd.train.data import Pictures
from minisd.train.encoded import Encoded
from minisd.train.tasks import model

CFG = DataConfig(size=64)


@pytest.fixture(scope="module")
def vae(recipe):
    return model.new(recipe.model, "vae", 0)


@pytest.fixture(scope="module")
def text(recipe):
    return model.new(recipe.model, "text", 0)


@torch.no_grad()
def direct(batch, numbers, pictures, vae, text):
    """What the batch should hold, encoded one by one without any cache."""
    pixels = Pictures(pictures, CFG, 3).batch(numbers).pixels
    tokenizer = tokenizer_of(text.cfg)
    states = [text(torch.tensor([tokenizer.encode(caption)])) for caption in batch.captions]
    return [vae.encode(one[None]) for one in pixels], states


def check(batch, numbers, pictures, vae, text):
    posteriors, states = direct(batch, numbers, pictures, vae, text)
    assert torch.equal(batch.latents.mean, torch.cat([p.mean for p in posteriors]))
    assert torch.equal(batch.latents.logvar, torch.cat([p.logvar for p in posteriors]))
    assert torch.equal(batch.states.hidden, torch.cat([s.hidden for s in states]))
    assert torch.equal(batch.states.pooled, torch.cat([s.pooled for s in states]))


def test_the_same_as_direct_encoding_at_first_from_memory_and_from_disk(pictures, vae, text, tmp_path):
    numbers = [3, 11, 0, 3]
    encoded = Encoded(Pictures(pictures, CFG, 3), vae, text, tmp_path)
    for source in (encoded, encoded, Encoded(Pictures(pictures, CFG, 3), vae, text, tmp_path)):
        check(source.batch(numbers), numbers, pictures, vae, text)


def test_autocast_around_the_first_reader_changes_nothing(pictures, vae, text, tmp_path):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = Encoded(Pictures(pictures, CFG, 3), vae, text, tmp_path).batch([1, 2])
    assert not batch.latents.mean.requires_grad and not batch.states.hidden.requires_grad
    check(batch, [1, 2], pictures, vae, text)


def test_an_encoder_that_draws_meanwhile_gives_the_same_bits(pictures, vae, text, tmp_path):
    try:
        batch = Encoded(Pictures(pictures, CFG, 3), vae, passes.quicken(text), tmp_path).batch([1, 2])
    finally:
        passes.plain(text)
    assert not batch.states.hidden.requires_grad
    check(batch, [1, 2], pictures, vae, text)


def test_samples_and_captions_are_those_of_the_pictures(pictures, vae, text, tmp_path):
    batch, plain = (source.batch([5, 6, 7]) for source in (Encoded(Pictures(pictures, CFG, 3), vae, text, tmp_path),
                                                           Pictures(pictures, CFG, 3)))
    assert batch.captions == plain.captions and batch.rows == plain.rows and batch.pixels is None


def test_without_a_text_encoder_there_are_no_states(pictures, vae, tmp_path):
    assert Encoded(Pictures(pictures, CFG, 3), vae, None, tmp_path).batch([0]).states is None


def test_an_edited_picture_is_encoded_anew(vae, tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "red").save(path)
    first = Encoded(Pictures(tmp_path, CFG, 0), vae, None, tmp_path / "cache").batch([0])
    Image.new("RGB", (64, 64), "blue").save(path)
    second = Encoded(Pictures(tmp_path, CFG, 0), vae, None, tmp_path / "cache").batch([0])
    assert not torch.equal(first.latents.mean, second.latents.mean)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
def test_a_broken_picture_takes_its_caption_along(recipe, vae, tmp_path, order):
    for n in range(3):
        Image.new("RGB", (64, 64), (100 * n, 0, 0)).save(tmp_path / f"{n}.png")
        (tmp_path / f"{n}.txt").write_text(f"number {n}")
    (tmp_path / "1.png").write_bytes(b"broken")
    source = Encoded(Pictures(tmp_path, CFG, 0), vae, None, tmp_path / "cache")
    batches = {n: source.batch([n]) for n in order}
    latents = {row.captions[0]: batches[n].latents.mean for n in order for row in batches[n].rows}
    assert set(latents) == {"number 0", "number 2"}
    for n in order:
        assert batches[n].captions == [batches[n].rows[0].captions[0]]
        assert torch.equal(batches[n].latents.mean, latents[batches[n].captions[0]])
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2      # none under the broken picture's name


def test_the_cache_is_the_encoders(recipe, pictures, vae, tmp_path):
    Encoded(Pictures(pictures, CFG, 3), vae, None, tmp_path).batch([0])
    other = model.new(recipe.model, "vae", 1)
    batch = Encoded(Pictures(pictures, CFG, 3), other, None, tmp_path).batch([0])
    with torch.no_grad():
        expected = other.encode(Pictures(pictures, CFG, 3).batch([0]).pixels).mean
    assert torch.equal(batch.latents.mean, expected)
