"""CLIP's task: the contrastive loss in closed form, its measures, its export."""

import math

import pytest
import torch

from minisd import store
from minisd.clip import TextStates
from minisd.train.config import CLIPTask, DataConfig
from minisd.train.data import Pictures
from minisd.train.draws import Draws
from minisd.train.tasks.clip import TrainCLIP


@pytest.fixture
def task(recipe, pictures, tmp_path):
    held_out = Pictures(pictures, DataConfig(size=64, plain_captions=1.0), 0)
    return TrainCLIP(recipe.model, CLIPTask(), tmp_path / "model", held_out, 0)


@pytest.fixture
def batch(pictures):
    return Pictures(pictures, DataConfig(size=64), 0).batch([0, 1, 2, 3])


def test_the_loss_is_the_papers(task, batch):
    """Figure 3 of the paper: symmetric cross-entropy over scaled cosines."""
    terms = task.loss(batch, Draws(0, []), 0)
    with torch.no_grad():
        a, b = task.towers.vision(batch.pixels), task.towers.text(task.ids(batch.captions)).pooled
        cosines = torch.tensor([[torch.cosine_similarity(p, c, dim=0) for c in b] for p in a])
        scaled = cosines / 0.07
    for name, logits in (("pictures", scaled), ("captions", scaled.T)):
        expected = (logits.logsumexp(dim=1) - logits.diagonal()).mean() / 2
        assert terms[name].item() == pytest.approx(expected.item(), rel=1e-4)


def test_chance_costs_the_logarithm_of_the_batch(task, batch):
    with torch.no_grad():
        task.towers.text.projection.weight.zero_()
    terms = task.loss(batch, Draws(0, []), 0)
    assert sum(terms.values()).item() == pytest.approx(math.log(4), rel=1e-5)


def test_the_scale_is_learnt_up_to_100(task, batch):
    with torch.no_grad():
        task.towers.log_scale.fill_(50.0)
        logits = task.towers(batch.pixels, task.ids(batch.captions))
    assert logits.abs().max() <= 100.001


def test_measures_rank_each_caption_among_all(task, tmp_path, monkeypatch):
    code = torch.eye(len(task.held_out.rows))
    monkeypatch.setattr(task.towers.vision, "forward", lambda pixels: code)
    monkeypatch.setattr(task.towers.text, "forward", lambda ids: TextStates(code, code[[0, 1, 2, 3, 5, 4]]))
    assert task.preview(tmp_path, 0) == pytest.approx({"top1": 4 / 6, "top5": 1.0, "of": 6.0})


def test_both_towers_are_exported(task, recipe, tmp_path):
    task.export(tmp_path / "out")
    _, parts = store.load_modules(tmp_path / "out", ["text", "vision"])
    expected = task.towers.vision.patch.weight.detach().half().float()
    assert torch.equal(parts["vision"].patch.weight, expected)


def test_captions_beyond_the_window_are_cut(task):
    assert task.ids(["word " * 100]).shape == (1, 24)
