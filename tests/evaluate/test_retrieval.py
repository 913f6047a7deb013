"""Ranks of the own caption, ties and collapsed features included."""

import pytest
import torch

from minisd.errors import MinisdError
from minisd.evaluate.retrieval import ranks, within


def test_ranks_count_the_captions_that_fit_better():
    captions = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    pictures = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = ranks(pictures, captions, torch.tensor([0, 1, 2, 2]))
    assert found.tolist() == [0, 1, 0, 2]
    assert within(found, 1).tolist() == [1, 0, 1, 0]
    assert within(found, 2).mean() == 0.75


def test_each_picture_may_have_captions_of_its_own():
    captions = torch.eye(3)
    each = torch.stack([captions, captions.flip(0)])
    assert ranks(captions[:2], each, torch.tensor([0, 1])).tolist() == [0, 0]
    assert ranks(captions[[0, 0]], each, torch.tensor([0, 2])).tolist() == [0, 0]
    assert ranks(captions[[0, 0]], each, torch.tensor([1, 0]))[0] > 0


def test_random_features_are_retrieved_by_chance():
    g = torch.Generator().manual_seed(0)
    pictures, captions = torch.randn(4000, 16, generator=g), torch.randn(50, 16, generator=g)
    found = ranks(pictures, captions, torch.arange(4000) % 50)
    assert within(found, 5).mean().item() == pytest.approx(0.1, abs=0.02)


def test_features_that_have_collapsed_score_nothing():
    same = torch.ones(6, 4)
    assert within(ranks(same, same, torch.arange(6)), 5).sum() == 0


def test_nan_is_an_error_and_not_a_hit():
    with pytest.raises(MinisdError, match="not finite"):
        ranks(torch.full((2, 4), float("nan")), torch.eye(4), torch.tensor([0, 1]))
