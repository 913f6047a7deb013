"""Latents that the teacher draws for captions: the pipeline's own, drawn once, in the order of the sample numbers."""

import pytest
import torch
from tiny_model import MODEL, modules

from minisd.pipeline import StableDiffusion
from minisd.train.config import Preview
from minisd.train.imagined import Imagined

CAPTIONS = ["a red square", "a blue disc", "green"]
MANNER = Preview(steps=2, guidance=2.0, sampler="euler a", seed=5)


@pytest.fixture(scope="module")
def sd():
    made = modules()
    return StableDiffusion(MODEL, made["unet"], made["vae"], (made["text"],))


@pytest.fixture
def imagined(sd, tmp_path):
    return lambda manner=MANNER, seed=1: Imagined(CAPTIONS, sd, manner, seed, tmp_path / "cache")


def test_the_latents_are_the_pipelines(sd, imagined):
    made = imagined()
    batch, last = made.batch([0, 1, 2]), []
    places = [CAPTIONS.index(caption) for caption in batch.captions]
    drawings = [sd.drawing(CAPTIONS[place], "", 2, 2.0, "euler a", 5 + place) for place in places]
    sd.draw(drawings, lambda x, _: last.append(x) or x)
    assert torch.equal(batch.latents.sample(torch.zeros(3, 4, 8, 8)) * MODEL.latent_scale,
                       last[-1] / MODEL.latent_scale * MODEL.latent_scale)
    noise = torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(batch.latents.sample(noise), batch.latents.mean, rtol=0, atol=1e-10)


def test_each_epoch_has_every_caption_once_in_an_order_of_its_own(imagined):
    made = imagined()
    orders = [[made.order(n) for n in range(3 * epoch, 3 * epoch + 3)] for epoch in range(8)]
    assert all(sorted(order) == [0, 1, 2] for order in orders) and len(set(map(tuple, orders))) > 1
    assert orders == [[imagined().order(n) for n in range(3 * epoch, 3 * epoch + 3)] for epoch in range(8)]


def test_each_is_drawn_once_and_anew_for_another_manner(imagined, monkeypatch):
    first = imagined().batch([0, 1, 2]).latents.mean
    with monkeypatch.context() as patch:
        patch.setattr(Imagined, "draw", lambda *_: pytest.fail("it was drawn before"))
        assert torch.equal(imagined().batch([0, 1, 2]).latents.mean, first)
    other = imagined(Preview(steps=3, guidance=2.0, sampler="euler a", seed=5)).batch([0, 1, 2]).latents.mean
    assert not torch.equal(other, first)


def test_the_first_epochs_neighbours_are_drawn_at_once_whoever_is_asked_for(imagined, monkeypatch, tmp_path):
    monkeypatch.setattr("minisd.train.imagined.TOGETHER", 2)
    asked, inner = [], Imagined.draw
    monkeypatch.setattr(Imagined, "draw", lambda self, group: asked.append(group) or inner(self, group))
    made = imagined()
    order = [made.order(n) for n in range(3)]
    whole = made.batch([0, 1, 2]).latents.mean
    assert asked == [order[:2], order[2:]]
    lost = made.latents.path(made.content(order[0]))
    lost.unlink()
    assert torch.equal(imagined().batch([1, 0]).latents.mean, whole[[1, 0]])
    assert asked[2:] == [order[:2]] and lost.is_file()
