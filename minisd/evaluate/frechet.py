"""The distance between two sets of pictures as that of two Gaussians fitted to their features (Heusel et al. 2017,
arXiv 1706.08500, eq. 6). FID is this on Inception-v3's features; on others it is another measure with other numbers."""

from typing import NamedTuple

import torch
from torch import Tensor

from minisd.errors import NUMERICAL, MinisdError


class Gaussian(NamedTuple):
    """Mean [d] and covariance [d, d], in float64."""

    mean: Tensor
    covariance: Tensor


def fitted(features: Tensor) -> Gaussian:
    """The Gaussian of features [n, d], n at least 2; the covariance is the unbiased one."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features {list(features.shape)}: give [n, d] with n at least 2")
    if not features.isfinite().all():
        raise MinisdError("features are not finite", "Fréchet distance", "some are NaN or infinite",
                          "look at the pictures and the model that made the features", NUMERICAL)
    x = features.to("cpu", torch.float64)
    return Gaussian(x.mean(dim=0), torch.cov(x.T).reshape(x.shape[1], x.shape[1]))


def root(covariance: Tensor) -> Tensor:
    """The symmetric square root [d, d]. Eigenvalues below the rounding error of the largest are zero: their roots
    would be eight digits larger than they are, and with fewer pictures than features most of them are such."""
    values, vectors = torch.linalg.eigh(covariance)
    rounding = torch.finfo(values.dtype).eps * len(values) * values[-1].clamp(min=0)
    return (vectors * torch.where(values > rounding, values, 0).sqrt()) @ vectors.T


def distance(p: Gaussian, q: Gaussian) -> float:
    """||mean_p - mean_q||^2 + Tr(C_p + C_q - 2 (C_p C_q)^(1/2)).

    C_p C_q is not symmetric, but has the eigenvalues of R R^T for R = C_p^(1/2) C_q^(1/2), so that the trace of its
    root is the sum of R's singular values: nothing but symmetric decompositions, also where C_p or C_q is singular.
    """
    cross = torch.linalg.svdvals(root(p.covariance) @ root(q.covariance)).sum()
    spread = p.covariance.trace() + q.covariance.trace() - 2 * cross
    return ((p.mean - q.mean).square().sum() + spread).clamp(min=0).item()


def frechet(p: Tensor, q: Tensor) -> float:
    """Of two sets of features [n, d] and [m, d]. It is biased upwards where n or m is small beside d, so compare only
    distances between sets of the same sizes."""
    return distance(fitted(p), fitted(q))
