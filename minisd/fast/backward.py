"""Attention over a large picture that is trained, some queries at a time, by oneDNN's products.

Nothing of the size of the scores is kept for the way back: they are computed again from queries, keys and what stands
for each query's largest (Dao et al., FlashAttention, arXiv 2205.14135, appendix B.2; whose CPU kernel in PyTorch
multiplies by MKL). Powers are of 2. With P the weights, O the output and dO its gradient,

    dV = P^T dO,   dS = P (dO V^T - D),   D = sum of dO O over a query's numbers,   dQ = dS K,   dK = dS^T Q,

where scores are scaled by 1 / sqrt(d). What is subtracted from scores and from dO V^T takes part in the products as one
more column beside queries and dO, and a column of ones beside keys and values: it is summed before anything is rounded.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minisd.fast.attention import LARGE, Across, at_once, exponents, scaled, summands, tops
from minisd.fast.onednn import computes, packed, product, trained_in
from minisd.layers import Attention


class LearningAttention(Attention):
    """The same projections."""

    def forward(self, x: Tensor, context: Tensor, causal: bool = False) -> Tensor:  # [b, n, dim], [b, m, context_dim]
        if causal or x.shape[1] * context.shape[1] < LARGE or not computes(trained_in(x)):
            return super().forward(x, context, causal)
        return self.out(cast(Tensor, Attended.apply(self.q(x), self.k(context), self.v(context), self.heads)))


class Attended(torch.autograd.Function):
    """The values that the queries find, with gradients: [b, n, dim], [b, m, dim], [b, m, dim] -> [b, n, dim]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        y, kept = torch.empty_like(q), q.new_empty(len(q), heads, q.shape[1], 2, dtype=torch.float32)
        ctx.heads = heads
        ctx.save_for_backward(q, k, v, y, kept)
        for *head, y1, kept1 in zip(*(each(x, heads) for x in (q, k, v, y)), kept.flatten(0, 1), strict=True):
            answer(Head(*head), y1, kept1)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # [b, n, dim]
        q, k, v, y, kept = ctx.saved_tensors
        found = [torch.empty_like(x) for x in (q, k, v)]
        parts = (each(x, ctx.heads) for x in (q, k, v, y, grad, *found))
        for (*head, y1, grad1, dq, dk, dv), kept1 in zip(zip(*parts, strict=True), kept.flatten(0, 1), strict=True):
            go_back(Head(*head), y1, grad1, kept1, Head(dq, dk, dv))
        return *found, None


class Head(NamedTuple):
    """Queries [n, d], keys and values [m, d] of one head, or their gradients."""

    q: Tensor
    k: Tensor
    v: Tensor


def each(x: Tensor, heads: int) -> Iterator[Tensor]:
    """Views of the heads, sample by sample: [b, n, heads * d] -> b * heads times [n, d]."""
    return (x[b, :, h] for x in [x.unflatten(2, (heads, -1))] for b in range(len(x)) for h in range(heads))


def answer(head: Head, y: Tensor, kept: Tensor) -> None:
    """One head's output [n, d], and what is kept for the way back [n, 2], written into these: about each query's
    largest score, and the sum of its weights beside that one's."""
    q, k, v = head
    rows = at_once(len(q), len(k))
    wide = scaled(q)
    kept[:, :1] = tops(wide, k, rows)
    queries, keys = exponents(wide, k, kept[:, :1], rows)
    values = packed(v.t(), rows)
    for part, out, sums in zip(queries.split(rows), y.split(rows), kept[:, 1:].split(rows), strict=True):
        weights = keys(part).exp2_()              # [rows, m]
        sums.copy_(weights.sum(dim=1, keepdim=True, dtype=torch.float32))
        torch.div(product(weights, values), sums, out=out)


def go_back(head: Head, y: Tensor, grad: Tensor, kept: Tensor, found: Head) -> None:
    """One head's gradients, written into `found`, from its output's [n, d].

    Weights are left as they are, and what they are multiplied by is divided by their sum; the scale of the scores is in
    it as well, and so in dS already. dV alone must do without it.
    """
    q, k, v = head
    rows, scale = at_once(len(q), len(k)), q.shape[1] ** -0.5
    queries, keys = exponents(scaled(q), k, kept[:, :1], rows)
    grads = (grad.float() * (scale / kept[:, 1:])).to(q.dtype)
    less = summands(-(grads.float() * y.float()).sum(dim=1, keepdim=True), q.dtype)
    wide = torch.cat([grads, *less], dim=1)
    values = Across(torch.cat([v, v.new_ones(len(v), len(less))], dim=1), rows)
    back = packed(k.t(), rows)
    dk, dv = (torch.zeros(x.shape[::-1]) for x in (k, v))
    for n in range(0, len(q), rows):
        piece = slice(n, n + rows)
        weights = keys(queries[piece]).exp2_()    # [rows, m]
        dscores = values(wide[piece]).mul_(weights)
        found.q[piece] = product(dscores, back)
        dk += product(q[piece].t(), dscores.t())
        dv += product(grads[piece].t(), weights.t())
    found.k.copy_(dk.t())
    found.v.copy_(dv.t() / scale)
