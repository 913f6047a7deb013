"""The Fréchet distance against its closed forms; scipy's matrix root is asked in tests/reference."""

import pytest
import torch

from minisd.errors import MinisdError
from minisd.evaluate.frechet import Gaussian, distance, fitted, frechet, root


def gaussian(seed: int, d: int = 6) -> Gaussian:
    g = torch.Generator().manual_seed(seed)
    mean, factor = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((d,), (d, d)))
    return Gaussian(mean, factor @ factor.T)


def test_one_dimension_is_the_difference_of_means_and_of_deviations():
    p, q = (Gaussian(torch.tensor([mean]).double(), torch.tensor([[deviation ** 2]]).double())
            for mean, deviation in ((1.0, 3.0), (-1.0, 0.5)))
    assert distance(p, q) == pytest.approx(2.0 ** 2 + 2.5 ** 2)


def test_covariances_that_commute():
    turn = torch.linalg.qr(gaussian(0).covariance).Q
    a, b = torch.arange(1.0, 7).double(), torch.arange(6.0, 0, -1).double() ** 2
    p, q = (Gaussian(torch.zeros(6).double(), turn @ torch.diag(v) @ turn.T) for v in (a, b))
    assert distance(p, q) == pytest.approx((a.sqrt() - b.sqrt()).square().sum().item(), rel=1e-12)


def test_a_scaled_and_shifted_gaussian():
    p = gaussian(1)
    q = Gaussian(p.mean + 2, 9 * p.covariance)
    assert distance(p, q) == pytest.approx(6 * 4 + 4 * p.covariance.trace().item(), rel=1e-12)


def test_it_is_symmetric_and_zero_only_between_equals():
    p, q = gaussian(2), gaussian(3)
    assert distance(p, q) == pytest.approx(distance(q, p), rel=1e-12)
    assert distance(p, q) > 1
    assert distance(p, p) < 1e-12


@pytest.mark.parametrize("n", [2, 10, 400])
def test_identical_sets_are_at_no_distance_even_where_covariances_are_singular(n: int):
    features = torch.randn(n, 64, generator=torch.Generator().manual_seed(n))
    assert frechet(features, features) < 1e-10
    assert frechet(features, features.flip(0)) < 1e-10


def test_features_that_lie_in_different_subspaces():
    """The root of the product is then zero: what is left are the means and the traces."""
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = torch.cat([x, 0 * x], dim=1), torch.cat([0 * x, 3 * x], dim=1)
    expected = (p.mean(0) - q.mean(0)).square().sum() + p.var(0).sum() + q.var(0).sum()
    assert frechet(p, q) == pytest.approx(expected.item(), rel=1e-10)


def test_many_draws_come_near_the_distance_of_their_gaussians():
    p, q = gaussian(4), gaussian(5)
    g = torch.Generator().manual_seed(6)
    noise = torch.randn(2, 50_000, 6, generator=g, dtype=torch.float64)
    sets = [one.mean + x @ root(one.covariance) for one, x in zip((p, q), noise, strict=True)]
    assert frechet(*sets) == pytest.approx(distance(p, q), rel=0.02)


def test_the_root_squared_is_the_covariance():
    covariance = gaussian(7).covariance
    assert (root(covariance) @ root(covariance) - covariance).abs().max() < 1e-12 * covariance.abs().max()


def test_features_that_are_not_finite_are_a_numerical_error():
    with pytest.raises(MinisdError, match="not finite") as caught:
        fitted(torch.tensor([[1.0, 2.0], [float("nan"), 0.0]]))
    assert caught.value.code == 5


@pytest.mark.parametrize("shape", [(1, 4), (4,)])
def test_one_picture_has_no_covariance(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="at least 2"):
        fitted(torch.zeros(shape))
