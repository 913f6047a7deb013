"""Whether a picture can be told from its words: the rank of its own caption among those of many concepts."""

import torch
from torch import Tensor

from minisd.errors import NUMERICAL, MinisdError


def ranks(pictures: Tensor, captions: Tensor, own: Tensor) -> Tensor:
    """How many other captions fit each picture at least as well as its own: 0 = retrieved first.

    pictures [n, d], captions [m, d] for all pictures or [n, m, d] for each; own [n], the place of its own -> [n].
    Equal captions count against the picture, so that features that have collapsed score nothing.
    """
    similarity = (captions @ pictures[..., None]).squeeze(-1)  # [m, d] or [n, m, d] with [n, d, 1] -> [n, m]
    if not similarity.isfinite().all():
        raise MinisdError("similarities are not finite", "retrieval", "some are NaN or infinite",
                          "look at the pictures and the towers", NUMERICAL)
    mine = similarity.gather(1, own[:, None].to(similarity.device))
    return ((similarity >= mine).sum(dim=1) - 1).cpu()


def within(ranks: Tensor, k: int) -> Tensor:
    """Whether the own caption is among the first k: [n] of 0 and 1."""
    return (ranks < k).to(torch.float64)
