"""The measures on features and networks whose answers are known."""

from pathlib import Path
from typing import cast

import pytest
import torch

from minisd.evaluate import exam, measures
from minisd.evaluate.clip_score import load_judge
from minisd.store import load_modules
from minisd.vae import VAE


def judged(pictures: torch.Tensor) -> measures.Judged:
    """Four pictures beside four captions, each along an axis of its own."""
    return measures.Judged(pictures, torch.eye(4).expand(4, 4, 4), torch.arange(4))


def test_perfect_pictures_are_always_retrieved_and_others_are_not():
    held_out = torch.tensor([True, True, False, False])
    wrong = torch.eye(4)[[0, 1, 3, 2]]            # the last two are drawn as each other
    found = measures.fit_to_words(judged(wrong), judged(torch.eye(4)), held_out)
    figures = {(one.measure, one.what): one for one in found}
    top = {what: one.value for (measure, what), one in figures.items() if measure == "retrieval top-1 of 4"}
    assert top == {measures.DRAWN: 0.5, measures.UNSEEN: 1.0, measures.SEEN: 0.0, measures.REAL: 1.0,
                   measures.TRAINED: 1.0}
    assert figures["CLIP score", measures.UNSEEN].value == 2.5
    assert figures["CLIP cosine", measures.SEEN].value == 0.0
    assert {one.pictures for one in figures.values()} == {2, 4}
    assert judged(wrong).best == [0, 1, 3, 2]


def test_groups_without_pictures_are_left_out():
    figures = list(measures.fit_to_words(judged(torch.eye(4)), judged(torch.eye(4)), torch.ones(4, dtype=torch.bool)))
    assert measures.SEEN not in {one.what for one in figures}


def test_reconstruction_measures_what_comes_back(model: Path, data: Path):
    vae = cast(VAE, load_modules(model, ("vae",))[1]["vae"])
    pictures = exam.pixels(exam.choose(data, (), 8).unseen, 64)
    noise, likeness = measures.reconstruction(vae, pictures)
    with torch.no_grad():
        out = vae.decode(vae.encode(pictures).mean).clamp(-1, 1)
    each = -10 * ((out - pictures) / 2).square().mean(dim=(1, 2, 3)).log10()
    assert noise.value == pytest.approx(each.mean().item(), abs=1e-3)
    assert noise.pictures == likeness.pictures == len(pictures) == 5
    assert -1 <= likeness.value < 1


def test_distances_are_zero_for_the_same_pictures():
    g = torch.Generator().manual_seed(0)
    held_out = torch.randn(30, 8, generator=g)
    drawn, trained = measures.distances(held_out, held_out + 1, held_out)
    assert (drawn.value, drawn.pictures) == (pytest.approx(0, abs=1e-10), 30)
    assert trained.value == pytest.approx(8, rel=1e-6)


def test_a_picture_is_judged_among_captions_in_its_own_style(model: Path, data: Path):
    asked, judge = exam.choose(data, (), 6), load_judge(model)
    seen = measures.view(judge, asked, exam.pixels((question.real for question in asked.questions), 64))
    assert seen.captions.shape == (6, 6, 16)
    for n, question in enumerate(asked.questions):
        words = judge.captions([f"{other.concept}, {question.real.style}" for other in asked.questions])
        assert torch.allclose(seen.captions[n], words, atol=1e-6)
